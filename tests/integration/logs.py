"""Logs of customer.changes for tests: events as messages on made-up partitions, applied through the real runner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import psycopg
from caudal.projections import (
    FACTS,
    LIVE,
    ROLLUPS,
    VIEWS,
    Runner,
    priority_sql,
    rollup_of_facts,
    rollup_rows,
    select_sql,
)
from caudal.projections._schema import views
from caudal.schemas import Event
from caudal.schemas.codec import Codec

from benchmarks._generate import Record
from caudal import kafka, postgres
from caudal.settings import Settings

TABLES = ("links", *(f.name for f in FACTS), *(f"{f.name}_parts" for f in FACTS if f.partial), *(v.name for v in VIEWS))
NOTHING: dict[str, tuple[list[Any], list[Any]]] = {
    name: ([], []) for name in (*(v.name for v in VIEWS), *(r.table for r in ROLLUPS))
}
"""What `rebuilt` says of tables that are right."""
CROWD = ("crowded", "order_sums", "order_times")
PARTITIONS = 4


def records(codec: Codec, events: Sequence[Event], *, start: dict[int, int] | None = None) -> list[Record]:
    """Events in order, each on its customer's partition."""
    ends = start if start is not None else {}
    made = []
    for event in events:
        partition = crc32(event.customer_id.encode()) % PARTITIONS
        offset = ends.get(partition, 0)
        ends[partition] = offset + 1
        made.append(Record((partition, offset), codec.encode_event(event), event.customer_id))
    return made


def apply(runner: Runner, log: Sequence[Record], sizes: Sequence[int] = ()) -> None:
    """Apply a log in batches of the given sizes (the last size repeats; none: all at once)."""
    at, turn = 0, 0
    while at < len(log):
        size = sizes[min(turn, len(sizes) - 1)] if sizes else len(log)
        runner.apply(runner.decode(log[at : at + size]))
        at, turn = at + size, turn + 1


def clear(conn: psycopg.Connection[Any]) -> None:
    """Empty the live schema and forget the offsets."""
    rollups = [name for rollup in ROLLUPS for name in (rollup.table, f"{rollup.table}_new")]
    tables = ", ".join(f"{LIVE}.{name}" for name in (*TABLES, *rollups, *CROWD, "stated_sets", "offsets", "places"))
    conn.execute(f"TRUNCATE {tables}, hub.outbox")


def contents(conn: psycopg.Connection[Any], schema: str = LIVE) -> dict[str, list[str]]:
    """Every row of every table as text, sorted: two runs are equal when these are."""
    tables = {name: f"{schema}.{name}" for name in TABLES}
    tables |= {rollup.table: f"({rollup_rows(schema, rollup)})" for rollup in ROLLUPS}
    return {
        name: [row for (row,) in conn.execute(f'SELECT t::text FROM {rows} t ORDER BY t::text COLLATE "C"').fetchall()]
        for name, rows in tables.items()
    }


def rebuilt(conn: psycopg.Connection[Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """For each view and rollup the rows that only the table has, and those that only its SELECT over all facts has."""
    differences = {}
    for rollup in ROLLUPS:
        table, select = rollup_rows(LIVE, rollup), rollup_of_facts(LIVE, rollup)
        differences[rollup.table] = (
            conn.execute(f"({table}) EXCEPT ({select})").fetchall(),
            conn.execute(f"({select}) EXCEPT ({table})").fetchall(),
        )
    for view in views(conn):
        columns = ", ".join(view.columns)
        select = f"SELECT {columns} FROM ({select_sql(view, LIVE, priority_sql({}))}) fresh"
        table = f"SELECT {columns} FROM {LIVE}.{view.name}"
        differences[view.name] = (
            conn.execute(f"({table}) EXCEPT ({select})").fetchall(),
            conn.execute(f"({select}) EXCEPT ({table})").fetchall(),
        )
    return differences


def connect(settings: Settings) -> psycopg.Connection[Any]:
    return postgres.connect(settings.postgres, role="tests")


def fill(settings: Settings, codec: Codec, events: Iterable[Event], *, begin: int = 0) -> list[Record]:
    """Produce events to customer.changes, as Kafka's partitioner places them; gives the messages as the runner reads them.

    The first `begin` were produced before.
    """
    log = records(codec, list(events))[begin:]
    producer = kafka.producer(settings.kafka, **{"linger.ms": 20})
    for record in log:
        producer.produce(
            kafka.topic(settings.kafka, kafka.CHANGES),
            key=record.key(),
            value=record.value(),
            partition=record.partition(),
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    return log
