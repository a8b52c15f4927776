"""What a swap would change: rows added, removed and changed, by view and by field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import psycopg
from caudal.projections import _rollup, _sql
from caudal.projections._schema import FACTS, LIVE, ROLLUPS, VIEWS
from caudal.projections._view import View

__all__ = ["DIFF", "compare", "recheck", "rollups"]

DIFF = "replay_diff"
"""The table in the built schema that holds every row that differs."""
EXAMPLES = 5


def compare(conn: psycopg.Connection[Any], schema: str, views: Sequence[View]) -> dict[str, Any]:
    """Compare the views of two schemas; `conn` is in a transaction whose snapshot has both at the same offsets.

    Every row that differs is noted in the table `replay_diff` of `schema`, which must be there (see `prepare`). Columns that only one of
    both has are listed and not compared.

    Returns:
        {views: {name: {rows_before, rows_after, added, removed, changed, fields, examples, columns_added, columns_dropped}},
        segments: {name: {before, after}}, differences, changed_share}.
    """
    told: dict[str, Any] = {"views": {}, "segments": {}}
    share = 0.0
    for view in views:
        told["views"][view.name] = one = _compare(conn, schema, view)
        differences = one["added"] + one["removed"] + one["changed"]
        if one["exists"]:
            share = max(share, differences / max(one["rows_before"], one["rows_after"], 1))
    told["differences"] = sum(v["added"] + v["removed"] + v["changed"] for v in told["views"].values())
    told["changed_share"] = round(share, 6)
    for view in views:
        if len(view.key) > 1 and told["views"][view.name]["exists"]:
            told["segments"] = _sizes(conn, schema, view)
    return told


def rollups(conn: psycopg.Connection[Any], schema: str) -> dict[str, int]:
    """Of each rollup how many rows differ; of those that another definition made in the live schema nothing is said."""
    made = _sql.definitions(FACTS, VIEWS)
    told = {}
    for rollup in ROLLUPS:
        row = conn.execute(
            "SELECT obj_description(to_regclass(%s), 'pg_class')", (f"{LIVE}.{rollup.table}",)
        ).fetchone()
        if row == (made[rollup.table],):
            sides = (_rollup.stored(each, rollup) for each in (LIVE, schema))
            told[rollup.name] = _count(conn, f"({_rollup.differing(rollup, *sides)}) d")
    return told


def prepare(conn: psycopg.Connection[Any], schema: str) -> None:
    """Make the table of differences, empty."""
    conn.execute(f"DROP TABLE IF EXISTS {schema}.{DIFF}")
    conn.execute(
        f"CREATE UNLOGGED TABLE {schema}.{DIFF} (view text, customer_id uuid, item text, what text, fields text[])"
    )


def recheck(conn: psycopg.Connection[Any], schema: str, customers: Collection[str], views: Sequence[View]) -> None:
    """Compare these customers again: they were touched since."""
    ids = list(customers)
    conn.execute(f"DELETE FROM {schema}.{DIFF} WHERE customer_id = ANY(%s::uuid[])", (ids,))
    for view in views:
        statement, _, _ = _statement(conn, schema, view, "WHERE customer_id = ANY(%(ids)s::uuid[])")
        conn.execute(statement, {"view": view.name, "ids": ids})


def _columns(conn: psycopg.Connection[Any], schema: str, table: str) -> dict[str, str]:
    return dict(
        conn.execute(
            """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
            (f"{schema}.{table}",),
        ).fetchall()
    )


def _statement(
    conn: psycopg.Connection[Any], schema: str, view: View, where: str
) -> tuple[str, dict[str, str], dict[str, str]]:
    """The statement that notes a view's differences; and the columns before and after."""
    before, after = _columns(conn, LIVE, view.name), _columns(conn, schema, view.name)
    if not before:
        had = f"SELECT * FROM {schema}.{view.name} WHERE false"
        before_columns = after
    else:
        had = f"SELECT * FROM {LIVE}.{view.name} {where}"
        before_columns = before
    common = [c for c in after if c in before_columns]
    same = {c: "" if before_columns[c] == after[c] else "::text" for c in common}
    rest = [c for c in common if c not in view.key]
    key = ", ".join(view.key)
    item = f"coalesce(b.{view.key[1]}, l.{view.key[1]})" if len(view.key) > 1 else "NULL"
    left = ", ".join(f"l.{c}{same[c]}" for c in common)
    right = ", ".join(f"b.{c}{same[c]}" for c in common)
    fields = ", ".join(f"CASE WHEN l.{c}{same[c]} IS DISTINCT FROM b.{c}{same[c]} THEN '{c}' END" for c in rest)
    statement = f"""
        INSERT INTO {schema}.{DIFF} (view, customer_id, item, what, fields)
        SELECT %(view)s, coalesce(b.customer_id, l.customer_id), {item},
               CASE WHEN l.customer_id IS NULL THEN 'added' WHEN b.customer_id IS NULL THEN 'removed' ELSE 'changed' END,
               CASE WHEN l.customer_id IS NOT NULL AND b.customer_id IS NOT NULL
                    THEN array_remove(ARRAY[{fields or "NULL"}]::text[], NULL) END
        FROM ({had}) l FULL JOIN (SELECT * FROM {schema}.{view.name} {where}) b USING ({key})
        WHERE ROW({left}) IS DISTINCT FROM ROW({right})"""
    return statement, before, after


def _compare(conn: psycopg.Connection[Any], schema: str, view: View) -> dict[str, Any]:
    statement, before, after = _statement(conn, schema, view, "")
    conn.execute(statement, {"view": view.name})
    noted = f"FROM {schema}.{DIFF} WHERE view = %s"
    counts = dict(conn.execute(f"SELECT what, count(*) {noted} GROUP BY what", (view.name,)).fetchall())
    fields = conn.execute(
        f"SELECT f, count(*) FROM {schema}.{DIFF}, unnest(fields) f WHERE view = %s GROUP BY f ORDER BY 2 DESC, 1",
        (view.name,),
    ).fetchall()
    examples: dict[str, list[Any]] = {}
    for what in sorted(counts):
        rows = conn.execute(
            f"SELECT customer_id::text, item, fields {noted} AND what = %s ORDER BY 1, 2 LIMIT {EXAMPLES}",
            (view.name, what),
        ).fetchall()
        examples[what] = [
            {"customer_id": c, **({"item": item} if item else {}), **({"fields": f} if f else {})}
            for c, item, f in rows
        ]
    return {
        "exists": bool(before),
        "rows_before": _count(conn, f"{LIVE}.{view.name}") if before else 0,
        "rows_after": _count(conn, f"{schema}.{view.name}"),
        "added": counts.get("added", 0),
        "removed": counts.get("removed", 0),
        "changed": counts.get("changed", 0),
        "fields": dict(fields),
        "examples": examples,
        "columns_added": [c for c in after if before and c not in before],
        "columns_dropped": [c for c in before if c not in after],
    }


def _sizes(conn: psycopg.Connection[Any], schema: str, view: View) -> dict[str, dict[str, int]]:
    value = view.key[1]
    rows = conn.execute(
        f"""SELECT {value}, coalesce(l.n, 0), coalesce(b.n, 0)
            FROM (SELECT {value}, count(*) AS n FROM {LIVE}.{view.name} GROUP BY 1) l
            FULL JOIN (SELECT {value}, count(*) AS n FROM {schema}.{view.name} GROUP BY 1) b USING ({value}) ORDER BY 1"""
    ).fetchall()
    return {name: {"before": before, "after": after} for name, before, after in rows}


def _count(conn: psycopg.Connection[Any], table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0
