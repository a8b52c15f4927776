"""`caudal demo`: three systems send what they know about some people, and each person becomes one customer.

It runs the real thing: embedded servers in a home of its own, edge, worker and API as processes, the vendors' payloads over HTTP with
the vendors' signatures. Every run starts from nothing. What it claims at the end it has checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from filelock import FileLock, Timeout

from caudal import __version__, access, embedded, kafka, postgres, sources, standing
from caudal._demo_data import CRM, HELP, SHOP, SOURCES, Delivery, Person, deliveries, people, signed
from caudal.errors import Fatal
from caudal.projections import VIEWS, criteria
from caudal.projections.membership import definitions
from caudal.schemas import position
from caudal.schemas.codec import Codec, Registry
from caudal.settings import KafkaSettings, PostgresSettings, RegistrySettings, Settings
from caudal.supervisor import Supervisor, members

__all__ = ["Demo", "DemoFailed", "Moment", "Summary", "running"]

PEOPLE = 150
STEADY = 250
"""Deliveries that come one by one after the rush of all others: from these the latency is taken."""
STEADY_PER_S = 50
CONNECTIONS = 16
RESTARTS_MOST = 2
PROBE_EVERY = 2
"""One steady delivery in so many is followed until it can be read."""
START_S = 120.0
DRAIN_S = 180.0
_LOOK_S = 0.5


SEGMENTS = {
    "spenders": "spend > 500 BRL and orders_count >= 2",
    "bought-and-asked": "bought(within = 365d) and tickets_count >= 2",
}
"""Segments that the demo defines, and that move while it runs."""


class DemoFailed(Fatal):
    """The demo's own checks found something wrong."""

    code = "demo_failed"


@dataclass
class Moment:
    """Where everything stands while deliveries arrive; what the screen shows."""

    deliveries: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    captures: int = 0
    events: int = 0
    customers: int = 0
    views: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    latencies_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What came of it. `faults` says what isn't as it should be; nothing when all is well."""

    versions: dict[str, str]
    counts: dict[str, Any]
    latency_ms: dict[str, float]
    seconds: dict[str, float]
    deliveries_per_s: dict[str, int]
    person: dict[str, Any]
    metrics_from: dict[str, list[str]]
    faults: list[str]

    def as_json(self) -> dict[str, Any]:
        """One value with everything."""
        return {
            "ok": not self.faults,
            "versions": self.versions,
            "counts": self.counts,
            "latency_ms": self.latency_ms,
            "seconds": self.seconds,
            "deliveries_per_s": self.deliveries_per_s,
            "person": self.person,
            "metrics_from": self.metrics_from,
            "faults": self.faults,
        }


@contextlib.asynccontextmanager
async def running(configured: Settings, say: Callable[[str], None]) -> AsyncIterator[Demo]:
    """A demo whose servers and processes run; all of them end with the context.

    Args:
        configured: the user's settings; only ports and folders of them are used, never their servers or sources.
        say: is told in a few words what is being waited for.

    Raises:
        Fatal: another demo runs in the same home.
        EmbeddedServerFailed: a server can't be started.
    """
    home = configured.home / "demo"
    home.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.parent / "demo.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Fatal("a demo is running here already", hint="stop it, or set CAUDAL_HOME to another folder") from None
    settings = _isolated(configured, home)
    try:
        embedded.down(settings)  # left by a demo that was killed
        shutil.rmtree(home, ignore_errors=True)
        # the broker lives for minutes: its optimising compiler would take more of two cores than it gives back
        os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
        ready = await asyncio.to_thread(embedded.ensure, settings, say)
        keys = {name: secrets.token_hex(16) for name in SOURCES}
        for name, connector in SOURCES.items():
            sources.add(ready, sources.Source(name=name, connector=connector, secrets=(name,)))
            sources.store_secret(ready, name, keys[name])
        standing.prepare(ready)
        with postgres.connect(ready.postgres, role="demo") as connection:
            token, _ = access.create(connection, "demo", [scope.value for scope in access.Scope])
            drafts = [definitions.Draft(name, criteria.parse(text)) for name, text in SEGMENTS.items()]
            definitions.save(connection, drafts, "demo")
        tree = Supervisor(members(1), env=_environment(settings), log=home / "logs" / "caudal.out")
        try:
            tree.start()
            say("starting edge, worker and API")
            versions = {str(server.name): server.version for server in embedded.status(settings) if server.version}
            demo = Demo(ready, tree, keys, token, versions)
            try:
                await demo.start()
                yield demo
            finally:
                demo.close()
        finally:
            say("stopping")
            tree.stop()
    finally:
        embedded.down(settings)
        lock.release()


class Demo:
    """One run: `play` it, then ask for its `summary`. `moment` is kept up to date meanwhile."""

    def __init__(
        self, settings: Settings, tree: Supervisor, keys: dict[str, str], token: str, versions: dict[str, str]
    ) -> None:
        self.settings = settings
        self.token = token
        self.moment = Moment()
        self.edge = self.api = ""
        self._tree = tree
        self._keys = keys
        self._versions = versions
        self._people = people(PEOPLE)
        self._sent = 0
        self._reached: dict[str, dict[int, int]] = {}
        self._seconds: dict[str, float] = {}
        self._rates: dict[str, int] = {}
        self._connection = postgres.connect(settings.postgres, role="demo")
        self._admin = kafka.admin(settings.kafka)
        self._topics = [*standing.TOPICS, *(f"capture.{name}" for name in SOURCES)]

    @property
    def person(self) -> Person:
        """The one who stands in all three systems."""
        return self._people[0]

    async def start(self) -> None:
        """Wait until edge and API answer.

        Raises:
            DemoFailed: they don't in time.
        """
        self.edge = await self._address("edge")
        self.api = await self._address("api")
        async with _client() as client:
            for address in (self.edge, self.api):
                await self._until_ready(client, f"{address}/ready")

    def close(self) -> None:
        """Leave the servers, before they end."""
        self._connection.close()
        del self._admin  # it has no close, and complains when the broker goes first

    async def play(self) -> None:
        """Send everything, and wait until it can be read.

        Raises:
            DemoFailed: it can't in time, or a process fails for good.
        """
        made = await asyncio.to_thread(deliveries, self._people, datetime.now(UTC).replace(microsecond=0))
        looking = asyncio.create_task(self._look())
        try:
            async with _client() as client:
                await self._send(client, made.pop(), probe=True)  # waits for the worker to be there
                self.moment.latencies_ms.clear()
                rush, steady = made[:-STEADY], made[-STEADY:]
                started = time.perf_counter()
                await self._send_all(client, rush)
                self._seconds["rush_accepted"] = round(time.perf_counter() - started, 3)
                await self._read(client, position.encode(self._reached), DRAIN_S)
                self._seconds["rush_readable"] = round(time.perf_counter() - started, 3)
                await self._send_all(client, steady, per_s=STEADY_PER_S)
                await self._send_odd(client)
                await self._read(client, position.encode(self._reached), DRAIN_S)
                await self._until_judged()
                self._seconds["all_readable"] = round(time.perf_counter() - started, 3)
                self._rates = {
                    "accepted": round(len(rush) / self._seconds["rush_accepted"]),
                    "readable": round(len(rush) / self._seconds["rush_readable"]),
                }
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
        await asyncio.to_thread(self._observe)

    async def tend(self) -> None:
        """Keep the processes running, for ever.

        Raises:
            DemoFailed: one of them doesn't stay up.
        """
        while True:
            self._tree.check()
            for name, restarts in self._tree.restarts().items():
                if restarts > RESTARTS_MOST:
                    raise DemoFailed(f"{name} does not stay up", hint=self._log_hint())
            await asyncio.sleep(_LOOK_S)

    async def summary(self) -> Summary:
        """Count everything, and check what the demo claims."""
        async with _client() as client:
            found = await self._read(client, position.encode(self._reached), DRAIN_S)
            timeline: list[dict[str, Any]] = []
            if len(found) == 1:
                path = f"/customers/{found[0]['customer_id']}/timeline?limit=500&kinds=order,ticket"
                timeline = (await self._get(client, path))[1]["items"]
        # a deal is no order that counts
        counted = [item for item in timeline if item["data"].get("kind") != "deal"]
        origin = {kind: sorted({i["source"] for i in counted if i["kind"] == kind}) for kind in ("order", "ticket")}
        counts = await asyncio.to_thread(self._counts)
        latencies = sorted(self.moment.latencies_ms)
        return Summary(
            versions={"caudal": __version__, "python": platform.python_version(), **self._versions},
            counts=counts,
            latency_ms={
                "p50": round(latencies[len(latencies) // 2], 1),
                "p99": round(latencies[int(len(latencies) * 0.99)], 1),
                "samples": len(latencies),
            },
            seconds=self._seconds,
            deliveries_per_s=self._rates,
            person=found[0] if found else {},
            metrics_from=origin,
            faults=_faults(counts, found, origin, len(self._people), self._sent),
        )

    async def _send_all(self, client: aiohttp.ClientSession, made: list[Delivery], per_s: float | None = None) -> None:
        """Send as fast as the edge takes it, or `per_s` a second and then with probes."""
        started, free = time.perf_counter(), asyncio.Semaphore(CONNECTIONS)
        try:
            async with asyncio.TaskGroup() as group:
                for number, delivery in enumerate(made):
                    if per_s:
                        await asyncio.sleep(started + number / per_s - time.perf_counter())
                    await free.acquire()
                    probe = per_s is not None and number % PROBE_EVERY == 0
                    sending = group.create_task(self._send(client, delivery, probe=probe))
                    sending.add_done_callback(lambda _: free.release())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _send(self, client: aiohttp.ClientSession, delivery: Delivery, *, probe: bool) -> None:
        url = f"{self.edge}/in/{delivery.source}"
        headers = signed(delivery, self._keys[delivery.source], url, datetime.now(UTC))
        answer = await self._post(client, url, headers, delivery.body)
        if probe and answer is not None:
            accepted = time.perf_counter()
            await self._read(client, answer["token"], DRAIN_S, email=delivery.email)
            self.moment.latencies_ms.append((time.perf_counter() - accepted) * 1000)

    async def _send_odd(self, client: aiohttp.ClientSession) -> None:
        """A delivery whose signature is of another secret, and an authentic one that nobody can read."""
        url = f"{self.edge}/in/{SHOP}"
        headers = {"x-shopify-topic": "orders/create", "x-shopify-webhook-id": str(uuid.uuid4())}
        damaged = Delivery(SHOP, headers, b'{"id": 8209829, "line_items": [')
        now = datetime.now(UTC)
        await self._post(client, url, signed(damaged, "not the secret", url, now), damaged.body)
        await self._post(client, url, signed(damaged, self._keys[SHOP], url, now), damaged.body)

    async def _post(
        self, client: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes
    ) -> dict[str, Any] | None:
        """What the edge answers to a delivery that it takes; None for one that it refuses."""
        self._sent += 1
        async with client.post(url, headers=headers, data=body) as answer:
            self.moment.deliveries += 1
            if answer.status != HTTPStatus.ACCEPTED:
                self.moment.refused[str(answer.status)] += 1
                return None
            taken: dict[str, Any] = await answer.json(content_type=None)
        self.moment.accepted += 1
        self._reached = position.merge(self._reached, position.decode(taken["token"]))
        return taken

    async def _read(
        self, client: aiohttp.ClientSession, token: str, within_s: float, email: str = ""
    ) -> list[dict[str, Any]]:
        """The customers with an e-mail address (Maria's unless given), once the views reflect `token`."""
        deadline = time.monotonic() + within_s
        while True:
            asked = {"email": email or self.person.email, "min-token": token}
            status, answer = await self._get(client, "/customers", asked)
            if status == HTTPStatus.OK:
                customers: list[dict[str, Any]] = answer["customers"]
                return customers
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"what was accepted can't be read after {within_s:.0f} s: {answer.get('code')}",
                    hint=self._log_hint(),
                )

    async def _get(
        self, client: aiohttp.ClientSession, path: str, query: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and body of what the API answers."""
        headers = {"authorization": f"Bearer {self.token}"}
        async with client.get(f"{self.api}{path}", params=query, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def _until_judged(self) -> None:
        """Wait until the segments know everyone who was touched."""
        waiting = "SELECT (SELECT count(*) FROM hub.segment_touched) + (SELECT count(*) FROM hub.segments WHERE state <> 'live')"
        deadline = time.monotonic() + DRAIN_S
        while await asyncio.to_thread(self._count, waiting):
            await self._wait(deadline, "the segments are not kept up")

    async def _address(self, name: str) -> str:
        """Where a process says that it listens."""
        run_file, deadline = self.settings.home / "run" / f"{name}.json", time.monotonic() + START_S
        while not run_file.exists():
            await self._wait(deadline, f"the {name} does not start")
        found = json.loads(run_file.read_text())
        return f"http://{found['host']}:{found['port']}"

    async def _until_ready(self, client: aiohttp.ClientSession, url: str) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(url) as answer:
                    if answer.status == HTTPStatus.OK:
                        return
            await self._wait(deadline, f"{url} does not say that it is ready")

    async def _wait(self, deadline: float, complaint: str) -> None:
        self._tree.check()
        if time.monotonic() > deadline:
            raise DemoFailed(complaint, hint=self._log_hint())
        await asyncio.sleep(0.1)

    def _log_hint(self) -> str:
        return f"{self.settings.home / 'logs' / 'caudal.out'} may say why"

    async def _look(self) -> None:
        while True:
            await asyncio.to_thread(self._observe)
            await asyncio.sleep(_LOOK_S)

    def _observe(self) -> None:
        """Bring the moment up to date from Kafka and PostgreSQL."""
        ends = {
            topic: sum(partitions.values())
            for topic, partitions in kafka.end_offsets(self.settings.kafka, self._topics, self._admin).items()
        }
        moment = self.moment
        moment.captures = sum(ends.get(f"capture.{name}", 0) for name in SOURCES)
        moment.events = ends.get(kafka.CHANGES, 0)
        moment.changes = {topic: ends.get(topic, 0) for topic in (kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS)}
        moment.dead_letters = ends.get(kafka.DEAD_LETTERS, 0)
        moment.views = {view.name: self._count(f"SELECT count(*) FROM live.{view.name}") for view in VIEWS}
        for name in SEGMENTS:
            members = (
                "SELECT count(*) FROM hub.segment_memberships JOIN hub.segments ON id = segment_id WHERE name = %s"
            )
            moment.segments[name] = self._count(members, name)
        moment.customers = self._count("SELECT count(DISTINCT customer_id) FROM live.links")

    def _count(self, query: str, *values: str) -> int:
        if self._connection.execute("SELECT to_regclass('live.links') IS NULL").fetchone() == (True,):
            return 0  # the worker is just making the tables
        row = self._connection.execute(query, values or None).fetchone()
        return int(row[0]) if row else 0

    def _counts(self) -> dict[str, Any]:
        moment = self.moment
        subjects = self._count("SELECT count(*) FROM live.links")
        codes = Counter(value["code"] for _, value in self._records(kafka.DEAD_LETTERS))
        return {
            "deliveries": moment.deliveries,
            "refused": dict(moment.refused),
            "captures": moment.captures,
            "events": moment.events,
            "events_by_type": dict(sorted(Counter(kind for kind, _ in self._records(kafka.CHANGES)).items())),
            "subjects": subjects,
            "customers": moment.customers,
            "merged_subjects": subjects - moment.customers,
            "views": moment.views,
            "segments": moment.segments,
            "change_messages": moment.changes,
            "dead_letters": dict(codes),
        }

    def _records(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Every record of a topic, decoded."""
        codec = Codec(Registry(self.settings))
        ends = kafka.end_offsets(self.settings.kafka, [kafka.topic(self.settings.kafka, name)])
        left = sum(sum(partitions.values()) for partitions in ends.values())
        consumer = kafka.consumer(self.settings.kafka, f"demo-{uuid.uuid4()}")
        try:
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic in ends for p in ends[topic]])
            found: list[tuple[str, dict[str, Any]]] = []
            while len(found) < left:
                found += [codec.decode(m.value() or b"") for m in consumer.consume(10_000, 1.0) if m.error() is None]
            return found
        finally:
            consumer.close()


def _client() -> aiohttp.ClientSession:
    # httpx, which the tests use, takes several times as long for a request: enough to drown what is measured
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))


def _faults(
    counts: dict[str, Any], found: list[dict[str, Any]], origin: dict[str, list[str]], persons: int, sent: int
) -> list[str]:
    """What isn't as the demo claims."""
    claims = {
        "every delivery but the unsigned one was accepted": counts["refused"] == {"401": 1}
        and counts["captures"] == sent - 1,
        "the damaged delivery, and nothing else, became a dead letter": counts["dead_letters"]
        == {"invalid_payload": 1},
        f"{persons} people are {persons} customers": counts["customers"] == persons,
        "some of them, not all, are in each defined segment": all(0 < n < persons for n in counts["segments"].values()),
        "Maria is one customer": len(found) == 1,
    }
    if len(found) == 1:
        maria = found[0]
        metrics = maria["metrics"] or {}
        claims |= {
            "all three systems know her": set(maria["sources"]) == set(SOURCES),
            "her orders come from Shopify": metrics.get("orders_count", 0) >= 1 and origin["order"] == [SHOP],
            "her tickets come from Zendesk": metrics.get("tickets_count", 0) >= 1 and origin["ticket"] == [HELP],
            "her deal in HubSpot is hers": any(s["subject"].startswith(f"{CRM}:deal:") for s in maria["subjects"]),
        }
    return [claim for claim, holds in claims.items() if not holds]


def _isolated(configured: Settings, home: Path) -> Settings:
    """The demo's own settings: embedded servers in its home, the configured ports where they are free."""
    edge, serving = configured.edge, configured.serving
    return configured.model_copy(
        update={
            "home": home,
            "config_file": home / "caudal.toml",
            "secrets_file": None,
            "kafka": KafkaSettings(),
            "postgres": PostgresSettings(),
            "registry": RegistrySettings(),
            "edge": edge.model_copy(update={"port": _free(edge.host, edge.port), "public_url": None}),
            "serving": serving.model_copy(update={"port": _free(serving.host, serving.port)}),
        }
    )


def _environment(settings: Settings) -> dict[str, str]:
    """What the demo's processes see: everything but settings of other servers, sources and secrets."""
    groups = ("KAFKA__", "POSTGRES__", "REGISTRY__", "SECRET", "EDGE__PUBLIC_URL")
    foreign = tuple(f"CAUDAL_{group}" for group in groups)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {
        "CAUDAL_HOME": str(settings.home),
        "CAUDAL_CONFIG_FILE": str(settings.config_file),
        "CAUDAL_EDGE__PORT": str(settings.edge.port),
        "CAUDAL_SERVING__PORT": str(settings.serving.port),
    }
    return {**kept, **own}


def _free(host: str, port: int) -> int:
    """The port, or 0 (any) when something listens there."""
    try:
        with socket.create_server((host, port)):
            return port
    except OSError:
        return 0
