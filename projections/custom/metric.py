"""A custom metric: one SELECT that somebody wrote, which gives values of a customer; and the view `metrics` with such values in it.

The SELECT sees one customer at a time: under the names of the facts it finds this customer's rows, so what it gives follows from them
alone, however it is written. It is kept as a function of the database. A value that can't be computed for a customer (a division by
zero, a second row, a text without end) is missing for that customer, and stops nothing; nor does one that takes too long, see bound.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import psycopg
from caudal.projections._view import View
from caudal.projections.facts import FACTS
from caudal.projections.links import gone_at
from caudal.projections.metrics import metrics_with
from psycopg.types.json import Jsonb

__all__ = ["EVERYBODY", "OVERDUE", "RELATIONS", "Metric", "defined", "install", "store", "with_custom"]

_FACTS = tuple(fact.name for fact in FACTS)
RELATIONS = ("subjects", "profiles", *_FACTS)
"""What a SELECT may read. The facts have a column `customer_id` besides their own."""
OVERDUE = "MT001"
"""SQLSTATE of a metric whose statement was ended while it was computed, and of the notice that one couldn't be."""
EVERYBODY = "00000000-0000-0000-0000-000000000000"
"""In hub.metric_unknown in place of a customer."""
_CAUSED_BY_DATA = (
    "data_exception OR cardinality_violation OR program_limit_exceeded OR statement_too_complex OR configuration_limit_exceeded"
    " OR internal_error"  # what is larger than a gigabyte
)
_VALUES = {
    "integer": "{}",
    "boolean": "{}",
    "number": "CASE WHEN abs({0}) < 1e300 THEN {0}::float8 END",  # neither NaN nor infinite
    "text": "left({}, 1000)",
    "time": (
        "CASE WHEN {0} >= '0001-01-01 00:00+00' AND {0} < '10000-01-01 00:00+00'"
        " THEN to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') END"
    ),
    "date": "CASE WHEN {0} >= '0001-01-01' AND {0} < '10000-01-01' THEN to_char({0}, 'YYYY-MM-DD') END",
}
"""Type of a value → how it is written as JSON."""


@dataclass(frozen=True)
class Metric:
    """A custom metric.

    Attributes:
        name: of its file; lower-case letters, digits and underscores.
        title: for people.
        statement: the SELECT.
        columns: value → its type: integer, number, text, boolean, time or date.
        reads: the names in `RELATIONS` that it reads.
        applied_at: since when it is so; None before it is applied.
        applied_by: who applied it.
    """

    name: str
    title: str
    statement: str
    columns: Mapping[str, str]
    reads: Sequence[str]
    applied_at: datetime | None = None
    applied_by: str = ""

    @cached_property
    def function(self) -> str:
        """The name of its function, by what it computes: another SELECT has another one."""
        return f"hub.metric_{hashlib.sha256(self.body('$1').encode()).hexdigest()[:16]}"

    def body(self, customer: str) -> str:
        """The SELECT that gives the values of a customer as one JSON object; tables are looked for where the session does."""
        parts = [
            f"""subjects AS NOT MATERIALIZED (
                SELECT customer_id, subject, source, {gone_at("links", "x")} AS deleted_at FROM links x
                WHERE x.customer_id = {customer})"""
        ]
        parts += [
            f"""{name} AS NOT MATERIALIZED (
                SELECT s.customer_id, f.* FROM subjects s CROSS JOIN LATERAL (
                    SELECT * FROM {name} x WHERE x.subject = s.subject OFFSET 0) f)"""
            for name in _FACTS
            if name in self.reads
        ]
        if "profiles" in self.reads:
            parts.append(
                f"profiles AS NOT MATERIALIZED (SELECT * FROM profiles x WHERE x.customer_id = {customer} OFFSET 0)"
            )
        values = ", ".join(
            f"'{name}', {_VALUES[type_].format(f'm.{name}')}" for name, type_ in sorted(self.columns.items())
        )
        return f"""WITH {", ".join(parts)}
            SELECT jsonb_strip_nulls(jsonb_build_object({values})) FROM (
{self.statement}
            ) m"""


def install(conn: psycopg.Connection[Any], metrics: Sequence[Metric]) -> None:
    """Make the functions that compute these metrics, where they aren't there. They take a customer and the schema that is read.

    A fault that data cause gives NULL and a notice with function and SQLSTATE; being ended gives `OVERDUE`, see bound.py.
    """
    for metric in metrics:
        name = metric.function.removeprefix("hub.")
        conn.execute(
            f"""CREATE OR REPLACE FUNCTION {metric.function}(uuid, text) RETURNS jsonb LANGUAGE plpgsql STABLE AS ${name}$
            #variable_conflict use_column
            DECLARE
                began CONSTANT timestamptz := clock_timestamp();
            BEGIN
                IF EXISTS (SELECT FROM hub.metric_unknown u WHERE u.function = '{name}' AND u.customer_id IN ($1, '{EVERYBODY}')) THEN
                    RETURN NULL;
                END IF;
                IF current_setting('search_path') <> $2 THEN
                    PERFORM set_config('search_path', $2, true);
                END IF;
                RETURN ({metric.body("$1")});
            EXCEPTION
                WHEN {_CAUSED_BY_DATA} THEN
                    RAISE NOTICE USING ERRCODE = '{OVERDUE}', MESSAGE = 'a metric is unknown', DETAIL = '{name} ' || SQLSTATE;
                    RETURN NULL;
                WHEN query_canceled THEN
                    RAISE EXCEPTION USING ERRCODE = '{OVERDUE}', MESSAGE = 'a metric takes too long',
                        DETAIL = '{name} ' || $1 || ' ' || round(1000 * extract(epoch FROM clock_timestamp() - began));
            END ${name}$"""
        )


def defined(conn: psycopg.Connection[Any]) -> tuple[Metric, ...]:
    """The metrics that the live schema was made with, by name."""
    rows = conn.execute(
        "SELECT name, title, statement, columns, reads, applied_at, applied_by FROM hub.custom_metrics ORDER BY name"
    )
    return tuple(Metric(*row) for row in rows)


def store(conn: psycopg.Connection[Any], metrics: Sequence[Metric], by: str) -> None:
    """Note that these are the metrics from now on, in the transaction that puts the view made with them in place."""
    conn.execute("DELETE FROM hub.custom_metrics WHERE name <> ALL (%s)", ([metric.name for metric in metrics],))
    for metric in metrics:
        conn.execute(
            """INSERT INTO hub.custom_metrics AS m (name, title, statement, columns, reads, applied_by)
               VALUES (%(name)s, %(title)s, %(statement)s, %(columns)s, %(reads)s, %(by)s)
               ON CONFLICT (name) DO UPDATE SET title = excluded.title, statement = excluded.statement, columns = excluded.columns,
                   reads = excluded.reads, applied_by = excluded.applied_by, applied_at = now()
               WHERE (m.title, m.statement) <> (excluded.title, excluded.statement)""",
            {
                "name": metric.name,
                "title": metric.title,
                "statement": metric.statement,
                "columns": Jsonb(dict(metric.columns)),
                "reads": [*metric.reads],
                "by": by,
            },
        )
    functions = [metric.function.removeprefix("hub.") for metric in metrics]
    rows = conn.execute(
        """SELECT p.oid::regprocedure::text FROM pg_proc p
           WHERE p.pronamespace = 'hub'::regnamespace AND p.proname ~ '^metric_[0-9a-f]{16}$' AND p.proname <> ALL (%s)""",
        (functions,),
    )
    for (unused,) in rows.fetchall():
        conn.execute(f"DROP FUNCTION {unused}")
    conn.execute("DELETE FROM hub.metric_unknown WHERE function <> ALL (%s)", (functions,))


def with_custom(views: Sequence[View], custom: Sequence[Metric]) -> tuple[View, ...]:
    """The views, of which `metrics` has the values of these metrics in its column `custom`."""
    if not custom:
        return tuple(views)
    ordered = sorted(custom, key=lambda metric: metric.name)
    reads = [name for metric in ordered for name in metric.reads]
    made = metrics_with([metric.function for metric in ordered], reads)
    return tuple(
        replace(view, select=made.select, reads=made.reads) if view.name == made.name else view for view in views
    )
