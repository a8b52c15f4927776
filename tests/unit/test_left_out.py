"""One bad part of a delivery costs itself: the rest is used, and what was left out is told without what stood there."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from caudal.connectors import Delivery, get
from caudal.connectors._mend import REASONS, LeftOut
from caudal.connectors._sdk import Salvaged
from caudal.schemas import ConsentStated, InteractionRecorded, OrderStated, ProfileStated, TicketStated

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LINES = [{"id": n, "title": f"Product {n}", "quantity": 1, "price": "10.00"} for n in range(1, 9)]
ORDER: dict[str, Any] = {
    "id": 1001,
    "name": "#1001",
    "currency": "BRL",
    "total_price": "80.00",
    "email": "ana@example.com",
    "created_at": "2026-05-31T12:00:00-03:00",
    "updated_at": "2026-05-31T12:00:00-03:00",
    "financial_status": "paid",
    "note": "Gift",
    "line_items": LINES,
}
CUSTOMER: dict[str, Any] = {
    "id": 7,
    "email": "ana@example.com",
    "first_name": "Ana",
    "last_name": "Souza",
    "updated_at": "2026-05-31T12:00:00-03:00",
    "default_address": {"city": "Recife", "country_code": "BR"},
}


def salvaged(connector: str, body: Any, kind: str | None = None, **headers: str) -> Salvaged:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = get(connector).salvage(Delivery("s", raw, named, kind, "d-1", NOW))
    assert {part.reason for part in found.left_out} <= REASONS
    return found


def order(body: Any, **headers: str) -> tuple[OrderStated, list[LeftOut]]:
    found = salvaged("shopify", body, "orders/create", **headers)
    assert found.poison is None
    (stated,) = [event for event in found.events if isinstance(event, OrderStated)]
    return stated, found.left_out


def person(body: Any, **headers: str) -> tuple[ProfileStated, list[LeftOut]]:
    found = salvaged("shopify", body, "customers/update", **headers)
    assert found.poison is None
    (stated,) = [event for event in found.events if isinstance(event, ProfileStated)]
    return stated, found.left_out


def contact(**properties: Any) -> tuple[ProfileStated, Salvaged]:
    body = {"vid": 5, "properties": {"email": "ana@example.com", "lastmodifieddate": "1780000000000", **properties}}
    found = salvaged("hubspot", body)
    (stated,) = [event for event in found.events if isinstance(event, ProfileStated)]
    return stated, found


def notices(*values: bytes) -> bytes:
    return b"[%s]" % b",".join(
        b'{"subscriptionType":"contact.propertyChange","objectId":%d,"occurredAt":1780000000000,"propertyName":"jobtitle",'
        b'"propertyValue":%s}' % (n, value)
        for n, value in enumerate(values, 1)
    )


# --- bodies


def test_half_an_emoji_costs_that_character_and_none_of_the_neighbours() -> None:
    found = salvaged("hubspot", notices(b'"one"', rb'"two \ud83d"', b'"three"'))
    assert [event.job_title for event in found.events] == ["one", "two \ufffd", "three"]  # type: ignore[attr-defined]
    assert found.poison is None
    assert found.left_out == [LeftOut("1.propertyValue", "bad_character")]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb'"a\udc00b"', "a\ufffdb"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b'"caf\xe9"', "caf\ufffd"),
        (b'"a\xed\xa0\xbdb"', "a\ufffdb"),
        (b'"line\nbreak"', "line\nbreak"),
        (b'"a\x00b"', "ab"),
        (rb'"a\u0000b"', "ab"),
    ],
)
def test_characters_that_are_none_are_mended(written: bytes, read: str) -> None:
    found = salvaged("hubspot", notices(written, b'"two"'))
    assert [event.job_title for event in found.events] == [read, "two"]  # type: ignore[attr-defined]


def test_an_id_that_lost_a_character_is_no_id_and_costs_its_item() -> None:
    body = notices(b'"one"', b'"two"').replace(b'"objectId":1', rb'"objectId":"1\ud83d"')
    found = salvaged("hubspot", body)
    assert [event.subject for event in found.events] == ["s:contact:2"]
    assert found.poison is not None


@pytest.mark.parametrize(
    ("encoding", "content_type"),
    [
        ("utf-8-sig", "application/json"),
        ("utf-16", "application/json"),
        ("utf-16-le", "application/json; charset=utf-16le"),
        ("utf-32", "application/json"),
        ("latin-1", "application/json; charset=ISO-8859-1"),
        ("cp1252", 'application/json;charset="windows-1252"'),
    ],
)
def test_bodies_of_other_encodings_are_read(encoding: str, content_type: str) -> None:
    raw = json.dumps(CUSTOMER | {"first_name": "João"}, ensure_ascii=False).encode(encoding)
    stated, told = person(raw, content_type=content_type)
    assert (stated.given_name, told) == ("João", [])


def test_the_kind_in_a_body_that_was_mended_is_found() -> None:
    body = {"ticket": {"id": 1, "subject": "Olá", "updated_at": "2026-05-31T12:00:00Z"}}
    found = salvaged("zendesk", b"\xef\xbb\xbf" + json.dumps(body).encode())
    assert [event.title for event in found.events] == ["Olá"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e400", b"9" * 5000])
def test_what_is_no_number_is_left_out(number: bytes) -> None:
    stated, told = order(json.dumps(ORDER).encode().replace(b'"Gift"', number).replace(b'"80.00"', number))
    assert (stated.note, stated.total_minor, stated.cleared) == (None, None, ())
    assert len(stated.lines or ()) == 8
    assert {part.path for part in told} == {"note", "total_price"}


@pytest.mark.parametrize("depth", [900, 2_000, 100_000])
def test_a_part_that_nobody_reads_may_be_nested_as_deep_as_it_likes(depth: int) -> None:
    raw = json.dumps(ORDER | {"metafields": "@"}).encode()
    for deep in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        stated, _ = order(raw.replace(b'"@"', deep))
        assert (stated.total_minor, len(stated.lines or ())) == (8000, 8)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"id": 1,}', b'{"id": 1} {"id": 2}', b"<html>", b'{"id": "1', b"\xff\xfe", b"NaN", b"[" * 9999],
)
def test_wrong_syntax_stays_a_dead_letter(body: bytes) -> None:
    found = salvaged("shopify", body, "customers/update")
    assert found.events == []
    assert found.poison is not None
    assert found.poison.code == "invalid_payload"


def test_a_tail_of_nothing_is_no_fault() -> None:
    stated, told = person(json.dumps(CUSTOMER).encode() + b"\r\n\x00\x00")
    assert (stated.name, told) == ("Ana Souza", [])


# --- fields of payloads

WRONG = [[], {}, {"a": 1}, ["x"], True, False]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    "field", ["note", "email", "currency", "name", "source_name", "customer_locale", "cancel_reason"]
)
def test_what_is_no_text_is_left_out_and_clears_nothing(field: str, value: Any) -> None:
    stated, told = order(ORDER | {field: value})
    assert not {"note", "tags", "cancel_reason"} & {*stated.cleared}
    assert len(stated.lines or ()) == (0 if field == "currency" else 8)
    assert LeftOut(field, "bad_text") in told


@pytest.mark.parametrize("value", ["", 0, False, [], [1], "x", 7])
@pytest.mark.parametrize("field", ["customer", "billing_address", "shipping_address", "total_shipping_price_set"])
def test_what_is_no_object_is_left_out_and_clears_nothing(field: str, value: Any) -> None:
    stated, told = order(ORDER | {field: value})
    assert (stated.subject, stated.total_minor, stated.cleared) == ("s:order:1001", 8000, ())
    assert told == [LeftOut(field, "bad_object")]


@pytest.mark.parametrize("field", ["updated_at", "cancelled_at", "processed_at", "closed_at"])
@pytest.mark.parametrize(
    "value",
    [
        "0000-00-00 00:00:00",
        "0001-01-01T00:00:00Z",
        "1899-12-30T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "soon",
        [],
        0,
        10**30,
    ],
)
def test_a_date_of_nothing_is_no_date(field: str, value: Any) -> None:
    stated, told = order(ORDER | {field: value})
    assert stated.status == "paid"
    assert stated.cancelled_at is None
    assert stated.occurred_at == datetime(2026, 5, 31, 15, tzinfo=UTC)
    assert "cancelled_at" not in stated.cleared
    assert [part.path for part in told] == [field]


def test_an_order_whose_time_of_change_can_not_be_read_is_not_dated_back() -> None:
    found = salvaged("shopify", ORDER | {"updated_at": "0000-00-00"}, "orders/updated")
    assert found.events[-1].occurred_at == NOW


@pytest.mark.parametrize("value", [True, None, ["a"], {"a": 1}, 1.5, 7, ""])
def test_an_odd_note_attribute_is_ignored(value: Any) -> None:
    attributes = [{"name": "gift", "value": value}, {"name": "cpf", "value": "529.982.247-25"}, "odd", None]
    stated, _ = order(ORDER | {"note_attributes": attributes})
    assert len(stated.lines or ()) == 8
    assert ("cpf", "529.982.247-25") in {(found.kind, found.value) for found in stated.identifiers} or any(
        found.value == "52998224725" for found in stated.identifiers
    )


@pytest.mark.parametrize(
    "change",
    [{"quantity": "two"}, {"quantity": None}, {"price": "1,50"}, {"price": None}, {"price": "1e400"}, {"quantity": 2**40}, {"id": [1]},
     {"discount_allocations": [{"amount": "one"}]}, {"tax_lines": [{"price": {}}]}],
)  # fmt: skip
def test_one_bad_line_among_eight_costs_itself(change: dict[str, Any]) -> None:
    lines = [line | (change if n == 3 else {}) for n, line in enumerate(LINES)]
    stated, told = order(ORDER | {"line_items": lines})
    ids = [line.line_id for line in stated.lines or ()]
    assert ids[:3] + ids[-4:] == ["1", "2", "3", "5", "6", "7", "8"]
    assert len(ids) == (8 if "id" in change else 7)
    assert stated.total_minor == 8000
    assert told


@pytest.mark.parametrize("lines", ["x", {}, [1, None, "x"], [{"quantity": 1}]])
def test_lines_of_which_none_can_be_read_are_not_stated_to_be_none(lines: Any) -> None:
    stated, told = order(ORDER | {"line_items": lines})
    assert (stated.lines, stated.total_minor) == (None, 8000)
    assert told


@pytest.mark.parametrize("currency", ["reais", "R$", 986, ["BRL"], "🙂"])
def test_a_malformed_currency_costs_the_amounts(currency: Any) -> None:
    stated, told = order(ORDER | {"currency": currency})
    assert (stated.currency, stated.total_minor, stated.number, stated.status) == (None, None, "#1001", "paid")
    assert told


def test_a_currency_in_small_letters_is_one() -> None:
    stated, told = order(ORDER | {"currency": "brl"})
    assert (stated.currency, stated.total_minor, told) == ("BRL", 8000, [])


def refund(**transaction: Any) -> dict[str, Any]:
    paid = {"kind": "refund", "status": "success", "amount": "10.00", "currency": "BRL", **transaction}
    return {
        "id": 5,
        "order_id": 1001,
        "created_at": "2026-05-31T13:00:00Z",
        "transactions": [paid, paid | {"amount": "5.00"}],
    }


@pytest.mark.parametrize("change", [{"amount": "ten"}, {"amount": []}, {"kind": []}, {"status": {}}])
def test_a_refund_of_which_a_part_can_not_be_read_is_none_rather_than_too_small(change: dict[str, Any]) -> None:
    good = refund() | {"id": 4}
    stated, told = order(ORDER | {"refunds": [good, refund(**change)]})
    assert [(found.refund_id, found.amount_minor) for found in stated.refunds] == [("4", 1500)]
    assert [part.path for part in told] == ["refunds.1"]
    found = salvaged("shopify", refund(**change), "refunds/create")
    assert found.events == []
    assert found.poison is not None


def test_one_bad_address_consent_and_tag_cost_themselves() -> None:
    body = CUSTOMER | {
        "addresses": [[], {"city": "Recife", "phone": "+5581988887777"}, {"phone": {"a": 1}}],
        "email_marketing_consent": {"state": "subscribed", "consent_updated_at": "0001-01-01"},
        "sms_marketing_consent": "yes",
        "tags": ["vip", {"a": 1}],
    }
    found = salvaged("shopify", body, "customers/update")
    stated, consent = found.events
    assert isinstance(stated, ProfileStated)
    assert (stated.name, stated.tags, stated.other_phones, stated.cleared) == (
        "Ana Souza",
        ("vip",),
        ("+5581988887777",),
        (),
    )
    assert isinstance(consent, ConsentStated)
    assert (consent.purpose, consent.state) == ("marketing_email", "granted")
    assert {part.path for part in found.left_out} == {
        "addresses.0", "addresses.2.phone", "email_marketing_consent.consent_updated_at", "sms_marketing_consent", "tags.1",
    }  # fmt: skip


@pytest.mark.parametrize("value", [[], False, "", 0])
def test_addresses_of_php_are_not_stated_to_be_none(value: Any) -> None:
    stated, _ = person(CUSTOMER | {"addresses": value, "default_address": value})
    assert stated.cleared == () if value != [] else "email" not in stated.cleared


@pytest.mark.parametrize("value", [1.5, True, {"a": 1}, [1], 2**70])
def test_an_order_of_a_customer_whose_id_can_not_be_read_is_a_guests(value: Any) -> None:
    stated, told = order(ORDER | {"customer": {"id": value, "email": "ana@example.com"}})
    assert stated.subject == "s:order:1001"
    assert told


def test_an_erasure_that_can_not_be_read_whole_is_put_aside() -> None:
    body = {"customer": {"id": 1, "phone": []}, "orders_to_redact": [1, 2]}
    assert len(salvaged("shopify", body, "customers/redact").events) == 3
    for bad in ({"customer": {"id": 1.5}}, {"orders_to_redact": [1, {}]}, {"orders_to_redact": "1"}):
        found = salvaged("shopify", body | bad, "customers/redact")
        assert found.events == []
        assert found.poison is not None


def test_what_cannot_be_done_without_is_still_a_dead_letter() -> None:
    for bad in ({"id": None}, {"id": {}}, {"id": 1.5}):
        found = salvaged("shopify", ORDER | bad, "orders/create")
        assert (found.events, found.poison is not None) == ([], True)


# --- hubspot


def test_a_default_date_of_another_program_costs_no_contact() -> None:
    for written in ("0001-01-01", "0000-00-00", "9999-12-31", "1899-12-30", "-62135596800000"):
        stated, found = contact(date_of_birth=written)
        assert (stated.email, stated.birth_date, stated.attributes) == (
            "ana@example.com",
            None,
            {"date_of_birth": written},
        )
        assert found.poison is None


@pytest.mark.parametrize(
    "written", ["1990-05-12T00:00:00+02:00", "19900512", 19900512, "12051990", "642470400000", "12/05/1990"]
)
def test_a_birth_date_is_the_day_that_was_written(written: Any) -> None:
    assert contact(date_of_birth=written)[0].birth_date == date(1990, 5, 12)


def test_the_zero_of_a_date_picker_is_a_day() -> None:
    assert contact(date_of_birth=0)[0].birth_date == date(1970, 1, 1)


def test_odd_properties_of_a_contact_cost_themselves() -> None:
    stated, found = contact(
        firstname=["Ana"], lastname={"value": "Souza"}, city={"value": ["x"]}, loyalty=True, points=12.5
    )
    assert (stated.given_name, stated.family_name, stated.city, stated.cleared) == (None, "Souza", None, ())
    assert stated.attributes == {"loyalty": "true", "points": "12.5"}
    assert {part.path for part in found.left_out} == {"properties.*"}


def test_a_notice_of_a_value_that_can_not_be_read_does_not_empty_the_property() -> None:
    found = salvaged("hubspot", notices(b"[1]", b'"two"'))
    assert [event.subject for event in found.events] == ["s:contact:2"]
    assert found.poison is not None


@pytest.mark.parametrize(
    "bad",
    [
        b"7",
        b"null",
        b'"x"',
        b"[]",
        b"{}",
        b'{"subscriptionType": 7}',
        b'{"properties": []}',
        b'{"vid": 1, "properties": 7}',
    ],
)
def test_a_notice_that_is_none_costs_itself(bad: bytes) -> None:
    body = b"[" + notices(b'"one"')[1:-1] + b"," + bad + b"," + notices(b'"three"')[1:-1] + b"]"
    found = salvaged("hubspot", body)
    assert [event.job_title for event in found.events] == ["one", "three"]  # type: ignore[attr-defined]
    assert found.poison is not None


@pytest.mark.parametrize("amount", ["1,5", "many", "1e400", "NaN"])
def test_a_deal_whose_amount_can_not_be_read_is_a_deal(amount: str) -> None:
    body = {"objectType": "deal", "id": 3, "updatedAt": "2026-05-31T12:00:00Z",
            "properties": {"dealname": "Big", "amount": amount, "dealstage": "closedwon", "createdate": "soon"}}  # fmt: skip
    found = salvaged("hubspot", body)
    (stated,) = found.events
    assert isinstance(stated, OrderStated)
    assert (stated.number, stated.status, stated.total_minor, stated.placed_at, stated.cleared) == (
        "Big",
        "won",
        None,
        None,
        (),
    )
    assert {part.path for part in found.left_out} == {"OrderStated.total_minor", "OrderStated.placed_at"}


def test_a_deal_of_two_contacts_of_whom_one_can_not_be_read_is_nobodys() -> None:
    body = {"objectType": "deal", "id": 3, "updatedAt": "2026-05-31T12:00:00Z", "properties": {"dealname": "Big"}}
    for contacts in ([{"id": 1}, {"id": {}}], [{"id": 1}, 7], [{"id": 1}, {"id": 2}]):
        found = salvaged("hubspot", body | {"associations": {"contacts": {"results": contacts}}})
        assert [event.identifiers for event in found.events] == [()]
    for odd in ([], "", {"contacts": []}, {"contacts": {"results": "x"}}):
        assert len(salvaged("hubspot", body | {"associations": odd}).events) == 1


def test_times_of_records_are_told_by_their_size() -> None:
    for written in (1780000000, 1780000000000, 1780000000000000, "1780000000"):
        assert contact(lastmodifieddate=written)[0].occurred_at == datetime.fromtimestamp(1780000000, UTC)


# --- zendesk


def event(kind: str, detail: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "type": f"zen:event-type:{kind}",
        "id": "e-1",
        "time": "2026-05-31T12:00:00Z",
        "detail": detail,
        "event": changed,
    }


def test_odd_parts_of_an_event_cost_themselves_and_clear_nothing() -> None:
    user = {"id": 9, "name": "Ana", "email": "ana@example.com", "role": "end-user"}
    for kind in (
        "user.name_changed",
        "user.details_changed",
        "user.suspended_changed",
        "user.time_zone_changed",
        "user.external_id_changed",
    ):
        for odd in ([], {}, {"a": 1}):
            found = salvaged("zendesk", event(kind, user, current=odd))
            (stated,) = found.events
            assert isinstance(stated, ProfileStated)
            assert (stated.email, stated.cleared, stated.attributes, stated.status) == ("ana@example.com", (), {}, None)
    found = salvaged("zendesk", event("user.suspended_changed", user, current="false"))
    assert [stated.status for stated in found.events] == ["enabled"]  # type: ignore[attr-defined]
    found = salvaged("zendesk", event("user.active_changed", user, current="false"))
    assert [type(stated).__name__ for stated in found.events] == ["SubjectDeleted"]


def test_odd_parts_of_a_ticket_cost_themselves() -> None:
    ticket = {
        "id": 3,
        "subject": ["x"],
        "requester_id": 9,
        "via": [],
        "tags": [1, {}, "a"],
        "created_at": "0000-00-00",
        "status": "OPEN",
    }
    found = salvaged(
        "zendesk", event("ticket.comment_added", ticket, comment={"id": 4, "is_public": "true", "author": []})
    )
    stated, comment = found.events
    assert isinstance(stated, TicketStated)
    assert (stated.status, stated.title, stated.tags, stated.opened_at) == ("open", None, ("1", "a"), None)
    assert isinstance(comment, InteractionRecorded)
    assert {part.path for part in found.left_out} == {
        "detail.subject",
        "detail.via",
        "detail.tags.1",
        "detail.created_at",
    }
    for comment_ in ([], "x", 7):
        assert len(salvaged("zendesk", event("ticket.comment_added", ticket, comment=comment_)).events) == 1
    (rated,) = salvaged("zendesk", event("ticket.csat_received", ticket, current=[])).events
    assert isinstance(rated, TicketStated)


def test_a_page_of_tickets_loses_only_the_bad_one_and_tells_of_the_people_beside() -> None:
    page = {
        "tickets": [
            {"id": 1, "updated_at": "2026-05-31T12:00:00Z"},
            7,
            {"subject": "x"},
            {"id": 2, "updated_at": "2026-05-31T12:00:00Z"},
        ],
        "users": [{"id": 9, "name": "Ana", "role": "end-user", "updated_at": "2026-05-31T12:00:00Z"}, None],
    }
    found = salvaged("zendesk", page)
    assert [event.subject for event in found.events] == ["s:ticket:1", "s:ticket:2", "s:user:9"]
    assert found.poison is not None


def test_someone_whose_role_can_not_be_read_is_not_taken_for_a_customer() -> None:
    found = salvaged(
        "zendesk", {"user": {"id": 9, "name": "Ana", "role": ["agent"], "updated_at": "2026-05-31T12:00:00Z"}}
    )
    assert (found.events, found.poison is not None) == ([], True)


# --- telling


def test_nothing_of_what_was_left_out_is_told() -> None:
    body = ORDER | {
        "maria@example.com": {"x": 1},
        "note_attributes": [{"name": ["maria@example.com"], "value": {"maria": 1}}],
    }
    raw = json.dumps(body).encode().replace(b'{"x": 1}', rb'"\ud83d"')
    _, told = order(raw)
    assert "maria" not in str(told)
    assert LeftOut("*", "bad_character") in told


def test_very_many_wrong_things_are_told_in_short() -> None:
    stated, told = order(ORDER | {"line_items": [*LINES, *([1] * 50_000)]})
    assert (len(stated.lines or ()), len(told)) == (8, 100)


def test_what_is_as_it_should_be_is_told_nothing_of() -> None:
    assert order(ORDER)[1] == []
    assert person(CUSTOMER)[1] == []


def test_translating_twice_gives_the_same() -> None:
    raw = json.dumps(ORDER | {"note": []}).encode()
    assert salvaged("shopify", raw, "orders/create") == salvaged("shopify", raw, "orders/create")
