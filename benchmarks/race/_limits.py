"""Physical limits of the same work on the same servers: PostgreSQL's COPY alone, reading Kafka alone, decoding alone."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import fastavro
import orjson
from caudal.schemas.codec import Codec, Registry

from benchmarks._stage import Stage, batches
from benchmarks.race._work import COLUMNS, SCHEMA, TABLE
from caudal import kafka

__all__ = ["limits"]


def limits(one: Stage, topics: dict[str, str], records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rows or messages per second."""
    count = len(records)
    found: dict[str, float] = {}
    for name, key in (("copy_with_key", ", PRIMARY KEY (id)"), ("copy_without_key", "")):
        found[f"race_limit_{name}_rows_per_s"] = count / _copied(one, records, key)
    values: dict[str, list[bytes]] = {}
    for encoding, topic in topics.items():
        started = time.perf_counter()
        read = [message for batch in batches(one, topic, count, size=20_000) for message in batch]
        found[f"race_limit_consume_{encoding}_messages_per_s"] = count / (time.perf_counter() - started)
        values[encoding] = [message.value() or b"" for message in read]
    started = time.perf_counter()
    for value in values["avro"]:
        stream = io.BytesIO(value)
        stream.seek(5)
        fastavro.schemaless_reader(stream, SCHEMA, None)
    found["race_limit_decode_fastavro_messages_per_s"] = count / (time.perf_counter() - started)
    started = time.perf_counter()
    for value in values["json"]:
        orjson.loads(value)
    found["race_limit_decode_orjson_messages_per_s"] = count / (time.perf_counter() - started)
    return found


def columnar(one: Stage, count: int) -> dict[str, float]:
    """Caudal's own decoding of its events into columns, without what follows."""
    registry = Registry(one.settings)
    codec = Codec(registry)
    topic = kafka.topic(one.settings.kafka, kafka.CHANGES)
    read = [[message.value() or b"" for message in batch] for batch in batches(one, topic, count, size=20_000)]
    started = time.perf_counter()
    for values in read:
        codec.decode_columns(values)
    taken = time.perf_counter() - started
    registry.close()
    return {"race_limit_decode_columns_messages_per_s": count / taken}


def _copied(one: Stage, records: Sequence[dict[str, Any]], key: str) -> float:
    """Seconds of COPY of rows that are encoded already, each under an id of its own."""
    rows = [
        "\t".join(str(value) for value in ({**record, "id": f"{record['id']}-{n}"}[name] for name in COLUMNS))
        for n, record in enumerate(records)
    ]
    blocks = ["".join(f"{row}\n" for row in rows[first : first + 500]).encode() for first in range(0, len(rows), 500)]
    one.conn.execute(f"CREATE TABLE copied ({TABLE}{key})")
    one.conn.execute("CHECKPOINT")
    started = time.perf_counter()
    with one.conn.cursor().copy("COPY copied FROM STDIN") as copy:
        for block in blocks:
            copy.write(block)
    taken = time.perf_counter() - started
    one.conn.execute("DROP TABLE copied")
    return taken
