from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import structlog
from caudal.connectors import Connector, Hmac, SignedRequest, Verdict, header
from caudal.connectors._sdk import EVENT_NAMESPACE
from caudal.producers import _routes, edge
from caudal.producers._http import Body, Intake, Refusal
from caudal.producers._producer import MessageTooLarge, Position
from caudal.schemas import position
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from caudal import sources
from caudal.errors import BrokerUnavailable
from caudal.settings import EdgeSettings, Settings
from caudal.sources import Source
from caudal.telemetry import DELIVERIES

SECRET = "hush"
CONFIG = """\
[sources.shop]
connector = "shop"
secrets = ["shop", "shop-old"]

[sources.crm]
connector = "crm"
public_url = "https://hooks.example.com/crm"

[sources.bare]
connector = "shop"
auth = "path_token"

[sources.user]
connector = "shop"
auth = "basic"

[sources.keyed]
connector = "shop"
auth = "header"
header = "X-Api-Key"

[sources.broken]
connector = "shop"
secrets = ["nowhere"]

[sources.strange]
connector = "no-such-connector"
secrets = ["shop"]

[sources.tiny]
connector = "shop"
secrets = ["shop"]
max_body_bytes = 10
"""
SECRETS = """\
[secrets]
shop = "hush"
shop-old = "older"
crm = "crm"
bare = "t0ken"
user = "ana:pass"
keyed = "k3y"
"""


@dataclass
class UrlScheme:
    """Signs the address only, as HubSpot signs it too."""

    trips: bool = False

    def verify(
        self, request: SignedRequest, secrets: Any, *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        if self.trips:
            raise RuntimeError("odd input")
        return Verdict(ok=request.headers.get("x-url") == request.url, reason="another address")


def _connectors() -> dict[str, Connector]:
    return {
        "shop": Connector("shop", "Shop", header("x-topic"), header("x-delivery"), Hmac(header="x-hmac")),
        "crm": Connector("crm", "CRM", header("x-topic"), lambda h, b: json.loads(b)["id"], UrlScheme()),
    }


@dataclass
class MemoryLog:
    """Captures in a list, and a broker that can be made to fail."""

    captures: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    failure: Exception | None = None
    silent: bool = False
    unreachable: bool = False
    lost: list[str] = field(default_factory=list)

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def prepare(self, source: str) -> None:
        if self.unreachable:
            raise BrokerUnavailable("no broker")
        self.prepared.append(source)

    def check(self) -> list[str]:
        if self.unreachable:
            raise BrokerUnavailable("no broker")
        return self.lost

    def append(self, capture: Mapping[str, Any]) -> asyncio.Future[Position]:
        if self.failure is not None and not self.silent:
            raise self.failure
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            future.set_exception(self.failure)
        else:
            self.captures.append(dict(capture))
            future.set_result((3, len(self.captures) - 1))
        return future


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Awaitable[Answer]]


async def ask(
    app: edge.Edge,
    method: str,
    target: str,
    body: bytes | list[bytes] = b"",
    headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
    *,
    hang: bool = False,
    disconnect: bool = False,
) -> Answer:
    path, _, query = target.partition("?")
    raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()] if not isinstance(headers, list) else headers
    chunks = [body] if isinstance(body, bytes) else body
    messages = [
        {"type": "http.request", "body": chunk, "more_body": hang or disconnect or i + 1 < len(chunks)}
        for i, chunk in enumerate(chunks)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if disconnect:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": query.encode("latin-1", "replace"),
        "headers": raw,
    }
    await app(scope, receive, send)
    if not sent:
        return Answer(0, {}, b"")
    start, *rest = sent
    return Answer(
        start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, b"".join(m["body"] for m in rest)
    )


async def eventually(answered: Callable[[], Awaitable[Answer]], status: int) -> None:
    for _ in range(500):
        if (await answered()).status == status:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"never answered {status}")


def signed(body: bytes, secret: str = SECRET, **more: str) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
    return {
        "host": "edge.test",
        "content-length": str(len(body)),
        "x-hmac": base64.b64encode(digest).decode(),
        "x-delivery": "d-1",
        "x-topic": "orders/create",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "caudal.toml").write_text(CONFIG)
    (tmp_path / "secrets.toml").write_text(SECRETS)
    return Settings(
        home=tmp_path,
        config_file=tmp_path / "caudal.toml",
        edge=EdgeSettings(max_body_bytes=4096, produce_timeout_s=5.0, receive_timeout_s=0.2),
    )


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
async def app(settings: Settings, log: MemoryLog) -> AsyncIterator[edge.Edge]:
    app = edge.build(settings, log=log, connectors=_connectors())
    await app.start()
    yield app
    await app.close()


async def test_a_signed_delivery_is_stored_as_it_came(app: edge.Edge, log: MemoryLog) -> None:
    body = b'{"id": 1, "name": "\xff\x00 not UTF-8"}\n'
    before = datetime.now(UTC)
    answer = await ask(app, "POST", "/in/shop?a=%20b", body, signed(body))
    assert answer.status == 202
    [capture] = log.captures
    assert before <= capture.pop("captured_at") <= datetime.now(UTC)
    assert capture.pop("capture_id") == answer.json["capture_id"] == str(uuid.uuid5(EVENT_NAMESPACE, "shop\nd-1"))
    assert capture == {
        "source": "shop",
        "connector": "shop",
        "delivery_id": "d-1",
        "kind": "orders/create",
        "method": "POST",
        "url": "/in/shop?a=%20b",
        "headers": signed(body),
        "body": body,
    }


async def test_the_token_is_the_position_after_the_capture(app: edge.Edge) -> None:
    await ask(app, "POST", "/in/shop", b"1", signed(b"1"))
    answer = await ask(app, "POST", "/in/shop", b"2", signed(b"2"))
    assert position.decode(answer.json["token"]) == {"capture.shop": {3: 2}}


async def test_a_delivery_that_comes_again_is_stored_again_with_the_same_id(app: edge.Edge, log: MemoryLog) -> None:
    first = await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))
    again = await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))
    other = await ask(app, "POST", "/in/shop", b"{}", signed(b"{}", x_delivery="d-2"))
    assert first.json["capture_id"] == again.json["capture_id"] != other.json["capture_id"]
    assert len(log.captures) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-hmac": ""},
        {"x-hmac": "AAAA"},
        {"x-hmac": "\u00ff\u00fe"},
        signed(b"another body"),
        signed(b"{}", secret="not the secret"),
    ],
)
async def test_what_is_not_signed_is_refused_and_not_stored(
    app: edge.Edge, log: MemoryLog, headers: dict[str, str]
) -> None:
    answer = await ask(app, "POST", "/in/shop", b"{}", {**headers, "content-length": "2"})
    assert answer.status == 401
    assert answer.json["code"] == "unsigned"
    assert SECRET not in answer.body.decode()
    assert log.captures == []


async def test_either_of_two_secrets_is_good_during_a_rotation(app: edge.Edge, log: MemoryLog) -> None:
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}", secret="older"))).status == 202
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 202


async def test_the_signature_is_over_the_bytes_that_arrive_not_over_what_they_unpack_to(
    app: edge.Edge, log: MemoryLog
) -> None:
    body = gzip.compress(b'{"id": 1}')
    answer = await ask(app, "POST", "/in/shop", body, signed(body, content_encoding="gzip"))
    assert answer.status == 202
    assert log.captures[0]["body"] == body
    assert log.captures[0]["headers"]["content-encoding"] == "gzip"


async def test_a_body_in_pieces_is_put_together(app: edge.Edge, log: MemoryLog) -> None:
    headers = signed(b"one two three")
    del headers["content-length"]
    assert (await ask(app, "POST", "/in/shop", [b"one ", b"two ", b"", b"three"], headers)).status == 202
    assert log.captures[0]["body"] == b"one two three"


async def test_an_unreadable_body_is_kept_when_it_is_authentic(app: edge.Edge, log: MemoryLog) -> None:
    url = "https://hooks.example.com/crm"
    assert (await ask(app, "POST", "/in/crm", b"not JSON", {"x-url": url})).status == 202
    digest = log.captures[0]["delivery_id"]
    assert len(digest) == 32
    assert (await ask(app, "POST", "/in/crm", b'{"id": "half a pair: \\ud800"}', {"x-url": url})).status == 202
    assert log.captures[1]["delivery_id"] == "half a pair: ?"


async def test_the_signed_address_is_the_public_one(app: edge.Edge, settings: Settings, log: MemoryLog) -> None:
    liar = {"host": "evil", "x-forwarded-host": "evil", "x-forwarded-proto": "https", "forwarded": "host=evil"}
    own = {"x-url": "https://hooks.example.com/crm?a=1"}
    assert (await ask(app, "POST", "/in/crm?a=1", b"{}", {**liar, **own})).status == 202

    def crm(public_url: str | None) -> edge.Edge:
        settings.config_file.write_text('[sources.crm]\nconnector = "crm"\n')
        changed = settings.model_copy(update={"edge": settings.edge.model_copy(update={"public_url": public_url})})
        return edge.build(changed, log=log, connectors=_connectors())

    for public_url, seen in [
        ("https://in.example.com/", "https://in.example.com/in/crm?a=1"),
        (None, "http://h:1/in/crm?a=1"),
    ]:
        other = crm(public_url)
        await other.start()
        answer = await ask(
            other, "POST", "/in/crm?a=1", b"{}", {"host": "h:1", "x-forwarded-host": "evil", "x-url": seen}
        )
        await other.close()
        assert answer.status == 202


@pytest.mark.parametrize(
    "path", ["/in/nope", "/in/", "/in/shop/extra", "/in/bare", "/in/SHOP", "/in/shop%00", "/", "/x"]
)
async def test_what_is_not_a_source_is_not_found(app: edge.Edge, log: MemoryLog, path: str) -> None:
    for method in ("POST", "GET"):
        answer = await ask(app, method, path, b"{}", signed(b"{}"))
        if path != "/in/shop/":
            assert answer.status == 404
    assert log.captures == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_vendors_probe_of_a_source_is_answered_empty(app: edge.Edge, method: str) -> None:
    answer = await ask(app, method, "/in/shop?challenge=1")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/in/shop"), ("DELETE", "/in/shop"), ("POST", "/health"), ("POST", "/ready")]
)
async def test_other_methods_are_not_served(app: edge.Edge, method: str, path: str) -> None:
    answer = await ask(app, method, path, b"{}", signed(b"{}"))
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


async def test_a_body_over_the_limit_is_refused_by_its_declared_length_unread(app: edge.Edge, log: MemoryLog) -> None:
    answer = await ask(app, "POST", "/in/shop", [], {**signed(b""), "content-length": "4097"})
    assert answer.status == 413
    huge = await ask(app, "POST", "/in/shop", [], {**signed(b""), "content-length": "9" * 5000})
    assert huge.status == 413
    assert log.captures == []


async def test_a_body_over_the_limit_is_refused_while_it_streams(app: edge.Edge, log: MemoryLog) -> None:
    answer = await ask(app, "POST", "/in/shop", [b"x" * 4000, b"x" * 97], {}, hang=True)
    assert answer.status == 413
    assert log.captures == []


async def test_a_body_at_the_limit_is_taken(app: edge.Edge) -> None:
    assert (await ask(app, "POST", "/in/shop", b"x" * 4096, signed(b"x" * 4096))).status == 202


async def test_a_source_may_have_a_limit_of_its_own(app: edge.Edge) -> None:
    assert (await ask(app, "POST", "/in/tiny", b"x" * 10, signed(b"x" * 10))).status == 202
    assert (await ask(app, "POST", "/in/tiny", b"x" * 11, signed(b"x" * 11))).status == 413


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "\u0661", ""])
async def test_a_length_that_is_no_number_is_malformed(app: edge.Edge, length: str) -> None:
    answer = await ask(app, "POST", "/in/shop", b"{}", {**signed(b"{}"), "content-length": length})
    assert answer.status == 400


async def test_a_sender_that_stalls_is_sent_away(app: edge.Edge, log: MemoryLog) -> None:
    answer = await ask(app, "POST", "/in/shop", b"half", {}, hang=True)
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert log.captures == []


async def test_a_sender_that_leaves_gets_nothing_stored(app: edge.Edge, log: MemoryLog) -> None:
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"), disconnect=True)).status == 0
    assert log.captures == []


async def test_bodies_on_their_way_share_one_bound_and_give_it_back() -> None:
    intake = Intake(timeout_s=1, max_held_bytes=10)

    def sender(body: bytes) -> Callable[[], Awaitable[Any]]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        return receive

    first = await intake.read(sender(b"123456"), None, 100)
    assert first == Body(b"123456")
    refused = await intake.read(sender(b"12345"), None, 100)
    assert isinstance(refused, Refusal)
    assert refused.status == 503
    assert isinstance(first, Body)
    intake.release(first)
    assert await intake.read(sender(b"1234567890"), None, 100) == Body(b"1234567890")


@pytest.mark.parametrize("silent", [False, True])
async def test_what_kafka_does_not_have_is_not_accepted(app: edge.Edge, log: MemoryLog, silent: bool) -> None:
    log.failure, log.silent = BrokerUnavailable("the queue to Kafka is full"), silent
    answer = await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    log.failure = None
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 202


async def test_an_outage_does_not_fill_the_log(app: edge.Edge, log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            await ask(app, "POST", "/in/shop", b"{}", {})
        monkeypatch.setattr(_routes, "TELL_S", 0.0)
        await ask(app, "POST", "/in/shop", b"{}", {})
    refused = [line for line in lines if line["event"] == "delivery.refused"]
    assert [line["more_since_last"] for line in refused] == [0, 4]


async def test_what_kafka_will_never_take_is_too_large(app: edge.Edge, log: MemoryLog) -> None:
    log.failure = MessageTooLarge("too large")
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 413


async def test_a_fault_of_ours_asks_the_sender_to_come_again(app: edge.Edge, log: MemoryLog) -> None:
    log.failure = RuntimeError("a bug")
    answer = await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))
    assert answer.status == 503
    assert b"bug" not in answer.body


async def test_a_scheme_that_trips_lets_nothing_in(settings: Settings, log: MemoryLog) -> None:
    connectors = _connectors()
    tripping = Connector("crm", "CRM", header("x"), header("x"), UrlScheme(trips=True))
    app = edge.build(settings, log=log, connectors={**connectors, "crm": tripping})
    await app.start()
    answer = await ask(app, "POST", "/in/crm", b"{}")
    await app.close()
    assert answer.status == 401
    assert log.captures == []


@pytest.mark.parametrize("source", ["broken", "strange"])
async def test_a_source_that_is_not_set_up_asks_senders_to_come_again(app: edge.Edge, source: str) -> None:
    answer = await ask(app, "POST", f"/in/{source}", b"{}", signed(b"{}"))
    assert answer.status == 503
    assert "retry-after" in answer.headers


async def test_a_path_token_opens_and_is_not_stored(app: edge.Edge, log: MemoryLog) -> None:
    assert (await ask(app, "POST", "/in/bare/wrong", b"{}")).status == 401
    assert (await ask(app, "POST", "/in/bare/t0ken?a=1", b"{}")).status == 202
    assert log.captures[0]["url"] == "/in/bare?a=1"
    assert "t0ken" not in repr(log.captures)


async def test_basic_credentials_open_and_are_not_stored(app: edge.Edge, log: MemoryLog) -> None:
    right = base64.b64encode(b"ana:pass").decode()
    for wrong in ("", "Basic", "Basic !!", f"Bearer {right}", "Basic " + base64.b64encode(b"ana:no\xff").decode()):
        assert (await ask(app, "POST", "/in/user", b"{}", {"authorization": wrong})).status == 401
    assert (await ask(app, "POST", "/in/user", b"{}", {"authorization": f"Basic {right}"})).status == 202
    assert right not in repr(log.captures)


async def test_a_secret_header_opens_and_is_not_stored(app: edge.Edge, log: MemoryLog) -> None:
    assert (await ask(app, "POST", "/in/keyed", b"{}", {})).status == 401
    assert (await ask(app, "POST", "/in/keyed", b"{}", {"x-api-key": "wrong"})).status == 401
    assert (await ask(app, "POST", "/in/keyed", b"{}", {"x-api-key": "k3y"})).status == 202
    assert "k3y" not in repr(log.captures)


async def test_credentials_in_headers_are_not_stored(app: edge.Edge, log: MemoryLog) -> None:
    more = {"authorization": "Bearer zzz", "cookie": "zzz", "proxy_authorization": "zzz"}
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}", **more))).status == 202
    assert "zzz" not in repr(log.captures)


async def test_a_header_that_comes_twice_keeps_both_values(app: edge.Edge, log: MemoryLog) -> None:
    headers = [(k.encode(), v.encode()) for k, v in signed(b"{}").items()]
    assert (await ask(app, "POST", "/in/shop", b"{}", [*headers, (b"via", b"a"), (b"via", b"\xe9")])).status == 202
    assert log.captures[0]["headers"]["via"] == "a, \u00e9"


async def test_a_source_added_while_running_is_served_at_once(
    app: edge.Edge, settings: Settings, log: MemoryLog
) -> None:
    assert (await ask(app, "POST", "/in/late", b"{}", signed(b"{}"))).status == 404
    sources.add(settings, Source(name="late", connector="shop", secrets=("shop",)))
    assert (await ask(app, "POST", "/in/late", b"{}", signed(b"{}"))).status == 202
    assert "late" in log.prepared
    assert [c["source"] for c in log.captures] == ["late"]


async def test_a_removed_source_and_a_changed_secret_are_noticed(
    settings: Settings, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_routes, "LOOK_S", 0.01)
    app = edge.build(settings, log=log, connectors=_connectors())
    await app.start()
    sources.remove(settings, "tiny")
    sources.store_secret(settings, "shop", "changed")
    await eventually(lambda: ask(app, "GET", "/in/tiny"), 404)
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 401
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}", secret="changed"))).status == 202
    await app.close()


async def test_a_file_broken_while_running_leaves_the_sources_as_they_were(app: edge.Edge, settings: Settings) -> None:
    settings.config_file.write_text("[sources.sh")
    assert (await ask(app, "POST", "/in/nope", b"{}")).status == 404
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 202


async def test_nothing_is_accepted_before_its_topic_is_there(
    settings: Settings, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_routes, "RETRY_S", 0.01)
    settings = settings.model_copy(update={"edge": EdgeSettings(produce_timeout_s=0.1)})
    log.unreachable = True
    app = edge.build(settings, log=log, connectors=_connectors())
    await app.start()
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 503
    assert (await ask(app, "GET", "/ready")).status == 503
    assert (await ask(app, "GET", "/health")).status == 200
    log.unreachable = False
    await eventually(lambda: ask(app, "GET", "/ready"), 200)
    assert (await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))).status == 202
    await app.close()


async def test_readiness_names_the_sources_that_are_not_set_up(app: edge.Edge) -> None:
    await eventually(lambda: ask(app, "GET", "/ready"), 200)
    answer = await ask(app, "GET", "/ready")
    assert set(answer.json["unusable_sources"]) == {"broken", "strange"}
    assert "CAUDAL_SECRET_NOWHERE" in answer.json["unusable_sources"]["broken"]


async def test_deliveries_are_counted_by_outcome(app: edge.Edge) -> None:
    def count(outcome: str) -> float:
        return DELIVERIES.labels("shop", outcome)._value.get()  # type: ignore[no-any-return]

    before = {outcome: count(outcome) for outcome in ("accepted", "unsigned", "too_large")}
    await ask(app, "POST", "/in/shop", b"{}", signed(b"{}"))
    await ask(app, "POST", "/in/shop", b"{}", {})
    await ask(app, "POST", "/in/shop", b"x" * 5000, {})
    assert {outcome: count(outcome) - n for outcome, n in before.items()} == {
        "accepted": 1,
        "unsigned": 1,
        "too_large": 1,
    }
    # the figures stand on an address of their own: what vendors reach is open to everyone
    assert (await ask(app, "GET", "/metrics")).status == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/in/shop"), ("POST", "/in/shop"), ("PUT", "/in/shop"), ("POST", "/in/nope"), ("POST", "/in/broken"),
        ("GET", "/health"), ("GET", "/ready"), ("GET", "/x"), ("GET", "/feedback"),
    ],
)  # fmt: skip
async def test_no_answer_is_guessed_at_framed_or_kept(app: edge.Edge, method: str, path: str) -> None:
    for headers in ({}, signed(b"{}")):
        answer = await ask(app, method, path, b"{}" if method == "POST" else b"", headers)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


async def test_a_header_that_comes_twice_proves_nothing(app: edge.Edge, log: MemoryLog) -> None:
    good = [(k.encode(), v.encode()) for k, v in signed(b"{}").items()]
    mark = next(pair for pair in good if pair[0] == b"x-hmac")
    for twice in ([*good, mark], [*good, (b"x-hmac", b"AAAA")], [(b"x-hmac", b"AAAA"), *good]):
        assert (await ask(app, "POST", "/in/shop", b"{}", twice)).status == 401
    for name in ("authorization", "x-api-key"):
        source, value = {"authorization": ("user", "Basic YW5hOnBhc3M="), "x-api-key": ("keyed", "k3y")}[name]
        pair = (name.encode(), value.encode())
        assert (await ask(app, "POST", f"/in/{source}", b"{}", [pair, pair])).status == 401
        assert (await ask(app, "POST", f"/in/{source}", b"{}", [pair])).status == 202
    assert len(log.captures) == 2


def hubspot(url: str, body: bytes, at: datetime, secret: str = SECRET) -> dict[str, dict[str, str]]:
    """HubSpot's headers by version of the signature."""
    stamp = str(int(at.timestamp() * 1000))
    v3 = hmac.new(secret.encode(), b"POST" + url.encode() + body + stamp.encode(), hashlib.sha256).digest()
    v2 = hashlib.sha256(secret.encode() + b"POST" + url.encode() + body).hexdigest()
    v1 = hashlib.sha256(secret.encode() + body).hexdigest()
    return {
        "v3": {"x-hubspot-signature-v3": base64.b64encode(v3).decode(), "x-hubspot-request-timestamp": stamp},
        "v2": {"x-hubspot-signature": v2, "x-hubspot-signature-version": "v2"},
        "v1": {"x-hubspot-signature": v1, "x-hubspot-signature-version": "v1"},
    }


def notices(at: datetime) -> bytes:
    stamp = int(at.timestamp() * 1000)
    return json.dumps([{"objectId": 1, "occurredAt": stamp - 1000}, {"objectId": 2, "occurredAt": stamp}]).encode()


@pytest.fixture
async def crm(settings: Settings, log: MemoryLog) -> AsyncIterator[Callable[[str], edge.Edge]]:
    """An edge whose source `crm` is of HubSpot, with more lines in its table."""
    started: list[edge.Edge] = []

    def make(lines: str = "") -> edge.Edge:
        url = 'public_url = "https://hooks.example.com/crm"'
        settings.config_file.write_text(f'[sources.crm]\nconnector = "hubspot"\nsecrets = ["shop"]\n{url}\n{lines}\n')
        app = edge.build(settings, log=log)
        started.append(app)
        return app

    yield make
    for app in started:
        app._routes.stop()


async def started(app: edge.Edge) -> edge.Edge:
    await app.start()
    return app


URL = "https://hooks.example.com/crm"


async def test_only_the_strongest_signature_is_taken_unless_the_source_says_otherwise(
    crm: Callable[[str], edge.Edge], log: MemoryLog
) -> None:
    now = datetime.now(UTC)
    body = notices(now)
    headers = hubspot(URL, body, now)
    for lines, taken in [
        ("", {"v3"}),
        ('signature_versions = ["v3"]', {"v3"}),
        ('signature_versions = ["v2"]', {"v2"}),
        ('signature_versions = ["v1", "v3"]', {"v3", "v1"}),
        ('signature_versions = ["v1", "v2", "v3"]', {"v3", "v2", "v1"}),
    ]:
        app = await started(crm(lines))
        assert {v for v in headers if (await ask(app, "POST", "/in/crm", body, headers[v])).status == 202} == taken
        # a wrong strong signature isn't mended by a right weak one
        if "v3" in taken:
            mixed = headers["v1"] | headers["v3"] | {"x-hubspot-signature-v3": "AAAA"}
            assert (await ask(app, "POST", "/in/crm", body, mixed)).status == 401


async def test_the_older_signatures_are_as_old_as_what_they_sign_says(
    crm: Callable[[str], edge.Edge], log: MemoryLog
) -> None:
    app = await started(crm('signature_versions = ["v2", "v1"]'))
    now = datetime.now(UTC)
    fresh_stamp = {"x-hubspot-request-timestamp": str(int(now.timestamp() * 1000))}
    for at in (now - timedelta(hours=2), now + timedelta(hours=2), datetime(1970, 1, 1, tzinfo=UTC)):
        for version in ("v1", "v2"):
            body = notices(at)
            headers = hubspot(URL, body, at)[version]
            assert (await ask(app, "POST", "/in/crm", body, headers)).status == 401
            assert (await ask(app, "POST", "/in/crm", body, headers | fresh_stamp)).status == 401  # nobody signed that
    for body in (
        b"[]",
        b"{}",
        b"",
        b"not JSON",
        b'[{"occurredAt": null}]',
        b'[{"occurredAt": true}]',
        b'[{"occurredAt": 1e300}]',
    ):
        assert (await ask(app, "POST", "/in/crm", body, hubspot(URL, body, now)["v1"])).status == 401
    old = {"x-hubspot-request-timestamp": "1000"}
    assert (await ask(app, "POST", "/in/crm", notices(now), hubspot(URL, notices(now), now)["v1"] | old)).status == 401
    assert log.captures == []
    wide = await started(crm('signature_versions = ["v1"]\nreplay_window_s = 86400'))
    body = notices(now - timedelta(hours=2))
    assert (await ask(wide, "POST", "/in/crm", body, hubspot(URL, body, now)["v1"])).status == 202


async def test_a_digest_can_not_be_made_longer(crm: Callable[[str], edge.Edge], log: MemoryLog) -> None:
    """Length extension: SHA-256 goes on from a known digest, so secret + body + filling + anything has a digest that can be computed."""
    app = await started(crm('signature_versions = ["v2", "v1"]\nreplay_window_s = 0'))
    body = notices(datetime.now(UTC))
    known = len(SECRET) + len(body)
    filling = b"\x80" + b"\0" * ((55 - known) % 64) + (known * 8).to_bytes(8, "big")
    longer = body + filling + b'[{"objectId":666}]'
    for version in ("v1", "v2"):
        headers = hubspot(URL, longer, datetime.now(UTC))[version]  # what the extension computes without the secret
        assert (await ask(app, "POST", "/in/crm", longer, headers)).status == 401
        assert (await ask(app, "POST", "/in/crm", body, hubspot(URL, body, datetime.now(UTC))[version])).status == 202


async def test_a_version_that_the_vendor_does_not_have_makes_the_source_unusable(
    crm: Callable[[str], edge.Edge],
) -> None:
    app = await started(crm('signature_versions = ["v4"]'))
    assert (await ask(app, "POST", "/in/crm", b"[]", {})).status == 503
    assert "v3, v2, v1" in (await ask(app, "GET", "/ready")).json["unusable_sources"]["crm"]


async def test_a_step_of_setting_up_is_answered_and_never_stored(settings: Settings, log: MemoryLog) -> None:
    def challenged(request: SignedRequest) -> str | None:
        if b"boom" in request.body:
            raise RuntimeError("odd input")
        return parse_qs(request.url.partition("?")[2]).get("challenge", [None])[0]

    shop = replace(_connectors()["shop"], handshake=challenged)
    app = await started(edge.build(settings, log=log, connectors={"shop": shop}))
    for method in ("GET", "POST"):
        answer = await ask(app, method, "/in/shop?challenge=a1B2-c3", b"")
        assert (answer.status, answer.body) == (200, b"a1B2-c3")
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
    expected = {"GET": 200, "POST": 401}
    for odd in ("<script>", "a%0d%0ab", "%00", "x" * 501, "%C3%A7", "a b"):
        for method, status in expected.items():
            answer = await ask(app, method, f"/in/shop?challenge={odd}", b"")
            assert answer.status == status
            assert odd.encode() not in answer.body
    assert (await ask(app, "POST", "/in/shop?challenge=a", b"boom")).status == 401
    assert (await ask(app, "POST", "/in/shop?challenge=a", b"{}", signed(b"{}"))).status == 202  # signed: a delivery
    assert len(log.captures) == 1
    await app.close()


async def test_zendesks_test_of_a_webhook_that_is_not_made_yet_is_answered(settings: Settings, log: MemoryLog) -> None:
    settings.config_file.write_text('[sources.help]\nconnector = "zendesk"\nsecrets = ["shop"]\n')
    app = await started(edge.build(settings, log=log))

    def sent(secret: str) -> dict[str, str]:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        digest = hmac.new(secret.encode(), stamp.encode() + b"{}", hashlib.sha256).digest()
        return {
            "x-zendesk-webhook-signature": base64.b64encode(digest).decode(),
            "x-zendesk-webhook-signature-timestamp": stamp,
        }

    assert (
        await ask(app, "POST", "/in/help", b"{}", sent("dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ=="))
    ).status == 200
    assert log.captures == []
    assert (await ask(app, "POST", "/in/help", b"{}", sent("another"))).status == 401
    assert (await ask(app, "POST", "/in/help", b"{}", sent(SECRET))).status == 202
    await app.close()


@pytest.mark.parametrize(
    "written", ["hush\\n", " hush", "hush\\r\\n", "\\uFEFFhush", "hush\\u00A0", "\\u200Bhush\\u2060", "\\thush\\u3000"]
)
async def test_what_can_not_be_seen_around_a_secret_costs_no_delivery(
    settings: Settings, log: MemoryLog, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.home / "secrets.toml").write_text(f'[secrets]\nshop = "{written}"\n')
    monkeypatch.setenv("CAUDAL_SECRET_CRM", json.loads(f'"{written}"'))
    settings.config_file.write_text(
        '[sources.shop]\nconnector = "shop"\n[sources.crm]\nconnector = "shop"\n[sources.pathed]\nconnector = "shop"\n'
        'auth = "path_token"\nsecrets = ["shop"]\n'
    )
    app = await started(edge.build(settings, log=log, connectors=_connectors()))
    for name in ("shop", "crm"):
        assert (await ask(app, "POST", f"/in/{name}", b"{}", signed(b"{}"))).status == 202
    assert (await ask(app, "POST", "/in/pathed/hush", b"{}")).status == 202
    await app.close()


async def test_a_header_may_carry_a_secret_of_any_letters(settings: Settings, log: MemoryLog) -> None:
    settings.config_file.write_text(
        '[sources.keyed]\nconnector = "shop"\nauth = "header"\nheader = "X-Api-Key"\nsecrets = ["keyed"]\n'
    )
    (settings.home / "secrets.toml").write_text('[secrets]\nkeyed = "ação"\n', encoding="utf-8")
    app = await started(edge.build(settings, log=log, connectors=_connectors()))
    assert (await ask(app, "POST", "/in/keyed", b"{}", [(b"x-api-key", "ação".encode())])).status == 202
    assert (await ask(app, "POST", "/in/keyed", b"{}", [(b"x-api-key", b"acao")])).status == 401
    await app.close()


_header_values = st.binary(max_size=40).filter(lambda value: not set(value) & {0, 10, 13})
_header_names = st.sampled_from(
    [b"x-hmac", b"x-delivery", b"x-topic", b"content-length", b"host", b"authorization", b"content-encoding", b"x-url"]
) | st.from_regex(rb"[a-z][a-z-]{0,15}", fullmatch=True)
_paths = st.sampled_from(["/in/shop", "/in/crm", "/in/user", "/in/bare/t0ken", "/in/keyed", "/health"]) | st.text(
    max_size=30
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "FOO"]),
    path=_paths.map(lambda path: "/" + path.lstrip("/")),
    headers=st.lists(st.tuples(_header_names, _header_values), max_size=8),
    chunks=st.lists(st.binary(max_size=3000), min_size=1, max_size=3),
)
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_nothing_that_is_sent_ends_in_a_failure(
    settings: Settings, method: str, path: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
) -> None:
    log = MemoryLog()
    app = edge.build(settings, log=log, connectors=_connectors())
    for route in app._routes:
        route.ready.set()
    answer = await ask(app, method, path, chunks, headers)
    assert answer.status in {200, 202, 400, 401, 404, 405, 413}
    assert len(log.captures) == (answer.status == 202)
