"""What the SDK does for every connector: exact money and ids, values that can be stored, errors that tell nothing, discovery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from importlib.metadata import EntryPoint
from typing import Any, get_args, get_type_hints

import pytest
from caudal.connectors import (
    Amount,
    Connector,
    Delivery,
    Hmac,
    Id,
    Instant,
    Payload,
    empties,
    header,
    identifiers,
    minor,
    subject,
)
from caudal.connectors._bounds import TEXT_MAX, _bounded, _fits, within_bounds
from caudal.connectors._mend import REASONS, UNREADABLE, LeftOut
from caudal.connectors._money import exponent
from caudal.schemas import EVENT_TYPES, Event, Identifier, OrderLine, OrderStated, ProfileStated, Refund
from caudal.schemas._types import schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from caudal import connectors
from caudal.errors import BadSettings, InvalidPayload, MissingField, Poison, UnknownConnector, UnusableEvent

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Thing(Payload):
    id: Id
    price: Amount | None = None
    note: str | None = None
    at: Instant | None = None
    extra: dict[str, int] | None = None


def toy(**over: Any) -> Connector:
    made = Connector(
        name="toy",
        title="Toy",
        kind=header("x-topic"),
        delivery_id=header("x-id"),
        verify=Hmac(header="x-signature"),
        ignored=frozenset({"noise"}),
        **over,
    )

    @made.on("thing")
    def thing(t: Thing, source: str) -> Iterator[Event]:
        if t.note == "crash":
            raise KeyError("maria@example.com")
        yield ProfileStated(
            subject=subject(source, "thing", t.id),
            occurred_at=t.at or NOW,
            name=t.note,
            cleared=empties(t, name="note"),
            identifiers=identifiers(email=(t.note, t.note), phone=None),
        )

    @made.on("echo")
    def echo(value: Any, source: str, given: Delivery) -> Iterator[Event]:
        yield ProfileStated(
            subject=subject(source, "echo", value), occurred_at=given.captured_at, name=given.headers.get("x-name")
        )

    return made


def one(body: Any, kind: str = "thing", **headers: str) -> ProfileStated:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    (event,) = toy().translate(Delivery(source="s", body=raw, kind=kind, headers=headers, captured_at=NOW))
    assert isinstance(event, ProfileStated)
    return event


# --- money


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        ("199.90", "BRL", 19990),
        ("1000", "JPY", 1000),
        ("1000.00", "JPY", 1000),
        ("0.5", "JPY", 1),
        ("12.345", "KWD", 12345),
        ("0.0005", "KWD", 1),
        ("0.005", "EUR", 1),
        ("0.004999", "EUR", 0),
        ("-0.005", "EUR", -1),
        ("1.005", "EUR", 101),  # 1.00 by way of a float
        ("92233720368547758.07", "EUR", 2**63 - 1),
        ("3.14", "XXX", 314),
    ],
)
def test_amounts_are_exact_and_round_half_up(amount: str, currency: str, expected: int) -> None:
    assert minor(Decimal(amount), currency) == expected


@given(st.integers(-(10**17), 10**17), st.sampled_from(["BRL", "JPY", "KWD", "CLF"]))
def test_minor_units_come_back_whatever_the_currency(units: int, currency: str) -> None:
    written = format(Decimal(units).scaleb(-exponent(currency)), "f")
    assert minor(Thing.model_validate({"id": 1, "price": written}).price, currency) == units


@given(st.decimals(min_value=-(10**11), max_value=10**11, places=2))
def test_an_amount_written_as_a_number_is_the_same_as_one_in_quotes(amount: Decimal) -> None:
    written = format(amount, "f")
    as_number = Thing.model_validate(json.loads(f'{{"id": 1, "price": {written}}}')).price
    assert minor(as_number, "EUR") == minor(amount, "EUR")


@pytest.mark.parametrize("price", ["", "1,50", "1e5", "NaN", "Infinity", "1_000", "١٢", True, [], {}, "0x10", "9" * 41])
def test_what_is_no_amount_is_refused(price: Any) -> None:
    with pytest.raises(ValidationError):
        Thing.model_validate({"id": 1, "price": price})


@pytest.mark.parametrize(
    ("amount", "currency"), [("1", "reais"), ("1", "R$"), ("1" + "0" * 18, "JPY"), ("1" + "0" * 30, "EUR")]
)
def test_an_unusable_currency_or_size_costs_the_amount(amount: str, currency: str) -> None:
    assert minor(Decimal(amount), currency) is UNREADABLE


def test_an_amount_needs_a_currency_and_nothing_needs_none() -> None:
    assert minor(None, None) is None
    assert minor(Decimal(1), None) is UNREADABLE
    assert minor(Decimal(1), " brl") == 100


# --- ids, times, emptiness


@pytest.mark.parametrize("id_", [820982911946154508, 2**64 - 1, "gid://shopify/Customer/1", "007"])
def test_ids_stay_exact(id_: int | str) -> None:
    assert one({"id": id_}).subject == f"s:thing:{id_}"


@pytest.mark.parametrize("id_", [2**64, 1.5, True, None, "", [], {}])
def test_what_can_not_be_an_exact_id_is_poison(id_: Any) -> None:
    with pytest.raises(Poison):
        one({"id": id_})


def test_a_subject_needs_an_id() -> None:
    for missing in (None, ""):
        with pytest.raises(MissingField):
            subject("s", "customer", missing)


def test_times_are_brought_to_utc_and_are_utc_without_an_offset() -> None:
    assert one({"id": 1, "at": "2025-03-10T12:00:00-03:00"}).occurred_at == datetime(2025, 3, 10, 15, tzinfo=UTC)
    assert one({"id": 1, "at": "2025-03-10T12:00:00"}).occurred_at == datetime(2025, 3, 10, 12, tzinfo=UTC)
    assert one({"id": 1, "at": "2025-03-10T12:00:00-03:00"}).occurred_at.tzinfo is UTC


@pytest.mark.parametrize(
    "at",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "0001-06-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "0000-00-00 00:00:00",
        "1899-12-30T00:00:00",
        "1970-01-01T00:00:00Z",
        0,
        20240512,
        10**19,
    ],
)
def test_times_that_mean_none_are_left_out(at: str) -> None:
    assert one({"id": 1, "at": at}).occurred_at == NOW


def test_absent_is_not_null() -> None:
    assert one({"id": 1}).cleared == ()
    assert one({"id": 1, "note": None}).cleared == ("name",)
    assert one({"id": 1, "note": ""}).cleared == ("name",)
    assert one({"id": 1, "note": "  "}).cleared == ("name",)
    assert one({"id": 1, "note": " Ana "}).name == "Ana"


def test_identifiers_are_stated_once_and_never_empty() -> None:
    assert one({"id": 1, "note": "a@b.c"}).identifiers == (Identifier(kind="email", value="a@b.c"),)
    assert one({"id": 1}).identifiers == ()


# --- what can be stored


def test_nul_is_cut_out_of_texts_and_refused_in_keys() -> None:
    assert one({"id": 1, "note": "a\x00b"}).name == "ab"
    with pytest.raises(UnusableEvent):
        one({"id": "1\x00"})


def test_a_lone_surrogate_from_a_header_costs_that_character() -> None:
    assert one(1, "echo", **{"x-name": "a\udcff"}).name == "a\ufffd"


def test_a_key_must_fit_an_index() -> None:
    assert one({"id": "x" * 400}).subject.endswith("xxx")
    with pytest.raises(UnusableEvent):
        one({"id": "é" * 300})


@pytest.mark.parametrize(
    "change",
    [
        {"total_minor": 2**63},
        {"total_minor": 1.0},
        {"total_minor": True},
        {"lines": (OrderLine(line_id="1", quantity=2**31, unit_price_minor=1),)},
        {"lines": (OrderLine(line_id="1", quantity=1, unit_price_minor=-(2**63) - 1),)},
        {"lines": ("not a line",)},
        {"number": 7},
        {"placed_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - that it has no zone is the point
        {"placed_at": date(2026, 1, 1)},
        {"coupons": (None,)},
        {"currency": "reais"},
        {"total_minor": UNREADABLE},
        {"refunds": (Refund(refund_id="1", refunded_at=NOW, amount_minor=UNREADABLE, currency="BRL"),)},
    ],
)
def test_values_that_avro_can_not_hold_are_left_out_and_told(change: dict[str, Any]) -> None:
    order = OrderStated(subject="s:order:1", occurred_at=NOW, order_id="1")
    told: list[LeftOut] = []
    assert within_bounds(order, told) is order
    assert told == []
    assert within_bounds(replace(order, **change), told) == order
    assert {part.path.split(".")[1] for part in told} == {*change}
    assert {part.reason for part in told} <= REASONS


@pytest.mark.parametrize(
    "change", [{"subject": 7}, {"order_id": 2.5}, {"occurred_at": "soon"}, {"subject": "s:o:\ud800"}]
)
def test_what_an_event_can_not_do_without_is_poison_where_avro_can_not_hold_it(change: dict[str, Any]) -> None:
    with pytest.raises(UnusableEvent):
        within_bounds(replace(OrderStated(subject="s:order:1", occurred_at=NOW, order_id="1"), **change))


def test_one_bad_line_leaves_the_others() -> None:
    lines = tuple(OrderLine(line_id=str(n), quantity=n if n != 3 else 2**31, unit_price_minor=n) for n in range(8))
    order = OrderStated(subject="s:order:1", occurred_at=NOW, order_id="1", coupons=("a", None), lines=lines)  # type: ignore[arg-type]
    told: list[LeftOut] = []
    kept = within_bounds(order, told)
    assert kept.lines == lines[:3] + lines[4:]
    assert kept.coupons == ("a",)
    assert {part.path for part in told} == {"OrderStated.lines.3", "OrderStated.coupons.1"}


def test_long_texts_are_cut_and_maps_of_too_much_are_shortened() -> None:
    body = {"id": 1, "note": "ã" * (TEXT_MAX + 1)}
    assert one(body).name == "ã" * TEXT_MAX
    attributes = {f"field_{n}": "x" * 1_000 for n in range(2_000)}
    told: list[LeftOut] = []
    person = within_bounds(ProfileStated(subject="s:p:1", occurred_at=NOW, attributes=attributes), told, long=True)
    assert 300 < len(person.attributes) < 500
    assert told == [LeftOut("ProfileStated.attributes", "too_many")]


def test_a_float_that_is_no_number_and_a_moment_for_a_day_are_left_out() -> None:
    person = ProfileStated(subject="s:p:1", occurred_at=NOW)
    for change in (
        {"latitude": float("nan")},
        {"latitude": float("inf")},
        {"birth_date": NOW},
        {"birth_date": date(1, 1, 1)},
    ):
        assert within_bounds(replace(person, **change)) == person


texts = st.text(st.characters(exclude_categories=()), max_size=3) | st.sampled_from(
    ["", "a\0b", "é" * 100, "é" * 300, "\ud800", 7]
)


@settings(max_examples=300)
@given(
    name=texts, city=texts, tags=st.none() | st.tuples(texts, texts), attributes=st.dictionaries(texts, st.none() | texts, max_size=2),
    latitude=st.none() | st.floats() | st.integers(-90, 90), birth_date=st.none() | st.dates(),
    signed_up_at=st.none() | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-3))])),
)  # fmt: skip
def test_a_record_that_fits_is_one_that_needs_no_change(**values: Any) -> None:
    person = ProfileStated(subject="s:p:1", occurred_at=NOW, **values)
    try:
        bounded = _bounded(person)
    except UnusableEvent:
        assert not _fits(ProfileStated)(person)
    else:
        assert within_bounds(person) == bounded
        assert _fits(ProfileStated)(bounded)


def test_an_event_that_a_connector_tells_twice_is_two_events() -> None:
    twice = toy()

    @twice.on("double")
    def told(thing: Thing, source: str, delivery: Delivery) -> Iterator[Event]:
        event = ProfileStated(subject=subject(source, "thing", thing.id), occurred_at=NOW)
        yield event
        yield event

    first, second = twice.translate(Delivery(source="s", body=b'{"id": 1}', kind="double", delivery_id="d"))
    assert first.event_id != second.event_id
    assert replace(first, event_id="") == replace(second, event_id="")


def test_a_record_that_fits_is_looked_at_whole() -> None:
    line = OrderLine(line_id="1", quantity=1, unit_price_minor=1, product="São João")
    order = OrderStated(subject="s:order:1", occurred_at=NOW, order_id="1", lines=(line, replace(line, product="a\0b")))
    assert within_bounds(order).lines == (line, replace(line, product="ab"))


def test_an_event_can_not_do_without_its_keys() -> None:
    with pytest.raises(MissingField):
        within_bounds(OrderStated(subject="s:order:1", occurred_at=NOW, order_id=""))


def test_the_widths_of_whole_numbers_are_those_of_the_schemas() -> None:
    def walk(cls: type, tree: Any) -> Iterator[tuple[str, int, str]]:
        by_name = {field["name"]: field["type"] for field in tree["fields"]}
        for field in fields(cls):
            kind = by_name[field.name]
            kind = next(k for k in kind if k != "null") if isinstance(kind, list) else kind
            hint = get_type_hints(cls)[field.name]
            part = next(
                (
                    a
                    for a in (hint, *get_args(hint), *(x for a in get_args(hint) for x in get_args(a)))
                    if is_dataclass(a)
                ),
                None,
            )
            if part is not None:
                yield from walk(part, kind["items"])
            elif hint in (int, int | None):
                yield field.name, 31 if kind == "int" else 63, cls.__name__

    for name, cls in EVENT_TYPES.items():
        for field, bits, owner in walk(cls, schema_of(name).avro):
            assert (bits == 63) == (field.endswith("_minor") or field == "link_seq"), f"{owner}.{field}"


# --- errors


def test_errors_name_the_place_and_nothing_of_the_payload() -> None:
    with pytest.raises(InvalidPayload) as caught:
        one({"id": [], "at": "maria@example.com", "extra": {"maria": "x"}})
    assert "id: " in str(caught.value)
    assert "extra.*: " in str(caught.value)
    assert "maria" not in str(caught.value)


def test_a_crash_of_a_connector_is_poison_that_tells_where_but_not_what() -> None:
    with pytest.raises(InvalidPayload) as caught:
        one({"id": 1, "note": "crash"})
    assert "KeyError at test_connector_sdk.py:" in str(caught.value)
    assert "maria" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_odd_kind_is_not_quoted() -> None:
    with pytest.raises(Poison) as caught:
        toy().translate(Delivery(source="s", body=b"{}", kind="maria@example.com"))
    assert "maria" not in str(caught.value)


# --- keys


def test_without_an_id_of_its_own_a_delivery_is_known_by_kind_and_body() -> None:
    first = toy().key({"x-topic": "thing"}, b"{}")
    assert first == toy().key({"x-topic": "thing"}, b"{}")
    assert len({first, toy().key({"x-topic": "echo"}, b"{}"), toy().key({"x-topic": "thing"}, b"{ }")}) == 3
    assert toy().key({"x-id": "d1", "x-topic": "thing"}, b"{}") == ("d1", "thing")


def test_a_key_never_raises() -> None:
    def broken(_headers: Any, _body: bytes) -> str:
        raise RuntimeError

    assert replace(toy(), kind=broken).key({}, b"x")[1] is None
    assert toy().key({"x-topic": "a\udcff"}, b"x")[1] == "a\udcff"


def test_ids_of_events_depend_on_source_delivery_and_place_alone() -> None:
    def id_of(source: str, delivery_id: str, note: str) -> str:
        body = json.dumps({"id": 1, "note": note}).encode()
        (event,) = toy().translate(
            Delivery(source=source, body=body, kind="thing", delivery_id=delivery_id, captured_at=NOW)
        )
        return event.event_id

    assert id_of("s", "d", "a") == id_of("s", "d", "b")
    assert len({id_of("s", "d", "a"), id_of("t", "d", "a"), id_of("s", "e", "a")}) == 3


def test_an_offset_of_capture_does_not_matter() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-3)))
    body = b'{"id": 1}'
    here_event, there_event = (
        toy().translate(Delivery(source="s", body=body, kind="thing", captured_at=at)) for at in (NOW, there)
    )
    assert here_event == there_event


# --- declaring and finding connectors


@pytest.mark.parametrize("kind", ["thing", "noise"])
def test_a_kind_is_registered_once(kind: str) -> None:
    with pytest.raises(ValueError, match="registered twice"):

        @toy().on(kind)
        def again(t: Thing, source: str) -> Iterator[Event]:
            yield from ()


def test_the_files_of_the_folder_are_the_registry() -> None:
    assert {"hubspot", "shopify", "zendesk"} <= set(connectors.registry())
    assert [c.name for c in connectors.registry().values()] == sorted(connectors.registry())
    assert connectors.get("shopify").title == "Shopify"


def test_an_unknown_connector_is_told_with_those_that_exist() -> None:
    with pytest.raises(UnknownConnector, match="shopify"):
        connectors.get("shopfy")


def entry(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    class Point(EntryPoint):
        def load(self) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

    point = Point(name="toy", value="elsewhere:connector", group="caudal.connectors")
    monkeypatch.setattr(connectors, "entry_points", lambda *, group: [point] if group == "caudal.connectors" else [])


def test_another_package_can_bring_a_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, toy())
    assert connectors.registry.__wrapped__()["toy"].title == "Toy"


@pytest.mark.parametrize("found", [ImportError("x"), "not a connector", replace(toy(), name="shopify")])
def test_a_broken_or_clashing_package_is_named(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    entry(monkeypatch, found)
    with pytest.raises(BadSettings, match="elsewhere"):
        connectors.registry.__wrapped__()


def test_a_gzip_body_is_unpacked_and_a_damaged_or_endless_one_is_poison() -> None:
    import gzip

    from caudal import connectors

    shopify = connectors.get("shopify")
    body = b'{"id": 1, "email": "ana@example.com", "updated_at": "2026-01-02T03:04:05Z"}'
    headers = {"x-shopify-topic": "customers/create", "x-shopify-webhook-id": "w"}
    plain = shopify.translate(Delivery(source="shop", body=body, headers=headers))
    packed = Delivery(source="shop", body=gzip.compress(body), headers={**headers, "content-encoding": "gzip"})
    assert shopify.translate(packed) == plain
    assert plain
    for bad in (b"no gzip", gzip.compress(body)[:-9], gzip.compress(bytes(65 * 1024 * 1024))):
        with pytest.raises(InvalidPayload):
            shopify.translate(Delivery(source="shop", body=bad, headers={**headers, "content-encoding": "gzip"}))
