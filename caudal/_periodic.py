"""What a worker does now and then beside the data path: in a thread of its own, whatever goes wrong is told and tried again."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from datetime import UTC, datetime

from caudal.errors import CaudalError
from caudal.telemetry import Log, Seldom, logger

__all__ = ["Periodic", "Stopped"]


class Stopped(Exception):
    """The worker ends."""


class Periodic(ABC):
    """A thread that looks now and then whether there is something to do."""

    step: str
    """Its name in log lines."""
    every_s: float
    """How long it waits before each look; before the first as well, for a worker has a log to catch up with at its start."""
    ends_within_s = 30.0
    """How long `stop` waits for what is under way; what isn't done by then ends with the process."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._told = Seldom()
        self._thread = threading.Thread(target=self._run, name=self.step, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End, once what is under way is done."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.ends_within_s)

    def rest(self, seconds: float) -> None:
        """Wait in the middle of the work.

        Raises:
            Stopped: the worker ends; let it through.
        """
        if self._stop.wait(seconds):
            raise Stopped

    @abstractmethod
    def look(self, now: datetime) -> object:
        """Do what is due, if anything is."""

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look(datetime.now(UTC))
            except Stopped:
                return
            except CaudalError as exc:
                self._told.warning(Log.PROCESS_FAILED, process="worker", step=self.step, code=exc.code)
            except Exception as exc:
                logger().exception(Log.PROCESS_FAILED, process="worker", step=self.step, error=type(exc).__name__)
