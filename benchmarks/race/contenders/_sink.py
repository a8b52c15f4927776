"""What the contenders that bring no sink of their own write with: a batch's newest row of each id by COPY into a temporary table, and one
INSERT … ON CONFLICT that lets no older row win. And how each format is decoded. It runs in the contenders' own environment.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import fastavro
import orjson
import psycopg

KAFKA, DSN, TOPIC, GROUP = (os.environ[name] for name in ("RACE_KAFKA", "RACE_DSN", "RACE_TOPIC", "RACE_GROUP"))
ACCESS = json.loads(os.environ["RACE_ACCESS"])
"""Librdkafka's options for getting in."""
FOLDER = os.environ["RACE_FOLDER"]
"""For what a framework wants to keep; removed after the race."""
PROCESSES = int(os.environ["RACE_PROCESSES"])
BATCH = 5_000
QUICK = {"fetch.queue.backoff.ms": 10, "queued.max.messages.kbytes": 262_144, "fetch.wait.max.ms": 50}
"""What librdkafka needs so that a fast reader of a backlog isn't kept waiting."""

FORMAT = os.environ["RACE_FORMAT"]
_DECLARED = json.loads((Path(__file__).parents[1] / "profile.avsc").read_text())
COLUMNS = [field["name"] for field in _DECLARED["fields"]]
for _field in _DECLARED["fields"]:
    if _field["name"] == "birth_date":
        _field["type"] = ["null", "int"]  # the day's number as it is: PostgreSQL makes the date, which is quicker
_SCHEMA = fastavro.parse_schema(_DECLARED)
_TYPES = {"birth_date": "int" if FORMAT == "avro" else "date", "updated_at": "bigint"}
_VALUES = {"birth_date": "DATE '1970-01-01' + birth_date" if FORMAT == "avro" else "birth_date"}
_UPDATED_AT = COLUMNS.index("updated_at")
Row = Sequence[Any]


def decode_avro(message: bytes) -> Row:
    """A row from Avro in Confluent's wire format."""
    stream = io.BytesIO(message)
    stream.seek(5)
    return tuple(fastavro.schemaless_reader(stream, _SCHEMA, None).values())


def decode_json(message: bytes) -> Row:
    """A row from plain JSON."""
    return tuple(orjson.loads(message).values())


_started = False


def started() -> None:
    """Say that the first message is there: the clock starts now."""
    global _started  # noqa: PLW0603 - one process, one start
    if not _started:
        _started = True
        os.write(1, f"START {time.time()}\n".encode())


def fork() -> None:
    """Become as many processes as asked for."""
    for _ in range(PROCESSES - 1):
        if os.fork() == 0:
            break


class Sink:
    """The table `profile`, through one connection."""

    def __init__(self) -> None:
        self._conn = psycopg.connect(DSN)
        columns = ", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in COLUMNS)
        self._conn.execute(f"CREATE TEMPORARY TABLE batch ({columns}) ON COMMIT DELETE ROWS")
        changes = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])
        values = ", ".join(_VALUES.get(name, name) for name in COLUMNS)
        self._upsert = (
            f"INSERT INTO profile SELECT {values} FROM batch ON CONFLICT (id) DO UPDATE SET {changes}"
            " WHERE profile.updated_at < excluded.updated_at"
        )
        self._conn.commit()

    def write(self, rows: Iterable[Row]) -> None:
        """Write the newest row of each id, and commit."""
        newest: dict[str, Row] = {}
        for row in rows:
            known = newest.get(row[0])
            if known is None or known[_UPDATED_AT] <= row[_UPDATED_AT]:
                newest[row[0]] = row
        if newest:
            cursor = self._conn.cursor()
            with cursor.copy("COPY batch FROM STDIN") as copy:
                for row in newest.values():
                    copy.write_row(row)
            cursor.execute(self._upsert)
            self._conn.commit()


decode: Callable[[bytes], Row] = {"avro": decode_avro, "json": decode_json}[FORMAT]
