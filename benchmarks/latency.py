"""Latencies: event → row visible, at 500 events/s; and delivery sent → row pushed to a listener, at 1,000 deliveries/s.

A row is visible from its transaction's commit (`pg_xact_commit_timestamp`). The clocks are one machine's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from caudal.schemas import ProfileStated
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, add_source, address, stage, wait_until
from benchmarks.drain import fill
from caudal import access, kafka

__all__ = ["measure"]

CUSTOMERS = 20_000
EVENT_RATE = 500
DELIVERY_RATE = 1_000
SECONDS = 15
WARM_UP_S = 3


def percentile(values: Sequence[float], p: float) -> float:
    """The value below which `p` percent lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


def project_latencies(stage: Stage, *, seconds: float) -> list[float]:
    """Milliseconds from produce() to the commit of the profile's row, each event for another customer."""
    stage.start("worker", CAUDAL_WORKER__WEB_PORT="0")
    count = fill(stage, _generate.profile_events(CUSTOMERS, CUSTOMERS))
    topic = kafka.topic(stage.settings.kafka, kafka.CHANGES)
    wait_until(lambda: _stored(stage) >= count, timeout_s=120, what="projection of the customers")
    codec = Codec(Registry(stage.settings))
    producer = kafka.producer(stage.settings.kafka)
    known = [row[0] for row in stage.conn.execute("SELECT subject FROM live.links").fetchall()]
    random.Random(7).shuffle(known)
    started = time.perf_counter()
    people = known[: int(EVENT_RATE * (seconds + WARM_UP_S))]
    for number, subject in enumerate(people):
        _sleep_until(started + number / EVENT_RATE)
        now = datetime.now(UTC)
        event = ProfileStated(
            event_id=f"latency-{number}", source="shop-br", subject=subject, occurred_at=now, captured_at=now, link_seq=1,
            customer_id=_generate.customer_id(int(subject.rpartition(":")[2])), name=f"Nova {number}", city="Olinda",
        )  # fmt: skip
        producer.produce(topic, key=event.customer_id.encode(), value=codec.encode_event(event))
        producer.poll(0)
    producer.flush(30)
    wait_until(lambda: _stored(stage) >= count + len(people), timeout_s=60, what="projection of the last event")
    rows = stage.conn.execute(
        """SELECT extract(epoch FROM pg_xact_commit_timestamp(p.xmin) - s.captured_at)::float8 * 1000
           FROM live.profile_statements_parts s JOIN live.links l USING (subject) JOIN live.profiles p USING (customer_id)
           WHERE s.event_id LIKE 'latency-%%' AND substr(s.event_id, 9)::int >= %s""",
        (EVENT_RATE * WARM_UP_S,),
    ).fetchall()
    if len(rows) != len(people) - EVENT_RATE * WARM_UP_S:
        raise AssertionError(f"{len(rows)} rows of {len(people)} events")
    return [row[0] for row in rows]


def _stored(stage: Stage) -> int:
    row = stage.conn.execute("SELECT coalesce(sum(next_offset), 0)::bigint FROM live.offsets").fetchone()
    return int(row[0]) if row else 0


def _sleep_until(when: float) -> None:
    left = when - time.perf_counter()
    if left > 0:
        time.sleep(left)


async def end_to_end(stage: Stage, *, seconds: float) -> list[float]:
    """Milliseconds from sending a signed delivery to its profile arriving on a live stream (which follows the commit)."""
    secret = add_source(stage, "shop", "shopify")
    environment = {"CAUDAL_SECRET_SHOP": secret}
    for role in ("edge", "worker", "api"):
        stage.start(role, **environment)
    edge, api = address(stage, "edge"), address(stage, "api")
    token, _ = access.create(stage.conn, "benchmark", [access.Scope.CHANGES_READ])
    sent: dict[str, float] = {}
    received: dict[str, float] = {}
    listening = asyncio.Event()
    listener = asyncio.create_task(_listen(api, token, received, listening))
    await asyncio.wait_for(listening.wait(), 60)
    await _send(edge, secret, sent, "warm", int(DELIVERY_RATE * WARM_UP_S))
    await _pushed(list(sent), received)  # the worker has joined its groups and caught up
    await _send(edge, secret, sent, "told", int(DELIVERY_RATE * seconds))
    told = [name for name in sent if name.startswith("told")]
    await _pushed(told, received)
    listener.cancel()
    return [(received[name] - sent[name]) * 1000 for name in told]


async def _pushed(names: list[str], received: dict[str, float]) -> None:
    """Wait until all have arrived; beyond what the machine can do, a backlog builds up and is waited for."""
    deadline = time.perf_counter() + 300
    while missing := sum(name not in received for name in names):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{missing} of {len(names)} deliveries were not pushed within 300 s")
        await asyncio.sleep(0.1)


async def _listen(api: str, token: str, received: dict[str, float], listening: asyncio.Event) -> None:
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream(
            "GET", f"{api}/changes?topics=customer.profiles", headers={"authorization": f"Bearer {token}"}
        ) as answer,
    ):
        answer.raise_for_status()
        listening.set()
        pending = b""
        async for chunk in answer.aiter_raw():
            now = time.perf_counter()
            *blocks, pending = (pending + chunk).split(b"\n\n")
            for block in blocks:
                at = block.find(b"data: {")
                if at >= 0:
                    value = orjson.loads(block[at + 6 :].partition(b"\n")[0])
                    received.setdefault(str(value.get("company") or value.get("given_name")), now)


def _customer(name: str, number: int) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return orjson.dumps(
        {
            "id": 7_000_000_000_000 + number, "email": f"{name}@example.com", "first_name": name, "last_name": "Silva", "phone": None,
            "created_at": now, "updated_at": now, "state": "enabled", "tags": "news", "currency": "BRL", "verified_email": True,
            "default_address": {"city": "Recife", "province_code": "PE", "country_code": "BR", "zip": "50030-230", "address1": "Rua 1"},
        }
    )  # fmt: skip


async def _send(edge: str, secret: str, sent: dict[str, float], prefix: str, count: int) -> None:
    """Send at a steady rate over 16 connections, each taking the next due delivery."""
    parts = urlsplit(edge)
    started = time.perf_counter()
    turn = iter(range(count))

    async def sender() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for number in turn:
            due = started + number / DELIVERY_RATE
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            name = f"{prefix}{number}"
            body = _customer(name, number + (0 if prefix == "told" else 500_000))
            signature = base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha256).digest()).decode()
            sent[name] = time.perf_counter()
            writer.write(
                f"POST /in/shop HTTP/1.1\r\nhost: {parts.netloc}\r\nx-shopify-topic: customers/create\r\nx-shopify-webhook-id: {name}\r\n"
                f"x-shopify-hmac-sha256: {signature}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 202 " not in head.split(b"\r\n", 1)[0]:
                raise AssertionError(head.split(b"\r\n", 1)[0].decode())
            length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(sender() for _ in range(16)))


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`project_latency_*`: event on customer.changes → row visible. `end_to_end_latency_*`: delivery sent → pushed to a listener."""
    seconds = SECONDS * scale
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        with stage() as one:
            project = project_latencies(one, seconds=seconds)
        with stage() as one:
            end = asyncio.run(end_to_end(one, seconds=seconds))
        for name, values in (("project", project), ("end_to_end", end)):
            for p in (50, 99):
                found.setdefault(f"{name}_latency_p{p}_ms", []).append(percentile(values, p))
    return [figure(name, "ms", values) for name, values in found.items()]
