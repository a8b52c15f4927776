"""Background processes that outlive their starter: found again, never mistaken for another's, stopped for good."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from caudal._embedded import _private
from caudal.errors import EmbeddedServerFailed
from caudal.settings import PREFIX
from caudal.stopping import held_back

__all__ = ["Run", "Server", "ServerName", "await_ready", "find", "launch", "running", "spawn", "stop"]

ServerName = Literal["kafka", "postgres", "registry"]
HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0  # recovery after a crash counts in; a healthy start takes 1 to 4 s
GRACE_S = 30.0
_COMPLAINT = re.compile(r"\b(ERROR|FATAL|PANIC)\b|(Error|Exception)\b")
_LAUNCHER = '"$@" >&2 & echo $!'
"""The shell leaves at once, so that the server is no child of ours: no zombie when it dies, nothing to wait for."""


@dataclass(frozen=True)
class Run:
    """What is written down of a started server, in `home/run/<name>.json`."""

    pid: int
    port: int
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Server:
    """One server of one home folder.

    `marker` is a whole argument of its command line that no other process has: a process is ours if and only if it has
    it. A pid alone proves nothing, the system may have given it to another. `prepare` readies everything for a port, which
    may take long, and gives what starts the process at once and tells its pid.
    """

    name: ServerName
    title: str
    home: Path
    marker: str
    port: int
    port_setting: str
    logs: tuple[Path, ...]
    prepare: Callable[[int], Callable[[], int]]
    answers: Callable[[Run], bool]
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGKILL)
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_file(self) -> Path:
        return self.home / "run" / f"{self.name}.json"


def spawn(command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, **options: Any) -> int:
    """Start a process of its own session with its output in `log`; returns its pid. What it writes is its account's alone.

    Without `env` it gets our environment but for Caudal's settings and secrets, which are none of its business.
    """
    if env is None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "ab") as output:
        launcher = subprocess.run(  # noqa: S603 - the callers' own commands
            ["/bin/sh", "-c", _LAUNCHER, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=env,
            umask=_private.UMASK,
            start_new_session=True,
            check=True,
            **options,
        )
    return int(launcher.stdout)


def is_marked(pid: int, marker: str) -> bool:
    """Whether `pid` is alive and was started with `marker`."""
    try:
        return marker in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def find(marker: str) -> list[int]:
    """Every living process that was started with `marker`."""
    return [pid for pid in psutil.pids() if is_marked(pid, marker)]


def recorded(server: Server) -> Run | None:
    """What the run file says, whether or not it still holds."""
    try:
        return Run(**json.loads(server.run_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def running(server: Server) -> Run | None:
    """The server's process, if it is alive and truly ours."""
    run = recorded(server)
    return run if run is not None and is_marked(run.pid, server.marker) else None


def launch(server: Server) -> Run:
    """Start the server's process and write it down; `await_ready` says when it answers.

    Raises:
        EmbeddedServerFailed: the fixed port is taken, or the command can't be run.
    """
    stop(server, find(server.marker))  # started by someone who was killed before writing it down
    last = recorded(server)
    if last is not None:
        _await_end([last.pid])
    port = _choose_port(server, last.port if last else 0)
    start = server.prepare(port)
    with held_back():  # a process in the middle of its birth can't be found
        run = Run(start(), port, dict(server.details))
        temporary = server.run_file.with_suffix(".new")
        _private.write(temporary, json.dumps(asdict(run)))
        temporary.replace(server.run_file)
    return run


def await_ready(server: Server, run: Run, timeout_s: float = START_TIMEOUT_S) -> Run:
    """Return as soon as the server really answers.

    A free port may be lost to another program before the server takes it, so one that ended is started again, on
    another port.

    Raises:
        EmbeddedServerFailed: it ended, or gave no answer in time.
    """
    starts = 1 if server.port else 4
    deadline = time.monotonic() + timeout_s
    while not (port_taken(run.port) and server.answers(run)):
        if not is_marked(run.pid, server.marker) and not _is_beginning(run.pid):
            starts -= 1
            if not starts:
                raise EmbeddedServerFailed(
                    f"{server.title} ended while starting: {_last_words(server)}", hint=_see(server)
                )
            run = launch(server)
        if time.monotonic() > deadline:
            raise EmbeddedServerFailed(
                f"{server.title} (pid {run.pid}) gave no answer on {HOST}:{run.port} for {timeout_s:.0f} s",
                hint=_see(server),
            )
        time.sleep(0.02)
    return run


def stop(server: Server, pids: Sequence[int]) -> None:
    """End these processes of `server`: asked first, killed when they don't listen.

    Raises:
        EmbeddedServerFailed: one can't be killed.
    """
    left = set(pids)
    for sent in server.stop_signals:
        for pid in left:
            if is_marked(pid, server.marker):
                os.kill(pid, sent)
        deadline = time.monotonic() + GRACE_S
        while left := {pid for pid in left if is_marked(pid, server.marker)}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        if not left:
            _await_end(pids)
            return
    raise EmbeddedServerFailed(f"{server.title} (pid {min(left)}) can't be stopped")


def _await_end(pids: Sequence[int]) -> None:
    """Wait for processes that have lost their memory, command line included, but not yet their port and file locks."""
    deadline = time.monotonic() + 10
    while any(map(_is_ending, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_beginning(pid: int) -> bool:
    """Whether the process is just becoming the server: for a moment of exec it has no command line."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and not process.cmdline()
    except psutil.Error:
        return False


def _is_ending(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return process.num_threads() > 1  # its first thread is done, others still hold the files
        return not process.cmdline()
    except psutil.Error:
        return False


def port_taken(port: int) -> bool:
    """Whether something listens on the port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def free_port(preferred: int = 0) -> int:
    """`preferred` if it can be listened on, else a free port that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a closed one may linger
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EmbeddedServerFailed("this machine has no free port")


def _choose_port(server: Server, last: int) -> int:
    if not server.port:
        return free_port(last)  # the last one first, so that who is connected finds it again
    if free_port(server.port) != server.port:
        raise EmbeddedServerFailed(
            f"{server.title} can't listen on port {server.port}: another program has it",
            hint=f"stop that program, or set {server.port_setting} to another port or 0",
        )
    return server.port


def _last_words(server: Server) -> str:
    """The latest complaint in the server's logs."""
    lines: list[str] = []
    for log in server.logs:
        if log.exists():
            lines += log.read_text(errors="replace").splitlines()[-200:]
    words = [line for line in lines if _COMPLAINT.search(line)] or [line for line in lines if line.strip()]
    return words[-1].strip()[:400] if words else "it said nothing"


def _see(server: Server) -> str:
    return f"its logs: {', '.join(map(str, server.logs))}"
