"""Segments that people define: what 1,000 of them cost the live path beside 10, and how late people leave when the time comes.

The same backlog is drained twice: with 10 and with 1,000 segments of the same kinds. Memberships are judged beside the drain, a customer
once for many events; so two rates are told: of the drain, and of all that follows. Some segments are compared with their criteria asked
anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from caudal.projections import criteria
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import Draft
from caudal.schemas import Event, OrderLine, OrderStated, ProfileStated

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage, wait_until
from benchmarks.drain import awaited, fill
from benchmarks.latency import percentile

__all__ = ["measure"]

EVENTS = 100_000
CUSTOMERS = 20_000
FEW, MANY = 10, 1_000
COMPARED = 12
LEAVING = 4_000
"""Customers who leave a segment by time, one every few milliseconds."""
AHEAD_S, EACH_S = 25.0, 0.005


def texts() -> Iterator[str]:
    """Criteria as people write them: a third on the profile, a third on metrics, a third on what was bought in a window of time."""
    rnd = random.Random(3)
    cities = [city for city, _, _ in _generate.PLACES]
    while True:
        low = rnd.randint(20, 60)
        yield f'city = "{rnd.choice(cities)}" and age between {low} and {low + rnd.randint(1, 9)}'
        yield f"spend > {rnd.randint(100, 4000)} BRL and orders_count >= {rnd.randint(1, 5)}"
        category, days = rnd.choice(_generate.CATEGORIES), rnd.randint(200, 3000)
        yield f'bought(category = "{category}", times >= {rnd.randint(1, 3)}, within = {days}d)'


def _define(one: Stage, count: int) -> None:
    drafts = [Draft(f"s{number}", criteria.parse(text)) for number, text in zip(range(count), texts(), strict=False)]
    definitions.save(one.conn, drafts, "benchmark")
    one.conn.execute("UPDATE hub.segments SET state = 'live'")  # there is nobody whom they could be applied to


def _drained(count: int, events: int, customers: int, seed: int) -> tuple[float, float]:
    """Events per second projected, and with all that follows."""
    with stage() as one:
        _define(one, count)
        total = fill(one, _generate.events(events, customers, seed=seed))
        one.start("worker", CAUDAL_WORKER__WEB_PORT="0")
        wait_until(lambda: _stored(one) > 0, timeout_s=120, what="event")
        began, begun = time.perf_counter(), _stored(one)
        wait_until(lambda: _stored(one) >= total, timeout_s=1200, what="end of the log")
        projected = time.perf_counter()
        wait_until(lambda: _judged(one), timeout_s=1200, what="judgement of everyone")
        awaited(one, total)
        ended = time.perf_counter()
        one.stop()
        _check(one)
    return (total - begun) / (projected - began), (total - begun) / (ended - began)


def _stored(one: Stage) -> int:
    row = one.conn.execute("SELECT coalesce(sum(next_offset), 0)::bigint FROM live.offsets").fetchone()
    return row[0] if row else 0


def _judged(one: Stage) -> bool:
    return one.conn.execute("SELECT EXISTS (SELECT FROM hub.segment_touched)").fetchone() == (False,)


def _check(one: Stage) -> None:
    for segment in definitions.defined(one.conn)[:COMPARED]:
        assert segment.condition is not None
        asked = criteria.members(segment.condition)
        kept = "SELECT customer_id FROM hub.segment_memberships WHERE segment_id = %(id)s"
        parameters = {**asked.parameters, "now": datetime.now(UTC), "id": segment.id}
        for first, other in ((asked.text, kept), (kept, asked.text)):
            if one.conn.execute(f"SELECT FROM (({first}) EXCEPT ({other})) d", parameters).fetchone() is not None:
                raise AssertionError(f"the members of {segment.name} are not whom its criteria hold of")


def _leaving(count: int, until: datetime) -> Iterator[Event]:
    """Customers with an order that leaves the window of 30 days a moment after `until`, each another one."""
    for number in range(count):
        at = until - timedelta(days=30) + timedelta(seconds=number * EACH_S)
        header: dict[str, Any] = {
            "source": "shop-br", "subject": f"shop-br:customer:{number}", "customer_id": _generate.customer_id(number), "link_seq": 1,
            "occurred_at": at, "captured_at": at,
        }  # fmt: skip
        yield ProfileStated(event_id=f"p{number}", **header, name="Ana")
        lines = (OrderLine(line_id="1", category="shoes", quantity=1, unit_price_minor=100),)
        yield OrderStated(
            event_id=f"o{number}", **header, order_id=str(number), status="paid", currency="BRL", total_minor=100, placed_at=at, lines=lines
        )  # fmt: skip


def _late(count: int) -> list[float]:
    """Milliseconds from the moment that somebody was due to leave until that was written."""
    with stage() as one:
        definitions.save(one.conn, [Draft("recent", criteria.parse("bought(within = 30d)"))], "benchmark")
        until = datetime.now(UTC) + timedelta(seconds=AHEAD_S)
        fill(one, _leaving(count, until))
        one.start("worker", CAUDAL_WORKER__WEB_PORT="0")
        wait_until(
            lambda: _gone(one) == count, timeout_s=AHEAD_S + count * EACH_S + 120, what="departures", every_s=0.5
        )
        one.stop()
        found = one.conn.execute(
            """SELECT extract(epoch FROM h.at - (o.placed_at + interval '30 days'))::float8 * 1000
               FROM hub.segment_history h JOIN live.links l USING (customer_id) JOIN live.orders o USING (subject)
               WHERE NOT h.entered AND h.cause = 'time'"""
        ).fetchall()
    if len(found) < count or min(found)[0] < 0:
        raise AssertionError(f"{len(found)} of {count} left by time, the first {min(found)[0]} ms after it was due")
    return [late for (late,) in found]


def _gone(one: Stage) -> int:
    row = one.conn.execute("SELECT count(*) FROM hub.segment_history WHERE NOT entered").fetchone()
    return row[0] if row else 0


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`drain_*`: events into facts, views and outbox, segments judged beside; `judged_*`: until everyone is judged, too, and all is
    published; `timed_exit_lateness_*`.
    """
    events, customers = int(EVENTS * scale), max(int(CUSTOMERS * scale), 100)

    def once(seed: int) -> dict[str, float]:
        few, few_judged = _drained(FEW, events, customers, seed)
        many, many_judged = _drained(MANY, events, customers, seed)
        late = _late(int(LEAVING * min(scale, 1)))
        return {
            "drain_10_segments_events_per_s": few,
            "drain_1000_segments_events_per_s": many,
            "drain_ratio_1000_to_10_segments": many / few,
            "judged_10_segments_events_per_s": few_judged,
            "judged_1000_segments_events_per_s": many_judged,
            "judged_ratio_1000_to_10_segments": many_judged / few_judged,
            "timed_exit_lateness_p50_ms": percentile(late, 50),
            "timed_exit_lateness_p99_ms": percentile(late, 99),
        }

    found = [once(run) for run in range(runs)]
    return [figure(name, _unit(name), [values[name] for values in found]) for name in found[0]]


def _unit(name: str) -> str:
    return "ms" if name.endswith("_ms") else "ratio" if "ratio" in name else "events/s"
