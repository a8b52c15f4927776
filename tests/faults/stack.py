"""The whole of Caudal on servers of its own, every part of which may be killed, paused and cut off.

Two workers (one of them a process for each step), the edge and the API run as processes, each with a proxy before PostgreSQL; all of
them, and the servers' own clients, reach Kafka through one more. Timeouts are as short as the brokers allow, so that a dead process is
missed soon.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from caudal.projections import criteria
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import Draft
from nursery import Nursery
from programs import environment
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from benchmarks._proxy import Loop, Proxy
from caudal import access, embedded, postgres, sources, standing
from caudal import settings as caudal_settings
from caudal._demo_data import SOURCES
from caudal._embedded import _broker, _processes
from caudal.errors import EmbeddedServerFailed
from caudal.settings import Settings

PARTITIONS = 4
SESSION_MS = 2_000
WORKERS = ("worker-1", "translate-2", "project-2")
"""One whole in a process, one in a process for each step, as `caudal run` starts them."""
PROCESSES = ("edge", *WORKERS, "api")
SECRET = "hush"
_SHORT = {
    "broker.session.timeout.ms=5000": "broker.session.timeout.ms=2000",
    "broker.heartbeat.interval.ms=1000": "broker.heartbeat.interval.ms=400",
    "group.initial.rebalance.delay.ms=0": "group.initial.rebalance.delay.ms=0\ngroup.min.session.timeout.ms=1000",
}
PATIENCE_S = 120.0
DISK = 4 << 30
"""Room of each server, bytes; no more memory is taken than is used."""


class Stuck(AssertionError):
    """Something did not come about in time."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Stuck(f"no {what} within {seconds:.0f} s")
        time.sleep(0.05)
    return found


SEGMENTS = {
    "often": "bought(times >= 2) and orders_count >= 2",
    "in-need": "open_tickets_count >= 1 or returned()",
    "both": 'segment("often") and segment("in-need")',
}


class Stack:
    """Servers, proxies and processes. Whatever dies is started again by `tend`, as a supervisor would."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="caudal-faults-"))
        self.home.chmod(0o755)  # PostgreSQL is another user when we are root
        self._loop = Loop()
        self._nursery = Nursery()
        self._processes: dict[str, psutil.Process] = {}
        self._proxies: dict[str, Proxy] = {}
        self._timers: list[threading.Timer] = []
        self._lock = threading.Lock()
        self._quiet: set[str] = set()
        """What is not to be started again just now."""
        self.restarts = 0
        (self.home / "logs").mkdir()

    # ---- beginning and end

    def start(self) -> None:
        self._java = os.environ.get("JAVA_TOOL_OPTIONS")
        os.environ["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1"  # it lives too short for its optimising compiler
        ports = [_processes.free_port() for _ in range(2)]
        self.kafka = Proxy(self._loop, ports[0])
        properties = _broker._PROPERTIES.replace(
            "advertised.listeners=CLIENTS://127.0.0.1:{port}", f"advertised.listeners=CLIENTS://127.0.0.1:{self.kafka.port}"
        )  # fmt: skip
        for long, short in _SHORT.items():
            assert long in properties
            properties = properties.replace(long, short)
        self._properties, _broker._PROPERTIES = _broker._PROPERTIES, properties
        self._configured = caudal_settings.load(
            home=self.home,
            config_file=self.home / "caudal.toml",
            kafka={"partitions": PARTITIONS, "options": {"log_level": "0"}},  # that a broker is dead is no news here
            embedded={"kafka_port": ports[0], "postgres_port": ports[1], "kafka_heap_mb": 384},
        )
        self.disks = all([_mount(self.home / name) for name in ("kafka", "postgres")])
        self.settings = embedded.ensure(self._configured)
        for name, connector in SOURCES.items():
            sources.add(self.settings, sources.Source(name=name, connector=connector, secrets=(name,)))
            sources.store_secret(self.settings, name, SECRET)
        standing.prepare(self.settings)
        with self.connect() as conn:
            self.token, _ = access.create(conn, "faults", [scope.value for scope in access.Scope])
            definitions.save(conn, [Draft(name, criteria.parse(text)) for name, text in SEGMENTS.items()], "faults")
        self.edge, self.api = (f"http://127.0.0.1:{_processes.free_port()}" for _ in range(2))
        for name in PROCESSES:
            self._proxies[name] = Proxy(self._loop, ports[1])
            self.spawn(name)

    def stop(self) -> None:
        self.settle()
        with self._lock:
            self._quiet.update(PROCESSES)
        for process in self._processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # how they end when they are asked to is tested elsewhere
        psutil.wait_procs(self._processes.values(), timeout=30)
        self._nursery.close()
        embedded.down(self._configured)
        _broker._PROPERTIES = self._properties
        del os.environ["JAVA_TOOL_OPTIONS"]
        if self._java is not None:
            os.environ["JAVA_TOOL_OPTIONS"] = self._java
        for proxy in (self.kafka, *self._proxies.values()):
            proxy.close()
        self._loop.close()
        for name in ("kafka", "postgres"):
            if (self.home / name).is_mount():
                subprocess.run(["umount", self.home / name], check=True)
        shutil.rmtree(self.home, ignore_errors=True)

    # ---- Caudal's processes

    def spawn(self, name: str) -> None:
        dsn = make_conninfo(postgres.dsn(self.settings.postgres), port=self._proxies[name].port)
        seen = self.settings.model_copy(
            update={
                "kafka": self.settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{self.kafka.port}"}),
                "postgres": self.settings.postgres.model_copy(update={"dsn": SecretStr(dsn)}),
            }
        )
        env = environment(
            seen,
            CAUDAL_EDGE__PORT=self.edge.rpartition(":")[2],
            CAUDAL_SERVING__PORT=self.api.rpartition(":")[2],
            CAUDAL_WORKER__SESSION_TIMEOUT_MS=str(SESSION_MS),
            CAUDAL_WORKER__BATCH_MAX_EVENTS="20",  # small batches, so that faults fall between and into them
            CAUDAL_LOG_JSON="true",
        )
        self._processes[name] = self._nursery.spawn(name.partition("-")[0], env, self.log(name))

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.out"

    def tend(self) -> None:
        """Start again what has ended."""
        with self._lock:
            for name, process in self._processes.items():
                if name not in self._quiet and not process.is_running():
                    self.restarts += 1
                    self.spawn(name)

    def kill(self, name: str) -> None:
        with self._lock:
            process = self._processes[name]
            process.kill()
            process.wait(30)
            self.spawn(name)

    def pause(self, name: str, seconds: float) -> None:
        """Stop it now and let it go on later."""
        process = self._processes[name]
        process.suspend()
        self.later(seconds, lambda: _resume(process))

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """It stands still as long as the context is open."""
        process = self._processes[name]
        process.suspend()
        try:
            yield
        finally:
            _resume(process)

    def proxy(self, name: str) -> Proxy:
        return self.kafka if name == "kafka" else self._proxies[name]

    # ---- servers

    def server(self, name: str) -> psutil.Process:
        pid = next(one.pid for one in embedded.status(self._configured) if one.name == name)
        assert pid is not None
        return psutil.Process(pid)

    def kill_server(self, name: str) -> None:
        """Kill it, and start it again."""
        with contextlib.suppress(StopIteration, psutil.NoSuchProcess):  # it is dead already
            self.server(name).kill()
        self.revive()

    def revive(self) -> None:
        """Start again what has died of the servers."""

        def alive() -> bool:
            with contextlib.suppress(EmbeddedServerFailed):  # there may be no room for it just now
                embedded.ensure(self._configured)
                return True
            return False

        until(alive, "server")

    def fill(self, name: str, seconds: float) -> None:
        """Leave a server no room on its disk, and then as much as before; where the machine has no such disk nothing happens."""
        if not self.disks:
            return
        folder = self.home / name
        until(
            lambda: _remount(folder, shutil.disk_usage(folder).used), "full disk", 10
        )  # it may fill further meanwhile

        def make_room() -> None:
            until(lambda: _remount(folder, DISK), "room on a disk", 10)
            self.revive()

        self.later(seconds, make_room)

    def kill_backend(self) -> None:
        """Kill one session of PostgreSQL, which then ends all the others and recovers."""
        with self.connect() as conn:
            row = conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'caudal %' AND pid <> pg_backend_pid() ORDER BY pid LIMIT 1"
            ).fetchone()
        if row:
            os.kill(row[0], signal.SIGKILL)

    def pause_server(self, name: str, seconds: float) -> None:
        process = self.server(name)
        family = [process, *process.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()

        self.later(seconds, lambda: _resume(*family))

    def connect(self) -> psycopg.Connection[Any]:
        """A connection past the proxies."""
        return postgres.connect(self.settings.postgres, role="tests")

    def answers(self) -> bool:
        with contextlib.suppress(Exception), self.connect() as conn:
            return conn.execute("SELECT 1").fetchone() == (1,)
        return False

    # ---- time

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        self._timers.append(timer)
        timer.start()

    def settle(self) -> None:
        """Wait until all that was put off is done, and make the connections sound."""
        for timer in self._timers:
            timer.join()
        self._timers.clear()
        for proxy in (self.kafka, *self._proxies.values()):
            proxy.slow(0)

    @contextlib.contextmanager
    def tending(self) -> Iterator[None]:
        """Look after the processes in a thread meanwhile."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.2):
                self.tend()

        thread = threading.Thread(target=look, name="tending", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _mount(folder: Path) -> bool:
    """Give the folder a file system in memory, whose size can be changed; whether the machine lets us."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def _remount(folder: Path, size: int) -> bool:
    """Whether it could be: nothing is made smaller than what it holds."""
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _resume(*processes: psutil.Process) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # killed meanwhile
            process.resume()


def backend_worker(stack: Stack, port: int) -> str | None:
    """Whose session comes from that port."""
    return next((name for name in WORKERS if port in stack.proxy(name).ports()), None)


__all__ = [
    "PATIENCE_S",
    "PROCESSES",
    "SECRET",
    "SESSION_MS",
    "WORKERS",
    "Settings",
    "Stack",
    "Stuck",
    "backend_worker",
    "until",
]
