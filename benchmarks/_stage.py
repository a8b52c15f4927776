"""The stage that benchmarks play on: embedded servers, a fresh database and topic prefix, and Caudal's real processes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from caudal.projections import ensure_live
from confluent_kafka import Message, TopicPartition
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from caudal import embedded, kafka, postgres, sources
from caudal.settings import PostgresSettings, Settings, environment, load

__all__ = ["Stage", "add_source", "address", "batches", "stage", "wait_until"]

TOPICS = (kafka.CHANGES, kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS, kafka.DEAD_LETTERS, kafka.COMMANDS)


def wait_until(condition: Callable[[], Any], *, timeout_s: float, what: str, every_s: float = 0.01) -> Any:
    """The condition's first true value.

    Raises:
        TimeoutError: it stays false.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {timeout_s:.0f} s")
        time.sleep(every_s)


class Stage:
    """Settings, a connection and the processes started on it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.conn: psycopg.Connection[Any] = postgres.connect(settings.postgres, role="benchmark")
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, role: str, **more: str) -> subprocess.Popen[bytes]:
        """Start `caudal run --role ROLE` on this stage; its output goes to a file in the folder."""
        env = {
            **environment(self.settings),
            "CAUDAL_HOME": str(self.folder),
            "CAUDAL_LOG_LEVEL": "warning",
            "CAUDAL_EDGE__PORT": "0",
            "CAUDAL_SERVING__PORT": "0",
            **more,
        }
        with (self.folder / f"{role}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "caudal.cli", "run", "--role", role], env=env, stdout=out, stderr=out
            )
        self._processes.append((role, process))
        return process

    def pids(self) -> dict[str, int]:
        """The processes started here, by role; a second one of a role is `<role>_2`."""
        found: dict[str, int] = {}
        for role, process in self._processes:
            number = sum(other.partition("_")[0] == role for other in found)
            found[f"{role}_{number + 1}" if number else role] = process.pid
        return found

    def stop(self) -> None:
        """Stop every process started here, and wait for it."""
        for _, process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for _, process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage of its own; what it made is removed at the end, the servers stay up for the next."""
    running = embedded.ensure(load())
    name = f"bench{uuid.uuid4().hex[:8]}"
    with postgres.connect(running.postgres, role="benchmark") as conn:
        conn.execute(f"CREATE DATABASE {name}")
    with tempfile.TemporaryDirectory(prefix="caudal-bench-") as folder:
        database = PostgresSettings(dsn=SecretStr(make_conninfo(postgres.dsn(running.postgres), dbname=name)))
        settings = running.model_copy(
            update={
                "home": Path(folder),
                "config_file": Path(folder) / "caudal.toml",
                "kafka": running.kafka.model_copy(update={"topic_prefix": f"{name}."}),
                "postgres": database,
            }
        )
        postgres.migrate(settings.postgres)
        kafka.ensure_topics(settings.kafka, TOPICS)
        made = Stage(settings, Path(folder))
        ensure_live(made.conn)
        try:
            yield made
        finally:
            made.stop()
            made.conn.close()
            _remove(running, settings, name)


def _remove(running: Settings, settings: Settings, name: str) -> None:
    admin = kafka.admin(settings.kafka)
    mine = [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(settings.kafka.topic_prefix)]
    for deletion in admin.delete_topics(mine).values() if mine else ():
        deletion.result()
    with postgres.connect(running.postgres, role="benchmark") as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
        conn.execute("CHECKPOINT")


def add_source(stage: Stage, name: str, connector: str) -> str:
    """Configure a source; its secret, which the processes get as CAUDAL_SECRET_<NAME>."""
    sources.add(stage.settings, sources.Source(name=name, connector=connector, secrets=(name,)))
    kafka.ensure_topics(stage.settings.kafka, [f"capture.{name}"])
    return f"secret-of-{name}"


def address(stage: Stage, server: str) -> str:
    """Where a server started on this stage listens, once it does."""
    path = stage.folder / "run" / f"{server}.json"
    wait_until(path.exists, timeout_s=60, what=f"{server} to start")
    found = json.loads(path.read_text())
    return f"http://{found['host']}:{found['port']}"


def batches(
    stage: Stage, topic: str, count: int, *, size: int, begin: Mapping[int, int] | None = None
) -> Iterator[list[Message]]:
    """The next `count` messages of a topic (its full name) in batches, after the offsets `begin`; a partition's are in order."""
    consumer = kafka.consumer(stage.settings.kafka, "benchmark", **{"queued.max.messages.kbytes": 262_144})
    try:
        partitions = kafka.topics(stage.settings.kafka)[topic]
        consumer.assign([TopicPartition(topic, n, (begin or {}).get(n, 0)) for n in range(partitions)])
        left = count
        while left:
            found: list[Message] = []
            while len(found) < min(size, left):
                taken = consumer.consume(min(size, left) - len(found), 30)
                if not taken:
                    raise TimeoutError(f"{topic} holds no {count} messages more")
                found += taken
            left -= len(found)
            yield found
    finally:
        consumer.close()
