"""What every figure has to be read beside: the machine and the versions; and how a figure is made of runs."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from caudal import embedded
from caudal.settings import load

__all__ = ["calibration", "figure", "machine", "repeated"]


def machine() -> dict[str, Any]:
    """When, of which commit, on what: processor count, memory, speed, load, and the versions of what was measured."""
    servers = {s.name: s.version for s in embedded.status(load())}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "calibration_s": calibration(),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "caudal": version("caudal"),
        "confluent_kafka": version("confluent-kafka"),
        "pyarrow": version("pyarrow"),
        "servers": servers,
    }


def _commit() -> str | None:
    """The commit that was measured, with a + when files differ from it; None outside of a clone."""
    root = Path(__file__).parents[1]
    try:
        said = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def calibration() -> float:
    """Seconds for a fixed piece of plain Python: how fast the machine was just then (0.06 to 0.12 where the targets were set)."""
    started = time.perf_counter()
    total = 0
    for number in range(3_000_000):
        total += number
    return round(time.perf_counter() - started, 3)


def figure(name: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """min, median and max of the runs."""
    return {
        "name": name,
        "unit": unit,
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


_UNITS = {"ms": "ms", "mb": "MB", "us": "µs", "ratio": "times"}


def repeated(runs: int, once: Callable[[int], Mapping[str, float]]) -> list[dict[str, Any]]:
    """The figures of `runs` runs of `once`, which gets the run's number and gives values by name. A name ends in its unit:
    `<things>_per_s`, `ms`, `mb`, `us` (microseconds) or `ratio`.
    """
    found: dict[str, list[float]] = {}
    for run in range(runs):
        for name, value in once(run).items():
            found.setdefault(name, []).append(value)
    return [figure(name, _unit(name), values) for name, values in found.items()]


def _unit(name: str) -> str:
    if name.endswith("_per_s"):
        return f"{name.removesuffix('_per_s').rpartition('_')[2]}/s"
    return _UNITS[name.rpartition("_")[2]]
