"""Latency at several rates, as histograms: event → row visible, and delivery sent → row pushed to a listener; with each process's memory.

What is timed, and when a rate counts as carried, is as in `latency`. The rates rise until one isn't carried.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks._machine import figure
from benchmarks._processes import Watched, servers
from benchmarks._stage import stage
from benchmarks.latency import Behind, Delivering, Projecting, percentile

__all__ = ["measure"]

EVENT_RATES = (50, 100, 250, 500, 1_000, 2_000)
DELIVERY_RATES = (25, 50, 100, 250, 500, 1_000)
SECONDS = 4
BOUNDS_MS = [round(2 ** (n / 2), 1) for n in range(27)]
"""Upper ends of the histogram's buckets, 1 ms to 8 s, each the square root of 2 times the one before; a last bucket has the rest."""


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`project_latency_p50_ms` … `end_to_end_latency_p99_ms` with `rate` and, in the 50th percentile's, `histogram`; `memory_*_mb`."""
    figures: list[dict[str, Any]] = []
    memory: dict[str, float] = {}
    with stage() as one:
        projecting = Projecting(one)

        async def project(name: str, rate: int, seconds: float) -> list[float]:
            return await asyncio.to_thread(projecting.run, name, rate, seconds)

        with Watched({**one.pids(), **servers()}) as watched:
            figures += asyncio.run(_rising("project", EVENT_RATES, runs, SECONDS * scale, project))
        memory |= watched.peak_mb
    with stage() as one:
        delivering = Delivering(one)
        with Watched({**one.pids(), **servers()}) as watched:
            figures += asyncio.run(_delivered(delivering, runs, SECONDS * scale))
        memory = {name: max(held, memory.get(name, 0)) for name, held in watched.peak_mb.items()}
    return figures + [figure(f"memory_{name}_mb", "MB", [held]) for name, held in memory.items()]


async def _delivered(delivering: Delivering, runs: int, seconds: float) -> list[dict[str, Any]]:
    listener = await delivering.listen()
    try:
        return await _rising("end_to_end", DELIVERY_RATES, runs, seconds, delivering.run)
    finally:
        listener.cancel()


async def _rising(
    name: str,
    rates: Sequence[int],
    runs: int,
    seconds: float,
    run: Callable[[str, int, float], Awaitable[list[float]]],
) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    for rate in rates:
        try:
            found = [await run(f"rising{rate}x{number}", rate, seconds) for number in range(runs)]
        except Behind:
            break
        for p in (50, 95, 99):
            values = [percentile(one, p) for one in found]
            figures.append(figure(f"{name}_latency_p{p}_ms", "ms", values) | {"rate": rate})
        figures[-3]["histogram"] = {"upper_ms": BOUNDS_MS, "counts": _histogram([ms for one in found for ms in one])}
    return figures


def _histogram(values: Sequence[float]) -> list[int]:
    counts = [0] * (len(BOUNDS_MS) + 1)
    for value in values:
        counts[bisect.bisect_left(BOUNDS_MS, value)] += 1
    return counts
