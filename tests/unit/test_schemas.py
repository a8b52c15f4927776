"""The contracts: what an .avsc may hold, that events.py and the docs say the same, and that nobody's reader is broken."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import types
import uuid
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import avro.schema
import fastavro
import pytest
from caudal.schemas import EVENT_TYPES, derived_id, events
from caudal.schemas._compatibility import faults
from caudal.schemas._reference import page
from caudal.schemas._types import FOLDER, RECORDS, Type, parse, schema_of
from caudal.schemas.codec import records_on, subject_of
from pytest_examples import CodeExample, EvalExample, find_examples

from caudal import kafka
from caudal.errors import BadSchema

ROOT = Path(__file__).parents[2]
RELEASES = sorted((FOLDER.parent / "released").iterdir(), key=lambda p: tuple(map(int, p.name.split("."))))
PII = {"email", "phone", "name", "address", "document", "birth", "free_text"}
BY_ROW = {"Capture", "DeadLetter"}
"""Records that hold bytes: they are never decoded by the columnar decoder."""


def text(record: str) -> str:
    return (FOLDER / f"{record}.avsc").read_text()


def nested_fields(avro_type: Any) -> Iterator[dict[str, Any]]:
    """Every field of a schema, also of the records inside."""
    if isinstance(avro_type, list):
        for branch in avro_type:
            yield from nested_fields(branch)
    elif isinstance(avro_type, dict):
        for field in avro_type.get("fields", ()):
            yield field
            yield from nested_fields(field["type"])
        yield from nested_fields(avro_type.get("items", avro_type.get("values")))


@pytest.mark.parametrize("record", RECORDS)
def test_a_contract_compiles_everywhere(record: str) -> None:
    assert avro.schema.parse(text(record)).name == record
    fastavro.parse_schema(json.loads(text(record)))
    assert schema_of(record).columnar == (record not in BY_ROW)


@pytest.mark.parametrize("record", RECORDS)
def test_a_contract_is_documented_and_says_what_is_personal(record: str) -> None:
    schema = json.loads(text(record))
    assert schema["doc"].strip()
    for field in nested_fields(schema):
        assert field["doc"].endswith((".", "…")), f"{record}.{field['name']} has no sentence"
        assert field.get("pii", "name") in PII, f"{record}.{field['name']} has an unknown tag"
        assert field.keys() <= {"name", "type", "doc", "default", "pii"}


@pytest.mark.parametrize("record", RECORDS)
def test_units_stand_in_the_names(record: str) -> None:
    for field in nested_fields(json.loads(text(record))):
        kind = json.dumps(field["type"])
        if '"record"' not in kind:
            assert field["name"].endswith("_at") == ("timestamp-micros" in kind), field["name"]
        if field["name"].endswith("_minor"):
            assert '"long"' in kind, field["name"]
        if field["name"].endswith("_date"):
            assert '"date"' in kind, field["name"]


@pytest.mark.parametrize("record", EVENT_TYPES)
def test_an_event_is_the_same_in_python(record: str) -> None:
    assert schema_of(record).avro["namespace"] == "caudal.events"
    assert_same(EVENT_TYPES[record], schema_of(record))


def test_every_event_contract_has_a_python_type() -> None:
    assert {r for r in RECORDS if schema_of(r).avro["namespace"] == "caudal.events"} == set(EVENT_TYPES)


def assert_same(cls: Any, tree: Type) -> None:
    hints, fields = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    assert {f.name for f in tree.fields} == set(fields)
    for field in tree.fields:
        hint, default = hints[field.name], fields[field.name].default
        nullable = get_origin(hint) in (Union, types.UnionType)
        assert nullable == field.type.nullable, field.name
        assert_hint(next(a for a in get_args(hint) if a is not type(None)) if nullable else hint, field.type)
        if fields[field.name].default_factory is not dataclasses.MISSING:
            default = {}
        if field.has_default:
            assert (list(default) if isinstance(default, tuple) else default) == field.default, field.name
        elif field.name not in {"event_id", "source", "captured_at"}:  # the SDK fills these in
            assert default is dataclasses.MISSING, field.name


def assert_hint(hint: Any, tree: Type) -> None:
    plain = {"string": str, "int": int, "long": int, "double": float, "date": date, "timestamp": datetime}
    if tree.kind == "record":
        assert hint is getattr(events, tree.name)
        assert_same(hint, tree)
    elif tree.kind == "array":
        assert get_origin(hint) is tuple
        assert_hint(get_args(hint)[0], tree.items)  # type: ignore[arg-type] # an array has items
    elif tree.kind == "map":
        assert tree.items is not None
        assert get_origin(hint) is Mapping
        assert get_args(hint)[1] == (str | None if tree.items.nullable else str)
    else:
        assert hint is plain[tree.kind]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_no_contract_breaks_the_readers_and_writers_of_a_release(release: Path) -> None:
    for path in release.glob("*.avsc"):
        assert path.stem in RECORDS, f"{path.stem} was released with {release.name} and is gone"
        assert faults(text(path.stem), [(1, path.read_text())], "FULL") == []


def test_a_breaking_change_would_be_told() -> None:
    schema = json.loads(text("OrderStated"))
    schema["fields"].append({"name": "store", "type": "string"})
    (fault,) = faults(json.dumps(schema), [(3, text("OrderStated"))], "FULL")
    assert "can't read records of version 3" in fault
    assert "reader_field_missing_default_value (store)" in fault


@pytest.mark.parametrize(
    "kind",
    [
        "bytes_",
        ["string", "long"],
        ["null", "string", "long"],
        {"type": "bytes", "logicalType": "decimal", "precision": 9},
        {"type": "string", "logicalType": "uuid"},
        {"type": "long", "logicalType": "timestamp-millis"},
        {"type": "enum", "name": "E", "symbols": ["A"]},
        {"type": "fixed", "name": "F", "size": 4},
        {"type": "record", "name": "Empty", "fields": []},
        "null",
    ],
)
def test_types_that_a_decoder_can_not_read_are_refused(kind: Any) -> None:
    with pytest.raises(BadSchema):
        parse({"type": "record", "name": "R", "fields": [{"name": "f", "type": kind}]})


def test_the_page_of_events_says_what_the_contracts_say() -> None:
    written = (ROOT / "docs/reference/events.md").read_text()
    assert written == page(), "run: python -m caudal.schemas._reference > docs/reference/events.md"


def test_topics_carry_their_records_under_their_subjects() -> None:
    assert set(records_on(kafka.CHANGES)) == set(EVENT_TYPES)
    assert records_on("capture.shop-br") == ("Capture",)
    assert subject_of("x.customer.changes", "OrderStated") == "x.customer.changes-caudal.events.OrderStated"
    with pytest.raises(BadSchema):
        records_on("customer.nothing")


@pytest.mark.parametrize(
    "example", [one for one in find_examples(ROOT / "docs/contracts.md") if one.prefix == "python"], ids=str
)
def test_the_examples_of_the_guide_run(example: CodeExample, eval_example: EvalExample) -> None:
    eval_example.run(example)


LINE: dict[str, Any] = {"line_id": "1", "quantity": 2, "unit_price_minor": 990}


def test_an_events_parts_are_frozen_equal_and_copied_like_any_dataclass() -> None:
    line = events.OrderLine(**LINE, sku="s")
    with pytest.raises(dataclasses.FrozenInstanceError):
        line.sku = "t"  # type: ignore[misc]
    assert type(line) is events.OrderLine
    assert dataclasses.asdict(line) == {f.name: f.default for f in dataclasses.fields(line)} | LINE | {"sku": "s"}
    assert line == copy.deepcopy(line) == pickle.loads(pickle.dumps(line)) != dataclasses.replace(line, sku="t")
    assert hash(line) == hash(copy.copy(line))


def test_a_default_that_is_made_is_made_for_each() -> None:
    one, other = (events.ProfileStated(subject="shop:customer:1", occurred_at=events.EPOCH) for _ in range(2))
    assert one == other
    assert one.attributes == {}
    assert one.attributes is not other.attributes


def test_a_subclass_of_an_event_stays_one() -> None:
    class Wrapped(events.OrderLine):
        pass

    assert type(Wrapped(**LINE)) is Wrapped


def test_a_missing_field_is_named() -> None:
    with pytest.raises(TypeError, match="occurred_at"):
        events.ProfileStated(subject="shop:customer:1")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["", "shop\nd-1\n0", "São Paulo 🙂", "x" * 1000])
def test_derived_ids_are_the_standard_librarys_uuid5(name: str) -> None:
    assert derived_id(uuid.NAMESPACE_OID.bytes, name) == str(uuid.uuid5(uuid.NAMESPACE_OID, name))
