"""Backlog drain: events waiting on customer.changes, through one worker into all facts, views and change topics.

The clock starts at the first offset seen stored (the events before it are not counted) and ends when all offsets are stored, every view
row is committed and every change message acknowledged (the outbox is empty).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from caudal.projections import LIVE, VIEWS, select_sql
from caudal.schemas import Event
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from caudal import kafka

__all__ = ["awaited", "check", "drained", "fill", "measure", "produce"]

EVENTS = 300_000
CUSTOMERS = 100_000
STALLED_S = 120.0


def fill(stage: Stage, events: Iterable[Event]) -> int:
    """Produce events to customer.changes; the number of them."""
    codec = Codec(Registry(stage.settings))
    topic = kafka.topic(stage.settings.kafka, kafka.CHANGES)
    return produce(stage, topic, ((e.customer_id.encode(), codec.encode_event(e)) for e in events))


def produce(stage: Stage, topic: str, messages: Iterable[tuple[bytes, bytes]]) -> int:
    """Produce keys and values to a topic (its full name); the number of them."""
    producer = kafka.producer(stage.settings.kafka, **{"linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    count = 0
    for batch in _batched({"key": key, "value": value} for key, value in messages):
        if producer.produce_batch(topic, batch) < len(batch):
            raise BufferError("events are made faster than Kafka takes them")
        producer.poll(0)
        count += len(batch)
    producer.flush(60)
    return count


def _batched(messages: Iterator[dict[str, Any]], size: int = 10_000) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for message in messages:
        batch.append(message)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def drained(stage: Stage, events: Iterable[Event]) -> float:
    """Events per second of one drain, checked: every view equals its SELECT over the facts."""
    count = fill(stage, events)
    stage.start("worker", CAUDAL_WORKER__WEB_PORT="0")
    first, last = awaited(stage, count)
    seconds = last - first[0]
    stage.stop()
    check(stage)
    return (count - first[1]) / seconds


def awaited(stage: Stage, count: int, *, begun: int = 0) -> tuple[tuple[float, int], float]:
    """Wait until `count` events are projected and published: the time and number of the first seen done after `begun`, and the time of
    the last.

    Raises:
        TimeoutError: for two minutes nothing was done.
    """
    first: tuple[float, int] | None = None
    moved, before = time.monotonic(), begun
    while True:
        done, waiting = _progress(stage)
        now = time.perf_counter()
        if first is None and done > begun:
            first = (now, done)
        if first is not None and done >= count and not waiting:
            return first, now
        if done > before:
            moved, before = time.monotonic(), done
        elif time.monotonic() - moved > STALLED_S:
            raise TimeoutError(f"the worker has projected {done} of {count} events, and goes no further")
        time.sleep(0.01)


def _progress(stage: Stage) -> tuple[int, int]:
    """Events whose offset is stored, and outbox rows not yet acknowledged."""
    row = stage.conn.execute(
        "SELECT coalesce(sum(next_offset), 0)::bigint, (SELECT count(*) FROM hub.outbox) FROM live.offsets"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def check(stage: Stage) -> None:
    for view in VIEWS:
        columns = ", ".join(view.columns)
        table = f"SELECT {columns} FROM {LIVE}.{view.name}"
        fresh = f"SELECT {columns} FROM ({select_sql(view, LIVE, '0')}) fresh"
        for one, other in ((table, fresh), (fresh, table)):
            row = stage.conn.execute(f"SELECT count(*) FROM (({one}) EXCEPT ALL ({other})) d").fetchone()  # type: ignore[arg-type]
            if row is None or row[0]:
                raise AssertionError(f"{view.name} differs from a rebuild in {row and row[0]} rows")


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`drain_events_per_s`: profiles, orders and tickets mixed; `drain_profiles_events_per_s`: profile statements only."""
    events, customers = int(EVENTS * scale), int(CUSTOMERS * scale)
    mixed, profiles = [], []
    for run in range(runs):
        with stage() as one:
            mixed.append(drained(one, _generate.events(events, customers, seed=run)))
        with stage() as one:
            profiles.append(drained(one, _generate.profile_events(events, customers, seed=run)))
    return [
        figure("drain_events_per_s", "events/s", mixed),
        figure("drain_profiles_events_per_s", "events/s", profiles),
    ]
