"""How the work for an event grows: with the length of the log, the number of customers, the skew, the conditions of segments, and with
one worker or two; and what memory each process takes.

The first four are measured in one process without Kafka's or the publisher's share (see `project`), in processor time of that process
and of PostgreSQL, because the clock says little of a busy machine. The workers are real processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from caudal.projections import LIVE, Runner, select_sql
from caudal.projections.segments import SEGMENTS, segment_members
from caudal.schemas import Event
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._processes import Watched, processor_s, servers
from benchmarks._stage import Stage, stage, wait_until
from benchmarks.drain import awaited, fill, produce
from benchmarks.project import projected
from caudal import kafka

__all__ = ["joined", "measure"]

PIECE = 10_000
"""Events of one measurement."""
LENGTHS = 6
CUSTOMERS = (5_000, 20_000, 80_000)
SKEWS = (0.0, 0.8, 1.2)
CONDITIONS = (1, 8, 32, 64)
REPEATED = 5
BACKLOGS = ((20_000, 1), (80_000, 1), (80_000, 2))
"""Events waiting, and the workers that drain them."""


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Curves: figures of one name, each with its `x`."""
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for run in range(runs):
        for curve, x, values in _points(scale, run):
            point = found.setdefault((curve, x), {})
            for name, value in values.items():
                point.setdefault(name, []).append(value)
    return [
        figure(f"growth_by_{curve}_{name}", _UNITS[name.rpartition("_")[2]], values) | {"curve": curve, "x": x}
        for (curve, x), point in found.items()
        for name, values in point.items()
    ]


_UNITS = {"us": "µs", "mb": "MB", "s": "events/s"}
_Point = tuple[str, float, dict[str, float]]


def _points(scale: float, seed: int) -> Iterator[_Point]:
    piece = int(PIECE * scale)
    yield from _by_length(piece, seed)
    for customers in CUSTOMERS:
        yield "customers", int(customers * scale), _with_customers(int(customers * scale), piece, seed)
    for skew in SKEWS:
        with stage() as one, _Projecting(one) as projecting:
            yield "skew", skew, projecting.take(_generate.events(piece, 2 * piece, seed=seed, skew=skew))
    yield from _by_conditions(piece, seed)
    for events, workers in BACKLOGS:
        yield f"backlog_{workers}_workers", int(events * scale), _drained(int(events * scale), workers, seed)


class _Projecting:
    """A runner in this process, and how far it has come."""

    def __init__(self, one: Stage) -> None:
        self._one = one
        self._registry = Registry(one.settings)
        self._runner = Runner(one.settings, Codec(self._registry), feed=False)
        self._count = 0
        self.take(_generate.links(1_000))  # the first batch also loads code and makes plans

    def __enter__(self) -> _Projecting:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()
        self._registry.close()

    def take(self, events: Iterable[Event]) -> dict[str, float]:
        """Append events to the log and project them; microseconds of processor time for each."""
        skipped = self._count
        self._count += fill(self._one, events)
        used = projected(self._one, self._runner, self._count, after=skipped)
        return {
            "worker_us": used["project_worker_processor_us"],
            "postgres_us": used["project_postgres_processor_us"],
        }


def _by_length(piece: int, seed: int) -> Iterator[_Point]:
    """The same customers, again and again."""
    with stage() as one, _Projecting(one) as projecting:
        for n in range(1, LENGTHS + 1):
            yield "log_length", n * piece, projecting.take(_generate.events(piece, piece, seed=seed * LENGTHS + n))


def _with_customers(customers: int, piece: int, seed: int) -> dict[str, float]:
    """Events of random ones of so many customers, who are all known before."""
    with stage() as one, _Projecting(one) as projecting:
        projecting.take(_generate.links(customers))
        return projecting.take(_generate.events(piece, customers, seed=seed))


def _by_conditions(piece: int, seed: int) -> Iterator[_Point]:
    """PostgreSQL's work for a customer's memberships, by the number of conditions: the built-in ones, over and over."""
    with stage() as one, _Projecting(one) as projecting:
        projecting.take(_generate.events(piece, piece // 2, seed=seed))
        one.conn.execute("ANALYZE")
        row = one.conn.execute(f"SELECT count(*) FROM {LIVE}.profiles").fetchone()
        assert row is not None
        session = one.conn.info.backend_pid
        for conditions in CONDITIONS:
            columns = ", ".join(f"CASE WHEN {sql} THEN 's' END" for sql in islice(cycle(SEGMENTS.values()), conditions))
            head, _, tail = segment_members.select.partition("array_remove(ARRAY[")
            view = replace(
                segment_members, select=f"{head}array_remove(ARRAY[{columns}{tail[tail.index('], NULL)') :]}"
            )
            before = processor_s(session)
            for _ in range(REPEATED):
                one.conn.execute(f"SELECT count(*) FROM ({select_sql(view, LIVE, '0')}) m")  # type: ignore[arg-type]
            used = (processor_s(session) - before) / REPEATED
            yield "conditions", conditions, {"postgres_us": used / row[0] * 1e6}


def _drained(events: int, workers: int, seed: int) -> dict[str, float]:
    """A backlog through workers that wait for it: rate, processor time of each event, and peak memory."""
    with stage() as one:
        codec = Codec(Registry(one.settings))
        made = [
            (e.customer_id.encode(), codec.encode_event(e)) for e in _generate.events(events, events // 3, seed=seed)
        ]
        for _ in range(workers):
            one.start("worker", CAUDAL_WORKER__WEB_PORT="0")
        names = list(one.pids())
        joined(one, workers)
        with Watched({**one.pids(), **servers()}) as watched:
            produce(one, kafka.topic(one.settings.kafka, kafka.CHANGES), made)
            first, last = awaited(one, events)
            watched.look()
        us = {name: used / events * 1e6 for name, used in watched.processor_s.items()}
        return {
            "events_per_s": (events - first[1]) / (last - first[0]),
            "worker_us": sum(us[name] for name in names),
            "postgres_us": us["postgres"],
            "kafka_us": us["kafka"],
            "worker_mb": max(watched.peak_mb[name] for name in names),
            "postgres_mb": watched.peak_mb["postgres"],
            "kafka_mb": watched.peak_mb["kafka"],
        }


def joined(one: Stage, workers: int) -> float:
    """Wait until so many workers have partitions of the log; the time of the last look at which they had none."""
    admin = kafka.admin(one.settings.kafka)
    group = kafka.topic(one.settings.kafka, "caudal.project")
    looked: list[float] = []

    def assigned() -> bool:
        looked.append(time.time())
        described = admin.describe_consumer_groups([group])[group].result()
        return sum(bool(member.assignment.topic_partitions) for member in described.members) >= workers

    wait_until(assigned, timeout_s=120, what=f"group of {workers} workers", every_s=0.05)
    return looked[-2] if len(looked) > 1 else looked[-1]
