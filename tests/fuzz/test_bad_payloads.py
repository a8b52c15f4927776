"""Signed deliveries whose JSON is nonsense: each becomes events that can be stored, or a dead letter with a reason."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from caudal.connectors import Delivery, registry
from caudal.connectors._sdk import UNPACKED_MAX_BYTES
from caudal.processors import rules
from caudal.projections import _vet
from caudal.schemas import Event
from caudal.schemas.codec import Codec, LocalRegistry
from edge_server import CONNECTORS, MAX_BODY, SAMPLES, Running, running, sample
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from record_values import RANDOMS

from caudal.errors import Poison
from caudal.settings import Settings

CODEC = Codec(LocalRegistry())
RULES = rules.load(Settings())
NOW = datetime(2026, 3, 1, tzinfo=UTC)
CUSTOMER = "00000000-0000-5000-8000-000000000000"
HERE = '"@here@"'
VALUES = [
    "null", "true", "[]", "{}", "-0", "-1", "0.1", "1e400", "-1e999", "1" * 30, "1" * 5000, "9223372036854775808", "1E+2147483648",
    "NaN", "Infinity", "-Infinity", '""', '" "', r'"\ud800"', r'"\udc00\ud800"', r'"\u0000"', r'"a\u0000b"', r'"\x41"', '"\x00"',
    '"' + "ç" * 20_000 + '"', '"' + "7" * 20_000 + '"', "[" * 2000 + "]" * 2000, '{"a":' * 1500 + "1" + "}" * 1500, "[" * 50_000,
    '"0000-00-00T00:00:00Z"', '"9999-12-31T23:59:59.9999999999-14:00"', '"2026-02-30"', '"+999999-01-01"', '"@@@"', '"ana@@example.com"',
    '"\u202e\ufeff\u0378"', '{"id": 1, "id": [2]}', "[null, 1, {}]", "0x10", "01", "1,", "undefined", "'a'",
]  # fmt: skip
"""Raw JSON, and what is none."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, child in (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from places(child)


def nonsense(rng: Random, body: Any) -> bytes:
    """The body with some values replaced by raw JSON, keys named twice, or its bytes changed."""
    if isinstance(body, str):
        return body.encode()[: rng.randrange(len(body) + 1)]
    changed = json.loads(json.dumps(body))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if found := list(places(changed)):
            parent, key = rng.choice(found)
            parent[key] = "@here@"
    text = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
    while HERE in text:
        text = text.replace(HERE, rng.choice(VALUES), 1)
    match rng.randrange(12):
        case 0:
            text = text.replace("{", '{"id": null, "id": "x", ', 1)
        case 1:
            text = text[: rng.randrange(len(text))]
        case 2:
            return text.encode("utf-16", "surrogatepass")
        case 3:
            return text.encode("latin-1", "replace")
        case 4:
            return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
        case 5:
            text = "[" + ",".join([text] * rng.randint(2, 5)) + "]"
    return text.encode("utf-8", "surrogatepass")


def storable(events: list[Event]) -> None:
    """Every event is one that the log and the views can hold."""
    messages = []
    for event in events:
        assert all(found.value for found in RULES.usable(event.identifiers))
        object.__setattr__(event, "customer_id", CUSTOMER)  # as the translate step does
        messages.append(CODEC.encode_event(event))
    columns = CODEC.decode_columns(messages)
    assert columns.bad == []
    for name, batch, _ in columns.batches:
        assert _vet.faults(name, batch) == {}


def understood(connector: str, body: bytes, headers: dict[str, str], *, kind: str | None = None) -> Poison | None:
    """What can't be used of a delivery; what can is seen to be storable."""
    connected = registry()[connector]
    delivery_id, found = connected.key(headers, body)
    found = connected.salvage(Delivery("s-1", body, headers, kind or found, delivery_id, NOW))
    events, poison = found.events, found.poison
    storable(events)
    if poison is not None:
        assert isinstance(poison, Poison)
        assert 0 < len(str(poison)) < 2000
    return poison


@examples(400)
@given(path=st.sampled_from(SAMPLES), rng=RANDOMS)
def test_nonsense_becomes_events_that_can_be_stored_or_a_reason(path: Any, rng: Random) -> None:
    connector, headers, body = sample(path)
    understood(connector, nonsense(rng, body), headers)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("edge")) as server:
        yield server


@examples(60)
@given(path=st.sampled_from([path for path in SAMPLES if path.parent.name in CONNECTORS]), rng=RANDOMS)
def test_nonsense_that_is_signed_is_taken_as_it_came(edge: Running, path: Any, rng: Random) -> None:
    connector, headers, body = sample(path)
    sent = nonsense(rng, body)
    status = edge.deliver(connector, sent, headers)
    assert status == (202 if len(sent) <= MAX_BODY else 413)
    if status == 202:
        capture = edge.log.captures[-1]
        assert (capture["body"], capture["source"]) == (sent, connector)
        assert len(CODEC.encode("capture.s", "Capture", capture)) < len(sent) + 20_000


LIST = 300_000
MANY = {
    "empty objects": b"[" + b"{}," * LIST + b"{}]",
    "numbers": b"[" + b"1," * LIST + b"1]",
    "records": b'{"results": [' + b'{"properties":{}},' * (LIST // 5) + b"1]}",
    "notices": b"[" + b'{"subscriptionType":"a.b"},' * (LIST // 8) + b"1]",
    "events": b'{"ticket_events": [' + b"{}," * LIST + b"{}]}",
    "keys": b"{" + b",".join(b'"%d":0' % n for n in range(LIST // 4)) + b"}",
}


@pytest.mark.parametrize("shape", MANY)
@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_delivery_of_very_many_things_that_mean_nothing_takes_no_long_time(connector: str, shape: str) -> None:
    kind = {"hubspot": None, "shopify": "orders/create", "zendesk": "ticket"}[connector]
    started = time.process_time()
    assert understood(connector, MANY[shape], {}, kind=kind) is not None
    assert time.process_time() - started < 20


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_gzip_bomb_is_a_reason(connector: str) -> None:
    bomb = gzip.compress(b"[" * (UNPACKED_MAX_BYTES + 1), 1)
    assert understood(connector, bomb, {"content-encoding": "gzip"}) is not None
    assert understood(connector, bomb[:-9], {"content-encoding": "gzip"}) is not None
    assert understood(connector, b"\x1f\x8b\x08", {"content-encoding": "gzip"}) is not None
