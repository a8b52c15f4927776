"""The project stage alone: events already in memory, decoded into columns, then written to facts and views and committed.

One process, no Kafka on the way, nothing published (see `publish`); a worker decodes one batch beside writing the one before.
"""

from __future__ import annotations

import time
from typing import Any

from caudal.projections import Runner
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import repeated
from benchmarks._processes import stepped
from benchmarks._stage import Stage, batches, stage
from benchmarks.drain import fill
from caudal import kafka

__all__ = ["measure", "projected"]

EVENTS = 60_000
EACH = 3
"""Events of a customer, in the mean."""
BATCH = 20_000
SMALL, SMALL_BATCHES = 10, 100


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Events per second of decoding and of writing, a batch of ten's milliseconds, and processor time for each event."""
    return repeated(runs, lambda run: _once(int(EVENTS * scale), run))


def _once(events: int, seed: int) -> dict[str, float]:
    with stage() as one:
        registry = Registry(one.settings)
        fill(one, _generate.events(events, events // EACH, seed=seed, skew=_generate.SKEW))
        runner = Runner(one.settings, Codec(registry), feed=False)
        try:
            found = projected(one, runner, events)
            fill(one, _generate.events(SMALL * SMALL_BATCHES, events // EACH, seed=seed + 1000, skew=_generate.SKEW))
            return found | _small(one, runner)
        finally:
            runner.close()
            registry.close()


def projected(one: Stage, runner: Runner, events: int, *, after: int = 0) -> dict[str, float]:
    """Project the first `events` of the stage's log, of which `after` are projected already."""
    topic = kafka.topic(one.settings.kafka, kafka.CHANGES)
    known = runner.positions(range(kafka.topics(one.settings.kafka)[topic]))
    done = events - after
    steps = stepped(batches(one, topic, done, size=BATCH, begin=known), runner.decode, runner.apply)
    return {
        "project_decode_events_per_s": done / steps.preparing,
        "project_apply_events_per_s": done / steps.applying,
        "project_worker_processor_us": steps.own / done * 1e6,
        "project_postgres_processor_us": steps.postgres / done * 1e6,
    }


def _small(one: Stage, runner: Runner) -> dict[str, float]:
    """Batches of ten, as they come when nothing waits."""
    topic = kafka.topic(one.settings.kafka, kafka.CHANGES)
    known = runner.positions(range(kafka.topics(one.settings.kafka)[topic]))
    taken = []
    for messages in batches(one, topic, SMALL * SMALL_BATCHES, size=SMALL, begin=known):
        started = time.perf_counter()
        runner.apply(runner.decode(messages))
        taken.append((time.perf_counter() - started) * 1000)
    return {"project_batch_of_10_ms": sorted(taken)[len(taken) // 2]}
