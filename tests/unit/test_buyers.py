"""A buyer known only by an order, a checkout, a draft or a ticket has a name; a record of the person counts more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from caudal.connectors import Delivery, get
from caudal.projections import priority_sql
from caudal.schemas import Event, Identifier, ProfileStated

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BILLING = {
    "first_name": "Ana",
    "last_name": "Souza",
    "city": "Recife",
    "province_code": "PE",
    "country_code": "BR",
    "phone": "+5581988887777",
}
GIFT = {"first_name": "Rui", "last_name": "Lima", "city": "Olinda", "country_code": "BR"}
SALE: dict[str, Any] = {
    "id": 1001,
    "email": "ana@example.com",
    "currency": "BRL",
    "total_price": "80.00",
    "updated_at": "2026-05-31T12:00:00Z",
    "billing_address": BILLING,
    "shipping_address": GIFT,
}
RECORD = {
    "id": 7,
    "email": "ana.souza@example.com",
    "first_name": "Ana Maria",
    "last_name": "Souza",
    "phone": None,
    "updated_at": "2026-05-30T12:00:00Z",
    "default_address": {"city": "Natal", "country_code": "BR"},
}


def translated(connector: str, body: Any, kind: str | None = None) -> list[Event]:
    return get(connector).translate(Delivery("s", json.dumps(body).encode(), {}, kind, "d-1", NOW))


def described(connector: str, body: Any, kind: str | None = None) -> list[ProfileStated]:
    return [event for event in translated(connector, body, kind) if isinstance(event, ProfileStated)]


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("orders/create", "s:order:1001"),
        ("orders/paid", "s:order:1001"),
        ("orders/updated", "s:order:1001"),
        ("checkouts/update", "s:checkout:1001"),
        ("draft_orders/create", "s:draft_order:1001"),
    ],
)
@pytest.mark.parametrize("customer", [None, {}, {"email": "ana@example.com"}, []])
def test_a_guest_is_described_by_who_pays(kind: str, own: str, customer: Any) -> None:
    (stated,) = described("shopify", SALE | {"customer": customer}, kind)
    assert (stated.subject, stated.name, stated.city, stated.email) == (own, "Ana Souza", "Recife", "ana@example.com")
    assert stated.phone == "+5581988887777"


def test_a_guest_who_names_only_where_to_send_it_is_described_by_that() -> None:
    (stated,) = described("shopify", SALE | {"billing_address": None}, "orders/create")
    assert (stated.name, stated.city) == ("Rui Lima", "Olinda")


def test_the_customer_inside_is_the_shops_record_as_of_its_change() -> None:
    (stated,) = described("shopify", SALE | {"customer": RECORD}, "orders/create")
    assert (stated.subject, stated.name, stated.city) == ("s:customer:7", "Ana Maria Souza", "Natal")
    assert stated.email == "ana.souza@example.com"
    assert stated.occurred_at == datetime(2026, 5, 30, 12, tzinfo=UTC)
    assert stated.cleared == ()


def test_a_customer_without_a_name_is_described_by_who_pays_as_the_sale_itself() -> None:
    customer = {"id": 7, "email": "ana@example.com", "first_name": None}
    (stated,) = described("shopify", SALE | {"customer": customer}, "orders/create")
    assert (stated.subject, stated.name, stated.city) == ("s:order:1001", "Ana Souza", "Recife")
    assert Identifier(kind="subject", value="s:customer:7") in stated.identifiers
    assert Identifier(kind="subject", value="s:order:1001") not in stated.identifiers


def test_a_customer_of_whom_nothing_is_said_is_not_described() -> None:
    assert (
        described("shopify", {"id": 1, "updated_at": "2026-05-31T12:00:00Z", "customer": {"id": 7}}, "orders/create")
        == []
    )


def test_a_sale_gives_two_events_at_most() -> None:
    assert len(translated("shopify", SALE | {"customer": RECORD}, "orders/create")) == 2


def test_the_sender_of_a_ticket_is_described_as_the_ticket_itself() -> None:
    ticket = {
        "id": 3,
        "requester_id": 9,
        "created_at": "2026-05-30T12:00:00Z",
        "updated_at": "2026-05-31T12:00:00Z",
        "via": {"channel": "email", "source": {"from": {"address": "ana@example.com", "name": "Ana Souza"}, "to": {}}},
    }
    (stated,) = described("zendesk", {"ticket": ticket})
    assert (stated.subject, stated.name, stated.email) == ("s:ticket:3", "Ana Souza", "ana@example.com")
    assert stated.identifiers == (Identifier(kind="subject", value="s:user:9"),)
    assert (
        described("zendesk", {"ticket": ticket | {"via": {"channel": "email", "source": {"from": {}, "to": {}}}}}) == []
    )


def test_a_requester_without_an_id_is_described_as_the_ticket_itself() -> None:
    requester = {"name": "Ana Souza", "email": "ana@example.com", "id": ""}
    first, second = translated(
        "zendesk", {"type": "trigger.ticket", "ticket": {"id": 3, "title": "Help", "requester": requester}}
    )
    assert isinstance(first, ProfileStated)
    assert (first.subject, first.name, second.subject) == ("s:ticket:3", "Ana Souza", "s:ticket:3")
    assert Identifier(kind="email", value="ana@example.com") in first.identifiers
    (only,) = translated("zendesk", {"type": "trigger.ticket", "ticket": {"id": 3, "title": "Help", "requester": {}}})
    assert only.subject == "s:ticket:3"


def test_what_a_record_says_counts_before_what_a_sale_says_whatever_the_source() -> None:
    sql = priority_sql({"shop": 10})
    assert "WHEN 'shop' THEN 10" in sql
    assert "'order'" in sql
    assert "'customer'" not in sql
