"""What Shopify's samples don't show: how deliveries are told apart, where times come from, and the rarer forms of a field."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from caudal.connectors import Delivery, get
from caudal.schemas import ConsentStated, Event, OrderStated, ProfileStated, SubjectDeleted

from caudal.errors import MissingField

SHOPIFY = get("shopify")
CAPTURED_AT = datetime(2026, 1, 2, tzinfo=UTC)


def translate(topic: str, body: Any, **headers: str) -> list[Event]:
    given = {"x-shopify-topic": topic} | {name.replace("_", "-"): value for name, value in headers.items()}
    return SHOPIFY.translate(
        Delivery(source="shop", body=json.dumps(body).encode(), headers=given, captured_at=CAPTURED_AT)
    )


def order(**fields: Any) -> OrderStated:
    *_, event = translate("orders/updated", {"id": 5, "currency": "BRL", "customer": {"id": 7}} | fields)
    assert isinstance(event, OrderStated)
    return event


def known(**fields: Any) -> set[tuple[str, str]]:
    return {(identifier.kind, identifier.value) for identifier in order(**fields).identifiers}


def test_a_delivery_is_known_by_its_webhook_id_on_every_retry() -> None:
    headers = {"x-shopify-webhook-id": "w", "x-shopify-event-id": "e", "x-shopify-topic": "orders/paid"}
    assert SHOPIFY.key(headers, b"{}") == ("w", "orders/paid")


def test_deliveries_of_one_action_are_told_apart_by_topic() -> None:
    def key(topic: str) -> str:
        return SHOPIFY.key({"x-shopify-event-id": "e", "x-shopify-topic": topic}, b"{}")[0]

    assert len({key("orders/create"), key("orders/paid")}) == 2
    assert key("orders/paid") == key("orders/paid")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("2025-03-10T15:04:05.678901234Z", datetime(2025, 3, 10, 15, 4, 5, 678901, tzinfo=UTC)),
        ("not a time", CAPTURED_AT),
        ("", CAPTURED_AT),
    ],
)
def test_a_payload_without_a_time_is_dated_by_the_header_or_the_capture(header: str, expected: datetime) -> None:
    (event,) = translate("customers/delete", {"id": 7}, x_shopify_triggered_at=header)
    assert event.occurred_at == expected


@pytest.mark.parametrize("status", ["requested", "in_progress", "failed", "anything"])
def test_a_merge_that_is_not_done_links_nobody(status: str) -> None:
    merge = {
        "admin_graphql_api_customer_kept_id": "gid://shopify/Customer/1",
        "admin_graphql_api_customer_deleted_id": "gid://shopify/Customer/2",
        "status": status,
    }
    assert translate("customers/merge", merge) == []
    assert len(translate("customers/merge", merge | {"status": "COMPLETED"})) == 2


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("subscribed", "granted"),
        ("SUBSCRIBED", "granted"),
        ("unsubscribed", "withdrawn"),
        ("redacted", "withdrawn"),
        ("pending", "pending"),
        ("not_subscribed", "unknown"),
        ("invalid", "unknown"),
        ("something new", "unknown"),
    ],
)
def test_states_of_consent(state: str, expected: str) -> None:
    (event,) = translate(
        "customers_email_marketing_consent/update", {"customer_id": 7, "email_marketing_consent": {"state": state}}
    )
    assert isinstance(event, ConsentStated)
    assert (event.purpose, event.state) == ("marketing_email", expected)
    assert event.legal_basis == (None if expected == "unknown" else "consent")


def test_the_old_consent_flag_counts_only_where_the_new_field_is_absent() -> None:
    person = {"id": 7, "accepts_marketing": False, "accepts_marketing_updated_at": "2023-02-01T00:00:00Z"}
    _, consent = translate("customers/update", person)
    assert isinstance(consent, ConsentStated)
    assert (consent.state, consent.occurred_at.year) == ("withdrawn", 2023)
    _, consent = translate("customers/update", person | {"email_marketing_consent": {"state": "subscribed"}})
    assert isinstance(consent, ConsentStated)
    assert consent.state == "granted"
    assert len(translate("customers/update", {"id": 7, "email_marketing_consent": None})) == 1


def test_a_partial_customer_states_only_what_it_has() -> None:
    (event,) = translate("customers/update", {"id": 7, "first_name": "Ana"})
    assert isinstance(event, ProfileStated)
    assert (event.given_name, event.name, event.cleared, event.attributes) == ("Ana", None, (), {})


@pytest.mark.parametrize(
    "fields",
    [
        {"localized_fields": [{"key": "TAX_CREDENTIAL_BR", "value": "390.533.447-05"}]},
        {
            "localization_extensions": [
                {"country_code": "BR", "purpose": "TAX", "title": "CPF/CNPJ", "value": "390.533.447-05"}
            ]
        },
        {"note_attributes": [{"name": "CPF", "value": "390.533.447-05"}]},
        {"note_attributes": [{"name": "cpf_cnpj", "value": "390.533.447-05"}]},
        {"note_attributes": [{"name": "CPF/CNPJ:", "value": "390.533.447-05"}]},
    ],
)
def test_a_cpf_is_found_where_brazilian_checkouts_put_it(fields: dict[str, Any]) -> None:
    assert ("cpf", "390.533.447-05") in known(**fields)


def test_fourteen_digits_are_a_cnpj_and_other_fields_are_no_document() -> None:
    assert ("cnpj", "11.222.333/0001-81") in known(
        note_attributes=[{"name": "cpf/cnpj", "value": "11.222.333/0001-81"}]
    )
    shipping = {"country_code": "BR", "purpose": "SHIPPING", "title": "Recado", "value": "39053344705"}
    assert known(
        note_attributes=[{"name": "presente", "value": "39053344705"}], localization_extensions=[shipping]
    ) == {("subject", "shop:order:5")}


def test_an_order_of_a_known_customer_ties_its_own_subject_to_them() -> None:
    stated = order()
    assert stated.subject == "shop:customer:7"
    assert ("subject", "shop:order:5") in known()
    (refund,) = translate(
        "refunds/create",
        {"id": 1, "order_id": 5, "transactions": [{"kind": "refund", "amount": "1.00", "currency": "BRL"}]},
    )
    assert refund.subject == "shop:order:5"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"financial_status": "paid"}, "paid"),
        ({"financial_status": "expired"}, "voided"),
        ({"financial_status": "paid", "cancelled_at": "2025-03-10T12:00:00Z"}, "cancelled"),
        ({}, None),
    ],
)
def test_statuses_of_an_order(fields: dict[str, Any], status: str | None) -> None:
    assert order(**fields).status == status


def test_no_fulfilment_is_unfulfilled_where_the_field_is_sent() -> None:
    assert order(fulfillment_status=None).fulfillment_status == "unfulfilled"
    assert order(fulfillment_status="partial").fulfillment_status == "partial"
    assert order().fulfillment_status is None


def test_the_total_is_before_refunds_and_failed_refunds_are_none() -> None:
    transactions = [
        {"kind": "refund", "status": status, "amount": amount, "currency": "BRL"}
        for status, amount in (("success", "10.00"), ("pending", "5.00"), ("failure", "100.00"), ("error", "100.00"))
    ]
    refund = {
        "id": 1,
        "created_at": "2025-03-10T12:00:00Z",
        "transactions": [*transactions, {"kind": "void", "amount": "7.00"}],
    }
    stated = order(total_price="50.00", current_total_price="35.00", refunds=[refund])
    assert stated.total_minor == 5000
    assert [(r.amount_minor, r.currency) for r in stated.refunds] == [(1500, "BRL")]


def test_a_refund_in_the_buyers_currency_counts_in_the_shops() -> None:
    total = {
        "shop_money": {"amount": "60.00", "currency_code": "BRL"},
        "presentment_money": {"amount": "12.00", "currency_code": "USD"},
    }
    refund = {
        "id": 1,
        "created_at": "2025-03-10T12:00:00Z",
        "transactions": [{"kind": "refund", "status": "success", "amount": "6.00", "currency": "USD"}],
    }
    (stated,) = order(total_price="60.00", total_price_set=total, refunds=[refund]).refunds
    assert (stated.amount_minor, stated.currency) == (3000, "BRL")


def test_ids_of_drafts_and_checkouts_can_not_meet_those_of_orders() -> None:
    ids = set()
    for topic in ("orders/create", "checkouts/create", "draft_orders/create"):
        *_, event = translate(
            topic, {"id": 5, "currency": "BRL", "updated_at": "2025-03-10T12:00:00Z", "email": "a@example.com"}
        )
        assert isinstance(event, OrderStated)
        ids.add(event.order_id)
    assert ids == {"5", "checkout:5", "draft:5"}


def test_a_redaction_of_nobody_is_kept_for_a_human() -> None:
    with pytest.raises(MissingField):
        translate("customers/redact", {"customer": {"email": "a@example.com"}, "orders_to_redact": []})


def test_a_redaction_erases_the_customer_and_the_orders_named() -> None:
    events = translate("customers/redact", {"customer": {"id": 7}, "orders_to_redact": [5, 6]})
    assert [event.subject for event in events] == ["shop:customer:7", "shop:order:5", "shop:order:6"]
    assert {event.kind for event in events if isinstance(event, SubjectDeleted)} == {"erased"}
