"""What the processes cost: processor time, which tells more than the clock on a busy machine, and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import psutil

from caudal import embedded
from caudal.settings import load

__all__ = ["Steps", "Watched", "held_mb", "processor_s", "servers", "stepped"]

M = TypeVar("M")
B = TypeVar("B")


def servers() -> dict[str, int]:
    """The embedded servers' process ids by name."""
    return {server.name: server.pid for server in embedded.status(load()) if server.pid}


def processor_s(pid: int | None = None) -> float:
    """Processor seconds that a process and its children have used, those that ended included; of this process unless given."""
    used = 0.0
    for root, times in _read(pid, psutil.Process.cpu_times):
        used += times.user + times.system
        if root:
            used += times.children_user + times.children_system
    return used


@dataclass
class Steps:
    """Seconds by the clock of preparing and of applying batches, and of processor time of this process and of PostgreSQL for both."""

    preparing: float = 0.0
    applying: float = 0.0
    own: float = 0.0
    postgres: float = 0.0


def stepped(batches: Iterable[M], prepare: Callable[[M], B], apply: Callable[[B], None]) -> Steps:
    """Prepare and apply batches one after the other; reading them isn't counted."""
    steps, database = Steps(), servers()["postgres"]
    before = processor_s(database)
    for messages in batches:
        started, mine = time.perf_counter(), time.process_time()
        batch = prepare(messages)
        prepared = time.perf_counter()
        apply(batch)
        steps.applying += time.perf_counter() - prepared
        steps.preparing += prepared - started
        steps.own += time.process_time() - mine
    steps.postgres = processor_s(database) - before
    return steps


class Watched:
    """Peak memory of processes by name, and their processor time, while they are watched.

    Memory is what a process holds by itself plus its share of what it shares with others, so that PostgreSQL's sessions don't count
    their buffers once each.
    """

    EVERY_S = 1.0

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.peak_mb = dict.fromkeys(pids, 0.0)
        self.processor_s = dict.fromkeys(pids, 0.0)

    def __enter__(self) -> Self:
        self._before = {name: processor_s(pid) for name, pid in self._pids.items()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take the values as they are now; call it before a watched process ends."""
        for name, pid in self._pids.items():
            try:
                self.processor_s[name] = max(self.processor_s[name], processor_s(pid) - self._before[name])
                self.peak_mb[name] = max(self.peak_mb[name], held_mb(pid))
            except psutil.Error:
                continue

    def _watch(self) -> None:
        while not self._done.wait(self.EVERY_S):
            self.look()


def held_mb(pid: int) -> float:
    """Megabytes that a process and its children hold by themselves, and their share of what they share with others."""
    # macOS has no pss
    held = sum(getattr(memory, "pss", memory.rss) for _, memory in _read(pid, psutil.Process.memory_full_info))
    return float(held / 2**20)


def _read(pid: int | None, read: Callable[[psutil.Process], Any]) -> Iterator[tuple[bool, Any]]:
    """What is read of a process, which is told by True, and of its children; those that just ended are left out."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            yield process is root, read(process)
        except psutil.Error:
            continue
