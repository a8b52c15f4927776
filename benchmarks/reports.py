"""Reports made of rollups and of facts, over a million customers, five million orders, two million answers and one million tickets (at
scale 1).

What a report reads is chosen by the moment that it is asked of: of one that is past, facts (see docs/reports.md).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from caudal.projections.reports import REPORTS, Asked
from caudal.serving._reports import Reports

from benchmarks import search
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from caudal import postgres

__all__ = ["measure"]

CUSTOMERS = search.CUSTOMERS
TURNS = 5
_AT = "now() - make_interval(secs => (hashtext('{salt}' || n)::bigint & 2147483647) %% 63072000)"
_HEADER = "'shop:customer:' || 1 + n %% %(customers)s, 'shop', t.at, now(), n::text, 0"
_FILL = (
    f"""INSERT INTO live.feedback (feedback_id, subject, source, occurred_at, captured_at, event_id, stated, kind, score, scale_min,
                                   scale_max, product, answered_at)
        SELECT 'f' || n, {_HEADER}, (ARRAY['nps', 'csat', 'ces', 'review'])[1 + n %% 4],
               (hashtext('s' || n) & 1023) %% CASE n %% 4 WHEN 0 THEN 11 ELSE 5 END, 0, CASE n %% 4 WHEN 0 THEN 10 ELSE 5 END,
               'product ' || n %% 500, t.at
        FROM generate_series(1, 2 * %(customers)s) n, LATERAL (SELECT {_AT.format(salt="f")} AS at) t""",
    f"""INSERT INTO live.tickets (ticket_id, subject, source, occurred_at, captured_at, event_id, stated, status, opened_at, solved_at,
                                  first_replied_at, satisfaction)
        SELECT 't' || n, {_HEADER}, CASE WHEN n %% 50 = 0 THEN 'open' ELSE 'solved' END, t.at,
               CASE WHEN n %% 50 <> 0 THEN t.at + interval '1 day' END, t.at + make_interval(secs => n %% 40000),
               (ARRAY['good', 'bad', NULL])[1 + n %% 3]
        FROM generate_series(1, %(customers)s) n, LATERAL (SELECT {_AT.format(salt="t")} AS at) t""",
)
_TWO_YEARS = timedelta(days=700)
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "sales_35_days": ("sales", {"by": "day"}),
    "sales_2_years": ("sales", {"by": "month", "first": _TWO_YEARS}),
    "nps_2_years": ("nps", {"by": "month", "first": _TWO_YEARS}),
    "nps_products": ("nps-products", {}),
    "support_2_years": ("support", {"by": "month", "first": _TWO_YEARS}),
}
"""Name of the figure → report, and what is asked; `first` so long ago."""


def _fill(one: Stage, customers: int) -> None:
    search.fill(one, customers=customers)
    with search.without_triggers(one.conn):
        for statement in _FILL:
            one.conn.execute(statement, {"customers": customers})
    one.conn.execute("VACUUM ANALYZE")


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Milliseconds of each report, the median of five; from the rollup and from the facts."""
    found: dict[str, list[float]] = {}
    with stage() as one:
        _fill(one, int(CUSTOMERS * scale))
        for _ in range(runs):
            for name, value in asyncio.run(_timed(one)).items():
                found.setdefault(name, []).append(value)
    return [figure(f"report_{name}_ms", "ms", values) for name, values in found.items()]


async def _timed(one: Stage) -> dict[str, float]:
    settings = one.settings.postgres.model_copy(update={"statement_timeout_s": 600.0})
    times: dict[str, list[float]] = {}
    async with postgres.opened(settings, role="benchmark") as pool:
        reports = Reports(pool)
        for name, (report, options) in ASKED.items():
            for source, ago in (("rollup", timedelta(0)), ("facts", timedelta(minutes=5))):
                for _ in range(TURNS):
                    now = datetime.now(UTC) - ago
                    first = {"first": (now - options["first"]).date()} if "first" in options else {}
                    started = time.perf_counter()
                    await reports.make(REPORTS[report], Asked(**(options | first), now=now))
                    times.setdefault(f"{name}_{source}", []).append((time.perf_counter() - started) * 1000)
    return {name: median(taken) for name, taken in times.items()}
