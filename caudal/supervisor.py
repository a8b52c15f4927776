"""`caudal run`: edge, workers and API as one tree of processes that lives and dies together.

Each child is `caudal run --role ROLE` with the same environment. Its standard input is a pipe that the parent never writes to:
end of file there means that the parent is gone, however it went, and the child stops itself (`stop_with_parent`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from caudal.errors import BadSettings
from caudal.telemetry import Log, logger

__all__ = ["GRACE_S", "ROLES", "Supervisor", "members", "stop_with_parent"]

ROLES = ("translate", "project")
"""The steps of a worker, each an agent; see worker.py."""
GRACE_S = 15.0
"""How long a child may take to finish what it has in hand before it is killed."""
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
SETTLED_S = 60.0
"""A child that ran this long starts over at the shortest wait when it fails."""
CONFIGURATION_ERROR = 78
"""Exit status of a child that no restart can help (sysexits' EX_CONFIG)."""
_POLL_S = 0.1


def members(workers: int) -> list[tuple[str, ...]]:
    """Names of the children of a whole tree, in the order of starting; those of one group start and stop together.

    A worker is two processes, one for each of its steps: in one, each step would wait for the other's interpreter.
    """
    steps = tuple(f"{step}-{n + 1}" for n in range(workers) for step in ROLES)
    return [("edge",), steps, ("api",)]


def command(name: str) -> list[str]:
    """The command line of the child `name`."""
    role = name.partition("-")[0]
    return [sys.executable, "-m", "caudal.cli", "run", "--role", role, "--supervised-as", name]


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = BACKOFF_FIRST_S
    restart_at: float | None = None
    restarts: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Starts the groups in order, restarts a child that ends, stops the groups in reverse order.

    Not for use from several threads at once.

    Args:
        groups: names of the children, see `members`.
        env: the children's environment; this process's own unless given.
        command: the command line of a child.
        log: file for what the children write; this process's standard output and error unless given.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        env: Mapping[str, str] | None = None,
        command: Callable[[str], list[str]] = command,
        log: Path | None = None,
    ) -> None:
        self._groups = [[_Child(name) for name in group] for group in groups]
        self._env = None if env is None else dict(env)
        self._command = command
        self._log = log
        self._lifeline = list(os.pipe())

    def start(self) -> None:
        """Start every child."""
        for child in self._children():
            self._spawn(child)

    def check(self) -> None:
        """Look after the children once: restart those that ended, after a wait that doubles with each failure.

        Raises:
            BadSettings: a child ended with a configuration error, which trying again can't mend.
        """
        now = time.monotonic()
        for child in self._children():
            if child.process is None or child.running:
                continue
            if child.restart_at is None:
                status = child.process.returncode
                logger().error(Log.PROCESS_FAILED, process=child.name, status=status)
                if status == CONFIGURATION_ERROR:
                    raise BadSettings(
                        f"{child.name} can't run as it is configured", hint="its own message stands above"
                    )
                if now - child.started >= SETTLED_S:
                    child.wait_s = BACKOFF_FIRST_S
                child.restart_at = now + child.wait_s
                child.wait_s = min(child.wait_s * 2, BACKOFF_MOST_S)
            elif now >= child.restart_at:
                child.restarts += 1
                logger().warning(Log.PROCESS_RESTARTED, process=child.name, restarts=child.restarts)
                self._spawn(child)

    def stop(self) -> None:
        """Ask the groups to end, in reverse order; kill what has not ended after `GRACE_S`."""
        for group in reversed(self._groups):
            for child in group:
                if child.running:
                    child.process.terminate()  # type: ignore[union-attr]  # running implies a process
            deadline = time.monotonic() + GRACE_S
            for child in group:
                self._await_end(child, deadline)
        self._close()

    def kill(self) -> None:
        """End every child at once."""
        for child in self._children():
            if child.running:
                child.process.kill()  # type: ignore[union-attr]  # running implies a process
        for child in self._children():
            if child.process is not None:
                child.process.wait()
        self._close()

    def run(self) -> None:
        """Start, look after and stop the tree: one interrupt or SIGTERM stops it, a second one kills the children.

        Raises:
            BadSettings: a child can't run as it is configured; the others have been stopped.
        """
        asked = threading.Event()

        def ask(_number: int, _frame: object) -> None:
            if asked.is_set():
                for child in self._children():
                    if child.process is not None:
                        child.process.kill()  # whoever waits for them goes on, and what else is to be stopped is stopped
            asked.set()

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.start()
            while not asked.wait(_POLL_S):
                self.check()
        finally:
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return {child.name: child.process.pid for child in self._children() if child.process and child.running}

    def restarts(self) -> dict[str, int]:
        """How often each child was started again."""
        return {child.name: child.restarts for child in self._children()}

    def _children(self) -> list[_Child]:
        return [child for group in self._groups for child in group]

    def _spawn(self, child: _Child) -> None:
        with self._log.open("ab") if self._log else nullcontext() as output:
            child.process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command(child.name),
                stdin=self._lifeline[0],
                stdout=output,
                stderr=output,
                env=self._env,
                start_new_session=True,  # the terminal's Ctrl-C reaches the parent only, which stops the children in order
            )
        child.started = time.monotonic()
        child.restart_at = None
        logger().info(Log.PROCESS_STARTED, process=child.name, pid=child.process.pid)

    def _await_end(self, child: _Child, deadline: float) -> None:
        if child.process is None:
            return
        try:
            child.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        logger().info(Log.PROCESS_STOPPED, process=child.name, status=child.process.returncode)

    def _close(self) -> None:
        while self._lifeline:
            os.close(self._lifeline.pop())


def stop_with_parent() -> None:
    """In a child: end with the parent. Asks for a graceful stop when standard input ends, and insists after `GRACE_S`."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
