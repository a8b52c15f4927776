"""The translate stage alone: captures already in memory to canonical events on `customer.changes`.

First decoding and translating (pure), then the rest of the step: identity in one transaction, events and links produced and
acknowledged, offsets stored. One process; a worker prepares one batch beside the rest of the one before.
"""

from __future__ import annotations

from typing import Any

from caudal.processors.translate import Translator
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import repeated
from benchmarks._processes import stepped
from benchmarks._stage import Stage, add_source, batches, stage
from benchmarks.drain import produce
from caudal import kafka
from caudal.worker import CAPTURES_MAX

__all__ = ["measure"]

CAPTURES = 20_000
EACH = 4
"""Captures of a customer, in the mean."""
SOURCE = "shop"


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Captures per second of translating alone and of the whole step, and processor time for each capture."""
    return repeated(runs, lambda run: _once(int(CAPTURES * scale), run))


def _once(count: int, seed: int) -> dict[str, float]:
    with stage() as one:
        add_source(one, SOURCE, "shopify")
        registry = Registry(one.settings)
        codec = Codec(registry)
        topic = kafka.capture_topic(one.settings.kafka, SOURCE)
        captures = _generate.captures(SOURCE, count, count // EACH, seed=seed)
        produce(one, topic, ((c["delivery_id"].encode(), codec.encode(topic, "Capture", c)) for c in captures))
        translator = Translator(one.settings, codec)
        try:
            return _translated(one, translator, topic, count)
        finally:
            translator.close()
            registry.close()


def _translated(one: Stage, translator: Translator, topic: str, count: int) -> dict[str, float]:
    translator.positions([(topic, partition) for partition in range(kafka.topics(one.settings.kafka)[topic])])
    steps = stepped(batches(one, topic, count, size=CAPTURES_MAX), translator.prepare, translator.apply)
    _check(one, count)
    return {
        "translate_prepare_captures_per_s": count / steps.preparing,
        "translate_apply_captures_per_s": count / steps.applying,
        "translate_whole_captures_per_s": count / (steps.preparing + steps.applying),
        "translate_worker_processor_us": steps.own / count * 1e6,
        "translate_postgres_processor_us": steps.postgres / count * 1e6,
    }


def _check(one: Stage, count: int) -> None:
    """Every capture gave its order, and no subject is without a link."""
    topic = kafka.topic(one.settings.kafka, kafka.CHANGES)
    stored = sum(kafka.end_offsets(one.settings.kafka, [topic])[topic].values())
    subjects = one.conn.execute("SELECT count(*) FROM hub.subjects").fetchone()
    if subjects is None or stored < count + subjects[0]:
        raise AssertionError(f"{stored} changes of {count} captures and {subjects} subjects")
