"""Lines that libraries write by Python's `logging`, made like ours, and few."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from caudal.telemetry import Log

__all__ = ["write_lines"]


def write_lines(renderer: Any, labels: Mapping[str, str]) -> None:
    """Write them to standard error from now on, warnings and errors; `renderer` makes a line of a dictionary, `labels` stand in each."""
    root = logging.getLogger()
    for before in [handler for handler in root.handlers if isinstance(handler, _Libraries)]:
        root.removeHandler(before)
    root.addHandler(_Libraries(renderer, labels))
    root.setLevel(logging.WARNING)


class _Bounded(logging.Filter):
    """Lets through of each place in the code, and each level, the first line and then `MOST` a minute: in an outage a library's clients
    repeat themselves many times a second.
    """

    MOST = 3

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, int, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; `more_since_last` is put into it when some before it weren't."""
        key = record.name, record.levelno, record.lineno
        since, unsaid = self._told.get(key, (-60.0, 0))
        if record.created - since < 60 / self.MOST:
            self._told[key] = since, unsaid + 1
            return False
        self._told[key] = record.created, 0
        record.more_since_last = unsaid
        return True


class _Libraries(logging.Handler):
    """Writes a library's line as ours are: `library.logged`, with the logger's name and its text."""

    def __init__(self, renderer: Any, labels: Mapping[str, str]) -> None:
        super().__init__()
        self.addFilter(_Bounded())
        self._renderer = renderer
        self._labels = labels

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        event: dict[str, Any] = {
            "event": Log.LIBRARY_LOGGED,
            **self._labels,
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            event["error"] = record.exc_info[0].__name__
        if unsaid := getattr(record, "more_since_last", 0):
            event["more_since_last"] = unsaid
        print(
            self._renderer(None, "", {**event, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}),
            file=sys.stderr,
        )
