"""The live schema: which facts and views there are, and making them in an empty database."""

from __future__ import annotations

from typing import Any

import psycopg
from caudal.projections import _crowd, _rollup, _sql
from caudal.projections._sql import priority_sql
from caudal.projections._view import View
from caudal.projections.custom.metric import defined, install, with_custom
from caudal.projections.facts import FACTS
from caudal.projections.metrics import PLACED, metrics
from caudal.projections.profiles import profiles
from caudal.projections.rollups import ROLLUPS
from caudal.projections.segments import segment_members
from psycopg import sql

from caudal.errors import Fatal
from caudal.postgres import Lock

__all__ = [
    "FACTS",
    "LIVE",
    "MAKING_LOCK",
    "ROLLUPS",
    "SWAP_LOCK",
    "VIEWS",
    "describe",
    "ensure_live",
    "priority_sql",
    "triggers",
    "views",
]

LIVE = "live"
VIEWS = (profiles, metrics, segment_members)
"""Every view, in the order in which they are refreshed: a view of views comes after those. Without custom metrics, see `views`."""

MAKING_LOCK = Lock.MAKING  # keeps two workers from making the schema at the same time
SWAP_LOCK = Lock.SWAP
"""Advisory lock that a transaction on the live schema holds shared, and a swap of the schema exclusively."""

FIRST = """
    CREATE OR REPLACE AGGREGATE hub.first(anyelement) (
        sfunc = any_value_transfn, stype = anyelement, combinefunc = any_value_transfn, parallel = safe
    )
"""
"""The first value that is not null, in the order given: any_value's own transition function keeps the first it meets."""


def views(conn: psycopg.Connection[Any]) -> tuple[View, ...]:
    """Every view as it is now: with the custom metrics that were applied."""
    return with_custom(VIEWS, defined(conn))


def triggers(schema: str) -> list[str]:
    """Statements that make the triggers which keep sums of facts, when the tables are there, and views of them."""
    return [*_rollup.finish(schema, ROLLUPS), *_crowd.finish(schema, PLACED)]


def describe(conn: psycopg.Connection[Any], schema: str) -> None:
    """Note in the schema and its tables which definitions made them."""
    made = views(conn)
    for name, digest in _sql.definitions(FACTS, made).items():
        conn.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(schema, name), sql.Literal(digest)))
    wanted = sql.Literal(_sql.definition(FACTS, made))
    conn.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(schema), wanted))


def ensure_live(conn: psycopg.Connection[Any], schema: str = LIVE) -> int:
    """Make the live schema if there is none; safe from several workers at once. `hub` must have been migrated.

    Returns:
        The oid of its table `offsets`, by which a schema is told from another one that took its name.

    Raises:
        Fatal: the schema was made by other definitions of facts and views.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
        wanted = _sql.definition(FACTS, views(conn))
        row = conn.execute("SELECT obj_description(to_regnamespace(%s), 'pg_namespace')", (schema,)).fetchone()
        exists = conn.execute("SELECT to_regnamespace(%s) IS NOT NULL", (schema,)).fetchone()
        if exists and exists[0]:
            found = row[0] if row else None
            if found != wanted:
                raise Fatal(
                    f"schema {schema} was made by other definitions ({found}, now {wanted})",
                    hint="rebuild the views from the log: caudal replay",
                )
            install(conn, defined(conn))  # as this release has them
        else:
            conn.execute(FIRST)
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            for statements in _sql.tables(schema, FACTS, VIEWS).values():
                for statement in statements:
                    conn.execute(statement)
            for rollup in ROLLUPS:
                for statement in _rollup.tables(schema, rollup):
                    conn.execute(statement)
            for statement in triggers(schema):
                conn.execute(statement)
            describe(conn, schema)
        oid = conn.execute("SELECT %s::regclass::oid::bigint", (f"{schema}.offsets",)).fetchone()
    assert oid is not None
    return int(oid[0])
