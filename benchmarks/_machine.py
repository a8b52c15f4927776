"""What every figure has to be read beside: the machine and the versions; and how a figure is made of runs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import psutil

from caudal import embedded
from caudal.settings import load

__all__ = ["calibration", "figure", "machine"]


def machine() -> dict[str, Any]:
    """Processor count, memory, load and the versions of what was measured."""
    servers = {s.name: s.version for s in embedded.status(load())}
    return {
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
