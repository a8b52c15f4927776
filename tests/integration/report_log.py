"""A small company's events for the tests of reports, and a plain reading of them."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from caudal.schemas import Event, FeedbackStated, OrderStated, ProfileStated, TicketStated
from caudal.schemas.events import OrderLine, Refund

NOW = datetime(2026, 6, 10, 15, tzinfo=UTC)
CUSTOMERS = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"reports {n}")) for n in range(60)]
CITIES = ["Recife", "São Paulo", "Lisboa"]
PRODUCTS = [
    ("Sandal", "shoes", 5_990),
    ("Boot", "shoes", 25_000),
    ("Hat", "hats", 3_000),
    ("<b>Scarf</b> & co", None, 4_500),
]
STATUSES = ["paid", "paid", "paid", "partially_refunded", "refunded", "pending", "cancelled", None]


def events(seed: int = 7) -> list[Event]:
    """What happened, in no order."""
    rnd = random.Random(seed)
    made: list[Event] = []
    for number, customer in enumerate(CUSTOMERS):
        made.append(
            _stated(
                ProfileStated,
                customer,
                f"p{number}",
                NOW - timedelta(days=300),
                name=f"Person {number}",
                city=CITIES[number % 3],
            )
        )
        for turn in range(rnd.choice([0, 1, 1, 2, 3, 7, 12])):
            made.append(_order(rnd, customer, f"o{number}-{turn}"))
        for turn in range(rnd.randint(0, 2)):
            made.append(_ticket(rnd, customer, f"t{number}-{turn}"))
        for turn in range(rnd.randint(0, 4)):
            made.append(_answer(rnd, customer, f"f{number}-{turn}"))
    rnd.shuffle(made)
    return made


def _stated(event: Any, customer: str, id_: str, at: datetime, /, **fields: Any) -> Any:
    return event(
        subject=f"shop:customer:{customer}", source="shop", customer_id=customer, link_seq=1, occurred_at=at, captured_at=at,
        event_id=id_, **fields,
    )  # fmt: skip


def _moment(rnd: random.Random) -> datetime:
    # also into the future, and often near midnight, where time zones differ
    day = NOW.replace(hour=0) - timedelta(days=rnd.randint(-3, 200))
    return day + timedelta(hours=rnd.choice([0, 1, 2, 3, 12, 22, 23]), minutes=rnd.choice([0, 30]))


def _order(rnd: random.Random, customer: str, id_: str) -> OrderStated:
    at = _moment(rnd)
    lines = tuple(
        OrderLine(line_id=str(n), product=name, category=category, quantity=rnd.randint(1, 3), unit_price_minor=price,
                  discount_minor=100 * n)
        for n, (name, category, price) in enumerate(rnd.sample(PRODUCTS, rnd.randint(1, 3)))
    )  # fmt: skip
    total = sum(line.quantity * line.unit_price_minor - line.discount_minor for line in lines)
    status, currency = rnd.choice(STATUSES), rnd.choice(["BRL", "BRL", "BRL", "EUR"])
    refunds = ()
    if status in {"refunded", "partially_refunded"}:
        when = min(at + timedelta(days=rnd.randint(1, 30)), NOW + timedelta(days=2))
        refunds = (Refund(refund_id=f"r{id_}", refunded_at=when, amount_minor=total // 2, currency=currency),)
    return _stated(
        OrderStated, customer, id_, at, order_id=id_, status=status, currency=currency, total_minor=total,
        discount_minor=rnd.choice([None, 0, 500]), placed_at=at, lines=lines, refunds=refunds,
        shipping_city=rnd.choice([None, *CITIES]), kind=rnd.choice([None, "order", "order", "checkout"]),
    )  # fmt: skip


def _ticket(rnd: random.Random, customer: str, id_: str) -> TicketStated:
    at = _moment(rnd)
    solved = rnd.random() < 0.7
    return _stated(
        TicketStated, customer, id_, at, ticket_id=id_, opened_at=at, status="solved" if solved else rnd.choice(["open", "deleted"]),
        solved_at=at + timedelta(days=rnd.randint(0, 20)) if solved else None, satisfaction=rnd.choice([None, "good", "bad"]),
        first_replied_at=rnd.choice([None, at + timedelta(minutes=rnd.randint(5, 3_000))]),
    )  # fmt: skip


def _answer(rnd: random.Random, customer: str, id_: str) -> FeedbackStated:
    kind = rnd.choice(["nps", "csat", "ces", "review"])
    low, high = {"nps": (0, 10), "csat": (1, 5), "ces": (1, 7), "review": rnd.choice([(1, 5), (0, 10)])}[kind]
    at = _moment(rnd)
    return _stated(
        FeedbackStated, customer, id_, at, feedback_id=id_, kind=kind, score=float(rnd.randint(low, high)), scale_min=float(low),
        scale_max=float(high), answered_at=at, product=rnd.choice([None, "Sandal", "Boot"]),
        status=rnd.choice(["published", "published", "deleted"]),
    )  # fmt: skip
