"""The work: profile changes on Kafka into a table of PostgreSQL, the newest of each customer; and what the table must be in the end.

The records say what `profile_events` says, flat: Caudal reads the whole events, the others read these.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import orjson
import psycopg
from caudal.schemas import ProfileStated

from benchmarks import _generate
from benchmarks._stage import Stage
from benchmarks.drain import produce
from caudal import kafka

__all__ = ["COLUMNS", "EXPECTED", "TABLE", "differences", "encoders", "expect", "fill", "flat", "profiles"]

SCHEMA_FILE = Path(__file__).parent / "profile.avsc"
SCHEMA = fastavro.parse_schema(json.loads(SCHEMA_FILE.read_text()))
COLUMNS = tuple(field["name"] for field in SCHEMA["fields"])
_TYPES = {"birth_date": "date", "updated_at": "bigint"}
TABLE = ", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in COLUMNS)
EXPECTED = "public.expected"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OURS = """
    SELECT p.customer_id::text AS id, p.name, p.email, p.phone, p.country, p.region, p.city, p.birth_date, p.language,
           array_to_string(p.tags, ',') AS tags, p.sources[1] AS source, (extract(epoch FROM s.occurred_at) * 1e6)::bigint AS updated_at
    FROM live.profiles p JOIN live.links l USING (customer_id) JOIN live.profile_statements s USING (subject)
"""
"""Caudal's rows in the shape of the table."""


def profiles(count: int, seed: int) -> Iterator[ProfileStated]:
    """The changes: three of each customer in the mean, none of them more often than the others, in order."""
    for event in _generate.profile_events(count, count // 3, seed=seed):
        assert isinstance(event, ProfileStated)
        yield event


def flat(event: ProfileStated) -> dict[str, Any]:
    """An event as a record of the table."""
    return {
        "id": event.customer_id,
        **{name: getattr(event, name) for name in ("name", "email", "phone", "country", "region", "city", "birth_date", "language")},
        "tags": ",".join(event.tags or ()), "source": event.source,
        "updated_at": int((event.occurred_at - _EPOCH).total_seconds() * 1_000_000),
    }  # fmt: skip


def _avro(record: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    stream.write(b"\0\0\0\0\1")
    fastavro.schemaless_writer(stream, SCHEMA, record)
    return stream.getvalue()


encoders = {"avro": _avro, "json": orjson.dumps}


def fill(one: Stage, records: Iterable[dict[str, Any]], encoding: str) -> str:
    """The records on a topic of their own; its full name."""
    kafka.ensure_topics(one.settings.kafka, [f"race.{encoding}"])
    topic = kafka.topic(one.settings.kafka, f"race.{encoding}")
    encode = encoders[encoding]
    produce(one, topic, ((record["id"].encode(), encode(record)) for record in records))
    return topic


def expect(conn: psycopg.Connection[Any], records: Iterable[dict[str, Any]]) -> None:
    """Keep what the table must be at the end."""
    newest = {record["id"]: record for record in records}  # they are in order
    conn.execute(f"CREATE TABLE {EXPECTED} ({TABLE}, PRIMARY KEY (id))")
    with conn.cursor().copy(f"COPY {EXPECTED} FROM STDIN") as copy:
        for record in newest.values():
            copy.write_row([record[name] for name in COLUMNS])
    conn.execute(f"ANALYZE {EXPECTED}")


def differences(conn: psycopg.Connection[Any], *, ours: bool = False) -> int:
    """Rows of the table, or of Caudal's views, that are not as expected, and rows that are missing."""
    columns = ", ".join(COLUMNS)
    found, wanted = (
        f"SELECT {columns} FROM ({query}) q" for query in (_OURS if ours else "TABLE profile", f"TABLE {EXPECTED}")
    )
    row = conn.execute(
        f"SELECT (SELECT count(*) FROM ({found} EXCEPT {wanted}) a) + (SELECT count(*) FROM ({wanted} EXCEPT {found}) b)"  # type: ignore[arg-type]
    ).fetchone()
    assert row is not None
    return int(row[0])
