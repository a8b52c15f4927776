"""What stands behind `caudal connectors`, `caudal translate` and `caudal connectors verify`."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from caudal.connectors import Hmac, get
from caudal.connectors._tools import (
    as_json,
    delivery,
    listing,
    parse_headers,
    parse_time,
    translate,
    translate_lines,
    verify,
)
from caudal.schemas import OrderLine, OrderStated, ProfileStated, TicketStated
from hypothesis import given
from hypothesis import strategies as st

from caudal.errors import InvalidPayload

SHOPIFY = get("shopify")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
DELETED = {"kind": "customers/delete", "headers": {"X-Shopify-Webhook-Id": "w1"}, "body": {"id": 7}}


def answers(*lines: Any) -> list[dict[str, Any]]:
    return list(
        translate_lines(
            SHOPIFY, "shop", (line if isinstance(line, str | bytes) else json.dumps(line) for line in lines)
        )
    )


def test_every_connector_is_listed_with_its_kinds() -> None:
    listed = {entry["name"]: entry for entry in listing()}
    assert {"hubspot", "shopify", "zendesk"} <= set(listed)
    assert "orders/create" in listed["shopify"]["kinds"]
    assert "products/update" in listed["shopify"]["ignored"]
    json.dumps(listing())


def test_an_event_is_shown_with_what_it_states_and_nothing_else() -> None:
    person = ProfileStated(
        subject="s:p:1", occurred_at=NOW, tags=(), birth_date=date(1990, 5, 1), latitude=0.0, attributes={"vip": None}
    )
    assert as_json(person) == {
        "type": "ProfileStated",
        "subject": "s:p:1",
        "occurred_at": "2026-01-02T03:04:05.678000Z",
        "birth_date": "1990-05-01",
        "latitude": 0.0,
        "tags": [],
        "attributes": {"vip": None},
    }
    assert next(iter(as_json(person))) == "type"


def test_parts_of_an_event_are_shown_too_and_zero_is_a_statement() -> None:
    line = OrderLine(line_id="1", quantity=0, unit_price_minor=0)
    order = OrderStated(subject="s:o:1", occurred_at=NOW, order_id="1", total_minor=0, lines=(line,))
    assert as_json(order)["total_minor"] == 0
    assert as_json(order)["lines"] == [
        {"line_id": "1", "quantity": 0, "unit_price_minor": 0, "discount_minor": 0, "tax_minor": 0}
    ]
    assert as_json(OrderStated(subject="s:o:1", occurred_at=NOW, order_id="1", lines=()))["lines"] == []


def test_a_tickets_own_type_does_not_hide_the_events() -> None:
    shown = as_json(TicketStated(subject="s:t:1", occurred_at=NOW, ticket_id="1", type="question"))
    assert (shown["type"], shown["ticket_type"]) == ("TicketStated", "question")


def test_one_file_translates_with_headers_in_any_case() -> None:
    given = delivery(b'{"id": 7}', source="shop", headers={"X-Shopify-Topic": "customers/delete"}, at=NOW)
    (event,) = map(as_json, translate(SHOPIFY, given).events)
    assert (event["type"], event["subject"]) == ("SubjectDeleted", "shop:customer:7")
    assert event["captured_at"] == "2026-01-02T03:04:05.678000Z"


def test_a_kind_given_beats_the_header() -> None:
    given = delivery(b'{"id": 7}', source="shop", kind="orders/delete", headers={"x-shopify-topic": "customers/delete"})
    assert isinstance(translate(SHOPIFY, given).events[0], OrderStated)


def test_each_line_gets_one_answer() -> None:
    good, ignored, bad = answers(DELETED, DELETED | {"kind": "products/update"}, DELETED | {"kind": "never/heard_of"})
    assert good["events"][0]["subject"] == "shop:customer:7"
    assert ignored == {"events": []}
    assert bad["poison"] == "unknown_kind"
    assert "caudal connectors" in bad["message"]


def test_the_kind_may_come_from_the_headers() -> None:
    line = {"headers": {"X-Shopify-Topic": "customers/delete"}, "body": {"id": 7}}
    assert answers(line)[0]["events"][0]["type"] == "SubjectDeleted"


def test_a_body_as_received_and_a_parsed_one_say_the_same() -> None:
    received = DELETED | {"body": '{"id": 7}'}
    assert answers(DELETED) == answers(received)


def test_digits_of_an_id_survive_a_parsed_body() -> None:
    assert (
        answers(DELETED | {"body": {"id": 820982911946154508}})[0]["events"][0]["subject"]
        == "shop:customer:820982911946154508"
    )
    assert answers(DELETED | {"body": {"id": 2**64}})[0]["poison"] == "invalid_payload"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "7",
        "{}",
        "{",
        b"\xff\xfe",
        '{"body": "\\ud800"}',
        '{"body": NaN, "kind": "orders/create"}',
        '{"body": {}, "kind": 7}',
        '{"body": {}, "headers": []}',
        '{"body": null}',
        "[" * 100_000,
        '{"kind": "orders/create", "body": ' + '{"a":' * 900 + "1" + "}" * 901,
    ],
)
def test_a_damaged_line_is_answered_as_poison(line: str | bytes) -> None:
    (answer,) = answers(line)
    assert answer["poison"]
    assert answer["message"]


@given(st.text() | st.binary())
def test_no_line_at_all_raises(line: str | bytes) -> None:
    assert len(answers(line)) == 1


def test_a_poison_of_one_file_is_given_for_the_caller_to_show() -> None:
    found = translate(SHOPIFY, delivery(b"not json", source="shop", kind="orders/create"))
    assert (found.events, isinstance(found.poison, InvalidPayload)) == ([], True)


def test_a_line_tells_what_was_left_out_and_what_can_be_used_beside_a_poison() -> None:
    (answer,) = answers({"kind": "customers/update", "body": {"id": 7, "email": ["x"], "first_name": "Ana"}})
    assert answer["left_out"] == [{"path": "email", "reason": "bad_text"}]
    assert answer["events"][0]["given_name"] == "Ana"
    notice = {"subscriptionType": "contact.creation", "objectId": 1, "occurredAt": 1780000000000}
    (answer,) = translate_lines(get("hubspot"), "crm", [json.dumps({"body": [notice, {}]})])
    assert [event["subject"] for event in answer["events"]] == ["crm:contact:1"]
    assert answer["poison"] == "unknown_kind"


def test_a_signature_is_verified_with_any_of_the_secrets() -> None:
    body = b'{"id": 7}'
    headers = {"X-Shopify-Hmac-SHA256": Hmac(header="").sign(body, "new")}
    assert verify(SHOPIFY, body, secrets=["old", "new"], headers=headers).ok
    assert not verify(SHOPIFY, body, secrets=["old"], headers=headers).ok
    assert verify(SHOPIFY, body, secrets=["old"], headers={}).reason == "header x-shopify-hmac-sha256 is missing"


def test_the_replay_window_is_judged_only_with_a_time() -> None:
    hubspot, url, body = get("hubspot"), "https://www.example.com/webhook_uri", b"{'example_field':'example_value'}"
    # HubSpot/hubspot-api-python@83aedb0 tests/spec/utils/test_signature.py
    headers = {
        "X-HubSpot-Signature-v3": "HPW73RUtKmcYoEDADG0s6MmGFWUzWJKAW07r8RDgcQw=",
        "X-HubSpot-Request-Timestamp": "15000000",
    }
    secrets = ["yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"]

    def at(time: str | None) -> bool:
        when = parse_time(time) if time else None
        return verify(hubspot, body, secrets=secrets, headers=headers, url=url, at=when).ok

    assert at(None)
    assert at("1970-01-01T04:12:00Z")
    assert not at("2026-01-01T00:00:00Z")


def test_headers_are_read_from_json_with_lower_case_names() -> None:
    assert parse_headers('{"X-Shopify-Topic": "orders/create", "X-Count": 3, "X-Not": null}') == {
        "x-shopify-topic": "orders/create",
        "x-count": "3",
    }
    for wrong in ("", "[]", "x", '"a"', "[" * 100_000):
        with pytest.raises(ValueError, match="JSON object"):
            parse_headers(wrong)


def test_times_are_read_in_iso_8601_or_seconds() -> None:
    assert parse_time("2026-01-02T03:04:05Z") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_time("2026-01-02T00:04:05-03:00") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_time("2026-01-02T03:04:05").tzinfo is UTC
    assert parse_time("15000") == datetime(1970, 1, 1, 4, 10, tzinfo=UTC)
    for wrong in ("", "yesterday", "9" * 30, "1.2.3"):
        with pytest.raises(ValueError, match="a time is written as"):
            parse_time(wrong)
