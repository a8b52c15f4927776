"""A schema built from the log equals the one that the live projection made of it: in its rows and in its catalogue."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from caudal.projections import LIVE, Runner
from caudal.projections.replay import Build, Progress
from caudal.projections.replay import _load as loading
from caudal.schemas.codec import Codec
from logs import apply, connect, contents, fill

from benchmarks import _generate
from caudal import kafka
from caudal.settings import Settings


def catalogue(conn: psycopg.Connection[Any], schema: str) -> list[tuple[Any, ...]]:
    """Tables with their columns and comments, indexes and constraints of a schema, without its name."""
    rows: list[tuple[Any, ...]] = []
    for statement in (
        """SELECT c.relname, c.relkind::text, c.relpersistence::text, array_to_string(c.reloptions, ','), obj_description(c.oid, 'pg_class')
           FROM pg_class c WHERE relnamespace = %(s)s::regnamespace""",
        """SELECT c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, l.collname
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 LEFT JOIN pg_collation l ON l.oid = a.attcollation
           WHERE relnamespace = %(s)s::regnamespace AND relkind = 'r'""",
        "SELECT tablename, indexname, replace(indexdef, %(s)s || '.', '') FROM pg_indexes WHERE schemaname = %(s)s",
        """SELECT conrelid::regclass::text <> '', conname, contype::text FROM pg_constraint WHERE connamespace = %(s)s::regnamespace""",
    ):
        rows += conn.execute(statement, {"s": schema}).fetchall()  # type: ignore[arg-type]
    return sorted(rows, key=repr)


@pytest.mark.parametrize("processes", [False, True])
def test_a_schema_built_from_the_log_equals_the_live_one(
    settings: Settings, codec: Codec, live: Runner, monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    if processes:
        monkeypatch.setattr(loading, "ALONE", 0)
    monkeypatch.setattr(loading, "CHUNK", 300)
    log = fill(settings, codec, _generate.events(2_000, 300, skew=0.5))
    apply(live, log, [700])
    seen: list[Progress] = []
    build = Build(settings, codec, schema="build_1", processes=2)
    assert (
        build.run(seen.append)
        == kafka.end_offsets(settings.kafka, [f"{settings.kafka.topic_prefix}customer.changes"]).popitem()[1]
    )
    with connect(settings) as conn:
        assert contents(conn, "build_1") == contents(conn)
        assert catalogue(conn, "build_1") == catalogue(conn, LIVE)
    assert Progress("load", 2_000, 2_000) in seen
