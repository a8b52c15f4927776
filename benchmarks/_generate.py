"""Generated customer events with skew: a bounded Zipf over customers, names and places of Brazil and Portugal, fixed by a seed."""

from __future__ import annotations

import bisect
import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from caudal.schemas import Event, Identifier, OrderLine, OrderStated, ProfileStated, Refund, SubjectLinked, TicketStated

from benchmarks.edge_load import order

__all__ = ["CATEGORIES", "PLACES", "SKEW", "Record", "captures", "customer_id", "events", "links", "profile_events"]

SKEW = 0.8
"""Exponent of Zipf's law where customers are drawn with skew: of 100,000, the busiest hundredth has a third of the events."""
START = datetime(2026, 1, 1, tzinfo=UTC)
_GIVEN = ("Maria", "João", "Ana", "José", "Beatriz", "Antônio", "Francisca", "Tiago", "Luísa", "Pedro", "Inês", "Rui")
_FAMILY = ("Silva", "Santos", "Oliveira", "Souza", "Pereira", "Costa", "Ferreira", "Almeida", "Carvalho", "Gonçalves")
PLACES = (
    ("Recife", "PE", "BR"),
    ("São Paulo", "SP", "BR"),
    ("Lisboa", "11", "PT"),
    ("Porto", "13", "PT"),
    ("Curitiba", "PR", "BR"),
)
CATEGORIES = ("shoes", "shirts", "books", "toys", "food", "tools", "garden", "music")
_STATUSES = ("paid", "paid", "paid", "partially_refunded", "cancelled", "pending")


@dataclass(frozen=True)
class Record:
    """A message as the runner reads it."""

    place: tuple[int, int]
    data: bytes
    customer: str = ""

    def topic(self) -> str:
        return "customer.changes"

    def partition(self) -> int:
        return self.place[0]

    def offset(self) -> int:
        return self.place[1]

    def key(self) -> bytes:
        return self.customer.encode()

    def value(self) -> bytes:
        return self.data


def customer_id(number: int) -> str:
    """The UUID of generated customer `number`."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"generated {number}"))


class _People:
    """Draws customers: some are drawn far more often than others."""

    def __init__(self, rnd: random.Random, customers: int, skew: float) -> None:
        self.rnd = rnd
        self.customers = customers
        self.cumulated = list(itertools.accumulate(1 / (rank + 1) ** skew for rank in range(customers))) if skew else []
        self.ids: dict[int, str] = {}

    def draw(self) -> int:
        if not self.cumulated:
            return self.rnd.randrange(self.customers)
        return bisect.bisect(self.cumulated, self.rnd.random() * self.cumulated[-1])

    def header(self, number: int, position: int) -> dict[str, object]:
        at = START + timedelta(milliseconds=position)
        person = self.ids.setdefault(number, customer_id(number))
        return {
            "event_id": f"018f3c2e-7b1a-7000-8000-{position:012d}",
            "source": "shop-br",
            "subject": f"shop-br:customer:{number}",
            "customer_id": person,
            "link_seq": 1,
            "occurred_at": at,
            "captured_at": at,
            "identifiers": (Identifier(kind="email", value=f"u{number}@example.com"),),
        }


def _profile(rnd: random.Random, number: int, header: dict[str, object], *, attributes: bool) -> ProfileStated:
    city, region, country = PLACES[rnd.randrange(len(PLACES))]
    given, family = _GIVEN[number % len(_GIVEN)], _FAMILY[number % len(_FAMILY)]
    return ProfileStated(
        **header,  # type: ignore[arg-type]
        name=f"{given} {family}", given_name=given, family_name=family, email=f"u{number}@example.com", phone=f"+5581{900000000 + number}",
        birth_date=date(1950, 1, 1) + timedelta(days=number % 20000), city=city, region=region, country=country, postal_code="50030-230",
        language="pt-BR", tags=("news", f"r{rnd.randrange(5)}"), attributes={"tier": str(rnd.randrange(3))} if attributes else {},
    )  # fmt: skip


def events(count: int, customers: int, *, seed: int = 7, skew: float = 0.0, begin: int = 0) -> Iterator[Event]:
    """A mixed log: 40 % profiles, 50 % orders with 1 to 3 lines, 10 % tickets. `skew` is the exponent of Zipf's law; 0 is uniform.
    `begin` is the number of the first event, where the log is another's continuation.
    """
    rnd = random.Random(seed)
    people = _People(rnd, customers, skew)
    for position in range(begin, begin + count):
        number = people.draw()
        header = people.header(number, position)
        kind = rnd.random()
        if kind < 0.4:
            yield _profile(rnd, number, header, attributes=kind < 0.04)
        elif kind < 0.9:
            yield _order(rnd, number, header)
        else:
            yield TicketStated(
                **header,  # type: ignore[arg-type]
                ticket_id=str(number), status=rnd.choice(("open", "pending", "solved")), channel="email",
                title="Entrega", priority="normal", opened_at=header["occurred_at"],  # type: ignore[arg-type]
                satisfaction=rnd.choice(("good", "bad", None)),
            )  # fmt: skip


def _order(rnd: random.Random, customer: int, header: dict[str, object]) -> OrderStated:
    lines = tuple(
        OrderLine(line_id=str(i), sku=f"s{rnd.randrange(2000)}", product="Tênis de corrida", category=rnd.choice(CATEGORIES),
                  quantity=1 + i, unit_price_minor=rnd.randint(500, 30000))
        for i in range(rnd.randint(1, 3))
    )  # fmt: skip
    total = sum(line.quantity * line.unit_price_minor for line in lines)
    at: datetime = header["occurred_at"]  # type: ignore[assignment]
    number = customer * 4 + rnd.randrange(4)
    refunds = (
        (Refund(refund_id=f"r{number}", refunded_at=at, amount_minor=total // 10, currency="BRL"),)
        if rnd.random() < 0.03
        else ()
    )
    return OrderStated(
        **header,  # type: ignore[arg-type]
        order_id=str(number), kind="order", number=f"#{number}", status=rnd.choice(_STATUSES), currency="BRL", total_minor=total,
        subtotal_minor=total, placed_at=at, channel="web", shipping_city="Recife", shipping_country="BR", lines=lines, refunds=refunds,
    )  # fmt: skip


def profile_events(count: int, customers: int, *, seed: int = 7) -> Iterator[Event]:
    """A log of profile statements only, uniform over customers."""
    rnd = random.Random(seed)
    people = _People(rnd, customers, 0.0)
    for position in range(count):
        number = people.draw()
        yield _profile(rnd, number, people.header(number, position), attributes=False)


def captures(source: str, count: int, customers: int, *, seed: int = 7, skew: float = SKEW) -> Iterator[dict[str, Any]]:
    """What a shop sent, as the edge stores it: orders of 2 KB, each a new one."""
    rnd = random.Random(seed)
    people = _People(rnd, customers, skew)
    for position in range(count):
        number = people.draw()
        yield {
            "capture_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{source} {position}")),
            "source": source, "connector": "shopify", "delivery_id": f"d-{position}", "kind": "orders/create", "method": "POST",
            "url": f"/in/{source}",
            "headers": {"x-shopify-topic": "orders/create", "x-shopify-webhook-id": f"d-{position}", "content-type": "application/json"},
            "body": order(position, customer=number), "captured_at": START + timedelta(milliseconds=position),
        }  # fmt: skip


def links(customers: int) -> Iterator[Event]:
    """The first link of every customer."""
    for number in range(customers):
        yield SubjectLinked(
            event_id=f"link-{number}", source="shop-br", subject=f"shop-br:customer:{number}", customer_id=customer_id(number), link_seq=1,
            occurred_at=START, captured_at=START, reason="new",
        )  # fmt: skip
