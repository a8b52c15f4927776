"""Rebuild of one customer from the log: find its events, read them, project them, compare every row; connections are warm."""

from __future__ import annotations

import time
from typing import Any

from caudal.projections import Prover
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from benchmarks.drain import drained
from benchmarks.latency import percentile
from caudal import postgres

__all__ = ["measure", "times"]

EVENTS = 300_000
EACH = 10
"""Events of a customer."""
REBUILDS = 200
WARM_UP = 20


def times(one: Stage, number: int = REBUILDS) -> list[float]:
    """Milliseconds of rebuilds of random customers of a stage whose log is projected; each is checked to differ in nothing."""
    registry = Registry(one.settings)
    prover = Prover(one.settings, Codec(registry))
    taken = []
    try:
        with postgres.connect(one.settings.postgres, role="benchmark") as conn:
            customers = [customer for (customer,) in conn.execute(_RANDOM, (number + WARM_UP,)).fetchall()]
        for customer in customers:
            began = time.perf_counter()
            found = prover.rebuild(customer)
            taken.append((time.perf_counter() - began) * 1000)
            if found.differences:
                raise AssertionError(f"{customer} differs from the log in {len(found.differences)} rows")
    finally:
        prover.close()
        registry.close()
    return taken[WARM_UP:] or taken


_RANDOM = "SELECT customer_id::text FROM live.profiles ORDER BY random() LIMIT %s"


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`rebuild_one_customer_ms`: the median and the 95th percentile over random customers with about ten events each."""
    events = int(EVENTS * scale)
    medians, slow = [], []
    for run in range(runs):
        with stage() as one:
            drained(one, _generate.events(events, events // EACH, seed=run))
            taken = times(one)
            medians.append(percentile(taken, 50))
            slow.append(percentile(taken, 95))
    return [
        figure("rebuild_one_customer_ms", "ms", medians),
        figure("rebuild_one_customer_p95_ms", "ms", slow),
    ]
