"""A worker killed with SIGKILL in the middle of a backlog, and started again, ends where an undisturbed one does."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from caudal.projections import LIVE, Runner, ensure_live
from caudal.projections.replay._log import Reader
from caudal.schemas.codec import Codec, Registry
from logs import TABLES, clear, connect
from programs import environment, running
from replays import holding, until

from benchmarks import _generate
from caudal import kafka
from caudal.settings import Settings

EVENTS = 20_000
CUSTOMERS = 6_000


@contextmanager
def worker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose batches are so small that a kill falls between and into them."""
    env = environment(settings, CAUDAL_WORKER__BATCH_MAX_EVENTS="1000")
    with running(["run", "--role", "worker"], env, settings.config_file.with_name("worker.log")) as process:
        yield process
        process.kill()  # how it ends when it is asked to is tested elsewhere; here it would wait for members of its group that are dead


def fill(settings: Settings) -> int:
    registry = Registry(settings)
    codec = Codec(registry)
    producer = kafka.producer(settings.kafka, **{"linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    topic = kafka.topic(settings.kafka, kafka.CHANGES)
    messages = [
        {"key": event.customer_id.encode(), "value": codec.encode_event(event)}
        for event in _generate.events(EVENTS, CUSTOMERS, skew=0.6)
    ]
    producer.produce_batch(topic, messages)
    assert producer.flush(60) == 0
    registry.close()
    return len(messages)


def projected(conn: psycopg.Connection[Any], settings: Settings) -> int:
    row = conn.execute("SELECT coalesce(sum(next_offset), 0)::bigint FROM live.offsets").fetchone()
    return int(row[0]) if row else 0


def reach(conn: psycopg.Connection[Any], settings: Settings, count: int, *, timeout_s: float = 180) -> None:
    """Wait until so many events are projected and, at the end, everything is published."""
    deadline = time.monotonic() + timeout_s
    while projected(conn, settings) < count or (count == EVENTS and outbox(conn)):
        assert time.monotonic() < deadline, (
            f"{projected(conn, settings)} of {count} events projected, {outbox(conn)} outbox rows"
        )
        time.sleep(0.02)


def outbox(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM hub.outbox").fetchone()
    return int(row[0]) if row else 0


def digests(conn: psycopg.Connection[Any]) -> dict[str, str]:
    found = {}
    for name in TABLES:
        digest = hashlib.sha256()
        for (row,) in conn.execute(f'SELECT t::text FROM {LIVE}.{name} t ORDER BY t::text COLLATE "C"'):
            digest.update(row.encode() + b"\n")
        found[name] = digest.hexdigest()
    return found


def newest_profiles(settings: Settings, codec: Codec) -> dict[str, tuple[int, str | None]]:
    """Customer → version and e-mail of the last message on customer.profiles; versions must rise."""
    consumer = kafka.consumer(settings.kafka, "tests", **{"auto.offset.reset": "earliest"})
    topic = kafka.topic(settings.kafka, kafka.PROFILES)
    left = sum(kafka.end_offsets(settings.kafka, [topic])[topic].values())
    consumer.subscribe([topic])
    newest: dict[str, tuple[int, str | None]] = {}
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None or message.error() is not None:
            continue
        left -= 1
        value = codec.decode(message.value() or b"")[1]
        customer = value["customer_id"]
        assert customer not in newest or value["version"] >= newest[customer][0], "versions went back"
        newest[customer] = (value["version"], value["email"])
    consumer.close()
    assert not left
    return newest


@pytest.mark.timeout(900)  # three workers: minutes on a busy machine
def test_a_worker_killed_amid_20000_events_ends_where_an_undisturbed_one_does(settings: Settings) -> None:
    count = fill(settings)
    with connect(settings) as conn:
        ensure_live(conn)
        for stop_at, statement in ((2_000, "LOCK TABLE live.profiles IN SHARE MODE"), (5_000, "SELECT")):
            with worker(settings) as running:
                reach(conn, settings, stop_at)
                with holding(settings, statement) as reached:  # in the first one surely within a batch
                    until(lambda: statement == "SELECT" or reached(), "batch")  # noqa: B023 - asked in this turn only
                    running.kill()
                    running.wait()
            assert projected(conn, settings) < count, "it was killed too late to prove anything"
        with worker(settings):
            reach(conn, settings, count)
        disturbed = digests(conn)
        registry = Registry(settings)
        codec = Codec(registry)
        published = newest_profiles(settings, codec)
        live = dict(conn.execute("SELECT customer_id::text, email FROM live.profiles").fetchall())
        assert {customer: email for customer, (_, email) in published.items()} == live

        clear(conn)
        ends = kafka.end_offsets(settings.kafka, [topic := kafka.topic(settings.kafka, kafka.CHANGES)])[topic]
        with closing(Runner(settings, codec)) as runner:
            runner.positions(ends)
            reader = Reader(settings.kafka, topic, dict.fromkeys(ends, 0))
            for chunk in reader.upto(ends, most=5_000):
                runner.apply(runner.decode(chunk))
            reader.close()
        registry.close()
        assert digests(conn) == disturbed
