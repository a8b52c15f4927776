"""How long a custom metric may take of one customer, and what happens when it takes longer.

PostgreSQL ends a statement after a time, whatever it does then; so the function of a metric that is ended says of whom it was
computed and for how long (SQLSTATE `OVERDUE`). Whoever ran the statement notes the customer in hub.metric_unknown and runs it again: the
metric is unknown for that customer from then on, live and in every rebuild, until it is applied again. One that takes too long for many is
unknown for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from caudal.projections.custom.metric import EVERYBODY, OVERDUE, Metric

from caudal import telemetry
from caudal.telemetry import Log, logger

__all__ = ["STATEMENT_MS", "give_up", "limited", "noticed", "probe", "unknown"]

STATEMENT_MS = 5_000
"""Longest statement that computes custom metrics of a batch; the live projection stands still for as long as it takes."""
CUSTOMER_MS = 1_000
"""Longest that one metric may take of one customer."""
MOST_CUSTOMERS = 10
"""Of so many customers a metric may be given up on; then it is for everybody."""
_CHUNK = 1_000


def limited(conn: psycopg.Connection[Any], run: Callable[[], object]) -> None:
    """Run statements of the current transaction that may take `STATEMENT_MS` each."""
    conn.execute(f"SET LOCAL statement_timeout = {STATEMENT_MS}")
    run()
    conn.execute("SET LOCAL statement_timeout = 0")


def give_up(conn: psycopg.Connection[Any], exc: psycopg.Error, metrics: Sequence[Metric], *, alone: bool) -> bool:
    """Note the customer of whom a metric took too long; False when it didn't, but the statement as a whole.

    Args:
        conn: outside of the transaction that failed.
        exc: what it failed with, whose `sqlstate` is `OVERDUE`.
        metrics: those that were computed.
        alone: whether nothing less can be computed, so that this metric is to blame in any case.
    """
    function, customer, took_ms = (exc.diag.message_detail or "").split()
    if float(took_ms) < CUSTOMER_MS and not alone:
        return False
    conn.execute(
        "INSERT INTO hub.metric_unknown (function, customer_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        (function, customer),
    )
    counted = conn.execute("SELECT count(*) FROM hub.metric_unknown WHERE function = %s", (function,)).fetchone()
    everybody = counted is not None and counted[0] >= MOST_CUSTOMERS
    if everybody:
        conn.execute(
            "INSERT INTO hub.metric_unknown (function, customer_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (function, EVERYBODY),
        )
    name = next((metric.name for metric in metrics if metric.function.endswith(function)), function)
    telemetry.METRIC_FAILURES.labels(name, "too_long").inc()
    logger().error(Log.METRIC_GIVEN_UP, metric=name, customer=customer, everybody=everybody, limit_ms=CUSTOMER_MS)
    return True


def unknown(conn: psycopg.Connection[Any]) -> dict[str, int | str]:
    """Function, without its schema → of how many customers it was given up on, or `everybody`."""
    rows = conn.execute(
        "SELECT function, count(*), bool_or(customer_id = %s) FROM hub.metric_unknown GROUP BY 1 ORDER BY 1",
        (EVERYBODY,),
    )
    return {function: "everybody" if everybody else count for function, count, everybody in rows.fetchall()}


def noticed(metrics: Sequence[Metric], diagnostic: Any) -> None:
    """Count what couldn't be computed, from the notice of a metric's function; see `metric.install`."""
    if diagnostic.sqlstate == OVERDUE:
        function, _, code = (diagnostic.message_detail or "").partition(" ")
        name = next((metric.name for metric in metrics if metric.function.endswith(function)), None)
        if name is not None:
            telemetry.METRIC_FAILURES.labels(name, code).inc()


def probe(
    conn: psycopg.Connection[Any], metrics: Sequence[Metric], schema: str, customers: Sequence[str] | None = None
) -> None:
    """Compute metrics of these customers, or of all, and give up on what takes too long: a statement that computes them for
    everybody can then run without a limit.

    Args:
        conn: what is noted is noted there, so in its transaction if there is one.
        metrics: whose functions are there.
        schema: that of facts and links.
        customers: ids.
    """
    if not metrics:
        return
    computed = ", ".join(f"count({metric.function}(c.customer_id, %(schema)s))" for metric in metrics)
    if customers is None:
        rows = conn.execute(f"SELECT DISTINCT customer_id::text FROM {schema}.links ORDER BY 1").fetchall()
        customers = [customer for (customer,) in rows]
    left = [[*customers[at : at + _CHUNK]] for at in range(0, len(customers), _CHUNK)]
    while left:
        chunk = left.pop()
        try:
            with conn.transaction():
                limited(
                    conn,
                    lambda chunk=chunk: conn.execute(  # type: ignore[misc]  # its default binds the loop's value
                        f"SELECT {computed} FROM unnest(%(chunk)s::text[]::uuid[]) c(customer_id)",
                        {"schema": schema, "chunk": chunk},
                        prepare=False,
                    ),
                )
        except psycopg.Error as exc:
            overdue = exc.sqlstate == OVERDUE
            if not overdue and not (isinstance(exc, psycopg.errors.QueryCanceled) and len(chunk) > 1):
                raise
            if overdue and give_up(conn, exc, metrics, alone=len(chunk) == 1):
                left.append(chunk)
            else:
                left += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
