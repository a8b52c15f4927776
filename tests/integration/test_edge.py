"""The edge on a real socket, with real Kafka behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from caudal.producers import edge
from caudal.schemas import position
from caudal.schemas.codec import Codec, Registry
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from caudal import embedded, kafka, sources
from caudal import settings as caudal_settings
from caudal.settings import EdgeSettings, Settings
from caudal.sources import Source

BODY = b'{"id": 1, "email": "ana@example.com"}\n'


def signed(body: bytes, secret: str = "hush", delivery: str = "d-1") -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
    return {
        "X-Shopify-Topic": "customers/update",
        "X-Shopify-Webhook-Id": delivery,
        "X-Shopify-Hmac-Sha256": base64.b64encode(digest).decode(),
    }


def stored(settings: Settings, source: str = "shop") -> list[tuple[bytes, dict[str, Any]]]:
    """Every capture of a source with its key."""
    registry = Registry(settings)
    codec = Codec(registry)
    consumer = kafka.consumer(settings.kafka, f"{settings.kafka.topic_prefix}test")
    found = []
    try:
        topic = kafka.capture_topic(settings.kafka, source)
        for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            place = TopicPartition(topic, partition, 0)
            _, end = consumer.get_watermark_offsets(place, timeout=10)
            consumer.assign([place])
            for _ in range(end):
                message = consumer.poll(10)
                assert message is not None
                assert message.error() is None
                key, value = message.key(), message.value()
                assert key is not None
                assert value is not None
                record, values = codec.decode(value)
                assert record == "Capture"
                found.append((key, values))
    finally:
        consumer.close()
        registry.close()
    return found


@pytest.fixture
def configured(settings: Settings) -> Settings:
    """Settings with one Shopify source that has two secrets."""
    sources.add(settings, Source(name="shop", connector="shopify", secrets=("shop", "shop-old")))
    sources.store_secret(settings, "shop", "hush")
    sources.store_secret(settings, "shop-old", "older")
    limits = EdgeSettings(port=0, max_body_bytes=2 * 1024 * 1024, receive_timeout_s=1.0)
    return settings.model_copy(update={"edge": limits})


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        edge._serve(settings, lambda host, port: listening.set_result(f"http://{host}:{port}"))
    )
    either: list[asyncio.Future[Any]] = [listening, serving]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield listening.result()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # taken by the edge's own handler
        await serving


@pytest.fixture
async def url(configured: Settings) -> AsyncIterator[str]:
    async with running(configured) as url:
        yield url


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def test_a_signed_delivery_lies_in_the_topic_byte_for_byte(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    body = b'{"id": 1, "name": "S\xe3o, \xff\x00 not UTF-8"}\n'
    answer = await client.post(f"{url}/in/shop?a=b%20c", content=body, headers=signed(body))
    assert answer.status_code == 202
    [(key, capture)] = stored(configured)
    assert key == b"d-1"
    assert capture["body"] == body
    assert capture["url"] == "/in/shop?a=b%20c"
    assert capture["kind"] == "customers/update"
    assert capture["capture_id"] == answer.json()["capture_id"]
    assert capture["headers"]["x-shopify-webhook-id"] == "d-1"


async def test_the_token_is_the_position_right_after_the_capture(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    places = {}
    for n in range(3):
        answer = await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY, delivery=f"d-{n}"))
        [(partition, offset)] = position.decode(answer.json()["token"])["capture.shop"].items()
        places[f"d-{n}".encode()] = (partition, offset - 1)
    consumer = kafka.consumer(configured.kafka, f"{configured.kafka.topic_prefix}test")
    for key, (partition, offset) in places.items():
        consumer.assign([TopicPartition(kafka.capture_topic(configured.kafka, "shop"), partition, offset)])
        message = consumer.poll(10)
        assert message is not None
        assert (message.key(), message.offset()) == (key, offset)
    consumer.close()


async def test_a_delivery_that_comes_again_is_stored_again_with_the_same_id(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    for _ in range(2):
        assert (await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY))).status_code == 202
    (_, first), (_, second) = stored(configured)
    assert first["capture_id"] == second["capture_id"]


async def test_either_secret_opens_and_nothing_else_is_stored(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    assert (await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY, "older"))).status_code == 202
    wrong = signed(BODY, "guessed")
    assert (await client.post(f"{url}/in/shop", content=BODY, headers=wrong)).status_code == 401
    assert (await client.post(f"{url}/in/shop", content=BODY.strip(), headers=signed(BODY))).status_code == 401
    assert (await client.post(f"{url}/in/shop", content=BODY)).status_code == 401
    assert (await client.post(f"{url}/in/nope", content=BODY, headers=signed(BODY))).status_code == 404
    assert len(stored(configured)) == 1


async def test_a_body_over_the_limit_is_refused_and_one_of_megabytes_is_stored(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    largest = os.urandom(2 * 1024 * 1024)
    assert (await client.post(f"{url}/in/shop", content=largest, headers=signed(largest))).status_code == 202
    over = largest + b"x"
    assert (await client.post(f"{url}/in/shop", content=over, headers=signed(over))).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(over), 65536):
            yield over[start : start + 65536]

    assert (await client.post(f"{url}/in/shop", content=pieces(), headers=signed(over))).status_code == 413
    [(_, capture)] = stored(configured)
    assert capture["body"] == largest


async def test_a_sender_that_stalls_is_sent_away(url: str) -> None:
    reader, writer = await _connect(url)
    writer.write(b"POST /in/shop HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_probe_of_the_vendor_and_the_pages_are_answered(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    for method in ("GET", "HEAD"):
        probe = await client.request(method, f"{url}/in/shop")
        assert (probe.status_code, probe.content) == (200, b"")
    assert (await client.get(f"{url}/health")).json() == {"status": "ok"}
    assert (await _until(client, f"{url}/ready", 200)).json()["ready"]
    assert (await client.get(f"{url}/metrics")).status_code == 404  # apart from what vendors reach
    told = json.loads((configured.home / "run" / "edge.json").read_text())
    assert "caudal_deliveries_total" in (await client.get(told["details"]["metrics"])).text


async def test_a_source_added_while_the_edge_runs_gets_its_topic(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    assert (await client.post(f"{url}/in/late", content=BODY, headers=signed(BODY))).status_code == 404
    sources.add(configured, Source(name="late", connector="shopify", secrets=("shop",)))
    assert (await client.post(f"{url}/in/late", content=BODY, headers=signed(BODY))).status_code == 202
    assert len(stored(configured, "late")) == 1


async def test_an_address_that_a_request_claims_for_itself_is_not_believed(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    sources.add(configured, Source(name="crm", connector="hubspot", secrets=("shop",)))
    body, at = b"[]", str(int(time.time() * 1000))

    async def deliver(address: str) -> int:
        digest = hmac.new(b"hush", f"POST{address}".encode() + body + at.encode(), hashlib.sha256).digest()
        headers = {
            "X-HubSpot-Signature-v3": base64.b64encode(digest).decode(),
            "X-HubSpot-Request-Timestamp": at,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "other.example.com",
        }
        return (await client.post(f"{url}/in/crm", content=body, headers=headers)).status_code

    assert await deliver(f"{url}/in/crm") == 202
    assert await deliver(f"{url}/in/crm".replace("http:", "https:")) == 401
    assert await deliver("https://other.example.com/in/crm") == 401


async def test_many_at_once_are_all_stored(configured: Settings, url: str, client: httpx.AsyncClient) -> None:
    async def post(n: int) -> int:
        answer = await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY, delivery=f"d-{n}"))
        return answer.status_code

    statuses = await asyncio.gather(*(post(n) for n in range(100)))
    assert set(statuses) == {202}
    assert sorted(key for key, _ in stored(configured)) == sorted(b"d-%d" % n for n in range(100))


_targets = st.sampled_from(
    [b"/in/shop", b"/in/shop/x", b"/in/%ff", b"/health", b"/ready", b"*", b"http://x/in/shop", b""]
)
_line = st.binary(max_size=30)


@given(
    method=st.sampled_from([b"POST", b"GET", b"CONNECT", b"OPTIONS", b"PUT", b"GARBAGE"]),
    target=_targets | _line,
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"Content-Length",
                    b"Transfer-Encoding",
                    b"Upgrade",
                    b"Connection",
                    b"X-Shopify-Hmac-Sha256",
                    b"Expect",
                ]
            )
            | _line,
            st.sampled_from([b"0", b"5", b"-1", b"chunked", b"websocket", b"upgrade", b"100-continue"]) | _line,
        ),
        max_size=5,
    ),
    body=st.binary(max_size=50),
)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_no_bytes_on_the_wire_make_it_fail(
    url: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    reader, writer = await _connect(url)
    head = b"%s %s HTTP/1.1\r\n" % (method, target) + b"".join(b"%s: %s\r\n" % pair for pair in headers)
    writer.write(head + b"\r\n" + body)
    writer.write_eof()
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        assert part[:3] in {b"100", b"200", b"400", b"401", b"404", b"405", b"408", b"413"}, answer
    async with httpx.AsyncClient(timeout=30) as client:
        assert (await client.get(f"{url}/health")).status_code == 200


async def test_without_kafka_nothing_is_accepted_and_the_edge_recovers_when_it_comes(
    configured: Settings, client: httpx.AsyncClient
) -> None:
    brokers = configured.kafka.bootstrap_servers
    assert brokers is not None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = configured.model_copy(
        update={
            "kafka": configured.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"}),
            "edge": configured.edge.model_copy(update={"produce_timeout_s": 0.5}),
        }
    )
    async with running(nowhere) as url:
        refused = await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get(f"{url}/ready")).status_code == 503
        assert (await client.get(f"{url}/health")).status_code == 200
        async with _forward(port, brokers):
            await _until(client, f"{url}/ready", 200)
            await _until_taken(client, f"{url}/in/shop")
    assert stored(configured)


@pytest.fixture
def own_kafka() -> Iterator[Settings]:
    """A broker of its own, which may be stopped."""
    home = Path(tempfile.mkdtemp(prefix="caudal-edge-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mine = caudal_settings.load(
        home=home,
        config_file=home / "caudal.toml",
        embedded={"kafka_port": port, "kafka_heap_mb": 256},
        postgres={"dsn": "postgresql://nowhere"},
        edge={"port": 0, "produce_timeout_s": 1.0},
    )
    yield embedded.ensure(mine)
    embedded.down(mine)
    shutil.rmtree(home)


async def test_while_kafka_is_down_senders_are_asked_to_come_again(
    own_kafka: Settings, client: httpx.AsyncClient
) -> None:
    sources.add(own_kafka, Source(name="shop", connector="shopify"))
    sources.store_secret(own_kafka, "shop", "hush")
    unresolved = own_kafka.model_copy(
        update={
            "kafka": own_kafka.kafka.model_copy(update={"bootstrap_servers": None}),
            "registry": own_kafka.registry.model_copy(update={"url": None}),
        }
    )
    async with running(own_kafka) as url:
        await _until(client, f"{url}/ready", 200)
        await _until_taken(client, f"{url}/in/shop")
        await asyncio.to_thread(embedded.down, unresolved)
        refused = await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY, delivery="lost"))
        assert refused.status_code == 503
        restarted = await asyncio.to_thread(embedded.ensure, unresolved)
        await _until_taken(client, f"{url}/in/shop")
    assert sum(key == b"d-1" for key, _ in stored(restarted)) >= 2


def test_the_process_tells_where_it_listens_and_ends_clean(configured: Settings) -> None:
    program = "from caudal import settings; from caudal.producers import edge; edge.serve(settings.load())"
    env = caudal_settings.environment(configured)
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE)
    run_file = configured.home / "run" / "edge.json"
    try:
        deadline = time.monotonic() + 60
        while not run_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = json.loads(run_file.read_text())
        assert told["pid"] == process.pid
        answer = httpx.post(
            f"http://{told['host']}:{told['port']}/in/shop", content=BODY, headers=signed(BODY), timeout=30
        )
        assert answer.status_code == 202
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert not run_file.exists()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def _until(client: httpx.AsyncClient, url: str, status: int) -> httpx.Response:
    for _ in range(200):
        answer = await client.get(url)
        if answer.status_code == status:
            return answer
        await asyncio.sleep(0.1)
    pytest.fail(f"{url} never answered {status}")


async def _until_taken(client: httpx.AsyncClient, url: str) -> None:
    """Send as a vendor does: again, as long as it is asked to."""
    for _ in range(60):
        answer = await client.post(url, content=BODY, headers=signed(BODY))
        if answer.status_code == 202:
            return
        assert answer.status_code == 503
        await asyncio.sleep(0.5)
    pytest.fail("never taken")


@contextlib.asynccontextmanager
async def _forward(port: int, brokers: str) -> AsyncIterator[None]:
    """Answer on `port` as the broker does; it tells its own address at once, so this serves the first connection only."""
    host, _, broker_port = brokers.partition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(broker_port))
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    yield
    server.close()


async def test_a_capture_topic_that_was_deleted_is_made_again_and_deliveries_are_taken(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    assert (await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY))).status_code == 202
    await asyncio.to_thread(kafka.delete_topics, configured.kafka, ["capture.shop"])
    seen = set()
    async with asyncio.timeout(60):
        while 202 not in seen:
            answer = await client.post(f"{url}/in/shop", content=BODY, headers=signed(BODY, delivery="d-2"))
            seen.add(answer.status_code)
    assert seen <= {202, 503}
    [(key, _)] = stored(configured)
    assert key == b"d-2"


async def test_an_edge_whose_topic_was_deleted_is_not_ready_and_makes_it_again_without_a_delivery(
    configured: Settings, url: str, client: httpx.AsyncClient
) -> None:
    async def ready() -> int:
        return (await client.get(f"{url}/ready")).status_code

    async with asyncio.timeout(60):
        while await ready() != 200:
            pass
        await asyncio.to_thread(kafka.delete_topics, configured.kafka, ["capture.shop"])
        answers = [await ready()]
        while answers[-1] != 200:
            answers.append(await ready())
    assert answers[0] == 503
    assert kafka.capture_topic(configured.kafka, "shop") in kafka.topics(configured.kafka)


async def test_deliveries_that_share_a_batch_too_large_for_their_topic_are_all_stored(
    configured: Settings, client: httpx.AsyncClient
) -> None:
    kafka.ensure_topics(configured.kafka, ["capture.shop"])
    entry = ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    topic = kafka.capture_topic(configured.kafka, "shop")
    admin = kafka.admin(configured.kafka)
    [done] = admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]
    ).values()
    done.result()
    bodies = [os.urandom(60_000) for _ in range(20)]
    async with running(configured) as url:
        posts = [
            client.post(f"{url}/in/shop", content=body, headers=signed(body, delivery=f"d-{n}"))
            for n, body in enumerate(bodies)
        ]
        statuses = [answer.status_code for answer in await asyncio.gather(*posts)]
        over = os.urandom(120_000)
        assert (await client.post(f"{url}/in/shop", content=over, headers=signed(over))).status_code == 413
    assert statuses == [202] * 20
