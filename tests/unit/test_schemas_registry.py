"""The registry's API over a log in memory: what clients of Confluent's registry may count on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import fastavro
import httpx
import pytest
from caudal.schemas._compatibility import faults
from caudal.schemas._registry_server import Access, Store, build, build_over
from caudal.schemas._registry_state import Refused, compact
from caudal.schemas._types import FOLDER, schema_of
from caudal.schemas.codec import Codec, Registry
from starlette.testclient import TestClient

from caudal.errors import BadSchema, BadSettings, BrokerUnavailable, IncompatibleSchema, RegistryUnavailable
from caudal.settings import Settings

TOPIC = "x.customer.changes"
Pair = tuple[bytes | None, bytes | None]


class Topic:
    """The `_schemas` topic, shared by those that open it."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.down = False

    def open(self) -> Log:
        return Log(self)


class Log:
    def __init__(self, topic: Topic) -> None:
        self._topic, self._next = topic, 0

    def read(self) -> Iterator[Pair]:
        if self._topic.down:
            raise BrokerUnavailable("Kafka can't be reached")
        while self._next < len(self._topic.pairs):
            self._next += 1
            yield self._topic.pairs[self._next - 1]

    def append(self, pairs: Sequence[Pair]) -> None:
        self._topic.pairs.extend(pairs)

    def close(self) -> None:
        pass


ACCESS = Access("caudal", "word")
LOCAL = "http://127.0.0.1:8081"
JSON = {"content-type": "application/json"}


def client_of(topic: Topic) -> TestClient:
    app = build_over(Store(topic.open()), ACCESS)  # type: ignore[arg-type] # stands in for the Kafka log
    client = TestClient(app, LOCAL)
    client.auth = (ACCESS.user, ACCESS.password)
    return client


def record(*fields: tuple[str, Any], name: str = "R", **more: Any) -> str:
    return json.dumps({"type": "record", "name": name, "fields": [{"name": n, "type": t} | more for n, t in fields]})


V1 = record(("a", "string"))
V2 = json.dumps(
    {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "int", "default": 0}],
    }
)
BREAKING = record(("a", "string"), ("b", "int"), ("c", "long"))


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def client(topic: Topic) -> Iterator[TestClient]:
    with client_of(topic) as client:
        yield client


def register(client: TestClient, subject: str, schema: str) -> int:
    answer = client.post(f"/subjects/{subject}/versions", json={"schema": schema})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def refused(answer: httpx.Response) -> tuple[int, int]:
    assert answer.headers["content-type"] == "application/vnd.schemaregistry.v1+json"
    assert answer.json()["message"]
    return answer.status_code, answer.json()["error_code"]


def test_a_schema_is_registered_once_and_found_by_subject_version_and_id(client: TestClient) -> None:
    assert register(client, "s", V1) == register(client, "s", json.dumps(json.loads(V1), indent=3)) == 1
    assert register(client, "s", V2) == 2
    assert client.get("/subjects").json() == ["s"]
    assert client.get("/subjects/s/versions").json() == [1, 2]
    latest = client.get("/subjects/s/versions/latest").json()
    assert (latest["subject"], latest["version"], latest["id"]) == ("s", 2, 2)
    assert json.loads(latest["schema"]) == json.loads(V2)
    assert client.get("/subjects/s/versions/1/schema").json() == json.loads(V1)
    assert json.loads(client.get("/schemas/ids/1").json()["schema"]) == json.loads(V1)
    assert client.get("/schemas/ids/2/schema").json() == json.loads(V2)
    assert client.get("/schemas/ids/2/versions").json() == [{"subject": "s", "version": 2}]
    assert client.post("/subjects/s", json={"schema": V1}).json()["version"] == 1
    assert client.get("/subjects/s/versions/1/referencedby").json() == []
    assert client.get("/schemas/types").json() == ["AVRO"]
    assert client.get("/mode").json() == {"mode": "READWRITE"}


def test_the_same_schema_keeps_its_id_under_another_subject(client: TestClient) -> None:
    first = register(client, "s", V1)
    spelt_otherwise = '{"fields": [{"type": {"type": "string"}, "name": "a"}], "name": "R", "type": "record"}'
    assert register(client, "t", spelt_otherwise) == first
    assert client.get(f"/schemas/ids/{first}/subjects").json() == ["s", "t"]


def test_a_change_that_breaks_readers_is_refused_with_the_reason(client: TestClient) -> None:
    register(client, "s", V1)
    answer = client.post("/subjects/s/versions", json={"schema": BREAKING})
    assert refused(answer) == (409, 409)
    assert "can't read records of version 1" in answer.json()["message"]
    assert "b, c" in answer.json()["message"]
    assert client.get("/subjects/s/versions").json() == [1]


@pytest.mark.parametrize(
    ("level", "new", "allowed"),
    [
        ("NONE", record(("z", "long")), True),
        ("BACKWARD", V2, True),
        ("BACKWARD", BREAKING, False),
        ("FORWARD", BREAKING, True),
        ("FORWARD", record(("z", "long")), False),
        ("FULL", V2, True),
        ("FULL", BREAKING, False),
    ],
)
def test_each_level_allows_what_it_says(client: TestClient, level: str, new: str, allowed: bool) -> None:
    register(client, "s", V1)
    assert client.put("/config/s", json={"compatibility": level.lower()}).json() == {"compatibility": level}
    test = client.post("/compatibility/subjects/s/versions/latest?verbose=true", json={"schema": new}).json()
    assert test["is_compatible"] is allowed
    assert bool(test["messages"]) is not allowed
    assert (client.post("/subjects/s/versions", json={"schema": new}).status_code == 200) is allowed


def test_a_transitive_level_looks_at_every_version(client: TestClient) -> None:
    register(client, "s", V1)
    client.put("/config/s", json={"compatibility": "NONE"})
    register(client, "s", BREAKING)
    new = record(("a", "string"), ("c", "long"))
    client.put("/config/s", json={"compatibility": "BACKWARD"})
    assert client.post("/compatibility/subjects/s/versions", json={"schema": new}).json() == {"is_compatible": True}
    client.put("/config/s", json={"compatibility": "BACKWARD_TRANSITIVE"})
    assert client.post("/compatibility/subjects/s/versions", json={"schema": new}).json() == {"is_compatible": False}


def test_levels_are_set_and_removed_for_all_and_for_one_subject(client: TestClient) -> None:
    assert client.get("/config").json() == {"compatibilityLevel": "BACKWARD"}
    client.put("/config", json={"compatibility": "FULL"})
    assert client.get("/config").json() == {"compatibilityLevel": "FULL"}
    assert refused(client.get("/config/s")) == (404, 40408)
    assert client.get("/config/s?defaultToGlobal=true").json() == {"compatibilityLevel": "FULL"}
    client.put("/config/s", json={"compatibility": "NONE"})
    assert client.delete("/config/s").json() == {"compatibilityLevel": "NONE"}
    assert refused(client.delete("/config/s")) == (404, 40408)
    assert refused(client.put("/config", json={"compatibility": "SOMETIMES"})) == (422, 42203)
    client.delete("/config")
    assert client.get("/config").json() == {"compatibilityLevel": "BACKWARD"}


def test_deleting_goes_softly_first_and_for_good_then(client: TestClient) -> None:
    register(client, "s", V1)
    register(client, "s", V2)
    assert refused(client.delete("/subjects/s?permanent=true")) == (404, 40405)
    assert refused(client.delete("/subjects/s/versions/1?permanent=true")) == (404, 40407)
    assert client.delete("/subjects/s/versions/1").json() == 1
    assert refused(client.delete("/subjects/s/versions/1")) == (404, 40406)
    assert client.get("/subjects/s/versions").json() == [2]
    assert client.get("/subjects/s/versions?deleted=true").json() == [1, 2]
    assert client.delete("/subjects/s").json() == [2]
    assert refused(client.delete("/subjects/s")) == (404, 40404)
    assert client.get("/subjects").json() == []
    assert client.get("/subjects?deleted=True").json() == client.get("/subjects?deleted_only=true").json() == ["s"]
    assert client.get("/schemas/ids/1").status_code == 200, "what was written with it must stay readable"
    assert client.delete("/subjects/s?permanent=true").json() == [1, 2]
    assert client.get("/subjects?deleted=true").json() == []
    assert refused(client.get("/schemas/ids/1")) == (404, 40403)


def test_a_schema_deleted_softly_comes_back_as_a_new_version_with_its_id(client: TestClient) -> None:
    first = register(client, "s", V1)
    client.delete("/subjects/s")
    assert register(client, "s", V1) == first
    assert client.get("/subjects/s/versions").json() == [2]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/subjects/none/versions", None, (404, 40401)),
        ("GET", "/subjects/none/versions/1", None, (404, 40401)),
        ("DELETE", "/subjects/none", None, (404, 40401)),
        ("GET", "/subjects/s/versions/9", None, (404, 40402)),
        ("GET", "/subjects/s/versions/0", None, (422, 42202)),
        ("GET", "/subjects/s/versions/newest", None, (422, 42202)),
        ("GET", "/schemas/ids/99", None, (404, 40403)),
        ("GET", "/schemas/ids/x", None, (404, 404)),
        ("POST", "/subjects/s", {"schema": V2}, (404, 40403)),
        ("POST", "/subjects/s/versions", {"schema": "{"}, (422, 42201)),
        ("POST", "/subjects/s/versions", {"schema": '{"type":"record"}'}, (422, 42201)),
        ("POST", "/subjects/s/versions", {"schema": "[" * 5000}, (422, 42201)),
        ("POST", "/subjects/s/versions", {"schema": V1, "schemaType": "PROTOBUF"}, (422, 42201)),
        ("POST", "/subjects/s/versions", {"schema": V1, "references": [{"name": "x"}]}, (422, 42201)),
        ("POST", "/subjects/s/versions", {}, (422, 42201)),
        ("POST", "/subjects/s/versions", [], (400, 400)),
        ("GET", "/subjects?offset=x", None, (400, 400)),
        ("GET", "/nothing", None, (404, 404)),
        ("PUT", "/subjects", {}, (405, 405)),
    ],
)
def test_a_wrong_request_is_told_by_confluents_code(
    client: TestClient, method: str, path: str, body: Any, expected: tuple[int, int]
) -> None:
    register(client, "s", V1)
    assert refused(client.request(method, path, json=body)) == expected


def test_a_body_that_is_not_json_is_told(client: TestClient) -> None:
    for body in (b"", b"\xff{", b"[" * 100_000):
        assert refused(client.post("/subjects/s/versions", content=body, headers=JSON)) == (400, 400)


def test_lists_come_in_pages(client: TestClient) -> None:
    for name in "abc":
        register(client, name, V1)
    assert client.get("/subjects?offset=1&limit=1").json() == ["b"]
    assert client.get("/subjects?subjectPrefix=c&limit=-1").json() == ["c"]


def test_records_have_the_format_of_the_other_registries(client: TestClient, topic: Topic) -> None:
    register(client, "s", V1)
    client.put("/config", json={"compatibility": "FULL"})
    client.delete("/subjects/s")
    assert topic.pairs[0][0] == b'{"keytype":"SCHEMA","subject":"s","version":1,"magic":1}'
    assert json.loads(topic.pairs[0][1] or b"") == {
        "subject": "s",
        "version": 1,
        "id": 1,
        "schema": V1.replace(": ", ":").replace(", ", ","),
        "deleted": False,
    }
    assert topic.pairs[1] == (
        b'{"keytype":"CONFIG","subject":null,"magic":0}',
        b'{"compatibilityLevel":"FULL"}',
    )
    assert topic.pairs[2] == (
        b'{"keytype":"DELETE_SUBJECT","subject":"s","magic":0}',
        b'{"subject":"s","version":1}',
    )


def test_a_topic_of_another_registry_is_taken_over(topic: Topic) -> None:
    schema = {"subject": "s", "version": 1, "id": 7, "schema": V1, "deleted": False, "references": []}
    proto = {
        "subject": "p",
        "version": 1,
        "id": 9,
        "schema": "message M {}",
        "schemaType": "PROTOBUF",
        "deleted": False,
    }
    for key, value in (
        ({"keytype": "NOOP", "magic": 0}, None),
        ({"keytype": "MODE", "subject": None, "magic": 0}, {"mode": "READWRITE"}),
        ({"keytype": "SCHEMA", "subject": "s", "version": 1, "magic": 1}, schema),
        ({"keytype": "SCHEMA", "subject": "p", "version": 1, "magic": 1}, proto),
        ({"keytype": "SCHEMA", "subject": "gone", "version": 1, "magic": 1}, None),
        ({"keytype": "CONFIG", "subject": "s", "magic": 0}, {"compatibilityLevel": "NONE"}),
        ({"keytype": "CONFIG", "subject": "s", "magic": 0}, None),
    ):
        topic.pairs.append((json.dumps(key).encode(), None if value is None else json.dumps(value).encode()))
    topic.pairs += [(None, b"x"), (b"not json", b"{}"), (b"[]", b"{}")]
    with client_of(topic) as client:
        assert client.get("/subjects").json() == ["p", "s"]
        assert client.get("/schemas/ids/9").json() == {"schema": "message M {}", "schemaType": "PROTOBUF"}
        assert refused(client.post("/subjects/s/versions", json={"schema": BREAKING})) == (409, 409)
        assert register(client, "new", V2) == 10


def test_a_second_registry_sees_what_the_first_wrote(client: TestClient, topic: Topic) -> None:
    with client_of(topic) as second:
        register(client, "s", V1)
        assert second.get("/schemas/ids/1").status_code == 200
        assert register(second, "s", V2) == 2
        assert client.get("/subjects/s/versions/2").status_code == 200


def test_a_change_is_not_promised_without_kafka(client: TestClient, topic: Topic) -> None:
    register(client, "s", V1)
    topic.down = True
    assert refused(client.post("/subjects/s/versions", json={"schema": V2})) == (500, 50001)
    assert client.get("/subjects/s/versions/1").status_code == 200, "answers go on without Kafka"


# --- our client ---


def connected(client: TestClient, **registry: Any) -> Registry:
    """Our client, talking to the app in memory."""
    settings = Settings(kafka={"topic_prefix": "x."}, registry={"url": "http://registry", **registry})
    ours = Registry(settings)
    ours.close()
    ours._http = client
    return ours


def test_our_client_registers_what_topics_carry_and_remembers_it(client: TestClient, topic: Topic) -> None:
    registry = connected(client)
    registry.register_all(["customer.changes", "customer.profiles"])
    assert "x.customer.profiles-caudal.CustomerProfile" in client.get("/subjects").json()
    written = len(topic.pairs)
    assert written == 12
    again = registry.id_of(TOPIC, "OrderStated")
    assert again == connected(client).id_of(TOPIC, "OrderStated")
    assert len(topic.pairs) == written
    assert connected(client).schema(again) == schema_of("OrderStated").avro
    topic.down = True
    assert registry.schema(again) == schema_of("OrderStated").avro


def test_our_client_asks_once_for_an_id_that_nobody_knows(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, asked = connected(client), []
    request = client.request
    monkeypatch.setattr(client, "request", lambda *a, **k: (asked.append(a), request(*a, **k))[1])
    codec = Codec(registry)
    columns = codec.decode_columns([b"\0\0\0\0\x4dabc"] * 5)
    assert [index for index, _ in columns.bad] == [0, 1, 2, 3, 4]
    codec.decode_columns([b"\0\0\0\0\x4dabc"])
    assert asked == [("GET", "/schemas/ids/77")]


def test_our_client_names_the_reason_of_a_refusal(client: TestClient) -> None:
    register(client, f"{TOPIC}-caudal.events.OrderStated", record(("order_id", "long"), name="OrderStated"))
    with pytest.raises(IncompatibleSchema, match="can't read records of version 1"):
        connected(client).id_of(TOPIC, "OrderStated")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(500, json={"error_code": 50001, "message": "no"}), RegistryUnavailable),
        (httpx.Response(502, text="<html>"), RegistryUnavailable),
        (httpx.Response(401, json={"message": "no"}), BadSettings),
        (httpx.Response(422, json={"message": "no"}), BadSchema),
        (httpx.ConnectError("refused"), RegistryUnavailable),
        (httpx.ReadTimeout("slow"), RegistryUnavailable),
    ],
)
def test_our_client_sorts_failures_by_what_to_do(response: Any, error: type[Exception]) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response  # type: ignore[no-any-return] # one of the two

    registry = Registry(Settings(registry={"url": "http://registry", "username": "u", "password": "p"}))
    registry._http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://registry")
    with pytest.raises(error):
        registry.id_of(TOPIC, "OrderStated")
    registry.close()


def test_our_client_signs_in_with_the_configured_user() -> None:
    registry = Registry(Settings(registry={"url": "http://registry/", "username": "u", "password": "p"}))
    request = registry._http.build_request("GET", "/subjects")
    (signed,) = [next(registry._http._auth.auth_flow(request))]
    assert signed.headers["authorization"] == "Basic dTpw"
    assert str(signed.url) == "http://registry/subjects"
    registry.close()


def test_our_client_needs_an_address() -> None:
    with pytest.raises(BadSettings, match="no schema registry"):
        Registry(Settings())


def named(kind: str, name: str, **more: Any) -> dict[str, Any]:
    own = {"record": {"fields": [{"name": "x", "type": "int"}]}, "enum": {"symbols": ["A", "B"]}, "fixed": {"size": 2}}[
        kind
    ]
    return {"type": kind, "name": name, **own, **more}


def holder(inner: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Holder",
        "namespace": "org.caudal",
        "fields": [{"name": "f", "type": inner}],
        **more,
    }


VALUES: dict[str, Any] = {"record": {"x": 1}, "enum": "A", "fixed": b"ab"}
RENAMED = [
    (kind, shape, namespace, alias)
    for kind in VALUES
    for shape in ("plain", "union", "array", "map")
    for namespace, alias in (
        ("", "Old"),
        ("other.place", "Old"),
        ("", "org.caudal.Old"),
        ("other.place", "other.place.Old"),
    )
]


@pytest.mark.parametrize(("kind", "shape", "namespace", "alias"), RENAMED)
def test_a_type_renamed_with_an_alias_is_read_as_fastavro_reads_it(
    kind: str, shape: str, namespace: str, alias: str
) -> None:
    def within(name: str, **more: Any) -> dict[str, Any]:
        inner: Any = named(kind, name, **({"namespace": namespace} if namespace else {}), **more)
        shapes = {
            "plain": inner,
            "union": ["null", inner],
            "array": {"type": "array", "items": inner},
            "map": {"type": "map", "values": inner},
        }
        return holder(shapes[shape])

    value = {"plain": VALUES[kind], "union": VALUES[kind], "array": [VALUES[kind]], "map": {"k": VALUES[kind]}}[shape]
    old, new = within("Old"), within("New", aliases=[alias])
    assert faults(json.dumps(new), [(1, json.dumps(old))], "BACKWARD") == []
    data = io.BytesIO()
    fastavro.schemaless_writer(data, old, {"f": value})
    data.seek(0)
    assert fastavro.schemaless_reader(data, old, new) == {"f": value}
    if shape == "plain":  # in a union a record may be read by its shape
        for wrong in ("Other", "elsewhere.Old"):
            renamed = within("New", aliases=[wrong])
            assert faults(json.dumps(renamed), [(1, json.dumps(old))], "BACKWARD") != []


@pytest.mark.parametrize(
    ("old", "new", "reads", "is_read"),
    [
        ("int", "long", True, False), ("long", "int", False, True), ("int", "double", True, False), ("float", "double", True, False),
        ("long", "float", True, False), ("string", "bytes", True, True), ("bytes", "string", True, True), ("int", "string", False, False),
        (["null", "int"], ["null", "long"], True, False), ("int", ["null", "long"], True, False),
    ],
)  # fmt: skip
def test_promotions_go_one_way(old: Any, new: Any, reads: bool, is_read: bool) -> None:
    one, other = json.dumps(holder(old)), json.dumps(holder(new))
    assert (faults(other, [(1, one)], "BACKWARD") == []) == reads
    assert (faults(other, [(1, one)], "FORWARD") == []) == is_read


BAD_NAMES = ["ação", "a-b", "a b", "1a", "", "a.b", "é", "a\u200b", "a\n", "٣", "a$"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_letters_digits_and_underscores(name: str) -> None:
    field = {"name": name, "type": "int"}
    bad = [
        {**holder("int"), "fields": [field]},
        {
            **holder("int"),
            "fields": [
                {"name": "f", "type": {"type": "array", "items": {**holder("int"), "name": "I", "fields": [field]}}}
            ],
        },
        {**holder("int"), "fields": [{"name": "f", "type": "int", "aliases": [name]}]},
        holder({"type": "enum", "name": "E", "symbols": ["A", name]}),
    ]
    if name != "a.b":
        bad += [
            holder("int", aliases=[name]),
            holder("int") | {"name": name},
            holder("int") | {"namespace": f"org.{name}"},
        ]
    for schema in bad:
        with pytest.raises(Refused) as refused:
            compact(json.dumps(schema))
        assert refused.value.code == 42201


DEFAULTS = [
    ("int", 1, True), ("int", 2**31, False), ("int", "1", False), ("int", 1.5, False), ("int", True, False), ("int", None, False),
    ("long", 2**62, True), ("long", 2**63, False), ("double", 1, True), ("double", "1", False), ("boolean", 0, False), ("string", 1, False),
    ("bytes", "\u00ff", True), ("bytes", "\u0100", False), ("null", None, True), ("null", 0, False),
    (["null", "int"], None, True), (["null", "int"], 1, False), (["int", "null"], 1, True), (["int", "null"], None, False),
    ({"type": "array", "items": "int"}, [1], True), ({"type": "array", "items": "int"}, ["a"], False),
    ({"type": "array", "items": "int"}, {}, False),
    ({"type": "map", "values": "int"}, {"a": 1}, True), ({"type": "map", "values": "int"}, {"a": "b"}, False),
    ({"type": "fixed", "name": "F", "size": 2}, "ab", True), ({"type": "fixed", "name": "F", "size": 2}, "a", False),
    ({"type": "enum", "name": "E", "symbols": ["A"]}, "A", True), ({"type": "enum", "name": "E", "symbols": ["A"]}, "B", False),
    (named("record", "R"), {"x": 1}, True), (named("record", "R"), {}, False), (named("record", "R"), {"x": "a"}, False),
    ({**named("record", "R"), "fields": [{"name": "x", "type": "int", "default": 3}]}, {}, True),
    ({"type": "long", "logicalType": "timestamp-micros"}, 0, True), ({"type": "long", "logicalType": "timestamp-micros"}, "now", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "default", "good"), DEFAULTS)
def test_a_default_is_of_its_fields_type_and_of_a_unions_first(kind: Any, default: Any, good: bool) -> None:
    text = json.dumps({**holder("int"), "fields": [{"name": "f", "type": kind, "default": default}]})
    if good:
        assert compact(text)
        return
    with pytest.raises(Refused) as refused:
        compact(text)
    assert refused.value.code == 42201


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": "C"},
        {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": ""},
        {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": None},
        holder(["null", {"type": "enum", "name": "E", "symbols": ["A"], "default": "B"}]),
        {"type": "enum", "name": "E", "symbols": ["A", "A"]},
        {**holder("int"), "fields": [{"name": "f", "type": "int"}, {"name": "f", "type": "string"}]},
    ],
)
def test_an_enums_default_is_a_symbol_and_nothing_is_named_twice(schema: Any) -> None:
    with pytest.raises(Refused) as refused:
        compact(json.dumps(schema))
    assert refused.value.code == 42201
    good = {"type": "enum", "name": "E", "symbols": ["A", "B"], "default": "B"}
    assert compact(json.dumps(good))


def test_our_own_schemas_are_good_ones() -> None:
    for path in FOLDER.glob("*.avsc"):
        assert compact(path.read_text())


def test_a_schema_that_an_older_registry_took_is_still_compared() -> None:
    odd = json.dumps({**holder("int"), "fields": [{"name": "a-b", "type": "int", "default": 1}]})
    assert faults(json.dumps(holder("int")), [(1, odd)], "BACKWARD") != []


ASKED = [
    ("GET", "/"),
    ("GET", "/subjects"),
    ("HEAD", "/subjects"),
    ("GET", "/schemas/ids/1"),
    ("POST", "/subjects/s/versions"),
    ("PUT", "/config"),
    ("DELETE", "/subjects/s?permanent=true"),
    ("TRACE", "/subjects"),
    ("OPTIONS", "/subjects"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Basic",
        "Basic !",
        "Basic Y2F1ZGFs",  # caudal
        "Basic Y2F1ZGFsOg==",  # caudal:
        "Basic Y2F1ZGFsOndvcmRz",  # caudal:words
        "Basic OndvcmQ=",  # :word
        "Bearer word",
        "word",
    ],
)
def test_nobody_is_served_without_the_password(topic: Topic, method: str, path: str, authorization: str | None) -> None:
    with client_of(topic) as client:
        register(client, "s", V1)
        written = list(topic.pairs)
        client.auth = None
        headers = {**JSON, **({"authorization": authorization} if authorization else {})}
        answer = client.request(method, path, content=b"{}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        if method != "HEAD":
            assert answer.json()["error_code"] == 40101
        assert topic.pairs == written


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "10.0.0.1:8081", "", "[", "a:b:c"]
)
def test_a_host_that_somebody_made_this_machines_is_refused(client: TestClient, host: str) -> None:
    assert refused(client.get("/subjects", headers={"host": host})) == (403, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8081", "localhost:8081", "[::1]:8081"])
def test_the_machines_own_names_are_good(client: TestClient, host: str) -> None:
    assert client.get("/subjects", headers={"host": host}).status_code == 200


def test_a_registry_that_others_reach_takes_any_host_and_still_asks_for_the_password() -> None:
    far = Access("caudal", "word", local=False)
    app = build_over(Store(Topic().open()), far)  # type: ignore[arg-type] # stands in for the Kafka log
    with TestClient(app, "http://registry:8081") as client:
        assert client.get("/subjects", auth=("caudal", "word")).status_code == 200
        assert client.get("/subjects").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_request_of_a_page_of_elsewhere_is_refused_with_and_without_the_password(
    client: TestClient, topic: Topic, headers: dict[str, str]
) -> None:
    for auth in (client.auth, None):
        client.auth = auth
        assert refused(client.post("/subjects/s/versions", json={"schema": V1}, headers=headers)) == (403, 403)
    assert not topic.pairs


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_a_body_that_a_form_could_send_is_refused(client: TestClient, topic: Topic, content_type: str) -> None:
    body, headers = json.dumps({"schema": V1, "compatibility": "NONE"}), {"content-type": content_type}
    assert refused(client.post("/subjects/s/versions", content=body, headers=headers)) == (415, 415)
    assert refused(client.put("/config", content=body, headers=headers)) == (415, 415)
    assert not topic.pairs


@pytest.mark.parametrize(
    "registry", [{}, {"username": "caudal"}, {"password": "word"}, {"username": "caudal", "password": ""}]
)
def test_no_registry_is_served_without_a_password(registry: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="CAUDAL_REGISTRY__PASSWORD"):
        build(Settings.model_validate({"registry": registry}))
