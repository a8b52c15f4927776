"""What the processes cost: processor time, which tells more than the clock on a busy machine, and memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Self

import psutil

from caudal import embedded
from caudal.settings import load

__all__ = ["Watched", "processor_s", "servers"]


def servers() -> dict[str, int]:
    """The embedded servers' process ids by name."""
    return {server.name: server.pid for server in embedded.status(load()) if server.pid}


def processor_s(pid: int | None = None) -> float:
    """Processor seconds that a process and its children have used, those that ended included; of this process unless given."""
    root = psutil.Process(pid)
    used = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used += times.user + times.system
        if process is root:
            used += times.children_user + times.children_system
    return used


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
                self.peak_mb[name] = max(self.peak_mb[name], _held(pid) / 2**20)
            except psutil.Error:
                continue

    def _watch(self) -> None:
        while not self._done.wait(self.EVERY_S):
            self.look()


def _held(pid: int) -> int:
    root = psutil.Process(pid)
    held = 0
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        held += getattr(memory, "pss", memory.rss)  # macOS has none
    return held
