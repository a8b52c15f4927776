"""Kafka Connect standalone with the Debezium JDBC sink, driven through its REST interface."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from psycopg.conninfo import conninfo_to_dict

from benchmarks._stage import wait_until
from benchmarks.race import _workspace
from benchmarks.race._work import SCHEMA_FILE

__all__ = ["Connect"]

NAME = "race"
_WORKER = """\
{kafka}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=FixedSchemaConverter
value.converter.schema.file={schema}
offset.storage.file.filename={folder}/offsets
offset.flush.interval.ms=10000
listeners=http://127.0.0.1:{port}
plugin.path={plugins}
plugin.discovery=hybrid_warn
connector.client.config.override.policy=All
"""
_POSITIONED = (b"Resetting offset for partition", b"Setting offset for partition")


class Connect:
    """One Connect worker; each `drain` reads the topic from its beginning. `command` starts it, its log goes to `log`."""

    def __init__(self, folder: Path, *, kafka: Mapping[str, str], dsn: str, log: Path) -> None:
        classpath, plugins = _workspace.connect()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        properties = folder / "connect.properties"
        clients = ("", "consumer.", "producer.", "admin.")  # each has settings of its own
        brokers = "\n".join(f"{client}{name}={value}" for client in clients for name, value in kafka.items())
        properties.write_text(
            _WORKER.format(kafka=brokers, schema=SCHEMA_FILE, folder=folder, port=port, plugins=plugins)
        )
        jvm = [_workspace.java(), "-Xms256m", "-Xmx2g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
        program = "org.apache.kafka.connect.cli.ConnectStandalone"
        self.command = [*jvm, "-cp", ":".join(map(str, classpath)), program, str(properties)]
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._dsn = conninfo_to_dict(dsn)
        self._log = log
        self._read = 0

    def create(self, topic: str) -> float:
        """Make the connector, once the worker answers; when it began to read."""
        wait_until(self._answers, timeout_s=180, what="Kafka Connect", every_s=0.2)
        server = self._dsn
        self._read = self._log.stat().st_size
        self._call(
            "PUT",
            f"/connectors/{NAME}/config",
            {
                "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
                "tasks.max": "1",
                "topics": topic,
                "connection.url": f"jdbc:postgresql://{server['host']}:{server['port']}/{server['dbname']}?stringtype=unspecified",
                "connection.username": server["user"],
                "connection.password": server["password"],
                "connection.pool.min_size": "1",
                "connection.pool.max_size": "4",
                "insert.mode": "upsert",
                "primary.key.mode": "record_key",
                "primary.key.fields": "id",
                "schema.evolution": "none",
                "delete.enabled": "false",
                "collection.name.format": "public.profile",
                # its best settings of those tried: one array a column, a batch's newest row of each key only
                "batch.size": "3000",
                "use.reduction.buffer": "true",
                "dialect.postgres.unnest.insert.enabled": "true",
                "consumer.override.max.poll.records": "5000",
                "consumer.override.max.partition.fetch.bytes": "10485760",
                "consumer.override.fetch.max.bytes": "52428800",
                "consumer.override.auto.offset.reset": "earliest",
                "transforms": "key",
                "transforms.key.type": "org.apache.kafka.connect.transforms.HoistField$Key",
                "transforms.key.field": "id",
                "errors.tolerance": "none",
            },
        )
        return self._reading()

    def rewind(self) -> None:
        """Stop the connector and put it back to the topic's beginning; the process goes on."""
        self._call("PUT", f"/connectors/{NAME}/stop")
        wait_until(self._stopped, timeout_s=60, what="the connector to stop", every_s=0.2)
        self._read = self._log.stat().st_size
        wait_until(self._forgotten, timeout_s=60, what="the connector's offsets to go", every_s=0.5)

    def resume(self) -> float:
        """Start the connector again; when it began to read."""
        self._call("PUT", f"/connectors/{NAME}/resume")
        return self._reading()

    def _reading(self) -> float:
        def positioned() -> bool:
            with self._log.open("rb") as log:
                log.seek(self._read)
                said = log.read()
            if b" ERROR " in said:
                raise RuntimeError(
                    f"Kafka Connect failed: {said[said.index(b' ERROR ') :][:1500].decode(errors='replace')}"
                )
            return any(words in said for words in _POSITIONED)

        wait_until(positioned, timeout_s=120, what="the connector to read")
        return time.time()

    def _answers(self) -> bool:
        try:
            return self._http.get("/connectors").status_code == 200
        except httpx.TransportError:
            return False

    def _stopped(self) -> bool:
        status = self._http.get(f"/connectors/{NAME}/status").json()
        return status["connector"]["state"] == "STOPPED" and not status["tasks"]

    def _forgotten(self) -> bool:
        return self._http.delete(f"/connectors/{NAME}/offsets").is_success

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        answer = self._http.request(method, path, json=body)
        if not answer.is_success:
            raise RuntimeError(f"Kafka Connect said {answer.status_code} to {method} {path}: {answer.text[:500]}")
