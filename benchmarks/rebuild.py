"""Full rebuild of facts and views from customer.changes: load, facts with their indexes, views, catch-up and comparison.

The clock starts with the replay and ends when everything is compared and only the swap is left. Beside it, on the same log:
PostgreSQL's COPY of the same rows alone, the live path that made the views which the rebuild is compared with, and single customers
rebuilt.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psutil
from caudal.projections.replay import open_replay
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from benchmarks.drain import drained
from benchmarks.latency import percentile
from benchmarks.one_customer import EACH, times
from caudal import postgres

__all__ = ["measure"]

EVENTS = 50_000
"""So few that three runs end within minutes on a slow machine; `--scale 100` is a log worth the name."""
COPIED = ("profile_statements", "orders", "tickets", "links")


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`rebuild_events_per_s` and its stages, COPY alone, the live path's rate, `rebuild_one_customer_ms` (median), peak memory."""
    events = int(EVENTS * scale)
    found: dict[str, list[float]] = {}
    for run in range(runs):
        with stage() as one:
            found.setdefault("rebuild_live_path_events_per_s", []).append(
                drained(one, _generate.events(events, events // EACH, seed=run))
            )
            for name, value in _rebuilt(one, events).items():
                found.setdefault(name, []).append(value)
            found.setdefault("rebuild_one_customer_ms", []).append(percentile(times(one), 50))
    return [figure(name, _UNITS.get(name, "events/s"), values) for name, values in found.items()]


_UNITS = {
    "rebuild_copy_alone_rows_per_s": "rows/s",
    "rebuild_one_customer_ms": "ms",
    "rebuild_peak_memory_mb": "MB",
    "rebuild_swap_ms": "ms",
}


def _rebuilt(one: Stage, events: int) -> dict[str, float]:
    registry = Registry(one.settings)
    memory = _Memory()
    try:
        with open_replay(one.settings, Codec(registry), priorities={}) as replay, memory:
            began = time.perf_counter()
            built = replay.full()
            compared = time.perf_counter()
            if built.diff is None or built.diff["differences"]:
                raise AssertionError(f"the rebuild differs from the live views: {built.diff}")
            replay.swap(built.id)
            swapped = time.perf_counter()
    finally:
        registry.close()
    seconds: dict[str, float] = built.progress["seconds"]
    return {
        "rebuild_events_per_s": events / (compared - began),
        **{f"rebuild_{name}_events_per_s": events / took for name, took in seconds.items() if took > 0.01},
        "rebuild_copy_alone_rows_per_s": _copy_alone(one),
        "rebuild_swap_ms": (swapped - compared) * 1000,
        "rebuild_peak_memory_mb": memory.peak / 2**20,
    }


def _copy_alone(one: Stage) -> float:
    """Rows per second of COPY into unlogged tables without keys: the rows of the facts, read from a file on the server's disk."""
    rows, seconds = 0, 0.0
    with postgres.connect(one.settings.postgres, role="benchmark") as conn:
        for table in COPIED:
            with conn.cursor().copy(f"COPY live.{table} TO STDOUT (FORMAT BINARY)") as out:
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


class _Memory:
    """The most memory that this process and its children held together while it was watched."""

    peak = 0.0

    def __enter__(self) -> _Memory:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.1):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    if process is me or "multiprocessing" in " ".join(process.cmdline()):
                        held += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)
