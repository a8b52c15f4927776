"""Which of Caudal's processes are alive in a home folder, and where they listen: `run/<name>.json`, one for each.

A second process of a name (an edge on another port) has a file of its own, `run/<name>-2.json`. A file whose process is gone counts for
nothing: the pid alone would prove nothing, the system may have given it to another, so it is told with the moment of its start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import psutil
from filelock import FileLock

from caudal.errors import BadSettings

__all__ = ["Present", "alive", "announced", "forget", "killed"]

_SAME_S = 60.0
"""A process's start is told by the machine's clock, which may be set meanwhile."""


@dataclass(frozen=True)
class Present:
    """One living process; host and port where it listens."""

    name: str
    pid: int
    started: float
    host: str | None = None
    port: int | None = None
    details: dict[str, str] = field(default_factory=dict)


@contextmanager
def announced(
    home: Path, name: str, *, host: str | None = None, port: int | None = None, details: dict[str, str] | None = None
) -> Iterator[None]:
    """Stand in the home's list while the block runs.

    Raises:
        BadSettings: nothing can be written in the home folder.
    """
    me = Present(name, os.getpid(), psutil.Process().create_time(), host, port, details or {})
    folder = home / "run"
    lock = FileLock(folder / "processes.lock")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock:
            file = next(file for file in _files(folder, name) if _read(file) is None)
            part = file.with_suffix(f".{os.getpid()}.part")  # whoever waits for the file reads all of it
            part.write_text(json.dumps(asdict(me)))
            part.replace(file)
    except OSError as exc:
        raise BadSettings(f"the home folder {home} can't be used: {exc.strerror}", hint="CAUDAL_HOME") from exc
    try:
        yield
    finally:
        with suppress(OSError), lock:  # a folder that was removed meanwhile
            if json.loads(file.read_text())["pid"] == me.pid:
                file.unlink()


def alive(home: Path) -> list[Present]:
    """The processes that are alive, by name."""
    found = [_read(file) for file in sorted((home / "run").glob("*.json"))]
    return [present for present in found if present is not None]


def killed(home: Path, name: str) -> list[Present]:
    """Processes of that name that ended without leaving the list."""
    found = [_told(file) for file in (home / "run").glob("*.json")]
    return [one for one in found if one is not None and one.name == name and not _lives(one)]


def forget(home: Path, name: str) -> None:
    """Take from the list who has ended without leaving it."""
    for file in (home / "run").glob(f"{name}*.json"):
        told = _told(file)
        if told is not None and told.name == name and not _lives(told):
            file.unlink(missing_ok=True)


def _files(folder: Path, name: str) -> Iterator[Path]:
    return (folder / f"{name}{f'-{number}' if number > 1 else ''}.json" for number in count(1))


def _read(file: Path) -> Present | None:
    """Who wrote the file; None when that process is gone, or the file is another's (a server's) or damaged."""
    told = _told(file)
    return told if told is not None and _lives(told) else None


def _told(file: Path) -> Present | None:
    try:
        return Present(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _lives(told: Present) -> bool:
    try:
        return abs(psutil.Process(told.pid).create_time() - told.started) < _SAME_S
    except psutil.Error:
        return False
