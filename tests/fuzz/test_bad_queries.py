"""Any request that the API's own OpenAPI page allows, and any that it forbids: answered as documented, never with a 500."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import requests
import schemathesis
from api_server import running, token_of
from caudal.projections import ensure_live, search
from examples import examples
from hypothesis import given
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from caudal import access, postgres
from caudal.settings import Settings

STREAMS = {"/changes", "/replays/{id}/events"}
"""They don't end by themselves."""
ALWAYS = {404, 405, 431}
"""What any server answers to a path or a method that isn't there, or to a head too large; a text in a path may make it another path."""


@pytest.fixture(scope="module")
def settings(own_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One database for all: whatever else was asked before must not matter."""
    with own_settings(tmp_path_factory.mktemp("queries")) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def api(settings: Settings) -> Iterator[str]:
    with postgres.connect(settings.postgres, role="tests") as conn:
        ensure_live(conn)
        customer = uuid.UUID("018f0000-0000-7000-8000-00000000000a")
        conn.execute("INSERT INTO live.links VALUES ('x:c:1', 'x', %s, 1)", [customer])
        conn.execute("INSERT INTO live.profiles (customer_id, name, attributes) VALUES (%s, 'Ana', '{}')", [customer])
        search.ensure(conn)
    with running(settings) as address:
        yield address


@pytest.fixture(scope="module")
def reader(settings: Settings, api: str) -> dict[str, str]:
    """The head of one who may do everything."""
    return {"authorization": f"Bearer {token_of(settings, *access.Scope, name='all')}"}


def documented(operation: Any) -> set[int]:
    return {int(status) for status in operation.definition.raw["responses"]}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_the_api_answers_whatever_it_is_asked_as_its_page_says(
    settings: Settings, api: str, reader: dict[str, str], mode: GenerationMode
) -> None:
    nobody = {"authorization": f"Bearer {token_of(settings, 'metrics:read', name=f'few-{mode.value}')}"}
    schema = schemathesis.openapi.from_url(f"{api}/openapi.json", headers=reader)
    odd: list[str] = []
    session = requests.Session()

    def ask(operation: Any) -> None:
        told = documented(operation) | ALWAYS

        @examples(5)
        @given(case=operation.as_strategy(generation_mode=mode))
        def each(case: Any) -> None:
            # replays are not started: what they do is not asked here
            headers = nobody if operation.method.upper() != "GET" and "replays" in operation.path else reader
            answer = case.call(headers=headers, session=session, timeout=60)
            if answer.status_code not in told or answer.status_code >= 500:
                odd.append(f"{answer.status_code} {case.as_curl_command()}")

        each()

    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path not in STREAMS:
            with contextlib.suppress(Unsatisfiable):  # what takes no parameters has no wrong ones
                ask(operation)
            asked.add((operation.method, operation.path))
    assert len(asked) > 8
    assert odd == []
    with psycopg.connect(postgres.dsn(settings.postgres)) as conn:
        assert conn.execute("SELECT count(*) FROM live.profiles").fetchone() == (1,)


TEXTS = [
    "\0",
    "a\0b",
    "%",
    "_",
    "\\",
    "'; --",
    '"',
    "{}",
    "x" * 20_000,
    "\u202e\ufeff",
    "\U0010ffff",
    "9" * 400,
    "-1",
    "NaN",
    "[" * 5000,
    "0001-01-01",
    "9999-12-31",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "W10",
    "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgIlx1MDAwMCJd",
    "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsICJcdWQ4MDAiXQ",
    "00000000-0000-0000-0000-000000000000",
    "2026-02-30",
    str(2**63),
    str(-(2**63)),
]
ODD = [
    "\ud800",
    "a\udfffb",
    "\0",
    "x\0",
    "x" * 3_000_000,
    "",
    " ",
    "\u202e",
    ["\ud800"],
    {"\ud800": 1},
    2**70,
    -1,
    1e308,
    None,
    True,
    [[[]]],
]
"""Put in the place of every property of every body."""
RAW = ["%00", "%ff%fe", "%ed%a0%80", "%", "%zz", "&&&", "=", "a=" * 3000]
BODIES = [b"", b"\0", b"null", b"[]", b"1e999", b"[" * 100_000, b'{"a":' * 2000 + b"1" + b"}" * 2000,
          b'{"q": "\\u0000"}', b'{"q": "\\ud800"}',
          b'{"criteria": ' + b'{"all": [' * 400 + b"1" + b"]}" * 400 + b"}",
          b'{"criteria": "\\u0000 = 1"}', b'{"criteria": {"field": "name", "op": "=", "value": "\\u0000"}}',
          b'{"criteria": {"field": "orders_count", "op": ">", "value": 1e300}}', b'{"criteria": "' + b"(" * 5000 + b'"}',
          b'{"limit": 1e400}', b'{"limit": 99999999999999999999}', b"\xff\xfe{", b'{"q": "a", "q": 1}']  # fmt: skip


def _odd(page: Any, operation: Any) -> Iterator[bytes]:
    """Bodies of which one property is odd, and the others are left out or right."""
    schema = operation["requestBody"]["content"].get("application/json", {}).get("schema", {})
    schema = page["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
    right = {"criteria": "age > 3", "name": "odd", "kind": "view"}
    for name in schema.get("properties", {}):
        for value in ODD:
            body = {key: text for key, text in right.items() if key in schema["properties"] and key != name} | {
                name: value
            }
            yield json.dumps(body).encode()
            yield json.dumps(body | {"fields": [value]}).encode()


def test_texts_that_databases_choke_on_are_answered_too(api: str, reader: dict[str, str]) -> None:
    page = requests.get(f"{api}/openapi.json", headers=reader, timeout=60).json()
    session = requests.Session()
    odd, count = [], 0
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            # of replays only what is refused is asked: none is started
            if path in STREAMS or (method != "get" and "{id}" in path) or path == "/replays/{id}/progress":
                continue
            names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
            asked: list[dict[str, Any]] = [{"params": {name: text}} for name in names for text in TEXTS]
            asked += [{"params": raw} for raw in RAW]
            if "requestBody" in operation:
                asked += [
                    {"data": body, "headers": {"content-type": "application/json"}} for body in _odd(page, operation)
                ]
            if "requestBody" in operation and path != "/replays":  # an empty body there starts one
                asked += [{"data": body, "headers": {"content-type": "application/json"}} for body in BODIES]
                asked += [
                    {"data": b"{}", "headers": {"content-type": kind}}
                    for kind in ("text/plain", "application/json; charset=utf-7", "")
                ]
            place = path.replace("{customer_id}", "018f0000-0000-7000-8000-00000000000a").replace("{id}", "1")
            requested = [(place, request) for request in asked or [{}]]
            requested += [
                (path.replace("{customer_id}", raw).replace("{id}", raw), {})
                for raw in ("%00", "%ff", "1e9", "9" * 400)
            ]
            for address, request in requested:
                given = {**reader, **request.get("headers", {})}
                answer = session.request(method, f"{api}{address}", **{**request, "headers": given}, timeout=60)
                count += 1
                if answer.status_code >= 500:
                    odd.append(f"{answer.status_code} {method} {address} {str(request)[:200]}")
    assert count > 200
    assert odd == []
