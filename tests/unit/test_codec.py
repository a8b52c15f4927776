"""Laws of the codecs: rows and columns say the same, twins are equal, and damage stays with the damaged."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from caudal.schemas import EVENT_TYPES, ConsentStated, Identifier, OrderLine, OrderStated, ProfileStated
from caudal.schemas._types import RECORDS, schema_of
from caudal.schemas.codec import Codec, LocalRegistry, arrow_schema, to_event
from hypothesis import given, settings
from record_values import RANDOMS, damaged, event, plain, varint
from record_values import record as any_record

from caudal.errors import BadSchema, UndecodableRecord, UnusableEvent

REGISTRY = LocalRegistry()
FAST, SLOW = Codec(REGISTRY), Codec(REGISTRY, fast=False)
NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ORDER = OrderStated(
    event_id="1",
    source="shop-br",
    subject="shop-br:customer:7",
    customer_id="c",
    link_seq=3,
    occurred_at=NOW,
    captured_at=NOW,
    identifiers=(Identifier(kind="email", value="ana@example.com"),),
    order_id="o-1",
    status="paid",
    total_minor=19990,
    lines=(OrderLine(line_id="l1", quantity=2, unit_price_minor=9995),),
)
some = settings(max_examples=10, deadline=None)


def as_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch as `decode` would give its rows."""
    return batch.to_pylist(maps_as_pydicts="strict")


def decoded(codec: Codec, messages: list[bytes]) -> tuple[dict[int, dict[str, Any]], list[int]]:
    columns = codec.decode_columns(messages)
    rows = {}
    for record, batch, positions in columns.batches:
        batch.validate(full=True)
        assert batch.schema == arrow_schema(record)
        rows.update(zip(positions.to_pylist(), as_rows(batch), strict=True))
    return rows, [index for index, _ in columns.bad]


@pytest.mark.parametrize("record", RECORDS)
@some
@given(RANDOMS)
def test_rows_columns_and_twins_say_the_same(record: str, rng: Random) -> None:
    rows = [any_record(rng, record) for _ in range(rng.randint(1, 5))]
    messages = [FAST.encode("t", record, row) for row in rows]
    assert [FAST.decode(message) for message in messages] == [(record, row) for row in rows]
    assert FAST.decode_few(messages) == [(record, plain(rows), [*range(len(rows))])]
    for codec in (FAST, SLOW):
        assert decoded(codec, messages) == (dict(enumerate(rows)), [])
        ((_, batch, _),) = codec.decode_columns(messages).batches
        assert codec.encode_columns("t", record, batch) == messages


@pytest.mark.parametrize("record", RECORDS)
@some
@given(RANDOMS)
def test_records_are_written_as_fastavro_writes_them(record: str, rng: Random) -> None:
    row = any_record(rng, record)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema_of(record).avro)), row)
    assert FAST.encode("t", record, row)[5:] == out.getvalue()


@pytest.mark.parametrize("record", EVENT_TYPES)
@some
@given(RANDOMS)
def test_an_event_comes_back_as_it_went(record: str, rng: Random) -> None:
    stated = event(rng, record)
    assert to_event(*FAST.decode(FAST.encode_event(stated))) == stated


@pytest.mark.parametrize("record", ["OrderStated", "ProfileStated", "CustomerMetrics", "DeadLetter"])
@settings(max_examples=80, deadline=None)
@given(RANDOMS)
def test_damage_is_found_by_both_twins_and_spares_the_others(record: str, rng: Random) -> None:
    messages = [FAST.encode("t", record, any_record(rng, record)) for _ in range(3)]
    hurt = [messages[0], damaged(rng, messages[1]), messages[2], rng.randbytes(rng.randrange(12))]
    rows, bad = decoded(FAST, hurt)
    assert repr((rows, bad)) == repr(decoded(SLOW, hurt))  # by text, since NaN is not equal to itself
    assert rows.keys() | set(bad) == {0, 1, 2, 3}
    assert rows[0] == FAST.decode(messages[0])[1]
    assert rows[2] == FAST.decode(messages[2])[1]
    for index, message in enumerate(hurt):
        if few := FAST.decode_few([message]):  # whatever it takes is a record
            assert repr(few) == repr([(few[0][0], [plain(rows[index])], [0])])


def test_a_thousand_messages_with_scattered_damage_lose_only_the_damaged() -> None:
    good = [FAST.encode_event(replace(ORDER, order_id=f"o-{i}")) for i in range(1000)]
    hurt = {0, 1, 333, 500, 998, 999}
    messages = [message[:-1] if i in hurt else message for i, message in enumerate(good)]
    rows, bad = decoded(FAST, messages)
    assert set(bad) == hurt
    assert [rows[i]["order_id"] for i in sorted(rows)] == [f"o-{i}" for i in range(1000) if i not in hurt]


def test_several_records_and_their_versions_go_into_batches_of_their_own() -> None:
    consent = ConsentStated(subject="s", occurred_at=NOW, purpose="marketing_email", state="granted")
    messages = [FAST.encode_event(e) for e in (ORDER, consent, ORDER)]
    batches = FAST.decode_columns(messages).batches
    assert [(name, positions.to_pylist()) for name, _, positions in batches] == [
        ("OrderStated", [0, 2]),
        ("ConsentStated", [1]),
    ]


def test_no_messages_give_no_batches() -> None:
    columns = FAST.decode_columns([])
    assert (columns.batches, columns.bad) == ([], [])


# --- garbage, kind by kind: (Avro type, bytes, whether they are a record) ---


LONGS = {"type": "array", "items": "long"}
WORDS = {"type": "map", "values": "string"}
TIME = {"type": "long", "logicalType": "timestamp-micros"}
DATE = {"type": "int", "logicalType": "date"}
GARBAGE = {
    "a huge length": ("string", varint(2**62) + b"x", False),
    "a negative length": ("string", varint(-5) + b"x", False),
    "a huge count": (LONGS, varint(2**40) + b"\0" * 9, False),
    "the least count": (LONGS, varint(-(2**63)) + b"\0" * 9, False),
    "a huge count of keys": (WORDS, varint(2**40) + b"\0" * 9, False),
    "a number of twelve bytes": ("long", b"\xff" * 11 + b"\1", False),
    "a number beyond 64 bits": ("long", b"\xff" * 9 + b"\x7f", False),
    "a number padded with a zero": ("long", b"\x82\x00", True),
    "an int beyond 32 bits": ("int", varint(2**31), False),
    "an int that would wrap to zero": ("int", varint(2**32), False),
    "a date after the year 9999": (DATE, varint(2_932_897), False),
    "a time before the year 1": (TIME, varint(-(2**62)), False),
    "a boolean of seven": ("boolean", b"\7", False),
    "the union's last branch by -1": (["null", "string"], b"\1\2a", False),
    "a branch that is not there": (["null", "string"], varint(9), False),
    "half a character": ("string", b"\2\xc3", False),
    "a surrogate": ("string", b"\6\xed\xa0\x80", False),
    "a character over two strings": ({"type": "array", "items": "string"}, b"\4\2\xc3\2\xa3\0", False),
    "half a character in a key": (WORDS, b"\2\2\xff\2b\0", False),
    "a key named twice": (WORDS, b"\4\2a\2b\2a\2c\0", False),
    "a byte too many": ("string", b"\2ab", False),
    "nothing": ("string", b"", False),
    "an end of two bytes": (LONGS, b"\2\2\x80\0", True),
    "a count of nothing in two bytes": (LONGS, b"\x80\0", True),
    "a length in two bytes": ("string", b"\x82\0a", True),
    "an array in two blocks": (LONGS, b"\2\2\2\4\0", True),
    "a block that states its size": (LONGS, b"\3\4\2\4\0", True),
    "not a number": ("double", b"\0\0\0\0\0\0\xf8\x7f", True),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("times", [1, 40])  # few are walked one by one, many are judged by their sizes first
def test_garbage_is_put_aside_and_unusual_bytes_are_read(
    name: str, fast: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, body, sound = GARBAGE[name]
    monkeypatch.setattr("caudal.schemas.codec.schema_of", lambda _: parsed)
    schema = {"type": "record", "name": "R", "namespace": "caudal", "fields": [{"name": "f", "type": kind}]}
    from caudal.schemas._types import parse

    parsed = parse(schema)
    registry = LocalRegistry()
    header = b"\0" + registry.add(schema).to_bytes(4, "big")
    columns = Codec(registry, fast=fast).decode_columns([header + body] * times)
    assert [index for index, _ in columns.bad] == ([] if sound else [*range(times)])
    assert [batch.num_rows for _, batch, _ in columns.batches] == ([times] if sound else [])
    if few := Codec(registry, fast=fast).decode_few([header + body] * times):  # it may refuse what is unusual
        assert sound
        assert repr(few[0][1]) == repr(as_rows(columns.batches[0][1]))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "wire format"),
        (b"\0\0\0", "wire format"),
        (b"\1\0\0\0\1abc", "wire format"),
        (b"\0\0\0\xff\xffabc", "knows no schema 65535"),
        (FAST.encode_event(ORDER)[:-1], "OrderStated"),
        (FAST.encode_event(ORDER) + b"secret", "6 bytes follow"),
    ],
)
def test_the_reason_says_what_is_wrong_without_quoting_it(message: bytes, reason: str) -> None:
    with pytest.raises(UndecodableRecord, match=reason) as found:
        FAST.decode(message)
    ((index, fault),) = FAST.decode_columns([message]).bad
    assert index == 0
    assert reason in fault.message
    assert "secret" not in f"{found.value} {fault}"


def test_a_tombstone_among_events_is_put_aside() -> None:
    messages: list[Any] = [None, FAST.encode_event(ORDER)]
    assert [index for index, _ in FAST.decode_columns(messages).bad] == [0]


# --- other versions of a schema ---


def older(change: Any) -> tuple[Codec, bytes, dict[str, Any]]:
    """A codec whose registry knows a changed OrderStated, the header of its messages and its schema."""
    schema = json.loads(json.dumps(schema_of("OrderStated").avro))
    change(schema)
    registry = LocalRegistry()
    return Codec(registry), b"\0" + registry.add(schema).to_bytes(4, "big"), schema


def written(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), row)
    return out.getvalue()


def line_fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    (lines,) = (f for f in schema["fields"] if f["name"] == "lines")
    fields: list[dict[str, Any]] = lines["type"][1]["items"]["fields"]
    return fields


OPTIONAL = [f.name for f in schema_of("OrderStated").fields if f.has_default]


@some
@given(RANDOMS)
def test_an_older_version_is_read_with_todays_defaults(rng: Random) -> None:
    gone = set(rng.sample(OPTIONAL, rng.randrange(len(OPTIONAL))))
    rows = [any_record(rng, "OrderStated") for _ in range(rng.randint(1, 4))]

    def change(schema: dict[str, Any]) -> None:
        schema["fields"] = [f for f in schema["fields"] if f["name"] not in gone]
        rng.shuffle(schema["fields"])
        if "lines" not in gone:
            fields = line_fields(schema)
            fields[:] = [f for f in fields if f["name"] not in ("brand", "tax_minor")]
            rng.shuffle(fields)
            for f in fields:
                if f["name"] == "unit_price_minor":
                    f["type"] = "int"  # was promoted to long since
        schema["fields"].append({"name": "loyalty", "type": ["null", "string"], "default": None})  # dropped since

    codec, header, schema = older(change)
    for row in rows:
        for line in row["lines"] or []:
            line["unit_price_minor"] %= 2**31
    messages = [header + written(schema, row) for row in rows]
    by_row = [codec.decode(message)[1] for message in messages]
    assert decoded(codec, messages) == (dict(enumerate(by_row)), [])
    assert codec.decode_few(messages) == [("OrderStated", plain(by_row), [*range(len(rows))])]
    for row, read in zip(rows, by_row, strict=True):
        assert read["order_id"] == row["order_id"]
        assert all(read[name] == row[name] for name in set(OPTIONAL) - gone - {"lines"})
        assert all(not read[name] for name in gone)


def test_a_version_that_can_not_be_resolved_is_put_aside_with_the_reason() -> None:
    def change(schema: dict[str, Any]) -> None:
        schema["fields"] = [f for f in schema["fields"] if f["name"] != "order_id"]

    codec, header, schema = older(change)
    message = header + written(schema, dict(FAST.decode(FAST.encode_event(ORDER))[1]))
    ((_, fault),) = codec.decode_columns([message]).bad
    assert "order_id is missing" in fault.message
    with pytest.raises(UndecodableRecord, match="order_id is missing"):
        codec.decode(message)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "record", "name": "Foreign", "namespace": "x", "fields": [{"name": "a", "type": "string"}]},
        {"type": "enum", "name": "OrderStated", "symbols": ["A"]},
        {"type": "record", "name": "OrderStated", "fields": [{"name": "a", "type": ["string", "long"]}]},
        {"type": "record", "name": "OrderStated", "fields": []},
        {
            "type": "record",
            "name": "OrderStated",
            "fields": [{"name": "a", "type": {"type": "array", "items": "OrderStated"}}],
        },
        {"nonsense": 1},
    ],
)
def test_schemas_that_are_not_ours_are_put_aside(schema: dict[str, Any]) -> None:
    registry = LocalRegistry()
    header = b"\0" + registry.add(schema).to_bytes(4, "big")
    ((_, fault),) = Codec(registry).decode_columns([header + b"\0\0\0"]).bad
    assert "none of ours" in fault.message


# --- values that a schema can't hold ---


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"occurred_at": datetime(2026, 1, 1)}, "occurred_at"),  # noqa: DTZ001 - a time without a zone is the point
        ({"total_minor": 2**63}, "total_minor"),
        ({"total_minor": Decimal("1.5")}, "total_minor"),
        ({"total_minor": True}, "total_minor"),
        ({"status": "\ud800"}, "status"),
        ({"status": 5}, "status"),
        ({"order_id": None}, "order_id"),
        ({"tags": "vip"}, "tags"),
        ({"cleared": ""}, "cleared"),
        ({"lines": (OrderLine(line_id="l", quantity=2**31, unit_price_minor=1),)}, "lines.quantity"),
    ],
)
def test_a_value_that_does_not_fit_names_its_field_only(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnusableEvent, match=field) as found:
        FAST.encode_event(replace(ORDER, **changes))
    assert "vip" not in str(found.value)


def test_numbers_of_other_kinds_are_taken_where_a_double_is_meant() -> None:
    profile = ProfileStated(subject="s", occurred_at=NOW, latitude=Decimal("-8.05"), longitude=-34)  # type: ignore[arg-type]
    read = FAST.decode(FAST.encode_event(profile))[1]
    assert (read["latitude"], read["longitude"]) == (-8.05, -34.0)


def test_missing_values_take_the_schemas_defaults_and_need_one() -> None:
    row = FAST.decode(FAST.encode_event(ORDER))[1]
    short = {name: row[name] for name in ("event_id", "source", "subject", "occurred_at", "captured_at", "order_id")}
    assert FAST.decode(FAST.encode("t", "OrderStated", short))[1]["identifiers"] == []
    del short["order_id"]
    with pytest.raises(UnusableEvent, match="order_id"):
        FAST.encode("t", "OrderStated", short)


def test_columns_that_do_not_fit_the_schema_are_refused() -> None:
    ((_, batch, _),) = FAST.decode_columns([FAST.encode_event(ORDER)]).batches
    ids = pa.array([None], pa.string())
    nulls = batch.set_column(batch.schema.get_field_index("order_id"), pa.field("order_id", pa.string()), ids)
    for codec in (FAST, SLOW):
        with pytest.raises(pa.ArrowInvalid, match="order_id"):
            codec.encode_columns("t", "OrderStated", nulls)
        with pytest.raises(KeyError, match="order_id"):
            codec.encode_columns("t", "OrderStated", batch.drop_columns(["order_id"]))


def test_not_a_number_survives_columns() -> None:
    profile = ProfileStated(subject="s", occurred_at=NOW, latitude=math.nan)
    for codec in (FAST, SLOW):
        ((_, batch, _),) = codec.decode_columns([codec.encode_event(profile)]).batches
        assert math.isnan(batch["latitude"][0].as_py())


def test_what_is_not_an_event_or_record_is_named() -> None:
    with pytest.raises(BadSchema, match="CustomerProfile is not an event"):
        to_event("CustomerProfile", {})
    with pytest.raises(BadSchema, match="no record 'Nothing'"):
        FAST.encode("t", "Nothing", {})


def test_a_panic_of_the_decoder_is_no_panic_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})

    def panicking(*_: object) -> None:
        raise panic

    monkeypatch.setattr("caudal.schemas._columns.pyruhvro.deserialize_array", panicking)
    columns = Codec(REGISTRY).decode_columns([FAST.encode_event(ORDER)])
    assert [batch.num_rows for _, batch, _ in columns.batches] == [1]
