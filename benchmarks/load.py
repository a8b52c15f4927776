"""Load over time: half of the capacity for long, ten times that for a minute, a slow PostgreSQL, beside a reader that never reads.

Deliveries, each about another customer, go through edge, worker and API to a live stream. The capacity is measured first. Nothing may
be lost: every delivery that the edge took is pushed to the stream, and each view equals its SELECT at the end. Memory is what each
process holds by itself and its share of what it shares; its slope is that of a straight line through the second half of the long phase.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import orjson
import psutil
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks._machine import figure
from benchmarks._processes import held_mb, servers
from benchmarks._proxy import Loop, Proxy
from benchmarks._stage import Stage, add_source, address, stage
from benchmarks.drain import check
from benchmarks.latency import percentile
from caudal import access, postgres
from caudal.supervisor import ROLES

__all__ = ["measure"]

FIRST = 3_000
"""Deliveries, as fast as they are taken, that tell the capacity."""
LONG_S = 1_800.0
BURST_S = 60.0
TIMES = 10
SLOW_S = 60.0
SLOW_DELAY_S = 0.02
"""What each piece to and from PostgreSQL waits in the slow phase."""
CONNECTIONS = 64
SAMPLE_S = 5.0
DRAIN_S = 1_200.0
SETTLED_S = 10.0


@dataclass
class _Sent:
    """What became of the deliveries of one phase: when each was sent, by number, and what the edge said."""

    accepted: dict[int, float] = field(default_factory=dict)
    refused: int = 0
    seconds: float = 0.0


class _Traffic:
    """Deliveries, the stream that shows what became of them, and a stream that nobody reads."""

    def __init__(self, one: Stage) -> None:
        self._stage = one
        self._secret = add_source(one, "shop", "shopify")
        self._loop = Loop()
        self.proxy = Proxy(self._loop, int(conninfo_to_dict(postgres.dsn(one.settings.postgres))["port"]))
        for role in ("edge", "api"):
            one.start(role, CAUDAL_SECRET_SHOP=self._secret)
        self._steps = [one.start(role, CAUDAL_SECRET_SHOP=self._secret) for role in ROLES]
        self._edge, self._api = urlsplit(address(one, "edge")), urlsplit(address(one, "api"))
        self._token, _ = access.create(one.conn, "benchmark", [access.Scope.CHANGES_READ])
        self._numbers = itertools.count(1)
        self.received: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        self._silent = socket.create_connection((self._api.hostname, self._api.port))
        self._silent.sendall(
            f"GET /changes HTTP/1.1\r\nhost: {self._api.netloc}\r\nauthorization: Bearer {self._token}\r\n\r\n".encode()
        )
        ready = asyncio.Event()
        self._listening = asyncio.create_task(self._listen(ready))
        await asyncio.wait_for(ready.wait(), 60)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        self._silent.close()
        self.proxy.close()
        self._loop.close()

    async def behind_proxy(self) -> None:
        """Have the work done by a worker that reaches PostgreSQL through the proxy; until then the proxy costs nothing."""
        for step in self._steps:
            step.terminate()
            await asyncio.to_thread(step.wait, 60)
        dsn = make_conninfo(postgres.dsn(self._stage.settings.postgres), port=self.proxy.port)
        more = {"CAUDAL_SECRET_SHOP": self._secret, "CAUDAL_POSTGRES__DSN": dsn}
        self._steps = [self._stage.start(role, **more) for role in ROLES]
        await self.through(await self.send(count=200))

    async def send(self, *, count: int | None = None, rate: float = 0.0, seconds: float = 0.0) -> _Sent:
        """Send `count` as fast as they are taken, or `rate` a second for `seconds`; whoever is late sends at once."""
        sent, began = _Sent(), time.perf_counter()
        turns: Iterator[int] = iter(range(count if count is not None else int(rate * seconds)))

        async def sender() -> None:
            reader, writer = await asyncio.open_connection(self._edge.hostname, self._edge.port)
            for turn in turns:
                if rate and (left := began + turn / rate - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                if seconds and time.perf_counter() - began > seconds:
                    break  # more than the edge can take is not stored up here
                number = next(self._numbers)
                at = time.perf_counter()
                writer.write(self._request(number))
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = (h.split(b":")[1] for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
                await reader.readexactly(int(next(lengths)))
                if b" 202 " in head.split(b"\r\n", 1)[0]:
                    sent.accepted[number] = at
                else:
                    sent.refused += 1
            writer.close()

        await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
        sent.seconds = time.perf_counter() - began
        return sent

    async def through(self, sent: _Sent) -> float:
        """Wait until all of it was pushed; when the last was."""
        deadline = time.monotonic() + DRAIN_S
        while missing := sum(number not in self.received for number in sent.accepted):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{missing} of {len(sent.accepted)} deliveries were not pushed within {DRAIN_S:.0f} s"
                )
            if self._listening.done():
                self._listening.result()
            await asyncio.sleep(0.2)
        return max(self.received[number] for number in sent.accepted)

    def late_ms(self, sent: _Sent) -> list[float]:
        return [(self.received[number] - at) * 1000 for number, at in sent.accepted.items()]

    def _request(self, number: int) -> bytes:
        now = datetime.now(UTC).isoformat()
        body = orjson.dumps(
            {
                "id": 7_000_000_000_000 + number, "email": f"load{number}@example.com", "first_name": f"n{number}", "last_name": "Silva",
                "created_at": now, "updated_at": now, "state": "enabled", "tags": "news", "currency": "BRL", "verified_email": True,
                "default_address": {"city": "Recife", "province_code": "PE", "country_code": "BR", "zip": "50030-230"},
            }
        )  # fmt: skip
        signature = base64.b64encode(hmac.new(self._secret.encode(), body, hashlib.sha256).digest()).decode()
        head = (
            f"POST /in/shop HTTP/1.1\r\nhost: {self._edge.netloc}\r\nx-shopify-topic: customers/create\r\n"
            f"x-shopify-webhook-id: load-{number}\r\nx-shopify-hmac-sha256: {signature}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _listen(self, ready: asyncio.Event) -> None:
        url = f"{self._api.geturl()}/changes?topics=customer.profiles"
        headers = {"authorization": f"Bearer {self._token}"}
        async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", url, headers=headers) as answer:
            answer.raise_for_status()
            ready.set()
            pending = b""
            async for chunk in answer.aiter_raw():
                now = time.perf_counter()
                *blocks, pending = (pending + chunk).split(b"\n\n")
                for block in blocks:
                    if (at := block.find(b"data: {")) >= 0:
                        name = orjson.loads(block[at + 6 :].partition(b"\n")[0]).get("given_name")
                        if name is not None:
                            self.received.setdefault(int(name.removeprefix("n")), now)
        raise ConnectionError("the live stream ended")


async def _sampled(pids: dict[str, int], samples: list[tuple[float, dict[str, float]]]) -> None:
    while True:
        held = {}
        for name, pid in pids.items():
            try:
                held[name] = await asyncio.to_thread(held_mb, pid)
            except psutil.Error:
                continue
        samples.append((time.perf_counter(), held))
        await asyncio.sleep(SAMPLE_S)


def slopes(samples: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """MB an hour by which each process grew in the second half of the samples (least squares)."""
    later = samples[len(samples) // 2 :]
    found = {}
    for name in later[-1][1]:
        points = [(at, held[name]) for at, held in later if name in held]
        if len(points) >= 3:
            found[name] = statistics.linear_regression(*zip(*points, strict=True)).slope * 3600
    return found


async def _run(one: Stage, scale: float) -> list[dict[str, Any]]:
    traffic = _Traffic(one)
    samples: list[tuple[float, dict[str, float]]] = []
    figures: list[dict[str, Any]] = []

    def put(name: str, unit: str, value: float, **more: float) -> None:
        figures.append(figure(name, unit, [value]) | more)

    async with traffic:
        warm = await traffic.send(count=200)
        await traffic.through(warm)
        first = await traffic.send(count=FIRST)
        capacity = FIRST / (await traffic.through(first) - min(first.accepted.values()))
        put("load_capacity_per_s", "deliveries/s", capacity)
        _say(f"capacity {capacity:,.0f} deliveries/s; half of it for {LONG_S * scale:,.0f} s")
        rate = round(capacity / 2)

        sampling = asyncio.create_task(_sampled({**one.pids(), **servers()}, samples))
        long = await traffic.send(rate=rate, seconds=LONG_S * scale)
        await traffic.through(long)
        sampling.cancel()
        put("load_steady_per_s", "deliveries/s", len(long.accepted) / long.seconds)
        for p in (50, 99):
            put(f"load_steady_latency_p{p}_ms", "ms", percentile(traffic.late_ms(long), p), rate=rate)
        for name, slope in slopes(samples).items():
            put(f"load_memory_{name}_mb_per_hour", "MB/h", slope)
            put(f"load_memory_{name}_mb", "MB", samples[-1][1][name])

        for phase, offered, seconds, delay_s in (
            ("burst", rate * TIMES, BURST_S * min(scale * 4, 1), 0.0),
            ("slow_postgres", rate, SLOW_S * min(scale * 4, 1), SLOW_DELAY_S),
        ):
            _say(f"{phase.replace('_', ' ')}: {offered:,.0f} deliveries/s offered for {seconds:,.0f} s")
            if delay_s:
                await traffic.behind_proxy()
            traffic.proxy.slow(delay_s)
            sent = await traffic.send(rate=offered, seconds=seconds)
            traffic.proxy.slow(0.0)
            ended = time.perf_counter()
            recovered = await traffic.through(sent) - ended
            put(f"load_{phase}_accepted_per_s", "deliveries/s", len(sent.accepted) / sent.seconds, offered=offered)
            put(f"load_{phase}_refused", "deliveries", sent.refused)
            put(f"load_{phase}_recovery_s", "s", max(recovered, 0.0))
            after = await traffic.send(rate=rate, seconds=SETTLED_S)
            await traffic.through(after)
            put(f"load_after_{phase}_latency_p99_ms", "ms", percentile(traffic.late_ms(after), 99), rate=rate)
    _say("comparing every view with its SELECT")
    one.stop()
    check(one)
    return figures


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr)


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """One run, however many are asked for: it is long. `--scale 1` is 30 minutes of half the capacity."""
    del runs
    with stage() as one:
        return asyncio.run(_run(one, scale))
