"""The publish stage alone: changed rows of profiles and metrics, encoded by the column, produced with acks=all and acknowledged."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import orjson
from caudal.projections import LIVE, Runner
from caudal.projections._publish import Change, Publisher
from caudal.projections._schema import VIEWS
from caudal.projections._sql import read
from caudal.schemas.codec import Codec, Registry
from psycopg.types.json import set_json_loads

from benchmarks import _generate
from benchmarks._machine import repeated
from benchmarks._stage import Stage, stage
from benchmarks.drain import fill
from benchmarks.project import projected
from caudal import kafka

__all__ = ["measure"]

EVENTS = 60_000
CUSTOMERS = 30_000
BATCH = 10_000
"""Rows given at once: about what a batch of 20,000 events changes in a view."""


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Messages per second onto `customer.profiles` and `customer.metrics`, and this process's processor time for each."""
    return repeated(runs, lambda run: _once(scale, run))


def _once(scale: float, seed: int) -> dict[str, float]:
    events = int(EVENTS * scale)
    with stage() as one:
        registry = Registry(one.settings)
        codec = Codec(registry)
        fill(one, _generate.events(events, int(CUSTOMERS * scale), seed=seed))
        runner = Runner(one.settings, codec, feed=False)
        publisher = Publisher(one.settings.kafka, codec, session_ms=one.settings.worker.session_timeout_ms)
        try:
            projected(one, runner, events)
            found: dict[str, float] = {}
            for topic in (kafka.PROFILES, kafka.METRICS):
                found |= _published(one, publisher, topic)
            return found
        finally:
            publisher.close()
            runner.close()
            registry.close()


def _published(one: Stage, publisher: Publisher, topic: str) -> dict[str, float]:
    view = next(view for view in VIEWS if view.topic == topic)
    set_json_loads(orjson.loads, one.conn)
    customers = [row[0] for row in one.conn.execute(f"SELECT customer_id FROM {LIVE}.{view.name}")]
    parts = []
    for first in range(0, len(customers), BATCH):
        with one.conn.cursor(binary=True) as cur:
            parts.append(cur.execute(read(view, LIVE), (1, customers[first : first + BATCH])).fetchall())
    started, mine = time.perf_counter(), time.process_time()
    for rows in parts:
        publisher.publish([Change(view, None, partial(list, rows))], made=time.monotonic())
    publisher.confirmed(wait_s=60)
    seconds, used = time.perf_counter() - started, time.process_time() - mine
    stored = sum(kafka.end_offsets(one.settings.kafka, [kafka.topic(one.settings.kafka, topic)]).popitem()[1].values())
    if stored != len(customers):
        raise AssertionError(f"{stored} messages on {topic} of {len(customers)} rows")
    return {
        f"publish_{view.name}_messages_per_s": len(customers) / seconds,
        f"publish_{view.name}_processor_us": used / len(customers) * 1e6,
    }
