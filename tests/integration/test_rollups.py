"""Rollups hold what the facts hold: whatever happens to these, and reports say the same from both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import report_log
from caudal.projections import ROLLUPS, Findings, Runner, _rollup, _runner, verify_rollups
from caudal.projections.reports import REPORTS, Asked, _ask
from caudal.schemas import CustomerErased, Event, OrderStated, Refund, SubjectDeleted, SubjectLinked
from caudal.schemas.codec import Codec
from caudal.serving._reports import Reports
from logs import NOTHING, apply, rebuilt, records

from caudal import postgres
from caudal.settings import Settings

ROLLED = [name for name, report in REPORTS.items() if set(report.reads) & _ask.ROLLED.keys()]
ZONES = ("UTC", "America/Recife", "Asia/Kathmandu")
Row = list[dict[str, Any]]


def log_of(rnd: random.Random) -> list[Event]:
    """What a small company's customers do, with every way in which it may change later; in no order."""
    log = report_log.events(rnd.randrange(1_000))
    for turn, event in enumerate(rnd.sample(log, len(log) // 2)):
        at = report_log.NOW - timedelta(minutes=rnd.randrange(100_000))
        header = {
            "subject": event.subject, "source": event.source, "customer_id": event.customer_id, "link_seq": 1, "occurred_at": at,
            "captured_at": at, "event_id": f"x{turn}",
        }  # fmt: skip
        match rnd.randrange(6):
            case 0 if isinstance(event, OrderStated):  # moved to another day, currency and customer
                header |= {"subject": f"shop:customer:{rnd.choice(report_log.CUSTOMERS)}"}
                header["customer_id"] = header["subject"].rpartition(":")[2]
                refund = Refund(
                    refund_id=f"r{event.order_id}", refunded_at=at, amount_minor=rnd.randrange(900), currency="EUR"
                )
                log.append(
                    OrderStated(**header, order_id=event.order_id, placed_at=at, currency="EUR", refunds=(refund,))
                )
            case 1 | 2 if isinstance(event, OrderStated):
                status = rnd.choice(["cancelled", "paid", "pending"])
                log.append(
                    OrderStated(**header, order_id=event.order_id, status=status, total_minor=rnd.randrange(9_999))
                )
            case 3 if turn % 4 == 0:
                log.append(SubjectDeleted(**header, kind=rnd.choice(["deleted", "erased"]), reason="vendor_deleted"))
            case 4 if turn % 8 == 0:
                log.append(CustomerErased(**header, subjects=(event.subject,)))
            case 5:
                header |= {"link_seq": 2 + turn, "customer_id": rnd.choice(report_log.CUSTOMERS)}
                log.append(SubjectLinked(**header, reason="manual"))
    rnd.shuffle(log)
    return log


def wrong(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """The rollups that don't hold what the facts hold, with the rows."""
    names = {rollup.table for rollup in ROLLUPS}
    return {name: rows for name, rows in rebuilt(conn).items() if name in names and rows != ([], [])}


@pytest.fixture
def told(settings: Settings) -> Callable[..., dict[tuple[str, ...], Row]]:
    """The rows of every report that can be made of a rollup, for some ways to ask; from facts when `facts`."""

    async def all_of(*, facts: bool, **asked: Any) -> dict[tuple[str, ...], Row]:
        rows = {}
        with pytest.MonkeyPatch.context() as patched:
            if facts:
                patched.setattr(_ask, "ROLLED", {})
            async with postgres.opened(settings.postgres, role="tests") as pool:
                for name in ROLLED:
                    for by in REPORTS[name].by or (None,):
                        for zone in ZONES if by in {None, "day"} else ZONES[1:2]:
                            made = await Reports(pool).make(REPORTS[name], Asked(by=by, zone=zone, **asked))
                            rows[name, str(by), zone] = made.result.rows
        return rows

    return lambda **asked: asyncio.run(all_of(**asked))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    moment = datetime.now(UTC)
    monkeypatch.setattr(report_log, "NOW", moment)
    monkeypatch.setattr(_runner, "FOLD_BATCHES", 3)
    return moment


def test_a_report_of_a_rollup_says_what_one_of_the_facts_says_after_any_change(
    live: Runner, codec: Codec, conn: psycopg.Connection[Any], told: Any, now: datetime
) -> None:
    rnd = random.Random(11)
    log = records(codec, log_of(rnd))
    third = len(log) // 3
    first = now.date() - timedelta(days=70)
    before: Any = None
    for part in (log[:third], log[third : 2 * third], log[2 * third :]):
        apply(live, part, [rnd.randrange(20, 90)])
        assert rebuilt(conn) == NOTHING
        asked = {"first": first, "now": now}
        rolled = told(facts=False, **asked)
        assert rolled == told(facts=True, **asked)
        assert rolled != before
        before = rolled
    # what lies in the future counts when its time has come, and not before
    later = now + timedelta(days=1, hours=rnd.randrange(20))
    asked = {"first": first, "now": later, "last": later.date()}
    assert told(facts=False, **asked) == told(facts=True, **asked) != before
    # an edit by hand is a change like others
    for edit in (
        "DELETE FROM live.orders WHERE order_id < 'o3'",
        "UPDATE live.orders SET total_minor = 7 * total_minor",
    ):
        conn.execute(edit)
        assert wrong(conn) == {}


def test_the_largest_and_least_amounts_are_summed(live: Runner, codec: Codec, conn: psycopg.Connection[Any]) -> None:
    def order(number: int, amount: int) -> OrderStated:
        at = datetime(2026, 3, 1, number, tzinfo=UTC)
        refund = Refund(refund_id="r", refunded_at=at, amount_minor=amount, currency="BRL")
        customer = report_log.CUSTOMERS[0]
        return OrderStated(
            subject=f"shop:customer:{customer}", source="shop", customer_id=customer, link_seq=1, occurred_at=at, captured_at=at,
            event_id=str(number), order_id="1", status="paid", currency="BRL", total_minor=amount, discount_minor=amount, placed_at=at,
            refunds=(refund,),
        )  # fmt: skip

    apply(live, records(codec, [order(n, amount) for n, amount in enumerate((-(2**63), 2**63 - 1, -(2**63)))]), [1])
    found = conn.execute("SELECT gross_minor, discounts_minor, refunds_minor FROM live.daily_sales").fetchall()
    assert found == [(-(2**64), -(2**63), -(2**63))]


def test_a_rollup_that_was_changed_by_hand_is_found(live: Runner, codec: Codec, conn: psycopg.Connection[Any]) -> None:
    apply(live, records(codec, report_log.events()))
    findings = Findings()
    verify_rollups(conn, findings)
    assert findings.plain()["equal"]
    for rollup in ROLLUPS:
        conn.execute(
            f"UPDATE live.{rollup.table} SET {rollup.sums[0]} = 1000000 WHERE ctid = (SELECT min(ctid) FROM live.{rollup.table})"
        )
        findings = Findings()
        verify_rollups(conn, findings)
        assert findings.plain()["tables"] == {rollup.table: 1}
        assert findings.differences[0].fields[rollup.sums[0]][0] >= 1_000_000
        assert findings.differences[0].customer_id is None
        conn.execute(f"TRUNCATE live.{rollup.table}, live.{rollup.table}_new")
        for statement in _rollup.fill("live", rollup):
            conn.execute(statement)
