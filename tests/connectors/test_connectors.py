"""What holds for every connector. A new one needs no change here: its file in connectors/ and its samples in a folder beside this.

A sample is `{"delivery": {"source"?: …, "headers": …, "body": …}, "events": […]}`, named after the kind: `orders/create` is
orders.create.json, and `orders.create--guest.json` a further case. `body` is the parsed value or a text as received. Events are
written as `caudal translate` prints them; what is the same for all of them (event_id, source, captured_at) is left out.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import fastavro
import pytest
from caudal.connectors import Connector, Delivery, registry
from caudal.connectors._tools import as_json
from caudal.schemas import Event
from caudal.schemas._rows import reader, to_event
from caudal.schemas._types import schema_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caudal.errors import Poison

HERE = Path(__file__).parent
CAPTURED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SAMPLES = sorted(path for path in HERE.glob("*/*.json"))
CONNECTORS = sorted({path.parent.name for path in SAMPLES} | set(registry()))
COMMON = {"event_id", "source", "captured_at"}
WRONG = ["", "canary", -1, 1.5, 2**70, True, [], {}, [None], {"canary": None}, "can\x00ary", "canary" * 500, "NaN", "1e999999",
         "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-13-45", 2**31, 10**19]  # fmt: skip

each_sample = pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
each_connector = pytest.mark.parametrize("name", CONNECTORS)


@cache
def sample(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def delivery(path: Path, body: Any = None) -> Delivery:
    given = sample(path)["delivery"]
    body = given["body"] if body is None else body
    raw = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    headers = {name.lower(): value for name, value in given.get("headers", {}).items()}
    return Delivery(source=source_of(path), body=raw.encode(), headers=headers, captured_at=CAPTURED_AT)


def source_of(path: Path) -> str:
    return str(sample(path)["delivery"].get("source", path.parent.name))


def translated(path: Path) -> list[Event]:
    return registry()[path.parent.name].translate(delivery(path))


@each_sample
def test_a_sample_gives_exactly_its_events(path: Path) -> None:
    shown = [
        {name: value for name, value in as_json(event).items() if name not in COMMON} for event in translated(path)
    ]
    wanted = [{name: value for name, value in event.items() if name not in COMMON} for event in sample(path)["events"]]
    assert shown == wanted


@each_sample
def test_translating_twice_is_equal_and_ids_are_distinct(path: Path) -> None:
    events = translated(path)
    assert events == translated(path)
    assert len({event.event_id for event in events}) == len(events)
    assert {(event.source, event.captured_at) for event in events} <= {(source_of(path), CAPTURED_AT)}


@each_sample
def test_events_are_records_of_their_schema(path: Path) -> None:
    for event in translated(path):
        assert round_trip(event) == event


@each_sample
def test_a_field_is_either_stated_or_cleared(path: Path) -> None:
    for event in translated(path):
        cleared = getattr(event, "cleared", ())
        assert set(cleared) <= {field.name for field in fields(event)}
        assert [name for name in cleared if getattr(event, name) is not None] == []
        assert len(set(cleared)) == len(cleared)


@each_sample
def test_subjects_and_identifiers_are_well_formed(path: Path) -> None:
    for event in translated(path):
        assert re.fullmatch(rf"{source_of(path)}:[a-z_]+:\S+", event.subject)
        for identifier in event.identifiers:
            assert identifier.kind in {"email", "phone", "cpf", "cnpj", "external_id", "device", "subject"}
            assert identifier.value == identifier.value.strip() != ""


@each_sample
def test_a_payload_of_others_names_its_licence_and_is_listed(path: Path) -> None:
    origin = sample(path).get("origin")
    if origin is None:
        return
    repository, licence = (
        origin.partition("@")[0],
        re.search(r"\((MIT|Apache-2\.0|BSD-[23]-Clause|ISC|CC0-1\.0)\)", origin),
    )
    assert licence is not None
    listed = [
        line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if f"[{repository}](" in line
    ]
    assert len(listed) == 1
    assert path.parent.name in listed[0]


@each_connector
def test_every_kind_has_a_sample_with_events(name: str) -> None:
    connector, seen = registry()[name], set()

    def watched(kind: str, function: Any) -> Any:
        def translator(payload: Any, source: str, given: Delivery) -> Iterator[Event]:
            for event in function(payload, source, given):
                seen.add(kind)
                yield event

        return translator

    spied = replace(
        connector, translators={kind: (model, watched(kind, f)) for kind, (model, f) in connector.translators.items()}
    )
    for path in SAMPLES:
        if path.parent.name == name:
            spied.translate(delivery(path))
    assert set(connector.kinds) - seen == set()


@each_connector
def test_ignored_kinds_give_nothing(name: str) -> None:
    connector = replace(registry()[name], split=None)
    assert connector.ignored.isdisjoint(connector.kinds)
    for kind in connector.ignored:
        assert connector.translate(Delivery(source="s", body=b"{}", kind=kind)) == []


@each_connector
def test_an_unknown_kind_is_poison_with_a_hint(name: str) -> None:
    connector = replace(registry()[name], split=None)
    with pytest.raises(Poison) as caught:
        connector.translate(Delivery(source="s", body=b"{}", kind="never/heard_of"))
    assert caught.value.code == "unknown_kind"
    assert "caudal connectors" in str(caught.value)


@each_sample
def test_a_damaged_payload_raises_only_poison_and_tells_nothing_of_it(path: Path) -> None:
    connector, original = registry()[path.parent.name], copy.deepcopy(sample(path)["delivery"]["body"])
    secrets = {text for text in texts(original) if re.search(r"@|\d{5}| ", text)} | {"canary"}
    sound = connector.translate(delivery(path))
    for damaged in mutations(original, crc32(path.name.encode())):
        events, error = attempt(connector, delivery(path, damaged))
        for event in events:
            if event not in sound:
                round_trip(event)
        if error:
            assert [text for text in secrets if text in str(error)] == []
            assert error.__cause__ is None  # whoever logs the error with its causes must not log the payload


def attempt(connector: Connector, given: Delivery) -> tuple[list[Event], Poison | None]:
    try:
        return connector.translate(given), None
    except Poison as exc:
        return [], exc


def mutations(value: Any, seed: int) -> Iterator[Any]:
    """The JSON value with one thing dropped, nulled or replaced; of lists, the first item stands for all.

    Each place gets three of the wrong values in turn; over places and samples they all get everywhere. The value is changed in
    place and mended.
    """
    yield from ([], {}, "x", 1)
    for turn, (parent, key) in enumerate(places(value), seed):
        kept = parent[key]
        for wrong in [None, *(WRONG[(turn * 3 + step) % len(WRONG)] for step in range(3))]:
            parent[key] = wrong
            yield value
        del parent[key]
        yield value
        if isinstance(parent, list):
            parent.insert(key, kept)
        else:
            parent[key] = kept


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    children = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value[:1]))
        if isinstance(value, list)
        else []
    )
    for key, child in children:
        yield value, key
        yield from places(child)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts(child)
    elif isinstance(value, str | int):
        yield str(value)


def round_trip(event: Event) -> Event:
    name = type(event).__name__
    schema, read = schema_and_reader(name)
    data = io.BytesIO()
    fastavro.schemaless_writer(data, schema, listed(asdict(event)), strict=True)
    return to_event(name, read(data.getvalue()))


@cache
def schema_and_reader(record: str) -> tuple[Any, Any]:
    today = schema_of(record)
    return fastavro.parse_schema(dict(today.avro)), reader(today, today)


def listed(value: Any) -> Any:
    """Avro's writer takes a tuple for a choice in a union."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, tuple) else value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode())


@each_connector
@given(data=st.data(), body=bodies)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_body_at_all_gives_events_or_poison(name: str, data: st.DataObject, body: bytes) -> None:
    connector: Connector = registry()[name]
    kind = data.draw(st.none() | st.sampled_from(connector.kinds) | st.text(max_size=10))
    headers = data.draw(
        st.dictionaries(st.sampled_from(["x-shopify-triggered-at", "x-shopify-topic"]), st.text(max_size=30))
    )
    events, _ = attempt(connector, Delivery(source="s", body=body, kind=kind, headers=headers, captured_at=CAPTURED_AT))
    for event in events:
        round_trip(event)


@each_connector
def test_a_body_nested_too_deep_is_poison(name: str) -> None:
    for body in (b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900):
        for kind in registry()[name].kinds:
            with pytest.raises(Poison):
                registry()[name].translate(Delivery(source="s", body=body, kind=kind))
