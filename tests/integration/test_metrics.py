"""The figures of a customer are what their definitions say of given facts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from caudal.projections import Runner
from caudal.projections.criteria import parse
from caudal.projections.criteria.compile import members
from caudal.projections.criteria.fields import FIELDS
from caudal.schemas import (
    Event,
    FeedbackStated,
    InteractionRecorded,
    OrderLine,
    OrderStated,
    ProfileStated,
    Refund,
    TicketStated,
)
from caudal.schemas.codec import Codec, LocalRegistry
from logs import PARTITIONS, apply, connect, records
from psycopg.rows import dict_row

from caudal import rates
from caudal.settings import Settings

ANA = "00000000-0000-0000-0000-00000000000a"
MONDAY = datetime(2026, 3, 2, 23, 30, tzinfo=UTC)


def _header(number: int, customer: str = ANA) -> dict[str, Any]:
    return {
        "event_id": f"{number:04d}", "source": "shop", "subject": f"shop:customer:{customer[-1]}", "customer_id": customer, "link_seq": 1,
        "occurred_at": MONDAY + timedelta(minutes=number), "captured_at": MONDAY + timedelta(minutes=number),
    }  # fmt: skip


def _order(number: int, total: int, *, days: int = 0, currency: str = "BRL", **more: Any) -> OrderStated:
    stated = {"status": "paid", "placed_at": MONDAY + timedelta(days=days), "channel": "web"} | more
    return OrderStated(**_header(number), order_id=str(number), currency=currency, total_minor=total, **stated)


def _line(product: str, category: str, quantity: int) -> OrderLine:
    return OrderLine(line_id=product, product=product, category=category, quantity=quantity, unit_price_minor=100)


def _answer(number: int, kind: str, score: float | None, *, hours: int = 0, **more: Any) -> FeedbackStated:
    at = MONDAY + timedelta(hours=hours)
    return FeedbackStated(**_header(number), feedback_id=str(number), kind=kind, score=score, answered_at=at, **more)


def _ticket(number: int, status: str, replied_s: int | None) -> TicketStated:
    replied = None if replied_s is None else MONDAY + timedelta(seconds=replied_s)
    return TicketStated(
        **_header(number), ticket_id=str(number), status=status, opened_at=MONDAY, first_replied_at=replied
    )


def _mail(number: int, kind: str) -> InteractionRecorded:
    return InteractionRecorded(**_header(number), interaction_id=str(number), kind=f"email.{kind}")


def _spend_base(conn: Any) -> Any:
    return conn.execute(f"SELECT {FIELDS['spend_base_minor'].sql} FROM live.metrics m").fetchone()[0]


@pytest.fixture
def figures(settings: Settings) -> Any:
    def of(*events: Event) -> dict[str, Any]:
        runner = Runner(settings, Codec(LocalRegistry(settings.kafka.topic_prefix)))
        runner.positions(range(PARTITIONS))
        try:
            apply(runner, records(Codec(LocalRegistry(settings.kafka.topic_prefix)), events))
        finally:
            runner.close()
        with connect(settings) as conn, conn.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute("SELECT * FROM live.metrics WHERE customer_id = %s", (ANA,)).fetchone()
        assert row is not None
        return row

    return of


def test_every_figure_is_what_its_definition_says(figures: Any) -> None:
    refund = Refund(refund_id="r", refunded_at=MONDAY, amount_minor=500, currency="BRL")
    row = figures(
        _order(1, 9000, discount_minor=1000, lines=(_line("Tênis", "shoes", 1), _line("Meia", "socks", 3))),
        _order(2, 12000, subtotal_minor=10000, days=7, refunds=(refund,), lines=(_line("Tênis", "shoes", 3),)),
        _order(3, 700, days=8, currency="EUR", discount_minor=700, channel="pos"),
        _order(4, 99999, days=9, status="cancelled", discount_minor=99999, channel="pos", lines=(_line("Bota", "boots", 9),)),
        _order(5, 99999, days=9, kind="checkout", channel="pos"),
        _ticket(10, "solved", 60), _ticket(11, "closed", 120), _ticket(12, "open", None), _ticket(13, "deleted", -5),
        _answer(20, "nps", 9.0), _answer(21, "nps", 3.0, hours=1), _answer(22, "nps", None, hours=2),
        _answer(23, "csat", 4.0), _answer(24, "ces", 6.0),
        _answer(25, "review", 5.0, scale_min=1.0, scale_max=5.0), _answer(26, "review", 7.0, scale_min=1.0, scale_max=9.0),
        _answer(27, "review", None),
        _answer(28, "review", 1.0, status="deleted"), _answer(29, "review", 77.0, scale_min=1.0, scale_max=5.0),
        *[_mail(30 + n, k) for n, k in enumerate(("sent", "sent", "sent", "delivered", "delivered", "opened", "clicked", "bounced"))],
    )  # fmt: skip
    expected = {
        "orders_count": 3, "spend_minor": {"BRL": 20500, "EUR": 700}, "refunded_minor": {"BRL": 500}, "refunds_count": 1,
        "discount_share": 0.05, "first_order_at": MONDAY, "last_order_at": MONDAY + timedelta(days=8),
        "favourite_category": "shoes", "favourite_product": "Tênis", "favourite_channel": "web", "favourite_weekday": 1,
        "tickets_count": 3, "open_tickets_count": 1, "solved_tickets_count": 2, "mean_first_response_s": 90.0,
        "last_nps_score": 3.0, "last_csat_score": 4.0, "last_ces_score": 6.0, "reviews_count": 4, "mean_review_rating": 4.5,
        "feedback_count": 9, "interactions_count": 8, "emails_sent_count": 3, "emails_delivered_count": 2, "emails_opened_count": 1,
        "emails_clicked_count": 1, "emails_bounced_count": 1, "last_email_opened_at": MONDAY + timedelta(minutes=35),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_what_is_not_known_is_null_and_counts_are_zero(figures: Any) -> None:
    row = figures(_mail(1, "sent"))
    counts = {name: value for name, value in row.items() if name.endswith("_count")}
    assert counts == dict.fromkeys(counts, 0) | {"interactions_count": 1, "emails_sent_count": 1}
    known = {"customer_id", "spend_minor", "refunded_minor", "last_seen_at", *counts}
    assert {name: value for name, value in row.items() if name not in known and value is not None} == {}


def test_an_order_that_says_not_when_it_was_placed_counts_from_its_statement(figures: Any, settings: Settings) -> None:
    undated = OrderStated(**_header(5), order_id="5", status="paid", currency="BRL", total_minor=100)
    row = figures(undated)
    assert (row["orders_count"], row["last_order_at"]) == (1, undated.occurred_at)
    asked = members(parse("bought(within = 1h)"))
    with connect(settings) as conn:
        for hours, found in ((1, 0), (-0.5, 0), (0.5, 1)):
            now = row["last_order_at"] + timedelta(hours=hours)
            assert len(conn.execute(asked.text, {**asked.parameters, "now": now}).fetchall()) == found


def test_nonsense_of_any_size_does_not_stop_the_stream(figures: Any) -> None:
    most = 2**63 - 1
    row = figures(
        _order(1, most, subtotal_minor=most, discount_minor=most, lines=(_line("x", "y", 2**31 - 1), _line("x", "y", 2**31 - 1))),
        _order(2, -most, discount_minor=-most),
        _answer(3, "review", 1e308, scale_min=0.0, scale_max=5e-324), _answer(4, "review", -1.0),
        _answer(5, "review", 5e-324, scale_min=-1.7e308, scale_max=1.7e308),
        TicketStated(**_header(6), ticket_id="6", opened_at=datetime(1, 1, 1, tzinfo=UTC), first_replied_at=MONDAY),
    )  # fmt: skip
    assert (row["mean_review_rating"], row["mean_first_response_s"]) == (0.0, 2.0**31 - 1)
    assert row["favourite_product"] == "x"


def test_spend_in_the_base_currency_follows_the_newest_rates_and_is_null_while_one_is_missing(
    figures: Any, settings: Settings
) -> None:
    figures(
        _order(1, 10050),
        _order(2, 300, currency="JPY"),
        _order(3, 1000, currency="EUR"),
        ProfileStated(**_header(4), name="Ana"),
    )
    old, new = date(2026, 1, 1), date(2026, 2, 1)
    with connect(settings) as conn:
        assert _spend_base(conn) is None
        assert rates.listed(conn) == {"base": "BRL", "rates": [], "missing": ["EUR", "JPY"]}
        rates.load(conn, "BRL", [rates.Rate("JPY", new, Decimal("0.037")), rates.Rate("EUR", new, Decimal("6.2"))])
        rates.load(conn, "BRL", [rates.Rate("EUR", old, Decimal(1))])
        assert _spend_base(conn) == 10050 + 1110 + 6200  # 300 JPY are 11.10 BRL
        asked = members(parse("spend_base_minor between 17360 and 17360"))
        found = conn.execute(asked.text, {**asked.parameters, "now": MONDAY}).fetchall()
        assert [str(customer) for (customer,) in found] == [ANA]
        # another base currency: what was loaded for the former one is gone
        assert rates.load(conn, "EUR", [rates.Rate("BRL", new, Decimal("0.2"))]) == 1
        assert _spend_base(conn) is None
        assert rates.load(conn, "EUR", [rates.Rate("JPY", new, Decimal("0.006"))]) == 2
        assert _spend_base(conn) == 2010 + 180 + 1000
        assert rates.listed(conn)["missing"] == []
