"""Latencies: event → row visible, at 500 events/s; and delivery sent → row pushed to a listener, at 1,000 deliveries/s.

A row is visible from its transaction's commit (`pg_xact_commit_timestamp`). The clocks are one machine's. Where the machine can't carry a
rate, so that a backlog builds up, a latency says nothing: then the next lower rate is taken. Each figure says its `rate`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

import httpx
import orjson
from caudal.schemas import ProfileStated
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, add_source, address, stage, wait_until
from benchmarks.drain import fill
from caudal import access, kafka
from caudal.supervisor import ROLES

__all__ = ["Behind", "Delivering", "Projecting", "measure", "percentile", "statement", "stored", "visible_ms"]

CUSTOMERS = 10_000
EVENT_RATES = (500, 250, 100)
DELIVERY_RATES = (1_000, 500, 250, 100, 50)
SECONDS = 10
WARM_UP_S = 2
"""The first seconds of every run, which are not counted."""
BEHIND_S = 1.0
"""A rate is carried when everything is through so soon after the last was sent, and the sender kept its time."""


class Behind(Exception):
    """The machine can't carry the rate."""


def percentile(values: Sequence[float], p: float) -> float:
    """The value below which `p` percent lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


class Projecting:
    """Events of known customers, one by one, to a worker that has nothing else to do."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        stage.start("worker", CAUDAL_WORKER__WEB_PORT="0")
        self._count = fill(stage, _generate.profile_events(CUSTOMERS, CUSTOMERS))
        wait_until(lambda: stored(stage) >= self._count, timeout_s=120, what="projection of the customers")
        self._known = [row[0] for row in stage.conn.execute("SELECT subject FROM live.links").fetchall()]
        random.Random(7).shuffle(self._known)
        self._codec = Codec(Registry(stage.settings))
        self._producer = kafka.producer(stage.settings.kafka)
        self._topic = kafka.topic(stage.settings.kafka, kafka.CHANGES)

    def run(self, name: str, rate: int, seconds: float) -> list[float]:
        """Milliseconds from produce() to the commit of the profile's row, each event for another customer.

        Raises:
            Behind: a backlog built up.
        """
        warm, count = rate * WARM_UP_S, int(rate * (seconds + WARM_UP_S))
        started = time.perf_counter()
        for number in range(count):
            subject = self._known[number % len(self._known)]
            _sleep_until(started + number / rate)
            event = statement(name, number, subject)
            self._producer.produce(self._topic, key=event.customer_id.encode(), value=self._codec.encode_event(event))
            self._producer.poll(0)
        self._producer.flush(30)
        self._count += count
        wait_until(lambda: stored(self._stage) >= self._count, timeout_s=120, what="projection of the last event")
        if time.perf_counter() - started > count / rate + BEHIND_S:
            raise Behind
        found = visible_ms(self._stage, name, warm)
        if len(found) != count - warm:
            raise AssertionError(f"{len(found)} rows of {count - warm} events")
        return found


def statement(name: str, number: int, subject: str) -> ProfileStated:
    """What is said just now about a generated customer, who was told of otherwise before."""
    now = datetime.now(UTC)
    return ProfileStated(
        event_id=f"{name}-{number}", source="shop-br", subject=subject, occurred_at=now, captured_at=now, link_seq=1,
        customer_id=_generate.customer_id(int(subject.rpartition(":")[2])), name=f"Nova {name} {number}", city="Olinda",
    )  # fmt: skip


def visible_ms(stage: Stage, name: str, first: int) -> list[float]:
    """Milliseconds from the making of statements of this name to the commit of the profile's row, from number `first` on."""
    rows = stage.conn.execute(
        """SELECT extract(epoch FROM pg_xact_commit_timestamp(p.xmin) - s.captured_at)::float8 * 1000
           FROM live.profile_statements_parts s JOIN live.links l USING (subject) JOIN live.profiles p USING (customer_id)
           WHERE split_part(s.event_id, '-', 1) = %s AND split_part(s.event_id, '-', 2)::int >= %s""",
        (name, first),
    ).fetchall()
    return [row[0] for row in rows]


def stored(stage: Stage) -> int:
    row = stage.conn.execute("SELECT coalesce(sum(next_offset), 0)::bigint FROM live.offsets").fetchone()
    return int(row[0]) if row else 0


def _sleep_until(when: float) -> None:
    left = when - time.perf_counter()
    if left > 0:
        time.sleep(left)


class Delivering:
    """Signed deliveries through edge, both steps of a worker and API to a live stream, which follows the commit.

    Attributes:
        sent: when each was sent, by `time.perf_counter`.
        received: when its profile came.
    """

    def __init__(self, stage: Stage) -> None:
        self._secret = add_source(stage, "shop", "shopify")
        for role in ("edge", *ROLES, "api"):
            stage.start(role, CAUDAL_SECRET_SHOP=self._secret)
        self._edge, self._api = address(stage, "edge"), address(stage, "api")
        self._token, _ = access.create(stage.conn, "benchmark", [access.Scope.CHANGES_READ])
        self.sent: dict[str, float] = {}
        self.received: dict[str, float] = {}

    async def listen(self) -> asyncio.Task[None]:
        """Open the stream, and wait until a delivery comes through: the worker has joined its groups."""
        listening = asyncio.Event()
        listener = asyncio.create_task(_listen(self._api, self._token, self.received, listening))
        await asyncio.wait_for(listening.wait(), 60)
        await self.run("first", DELIVERY_RATES[-1], 0.1, patient=True)
        return listener

    async def run(self, name: str, rate: int, seconds: float, *, patient: bool = False) -> list[float]:
        """Milliseconds from sending a delivery to its profile's arrival, each for another customer.

        Raises:
            Behind: a backlog built up.
        """
        warm, count = rate * WARM_UP_S, int(rate * (seconds + WARM_UP_S))
        started = time.perf_counter()
        told = await self._send(name, rate, count, patient=patient)
        await self._pushed(told)
        if not patient and (len(told) < count or time.perf_counter() - started > count / rate + BEHIND_S):
            raise Behind
        return [(self.received[one] - self.sent[one]) * 1000 for one in told[warm:]]

    async def _pushed(self, names: Sequence[str]) -> None:
        deadline = time.perf_counter() + 120
        while missing := sum(name not in self.received for name in names):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{missing} of {len(names)} deliveries were not pushed within 120 s")
            await asyncio.sleep(0.1)

    async def _send(self, prefix: str, rate: int, count: int, *, patient: bool) -> list[str]:
        """Send at a steady rate over 16 connections, each taking the next due delivery; what was sent. Gives up at a large backlog."""
        parts = urlsplit(self._edge)
        before = len(self.received) - len(self.sent)
        started = time.perf_counter()
        turn = iter(range(count))
        told: list[str] = []

        async def sender() -> None:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            for number in turn:
                if not patient and len(self.sent) + before - len(self.received) > 2 * BEHIND_S * rate:
                    break
                due = started + number / rate
                if (left := due - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                name = f"{prefix}-{number}"
                body = _customer(name)
                signature = base64.b64encode(hmac.new(self._secret.encode(), body, hashlib.sha256).digest()).decode()
                told.append(name)
                self.sent[name] = time.perf_counter()
                writer.write(
                    f"POST /in/shop HTTP/1.1\r\nhost: {parts.netloc}\r\nx-shopify-topic: customers/create\r\n"
                    f"x-shopify-webhook-id: {name}\r\nx-shopify-hmac-sha256: {signature}\r\n"
                    f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 202 " not in head.split(b"\r\n", 1)[0]:
                    raise AssertionError(head.split(b"\r\n", 1)[0].decode())
                lengths = (h.split(b":")[1] for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
                await reader.readexactly(int(next(lengths)))
            writer.close()

        await asyncio.gather(*(sender() for _ in range(16)))
        return told


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


def _customer(name: str) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return orjson.dumps(
        {
            "id": 7_000_000_000_000 + crc32(name.encode()), "email": f"{name}@example.com", "first_name": name, "last_name": "Silva",
            "phone": None, "created_at": now, "updated_at": now, "state": "enabled", "tags": "news", "currency": "BRL",
            "verified_email": True,
            "default_address": {"city": "Recife", "province_code": "PE", "country_code": "BR", "zip": "50030-230", "address1": "Rua 1"},
        }
    )  # fmt: skip


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`project_latency_*`: event on customer.changes → row visible. `end_to_end_latency_*`: delivery sent → pushed to a listener."""
    seconds = SECONDS * scale
    with stage() as one:
        projecting = Projecting(one)
        event_rate, project = asyncio.run(_carried(EVENT_RATES, runs, seconds, _in_thread(projecting.run)))
    with stage() as one:
        delivery_rate, end = asyncio.run(_delivered(Delivering(one), runs, seconds))
    figures = []
    for name, rate, found in (("project", event_rate, project), ("end_to_end", delivery_rate, end)):
        for p in (50, 99):
            values = [percentile(run, p) for run in found]
            figures.append(figure(f"{name}_latency_p{p}_ms", "ms", values) | {"rate": rate})
    return figures


async def _delivered(delivering: Delivering, runs: int, seconds: float) -> tuple[int, list[list[float]]]:
    listener = await delivering.listen()
    try:
        return await _carried(DELIVERY_RATES, runs, seconds, delivering.run)
    finally:
        listener.cancel()


def _in_thread(run: Callable[[str, int, float], list[float]]) -> Callable[[str, int, float], Awaitable[list[float]]]:
    return lambda name, rate, seconds: asyncio.to_thread(run, name, rate, seconds)


async def _carried(
    rates: Sequence[int], runs: int, seconds: float, run: Callable[[str, int, float], Awaitable[list[float]]]
) -> tuple[int, list[list[float]]]:
    """The highest of the rates at which no backlog builds up in any run, and what was measured at it.

    Raises:
        RuntimeError: there is none.
    """
    for rate in rates:
        found: list[list[float]] = []
        try:
            while len(found) < runs:
                found.append(await run(f"told{rate}x{len(found)}", rate, seconds))
        except Behind:
            continue
        return rate, found
    raise RuntimeError(f"this machine can't carry {rates[-1]} a second")
