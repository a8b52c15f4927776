"""Subjects with very many orders: what is kept of their orders is what the orders say, whatever happens to them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import report_log
from caudal.projections import Runner, _crowd
from caudal.schemas import OrderLine, OrderStated, SubjectDeleted
from caudal.schemas.codec import Codec
from logs import NOTHING, PARTITIONS, apply, clear, rebuilt, records
from test_rollups import log_of

from caudal.settings import Settings

CUSTOMER = report_log.CUSTOMERS[0]
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def crowding(settings: Settings, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setattr(_crowd, "LARGE", 3)
    runner = Runner(settings, codec)
    runner.positions(range(PARTITIONS))
    yield runner
    runner.close()


def kept(conn: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    names = {"order_sums": "subject, what, value, n, amount", "order_times": "subject, counts, at, n"}
    return {
        name: conn.execute(f"SELECT {columns} FROM live.{name} ORDER BY 1, 2, 3").fetchall()
        for name, columns in names.items()
    }


def anew(conn: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """What is kept when the subjects are noted only now."""
    with conn.transaction(force_rollback=True):
        crowded = conn.execute("DELETE FROM live.crowded RETURNING subject").fetchall()
        assert kept(conn) == {"order_sums": [], "order_times": []}
        conn.execute("INSERT INTO live.crowded SELECT unnest(%s::text[])", ([subject for (subject,) in crowded],))
        return kept(conn)


def order(number: int, hour: int, **given: Any) -> OrderStated:
    at = START + timedelta(hours=hour)
    return OrderStated(
        subject=f"shop:customer:{CUSTOMER}", source="shop", customer_id=CUSTOMER, link_seq=1, occurred_at=at, captured_at=at,
        event_id=f"{number}-{hour}", order_id=str(number), **given,
    )  # fmt: skip


def test_sums_follow_orders_that_come_late_are_corrected_move_and_are_erased(
    settings: Settings, crowding: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    clear(conn)
    rnd = random.Random(5)
    log = records(codec, log_of(rnd))
    half = len(log) // 2
    for part in (log[:half], log[half:]):
        apply(crowding, part, [rnd.randrange(10, 60)])
        assert rebuilt(conn) == NOTHING
        assert kept(conn) == anew(conn)
    assert conn.execute("SELECT count(*) > 3 FROM live.crowded").fetchone() == (True,)
    for edit in (
        "DELETE FROM live.orders WHERE order_id < 'o3'",
        "UPDATE live.orders SET total_minor = 7 * total_minor, status = 'paid', currency = 'EUR' WHERE order_id < 'o6'",
    ):
        conn.execute(edit)
        assert kept(conn) == anew(conn)


def test_the_next_order_of_a_crowded_subject_reads_none_of_the_others(
    settings: Settings, crowding: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    clear(conn)
    lines = (OrderLine(line_id="1", quantity=2, unit_price_minor=5, category="shoes", product="x" * 5_000),)
    given: dict[str, Any] = {"status": "paid", "currency": "BRL", "total_minor": 2**62, "lines": lines}
    log = records(codec, [order(n, n, placed_at=START + timedelta(days=n), **given) for n in range(6)])
    apply(crowding, log[:5], [5])
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")  # without triggers: nobody hears of it
        conn.execute("DELETE FROM live.orders WHERE order_id < '4'")
    apply(crowding, log[5:])
    found = conn.execute(
        "SELECT orders_count, spend_minor, first_order_at, favourite_category, length(favourite_product) FROM live.metrics"
    ).fetchall()
    assert found == [(6, {"BRL": 2**63 - 1}, START, "shoes", 5_000)]


def test_an_erasure_leaves_nothing_in_the_sums(
    settings: Settings, crowding: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    clear(conn)
    last = order(9, 9)
    gone = SubjectDeleted(
        **{name: getattr(last, name) for name in ("subject", "source", "customer_id", "link_seq", "occurred_at", "captured_at")},
        event_id="gone", kind="erased", reason="redact",
    )  # fmt: skip
    log = records(codec, [*(order(n, n, channel="web", placed_at=START, currency="BRL") for n in range(5)), gone])
    apply(crowding, log, [5, 1])
    assert kept(conn) == {"order_sums": [], "order_times": []}
    assert rebuilt(conn) == NOTHING
