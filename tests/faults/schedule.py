"""Which faults happen in the run of a seed, in which order, and at what progress."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import psycopg
from confluent_kafka import OFFSET_END, KafkaException, TopicPartition
from stack import SECRET, SESSION_MS, WORKERS, Stack, Stuck, backend_worker, until
from watchers import NOISE

from caudal import kafka
from caudal._demo_data import CRM, SOURCES, Delivery, signed
from caudal.errors import BrokerUnavailable, CaudalError

_WEIGHTS = {
    "kill worker": 6,
    "kill edge": 3,
    "kill api": 2,
    "pause worker": 3,
    "pause edge": 2,
    "pause api": 2,
    "expire session": 3,
    "zombie": 4,
    "cut postgres": 4,
    "cut kafka": 4,
    "slow postgres": 2,
    "slow kafka": 2,
    "hold postgres": 2,
    "hold kafka": 2,
    "kill postgres": 2,
    "kill a session of postgres": 1,
    "pause postgres": 2,
    "kill kafka": 2,
    "pause kafka": 1,
    "fill postgres": 1,
    "fill kafka": 1,
    "make captures again": 2,
    "truncate captures": 2,
    "oversize a profile": 2,
}
LOSING = frozenset({"make captures again", "truncate captures"})
"""Faults that destroy records: nothing may be on its way then of which somebody was told that it is stored."""
JUNK = 5


@dataclass(frozen=True)
class Fault:
    """Something that breaks when so many deliveries are acknowledged, or so many changes published since the seed began."""

    kind: str
    target: str
    seconds: float
    measure: str
    after: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} ({self.target}){lasting} after {self.after} {self.measure}"


def draw(seed: int, deliveries: int) -> list[Fault]:
    """The faults of a seed, in the order of their happening."""
    chance = random.Random(f"faults {seed}")
    number = chance.choice((1, 2, 2, 3))
    kinds = chance.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()), k=number)
    progress = sorted(chance.uniform(0.05, 0.95) for _ in kinds)
    return [_fault(chance, kind, part, deliveries) for kind, part in zip(kinds, progress, strict=True)]


def _fault(chance: random.Random, kind: str, part: float, deliveries: int) -> Fault:
    verb, _, named = kind.partition(" ")
    target = {
        "worker": chance.choice(WORKERS),
        "session": chance.choice(WORKERS),
        "postgres": chance.choice((*WORKERS, "api")) if verb in {"cut", "slow", "hold"} else "postgres",
        "a session of postgres": "postgres",
        "captures again": chance.choice(tuple(SOURCES)),
        "captures": chance.choice(tuple(SOURCES)),
        "a profile": CRM,
        "": chance.choice(WORKERS),
    }.get(named, named)
    lasting = {
        "pause": (0.2, 1.2),
        "slow": (0.5, 2.0),
        "hold": (0.3, 1.5),
        "fill": (0.5, 2.0),
        "expire": (1.3, 1.8),
    }.get(verb)
    seconds = chance.uniform(*lasting) if lasting else 0.0
    if verb == "expire":
        seconds *= SESSION_MS / 1000
    measure = chance.choice(("acknowledged", "acknowledged", "published"))
    return Fault(kind, target, round(seconds, 2), measure, int(part * deliveries))


def strike(stack: Stack, fault: Fault) -> None:
    """Let it happen. What lasts goes on by itself; `stack.settle` waits for its end."""
    _ACTS[fault.kind](stack, fault)


def _zombie(stack: Stack, _fault: Fault) -> None:
    """Stop a worker in the middle of a batch, let the other take over, and let it go on."""
    with stack.connect() as holder, stack.connect() as looking:
        holder.execute("BEGIN")
        holder.execute("SET LOCAL lock_timeout = '5s'")
        holder.execute("LOCK TABLE live.profiles IN SHARE MODE")
        pid = holder.info.backend_pid
        victim: list[str] = []

        def waiting() -> bool:
            rows = looking.execute(
                "SELECT client_port FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", (pid,)
            )
            victim.extend(name for (port,) in rows.fetchall() if (name := backend_worker(stack, port)))
            return bool(victim)

        try:
            until(waiting, "batch", 2)
        except Stuck:  # nothing is projected just now: any worker will do
            victim.append(WORKERS[0])
        with stack.paused(victim[0]):
            holder.execute("ROLLBACK")
            ends = until(lambda: _ends(stack), "answer of Kafka")
            until(lambda: _projected(looking, ends), "takeover from a worker that stands still in a batch", 60)


def _ends(stack: Stack) -> dict[int, int]:
    with contextlib.suppress(BrokerUnavailable):
        return kafka.end_offsets(stack.settings.kafka, [kafka.CHANGES])[kafka.CHANGES]
    return {}


def _projected(looking: psycopg.Connection[Any], ends: dict[int, int]) -> bool:
    """Whether all that lay before `ends` is in the views."""
    done: dict[int, int] = dict(looking.execute("SELECT partition, next_offset FROM live.offsets").fetchall())
    return all(done.get(partition, 0) >= end for partition, end in ends.items())


def _make_again(stack: Stack, fault: Fault) -> None:
    """Delete a topic; the edge makes another under its name."""
    until(
        lambda: _served(lambda: kafka.delete_topics(stack.settings.kafka, [f"capture.{fault.target}"])),
        "deletion of a topic",
    )


def _truncate(stack: Stack, fault: Fault) -> None:
    """Have records deleted that nobody has read; they say nothing. That they are gone is counted."""
    topic = f"capture.{fault.target}"
    partitions = range(stack.settings.kafka.partitions)
    before = until(lambda: _unread(stack, topic), "answer of PostgreSQL")[0]
    with stack.paused("worker-1"), stack.paused("translate-2"):
        producer = kafka.producer(stack.settings.kafka)
        for partition in partitions:
            for _ in range(JUNK):
                producer.produce(topic, NOISE, partition=partition)
        until(lambda: not producer.flush(1), "acknowledgement")
        client = kafka.admin(stack.settings.kafka)
        places = [TopicPartition(topic, partition, OFFSET_END) for partition in partitions]
        until(
            lambda: _served(lambda: [done.result() for done in client.delete_records(places).values()]),
            "deletion of records",
        )
    gone = before + JUNK * len(partitions)
    until(lambda: (_unread(stack, topic) or (0,))[0] == gone, "word of records that were deleted unread")


def _unread(stack: Stack, topic: str) -> tuple[int] | None:
    with contextlib.suppress(psycopg.Error, CaudalError), stack.connect() as conn:
        row = conn.execute("SELECT unread FROM hub.logs WHERE topic = %s", (topic,)).fetchone()
        return row or (0,)
    return None


def _oversize(stack: Stack, fault: Fault) -> None:
    """Somebody whose profile is larger than its topic takes, though none of the things that are said of them is."""
    contact = 9_000_000_000 + fault.after
    for part in range(4):
        chance = random.Random(f"{part} {contact}")
        notices = [
            {
                "eventId": contact + 100 * part + number, "subscriptionId": 7, "portalId": 33, "attemptNumber": 0,
                "subscriptionType": "contact.propertyChange", "occurredAt": 1_770_000_000_000, "objectId": contact,
                "propertyName": f"essay_{part}_{number}", "propertyValue": base64.b64encode(chance.randbytes(24_000)).decode(),
            }
            for number in range(12)
        ]  # fmt: skip
        delivery = Delivery(CRM, {"content-type": "application/json"}, orjson.dumps(notices))
        url = f"{stack.edge}/in/{CRM}"

        def taken(delivery: Delivery = delivery, url: str = url) -> bool:
            with contextlib.suppress(httpx.HTTPError):
                headers = signed(delivery, SECRET, url, datetime.now(UTC))
                return httpx.post(url, content=delivery.body, headers=headers, timeout=10).status_code == 202
            return False

        until(taken, "delivery of a large property")


def _served(act: Callable[[], object]) -> bool:
    """Whether Kafka did it."""
    with contextlib.suppress(CaudalError, KafkaException):
        act()
        return True
    return False


def _slow(stack: Stack, target: str, seconds: float, delay_s: float) -> None:
    proxy = stack.proxy(target)
    proxy.slow(delay_s)
    stack.later(seconds, lambda: proxy.slow(0))


def _hold(stack: Stack, target: str, seconds: float) -> None:
    """The connections carry nothing, and then they are gone."""
    proxy = stack.proxy(target)
    proxy.hold(seconds)
    stack.later(seconds, proxy.cut)


_ACTS: dict[str, Callable[[Stack, Fault], None]] = {
    **{f"kill {name}": lambda stack, fault: stack.kill(fault.target) for name in ("worker", "edge", "api")},
    **{
        f"pause {name}": lambda stack, fault: stack.pause(fault.target, fault.seconds)
        for name in ("worker", "edge", "api")
    },
    "expire session": lambda stack, fault: stack.pause(fault.target, fault.seconds),
    "zombie": _zombie,
    "cut postgres": lambda stack, fault: stack.proxy(fault.target).cut(),
    "cut kafka": lambda stack, _: stack.proxy("kafka").cut(),
    "slow postgres": lambda stack, fault: _slow(stack, fault.target, fault.seconds, 0.02),
    "slow kafka": lambda stack, fault: _slow(stack, "kafka", fault.seconds, 0.05),
    "hold postgres": lambda stack, fault: _hold(stack, fault.target, fault.seconds),
    "hold kafka": lambda stack, fault: _hold(stack, "kafka", fault.seconds),
    "fill postgres": lambda stack, fault: stack.fill("postgres", fault.seconds),
    "fill kafka": lambda stack, fault: stack.fill("kafka", fault.seconds),
    "kill postgres": lambda stack, _: stack.kill_server("postgres"),
    "kill a session of postgres": lambda stack, _: stack.kill_backend(),
    "pause postgres": lambda stack, fault: stack.pause_server("postgres", fault.seconds),
    "kill kafka": lambda stack, _: stack.kill_server("kafka"),
    "make captures again": _make_again,
    "truncate captures": _truncate,
    "oversize a profile": _oversize,
    "pause kafka": lambda stack, fault: stack.pause_server("kafka", fault.seconds),
}
