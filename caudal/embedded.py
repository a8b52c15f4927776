"""The servers that Caudal runs itself: Apache Kafka, PostgreSQL and a schema registry, for what isn't configured.

They run in the background, outlive who started them, and keep everything in `settings.home`: `kafka/`, `postgres/`,
`logs/`, `run/`. They survive restarts and kill -9; `ensure` brings back what died.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import SecretStr

from caudal import kafka, postgres, presence
from caudal._embedded import _broker, _database, _jars, _private, _processes, _registry
from caudal._embedded._processes import HOST, Run, Server, ServerName
from caudal.errors import EmbeddedServerFailed
from caudal.settings import Settings
from caudal.stopping import held_back
from caudal.telemetry import Log, logger

__all__ = ["BORROWER", "ServerStatus", "borrowed", "down", "ensure", "resolve", "running", "starting", "status"]

BORROWER = "run"
"""The name under which `caudal run` stands in the home's list of processes."""


State = Literal["running", "stopped", "unreachable"]


@dataclass(frozen=True)
class ServerStatus:
    """How one server is doing. `address` never holds a password."""

    name: ServerName
    embedded: bool
    state: State
    address: str | None = None
    version: str | None = None
    pid: int | None = None


def ensure(settings: Settings, progress: Callable[[str], None] | None = None) -> Settings:
    """Start what isn't configured and isn't running, wait until everything answers, and fill in the addresses.

    Safe to call at any time and from several processes at once. External servers are taken as configured.

    Args:
        settings: as loaded.
        progress: is told in a few words what is being done. A terminal shows a bar besides while jars are fetched.

    Raises:
        EmbeddedServerFailed: a jar can't be fetched, a fixed port is taken, a server doesn't start.
    """
    if settings.kafka.bootstrap_servers and settings.postgres.dsn and settings.registry.url:
        return settings
    say = progress or _nobody
    started: list[Server] = []
    with _lock(settings):
        try:
            return _ensure(settings, say, started)
        except BaseException as exc:  # also Ctrl-C: what we began goes away again, what ran before stays
            with held_back():
                _stop({server: _processes.find(server.marker) for server in started})
            if isinstance(exc, OSError):  # no room, no right
                raise _unusable(settings, exc) from exc
            raise


@contextmanager
def starting(settings: Settings, progress: Callable[[str], None] | None = None) -> Iterator[Settings]:
    """As `ensure`, for what has to be done before the servers may be left to themselves: if it fails, those it started stop again."""
    before = running(settings)
    try:
        yield ensure(settings, progress)
    except BaseException:  # also SIGTERM
        _give_back(settings, before)
        raise


@contextmanager
def borrowed(settings: Settings, progress: Callable[[str], None] | None = None) -> Iterator[Settings]:
    """As `ensure`, while the block runs: the servers that weren't up before stop with it, unless others use them by then.

    Those that a borrower had started who was killed are taken over.
    """
    home = settings.home
    before = running(settings)
    for other in presence.killed(home, BORROWER):
        before -= set(other.details.get("servers", "").split(","))
    servers = ",".join(sorted({"kafka", "postgres", "registry"} - before))
    with presence.announced(home, BORROWER, details={"servers": servers}):
        presence.forget(home, BORROWER)
        try:
            yield ensure(settings, progress)
        finally:
            others = [one for one in presence.alive(home) if one.pid != os.getpid()]
            if not others:
                _give_back(settings, before)


def _give_back(settings: Settings, before: set[ServerName]) -> None:
    if running(settings) - before:
        down(settings, keep=before)


def resolve(settings: Settings) -> Settings:
    """Fill in the addresses of the servers that run; starts nothing.

    Raises:
        EmbeddedServerFailed: an embedded server is needed and isn't running.
    """
    if settings.kafka.bootstrap_servers is None:
        settings = _with_kafka(settings, _needed(_broker.server(settings)))
    if settings.postgres.dsn is None:
        settings = _with_postgres(settings, _needed(_database.server(settings)))
    if settings.registry.url is None:
        settings = _with_registry(settings, _needed(_registry.server(settings)))
    return settings


def running(settings: Settings) -> set[ServerName]:
    """The servers of `settings.home` whose processes are alive, whether or not they answer."""
    return {server.name for server in _servers(settings) if _processes.find(server.marker)}


def down(settings: Settings, *, keep: Collection[ServerName] = ()) -> list[ServerName]:
    """Stop every server that was started for `settings.home` but those to keep; returns the names of those that ran.

    Raises:
        EmbeddedServerFailed: one can't be stopped.
    """
    with held_back(), _lock(settings):
        found = {server: _processes.find(server.marker) for server in _servers(settings) if server.name not in keep}
        _stop(found)
    return [server.name for server, pids in found.items() if pids]


def status(settings: Settings) -> list[ServerStatus]:
    """How Kafka, PostgreSQL and the registry are doing, the embedded ones or those that are configured."""
    return [_kafka_status(settings), _postgres_status(settings), _registry_status(settings)]


def _ensure(settings: Settings, say: Callable[[str], None], started: list[Server]) -> Settings:
    # Kafka is started before PostgreSQL is waited for: a start is mostly waiting
    if settings.kafka.bootstrap_servers is None:
        broker = _broker.server(settings, say)
        broker_run = _begin(broker, say, started)
    if settings.postgres.dsn is None:
        database = _database.server(settings)
        run = _finish(database, _begin(database, say, started), started)
        _database.prepare(database.home, run.port)
        settings = _with_postgres(settings, run)
    if settings.kafka.bootstrap_servers is None:
        settings = _with_kafka(settings, _finish(broker, broker_run, started))
    if settings.registry.url is None:
        registry = _registry.server(settings)
        settings = _with_registry(settings, _finish(registry, _begin(registry, say, started), started))
    return settings


def _begin(server: Server, say: Callable[[str], None], started: list[Server]) -> Run:
    run = _processes.running(server)
    if run is not None and run.details == server.details:
        if server.port not in {0, run.port}:
            raise EmbeddedServerFailed(
                f"{server.title} is running on port {run.port}, not on {server.port} as {server.port_setting} says",
                hint="`caudal down` stops it",
            )
        return run
    say(f"starting {server.title}")
    started.append(server)
    return _processes.launch(server)


def _finish(server: Server, run: Run, started: list[Server]) -> Run:
    run = _processes.await_ready(server, run)
    if server in started:
        logger().info(Log.SERVER_STARTED, server=server.name, port=run.port)
    return run


def _stop(found: dict[Server, list[int]]) -> None:
    if not any(found.values()):
        return
    with ThreadPoolExecutor(len(found)) as pool:
        for stopping in [pool.submit(_processes.stop, server, pids) for server, pids in found.items()]:
            stopping.result()
    for server, pids in found.items():
        if pids:
            logger().info(Log.SERVER_STOPPED, server=server.name)


_OURS = {"kafka", "postgres", "registry", "logs", "run", "faust", "demo", "demo.lock", "secrets.toml", "caudal.toml"}
"""What Caudal makes in a home folder."""


def _lock(settings: Settings) -> FileLock:
    home = settings.home.resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if {
            entry.name for entry in home.iterdir()
        } <= _OURS:  # nothing of others is in it, so nobody else needs to get in
            _private.folder(home)
        for name in ("run", "logs"):
            _private.folder(home / name)
        lock = FileLock(home / "run" / "lock")
        with lock:  # a folder that can't be written tells so here
            return lock
    except OSError as exc:
        raise _unusable(settings, exc) from exc


def _unusable(settings: Settings, exc: OSError) -> EmbeddedServerFailed:
    at = f" ({exc.filename})" if exc.filename and Path(exc.filename) != settings.home else ""
    return EmbeddedServerFailed(
        f"the home folder {settings.home} can't be used: {exc.strerror or type(exc).__name__}{at}", hint="CAUDAL_HOME"
    )


def _servers(settings: Settings) -> list[Server]:
    return [_registry.server(settings), _broker.server(settings), _database.server(settings)]


def _needed(server: Server) -> Run:
    run = _processes.running(server)
    if run is None:
        raise EmbeddedServerFailed(f"{server.title} is not running", hint="`caudal up` starts it")
    if run.details != server.details:
        raise EmbeddedServerFailed(f"{server.title} runs as it was set up before", hint="`caudal up` starts it anew")
    return run


def _with_kafka(settings: Settings, run: Run) -> Settings:
    return settings.model_copy(update={"kafka": _broker.client(settings.kafka, settings.home.resolve(), run.port)})


def _with_postgres(settings: Settings, run: Run) -> Settings:
    dsn = SecretStr(_database.dsn(settings.home.resolve(), run.port))
    return settings.model_copy(update={"postgres": settings.postgres.model_copy(update={"dsn": dsn})})


def _with_registry(settings: Settings, run: Run) -> Settings:
    return settings.model_copy(
        update={"registry": _registry.client(settings.registry, settings.home.resolve(), run.port)}
    )


def _kafka_status(settings: Settings) -> ServerStatus:
    if settings.kafka.bootstrap_servers is None:
        return _embedded_status(_broker.server(settings), lambda _run: _jars.kafka_version())
    state: State = "running" if kafka.answers(settings.kafka) else "unreachable"
    return ServerStatus("kafka", embedded=False, state=state, address=settings.kafka.bootstrap_servers)


def _postgres_status(settings: Settings) -> ServerStatus:
    if settings.postgres.dsn is None:
        return _embedded_status(
            _database.server(settings), lambda run: _database.version(_with_postgres(settings, run).postgres)
        )
    version = _database.version(settings.postgres)
    state: State = "unreachable" if version is None else "running"
    return ServerStatus(
        "postgres", embedded=False, state=state, address=postgres.address(settings.postgres), version=version
    )


def _registry_status(settings: Settings) -> ServerStatus:
    if settings.registry.url is None:
        return _embedded_status(_registry.server(settings), lambda _run: None)
    state: State = "running" if _registry.answers(settings.registry.url) else "unreachable"
    return ServerStatus("registry", embedded=False, state=state, address=_registry.address(settings.registry.url))


def _embedded_status(server: Server, version: Callable[[Run], str | None]) -> ServerStatus:
    run = _processes.running(server)
    if run is None:
        return ServerStatus(server.name, embedded=True, state="stopped")
    address = f"{HOST}:{run.port}"
    if not server.answers(run):
        return ServerStatus(server.name, embedded=True, state="unreachable", address=address, pid=run.pid)
    return ServerStatus(server.name, True, "running", address, version(run), run.pid)


def _nobody(message: str) -> None:
    """Takes what is said when nobody listens."""
