"""Full rebuild of facts and views from customer.changes: load, facts with their indexes, views, catch-up and comparison.

The clock starts with the replay, a process of its own, and ends when everything is compared and only the swap is left. Beside it, on the
same log: PostgreSQL's COPY of the same rows alone, reading and decoding alone, the live path, single customers rebuilt, and how long an
event takes to become visible while another rebuild runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from caudal.projections import LIVE
from caudal.projections._batch import decoded, encoded
from caudal.projections._schema import FACTS
from caudal.projections.replay import Build, Replay
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate, _long_log
from benchmarks._machine import repeated
from benchmarks._processes import Watched, servers
from benchmarks._stage import Stage, batches, stage, wait_until
from benchmarks.drain import drained, fill, produce
from benchmarks.latency import percentile, statement, stored, visible_ms
from benchmarks.one_customer import EACH, times
from caudal import kafka, postgres
from caudal.settings import Settings
from caudal.telemetry import configure_logging

__all__ = ["measure"]

EVENTS = 250_000
"""So few that three runs end within minutes on a slow machine; `--scale 20` is a log worth the name."""
BY_LIVE_PATH = 250_000
"""The live views are made by the live path, and the rebuild proves them. It would take a longer log too long: beyond so many events
they are made by a first rebuild.
"""
COPIED = ("profile_statements", "orders", "tickets", "links")
COPIED_ROWS = 100_000
"""At most, of each table."""
DECODED = 200_000
CHUNK = 50_000
RATE = 200
"""Events a second that come during a rebuild."""
WARM_UP = 2 * RATE


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`rebuild_events_per_s`, its stages, what they cost and hold; COPY and decoding alone; the live path's rate, also during a rebuild;
    `rebuild_one_customer_ms` (median).
    """
    return repeated(runs, lambda run: _once(int(EVENTS * scale), seed=run))


def _once(events: int, *, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    customers = events // EACH
    by_live_path = min(events, BY_LIVE_PATH)
    with stage() as one:
        found["rebuild_live_path_events_per_s"] = drained(one, _generate.events(by_live_path, customers, seed=seed))
        if by_live_path < events:
            with _process() as pool:  # what they hold goes with them
                pool.submit(_lengthen, one.settings, by_live_path, events, customers).result()
            one.conn.execute(f"DROP SCHEMA {LIVE} CASCADE")
            with _process() as pool:
                pool.submit(_build_live, one.settings).result()
        one.conn.execute("CHECKPOINT")
        found |= _rebuilt(one, events)
        found["rebuild_copy_alone_rows_per_s"] = _copy_alone(one)
        found["rebuild_decode_alone_events_per_s"] = _decode_alone(one, min(events, DECODED))
        found["rebuild_one_customer_ms"] = percentile(times(one), 50)
        found |= _beside(one)
    return found


@contextmanager
def _process() -> Iterator[ProcessPoolExecutor]:
    """A process that holds nothing of this one's."""
    with ProcessPoolExecutor(1, get_context("spawn"), configure_logging, ("warning",)) as pool:
        yield pool


def _up() -> int:
    """Its id, when it has imported what this module needs."""
    return os.getpid()


def _lengthen(settings: Settings, begin: int, end: int, customers: int) -> None:
    """Go on with the log."""
    registry = Registry(settings)
    one = Stage(settings, settings.home)
    topic = kafka.topic(settings.kafka, kafka.CHANGES)
    produce(one, topic, _long_log.messages(settings, Codec(registry), begin, end, customers))
    one.conn.close()
    registry.close()


def _build_live(settings: Settings) -> None:
    """The live views, by a build."""
    registry = Registry(settings)
    Build(settings, Codec(registry), schema=LIVE).run()
    registry.close()


def _replay(settings: Settings, *, swap: bool) -> dict[str, Any]:
    """Rebuild, and swap in what was built; seconds of both, and by stage."""
    registry = Registry(settings)
    try:
        with Replay.opened(settings, Codec(registry), priorities={}) as replay:
            began = time.perf_counter()
            built = replay.full()
            compared = time.perf_counter()
            if built.diff is None or (swap and built.diff["differences"]):
                raise AssertionError(f"the rebuild differs from the live views: {built.diff}")
            if swap:
                replay.swap(built.id)
            swapped = time.perf_counter()
    finally:
        registry.close()
    return {"seconds": compared - began, "swap_s": swapped - compared, "stages": built.progress["seconds"]}


def _rebuilt(one: Stage, events: int) -> dict[str, float]:
    with _process() as pool:
        of = servers()
        pids = {"replay": pool.submit(_up).result(), "postgres": of["postgres"], "kafka": of["kafka"]}
        with Watched(pids) as watched:
            told = pool.submit(_replay, one.settings, swap=True).result()
    return {
        "rebuild_events_per_s": events / told["seconds"],
        **{f"rebuild_{name}_events_per_s": events / took for name, took in told["stages"].items() if took > 0.01},
        "rebuild_other_ms": 1000 * (told["seconds"] - sum(told["stages"].values())),
        "rebuild_swap_ms": 1000 * told["swap_s"],
        "rebuild_peak_memory_mb": watched.peak_mb["replay"],
        **{f"rebuild_{name}_processor_us": 1e6 * used / events for name, used in watched.processor_s.items()},
    }


def _copy_alone(one: Stage) -> float:
    """Rows per second of COPY into unlogged tables without keys, of rows of the facts that this process holds ready."""
    rows, seconds = 0, 0.0
    with postgres.connect(one.settings.postgres, role="benchmark") as conn:
        for table in COPIED:
            with conn.cursor().copy(
                f"COPY (SELECT * FROM live.{table} LIMIT {COPIED_ROWS}) TO STDOUT (FORMAT BINARY)"
            ) as out:
                data = [bytes(block) for block in out]
            conn.execute(f"CREATE UNLOGGED TABLE public.copied AS SELECT * FROM live.{table} LIMIT 0")
            began = time.perf_counter()
            with conn.cursor() as cur:
                with cur.copy("COPY public.copied FROM STDIN (FORMAT BINARY)") as into:
                    for block in data:
                        into.write(block)
                rows += cur.rowcount
            seconds += time.perf_counter() - began
            conn.execute("DROP TABLE public.copied")
    return rows / seconds


def _decode_alone(one: Stage, events: int) -> float:
    """Events per second of reading, decoding and encoding for COPY, in one thread and without PostgreSQL."""
    registry = Registry(one.settings)
    codec = Codec(registry)
    began = time.perf_counter()
    for messages in batches(one, kafka.topic(one.settings.kafka, kafka.CHANGES), events, size=CHUNK):
        _, tables = decoded(codec, messages)
        for fact in FACTS:
            for rows in tables.rows.get(fact.name, ()):
                encoded(fact, rows)
    took = time.perf_counter() - began
    registry.close()
    return events / took


def _beside(one: Stage) -> dict[str, float]:
    """How long events take to become visible that come at a steady rate while a rebuild runs."""
    one.start("worker", CAUDAL_WORKER__WEB_PORT="0")
    known = [
        row[0] for row in one.conn.execute("SELECT subject FROM live.profile_statements WHERE stated >= 0").fetchall()
    ]
    random.Random(7).shuffle(known)
    registry = Registry(one.settings)
    before = stored(one)
    with _process() as pool:
        fill(one, [statement("first", 0, known.pop())])
        wait_until(lambda: stored(one) > before, timeout_s=120, what="projection of the first event")
        pool.submit(_up).result()
        sent = _sent(one, Codec(registry), known, pool.submit(_replay, one.settings, swap=False))
    wait_until(lambda: stored(one) > before + sent, timeout_s=120, what="projection of the last event")
    one.stop()
    registry.close()
    found = visible_ms(one, "beside", WARM_UP)
    return {f"rebuild_beside_latency_p{p}_ms": percentile(found, p) for p in (50, 99)}


def _sent(one: Stage, codec: Codec, subjects: list[str], rebuild: Future[Any]) -> int:
    """Produce events, each about another of the subjects, until the rebuild ends; how many."""
    producer = kafka.producer(one.settings.kafka)
    topic = kafka.topic(one.settings.kafka, kafka.CHANGES)
    began, sent = time.perf_counter(), 0
    for number, subject in enumerate(subjects):
        if rebuild.done():
            break
        time.sleep(max(began + number / RATE - time.perf_counter(), 0))
        event = statement("beside", number, subject)
        producer.produce(topic, key=event.customer_id.encode(), value=codec.encode_event(event))
        producer.poll(0)
        sent += 1
    producer.flush(30)
    rebuild.result()
    return sent
