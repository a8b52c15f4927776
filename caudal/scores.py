"""Scores that depend on all customers and on the time: RFM quintiles, and what customers will do by BG/NBD and Gamma-Gamma.

They are computed for everybody at once and kept in hub.customer_scores until the next time; one worker does it, the holder of an advisory
lock, in a thread and with connections of its own. What the models predict is held against what happened: fitted on what was known 90 days
ago, they predict the orders since then, and the error is stored and shown beside the scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from caudal import lifetime, postgres
from caudal._periodic import Periodic
from caudal.lifetime import Numbers, Purchasing, Spending
from caudal.projections.criteria.fields import SPEND_BASE
from caudal.projections.membership.stage import refill
from caudal.projections.metrics import COUNTS, PAID
from caudal.settings import Settings
from caudal.telemetry import Log, logger

__all__ = ["Scoring", "refresh", "shown"]

_LOCK = postgres.Lock.SCORES
_KEY = "scores"
FIT_MOST = 50_000
"""About so many customers, drawn by their ids, are enough to fit four parameters."""
FIT_LEAST, REPEAT_LEAST = 100, 30
"""Customers with orders, and with orders on several days, that a model needs."""
HELD_OUT = timedelta(days=90)
PART = 20_000
"""Customers whose predictions are in memory at a time."""
WEEK, YEAR = 7.0, 365.0
LONGEST_WAIT = 3650.0

_PURCHASES = f"""
    WITH factors AS (
        SELECT DISTINCT ON (currency) currency, factor FROM hub.rates ORDER BY currency, day DESC
    ), days AS (
        SELECT l.customer_id, (o.placed_at AT TIME ZONE 'UTC')::date AS day,
               sum(o.total_minor * r.factor) FILTER (WHERE {PAID}) AS spend
        FROM live.links l JOIN live.orders o USING (subject) LEFT JOIN factors r USING (currency)
        WHERE {COUNTS} AND o.placed_at <= %(now)s
          AND (%(parts)s::int = 1 OR (hashtext(l.customer_id::text) & 2147483647) %% %(parts)s::int = 0)
        GROUP BY 1, 2
    )
    SELECT customer_id::text, count(*) FILTER (WHERE day <= %(until)s) - 1,
           max(day) FILTER (WHERE day <= %(until)s) - min(day), %(until)s::date - min(day),
           count(*) FILTER (WHERE spend > 0 AND day <= %(until)s),
           coalesce(avg(spend) FILTER (WHERE spend > 0 AND day <= %(until)s), 0)::float8, count(*) FILTER (WHERE day > %(until)s)
    FROM days GROUP BY 1 HAVING min(day) <= %(until)s
"""
"""Of each customer: the days of repeat orders, days from the first to the last, days from the first until now; days with spend, their mean
spend in the base currency; days with orders after `until`. Orders of one day are one purchase, as in the papers' data."""

_RFM = f"""
    SELECT customer_id, 1 + floor(5 * (rank() OVER (ORDER BY last_order_at) - 1) / all_of_them)::int,
           1 + floor(5 * (rank() OVER (ORDER BY orders_count) - 1) / all_of_them)::int,
           CASE WHEN spend IS NOT NULL THEN
               1 + floor(5 * (rank() OVER (PARTITION BY spend IS NULL ORDER BY spend) - 1) / count(spend) OVER ())::int END
    FROM (
        SELECT customer_id, last_order_at, orders_count, {SPEND_BASE.format(spend="spend_minor")} AS spend,
               count(*) OVER ()::numeric AS all_of_them
        FROM live.metrics WHERE orders_count > 0 AND last_order_at IS NOT NULL
    ) m
"""
"""Quintiles: 1 + five times the share of customers below, so that equal customers have equal scores and 5 is the best fifth."""

_STORE = f"""
    WITH scored AS (
        INSERT INTO hub.customer_scores AS s
        SELECT q.customer_id, q.recency, q.frequency, q.monetary, p.probability_alive, p.expected_orders_90d, p.predicted_value_minor,
               (SELECT base FROM hub.rates LIMIT 1), p.expected_next_order_at, %(now)s
        FROM ({_RFM}) q(customer_id, recency, frequency, monetary) LEFT JOIN predicted p USING (customer_id)
        ORDER BY q.customer_id
        ON CONFLICT (customer_id) DO UPDATE SET
            rfm_recency = excluded.rfm_recency, rfm_frequency = excluded.rfm_frequency, rfm_monetary = excluded.rfm_monetary,
            probability_alive = excluded.probability_alive, expected_orders_90d = excluded.expected_orders_90d,
            predicted_value_minor = excluded.predicted_value_minor, currency = excluded.currency,
            expected_next_order_at = excluded.expected_next_order_at, computed_at = excluded.computed_at
        RETURNING s.customer_id
    )
    SELECT count(*) FROM scored
"""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some customers; see `_PURCHASES`. Times are in days."""

    ids: list[str]
    x: Numbers
    t_x: Numbers
    t: Numbers
    count: Numbers
    mean: Numbers
    after: Numbers


def refresh(conn: psycopg.Connection[Any], now: datetime) -> Mapping[str, Any] | None:
    """Compute everybody's scores as of `now`; what is known of the run, or None when somebody else computes them.

    Raises:
        psycopg.Error: the scores are those of before.
    """
    if conn.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
        return None
    try:
        result = _computed(conn, now)
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
    if result is None:
        return None
    with conn.transaction():  # of its own: it may wait for the stage that keeps the segments
        refill(conn, reading="customer_scores")
    return result


def _computed(conn: psycopg.Connection[Any], now: datetime) -> Mapping[str, Any] | None:
    """Compute and store; None while there is nothing to compute from.

    Each reading of the purchases is a transaction of its own, so that none keeps VACUUM off for the whole of it.
    """
    began = time.monotonic()
    if conn.execute("SELECT to_regclass('live.metrics') IS NOT NULL").fetchone() != (True,):
        return None
    purchasing, spending = _fitted(conn, now, now.date())
    calibration = _calibrated(conn, now)
    conn.execute("DROP TABLE IF EXISTS pg_temp.predicted")
    conn.execute(
        """CREATE TEMP TABLE predicted (customer_id uuid PRIMARY KEY, probability_alive float8, expected_orders_90d float8,
               predicted_value_minor bigint, expected_next_order_at timestamptz)"""
    )
    if purchasing is not None:
        with _transaction(conn):
            for part in _parts(conn, now, now.date(), 1):
                _predict(conn, part, purchasing, spending, now)
    with _transaction(conn):
        row = conn.execute(_STORE, {"now": now}).fetchone()
        conn.execute("DELETE FROM hub.customer_scores WHERE computed_at <> %s", (now,))
        result = {
            "computed_at": now.isoformat(timespec="seconds"),
            "customers": row[0] if row else 0,
            "purchasing": None if purchasing is None else asdict(purchasing),
            "spending": None if spending is None else asdict(spending),
            "calibration": calibration,
            "seconds": round(time.monotonic() - began, 1),
        }
        conn.execute(
            """INSERT INTO hub.control (key, value) VALUES (%s, %s)
               ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, changed_at = now()""",
            (_KEY, Jsonb(result)),
        )
        conn.execute("DROP TABLE predicted")
    return result


@contextmanager
def _transaction(conn: psycopg.Connection[Any]) -> Iterator[None]:
    with conn.transaction():
        conn.execute("SET LOCAL work_mem = '64MB'")
        yield


def shown(conn: psycopg.Connection[Any]) -> Mapping[str, Any] | None:
    """What is known of the last run; None when there was none."""
    row = conn.execute("SELECT value FROM hub.control WHERE key = %s", (_KEY,)).fetchone()
    return row[0] if row else None


class Scoring(Periodic):
    """Computes scores when they are older than they may be."""

    step = "scores"
    every_s = 600.0
    ends_within_s = 1.0  # the transaction of a computation that is cut off leaves nothing

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected before the time comes."""
        super().__init__()
        self._settings = settings

    def look(self, now: datetime) -> bool:
        """Compute the scores if it is time; whether they were computed.

        Raises:
            CaudalError: PostgreSQL can't be reached.
        """
        with postgres.translated(), postgres.connect(self._settings.postgres, role="scores") as conn:
            last = shown(conn)
            every = timedelta(hours=self._settings.worker.scores_every_h)
            if last is not None and datetime.fromisoformat(last["computed_at"]) > now - every:
                return False
            result = refresh(conn, now)
        if result is not None:
            calibration = result["calibration"] or {}
            logger().info(
                Log.SCORES_COMPUTED,
                customers=result["customers"],
                error=calibration.get("error"),
                seconds=result["seconds"],
            )
        return result is not None


def _fitted(conn: psycopg.Connection[Any], now: datetime, until: date) -> tuple[Purchasing | None, Spending | None]:
    """Models of what was known on the day `until`; None where there is too little to tell."""
    row = conn.execute("SELECT count(*) FROM live.metrics WHERE orders_count > 0").fetchone()
    parts = max(1, (row[0] if row else 0) // FIT_MOST)
    with _transaction(conn):
        found = list(_parts(conn, now, until, parts))
    if not found:
        return None, None
    x, t_x, t, count, mean = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("x", "t_x", "t", "count", "mean")
    )
    if len(x) < FIT_LEAST or np.count_nonzero(x) < REPEAT_LEAST:
        return None, None
    bought = count > 0
    spending = lifetime.fit_spending(count[bought], mean[bought]) if np.count_nonzero(bought) >= FIT_LEAST else None
    return lifetime.fit_purchasing(x, t_x / WEEK, t / WEEK), spending


def _calibrated(conn: psycopg.Connection[Any], now: datetime) -> dict[str, Any] | None:
    """What a model of 90 days ago expected of the days since, beside what came; None when too little was known then."""
    until = (now - HELD_OUT).date()
    model, _ = _fitted(conn, now, until)
    if model is None:
        return None
    expected = actual = deviation = 0.0
    customers = 0
    with _transaction(conn):
        for part in _parts(conn, now, until, 1):
            each = model.expected(part.x, part.t_x / WEEK, part.t / WEEK, HELD_OUT.days / WEEK)
            customers += len(part.ids)
            expected += float(np.nan_to_num(each).sum())
            actual += float(part.after.sum())
            deviation += float(np.nan_to_num(np.abs(each - part.after)).sum())
    return {
        "until": until.isoformat(),
        "customers": customers,
        "expected_orders": round(expected, 1),
        "actual_orders": int(actual),
        "error": round(expected / actual - 1, 4) if actual else None,
        "mean_absolute_error": round(deviation / customers, 4),
    }


def _parts(conn: psycopg.Connection[Any], now: datetime, until: date, parts: int) -> Iterator[_Part]:
    """Customers who had ordered by the day `until`, of every `parts`-th by the id, in pieces."""
    with conn.cursor(name="purchases") as cursor:
        cursor.execute(_PURCHASES, {"now": now, "until": until, "parts": parts})
        while rows := cursor.fetchmany(PART):
            ids, *columns = zip(*rows, strict=True)
            yield _Part(list(ids), *(np.array(column, np.float64) for column in columns))


def _predict(
    conn: psycopg.Connection[Any], part: _Part, purchasing: Purchasing, spending: Spending | None, now: datetime
) -> None:
    x, t_x, t = part.x, part.t_x / WEEK, part.t / WEEK
    alive = purchasing.probability_alive(x, t_x, t)
    soon = purchasing.expected(x, t_x, t, HELD_OUT.days / WEEK)
    value = np.full(len(x), np.nan)
    if spending is not None:
        worth = purchasing.expected(x, t_x, t, YEAR / WEEK) * spending.mean(part.count, part.mean)
        value = np.where(part.count > 0, np.minimum(worth, 2.0**62), np.nan)
    wait = purchasing.median_wait(x, t) * WEEK
    with conn.cursor() as cursor, cursor.copy("COPY predicted FROM STDIN") as copy:
        for customer, lives, orders, minor, days in zip(part.ids, alive, soon, value, wait, strict=True):
            copy.write_row(
                (
                    customer,
                    _known(lives),
                    _known(orders),
                    round(float(minor)) if np.isfinite(minor) else None,
                    now + timedelta(days=float(days)) if days <= LONGEST_WAIT else None,
                )
            )


def _known(value: np.float64) -> float | None:
    """A number as PostgreSQL and JSON have it."""
    return float(value) if np.isfinite(value) else None
