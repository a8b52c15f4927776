"""Java's files from Maven: pinned by coordinates and SHA-256, fetched once, kept in a cache folder. `jars.toml` has the broker's."""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import platformdirs
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from caudal.errors import EmbeddedServerFailed

__all__ = ["Fetch", "Jar", "classpath", "default_folder", "kafka_version", "pinned"]

AT_ONCE = 6
ATTEMPTS = 3
BACKOFF_S = 0.5
CHUNK_BYTES = 1 << 16
TIMEOUT_S = (10.0, 20.0)  # to connect, between two pieces of a body


@dataclass(frozen=True)
class Jar:
    """One pinned jar, or an archive of jars."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str
    classifier: str | None = None
    extension: str = "jar"

    @property
    def filename(self) -> str:
        classifier = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{classifier}.{self.extension}"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


Fetch = Callable[[Jar], Iterable[bytes]]
"""Gives a jar's content piece by piece; raises any `Exception` when it can't."""


@cache
def _pins() -> tuple[str, tuple[Jar, ...]]:
    pins = tomllib.loads((Path(__file__).parent / "jars.toml").read_text())
    jars = tuple(_jar(name, pin) for name, pin in pins["jars"].items())
    return pins["kafka"], jars


def _jar(coordinates: str, pin: dict[str, Any]) -> Jar:
    group, artifact, version = coordinates.split(":")
    return Jar(group, artifact, version, pin["size"], pin["sha256"])


def kafka_version() -> str:
    """The version of Apache Kafka that is embedded."""
    return _pins()[0]


def pinned() -> tuple[Jar, ...]:
    """Every jar of the embedded broker."""
    return _pins()[1]


def default_folder() -> Path:
    """Where jars are kept when no folder is set; all of the user's projects share it."""
    return platformdirs.user_cache_path("caudal") / "jars"


def classpath(
    folder: Path,
    jars: tuple[Jar, ...],
    *,
    fetch: Fetch | None = None,
    say: Callable[[str], None] | None = None,
    title: str | None = None,
) -> list[Path]:
    """The jars' files in `folder`, every one of them checked; what is missing or damaged is fetched first.

    Safe to call from several processes at once. A jar gets its name only after its hash was found right.

    Args:
        folder: where jars are kept.
        jars: which ones.
        fetch: where a jar's content comes from; the Maven repository if not given.
        say: is told that there is something to fetch.
        title: what it is, in that message; the broker if not given.

    Raises:
        EmbeddedServerFailed: a jar can't be fetched, or what was fetched isn't what was pinned.
    """
    title = title or f"Apache Kafka {kafka_version()}"
    try:
        if folder.exists():
            _keep_others_out(folder)
        if _lacking(folder, jars):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                lacking = _lacking(folder, jars)  # another process may have fetched them meanwhile
                if lacking:
                    if say is not None:
                        megabytes = sum(jar.size for jar in lacking) // 1_000_000
                        say(f"fetching {title}, once: {len(lacking)} files, {megabytes} MB")
                    _fetch_all(folder, lacking, fetch or _from_maven, title)
    except OSError as exc:
        raise EmbeddedServerFailed(
            f"the jars of {title} can't be kept in {folder}: {exc.strerror or exc}",
            hint="CAUDAL_EMBEDDED__JARS_DIR names another folder",
        ) from exc
    return [folder / jar.filename for jar in jars]


def _keep_others_out(folder: Path) -> None:
    """Nobody else may exchange a jar between its check and its use."""
    found = folder.stat()
    if not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    if found.st_uid != os.geteuid():
        raise EmbeddedServerFailed(
            f"others may write to {folder}, and what is in there is run",
            hint=f"chmod go-w {folder}, or CAUDAL_EMBEDDED__JARS_DIR",
        )
    folder.chmod(stat.S_IMODE(found.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _lacking(folder: Path, jars: tuple[Jar, ...]) -> list[Jar]:
    return [jar for jar in jars if not _holds(folder / jar.filename, jar)]


def _holds(path: Path, jar: Jar) -> bool:
    try:
        if path.stat().st_size != jar.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def _fetch_all(folder: Path, jars: list[Jar], fetch: Fetch, title: str) -> None:
    for leftover in folder.glob("*.part"):  # of a process that was killed; we hold the lock
        leftover.unlink()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    stopped = Event()
    with (
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="jars") as pool,
    ):
        task = progress.add_task(title, total=sum(jar.size for jar in jars))
        futures = [
            pool.submit(_fetch_one, folder, jar, fetch, stopped, lambda n: progress.advance(task, n)) for jar in jars
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:  # also Ctrl-C: the threads stop at the next piece
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch_one(folder: Path, jar: Jar, fetch: Fetch, stopped: Event, advance: Callable[[int], None]) -> None:
    part = folder / f"{jar.filename}.part"
    for attempt in range(1, ATTEMPTS + 1):
        received = 0
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for piece in fetch(jar):
                    if stopped.is_set():
                        return
                    file.write(piece)
                    digest.update(piece)
                    received += len(piece)
                    advance(len(piece))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            raise  # the folder's fault, not the network's: the caller says so
        except Exception as exc:
            advance(-received)
            if attempt == ATTEMPTS:
                raise EmbeddedServerFailed(
                    f"{jar} can't be fetched: {_reason(exc)}",
                    hint="it is needed once, and kept; check the network and proxy, or put the file into"
                    f" {folder} as {jar.filename}",
                ) from exc
            stopped.wait(BACKOFF_S * 2**attempt)
            continue
        finally:
            if stopped.is_set():
                part.unlink(missing_ok=True)
        if digest.hexdigest() != jar.sha256:
            part.unlink()
            raise EmbeddedServerFailed(
                f"{jar} was fetched but is not the file that was pinned: SHA-256 {digest.hexdigest()}, wanted {jar.sha256}",
                hint="a proxy or mirror changed it; it was thrown away",
            )
        part.replace(folder / jar.filename)
        return


def _from_maven(jar: Jar) -> Iterator[bytes]:
    """From the repository that the library knows; `requests` underneath follows the proxy variables."""
    from maven_artifact import Artifact, Downloader, RequestException

    def refused(uri: str, error: Exception) -> None:
        raise RequestException(str(error))

    downloader = Downloader()
    uri = downloader.resolver.uri_for_artifact(
        Artifact(jar.group, jar.artifact, jar.version, jar.classifier, jar.extension)
    )
    with downloader.requestor.request(uri, refused, stream=True, timeout=TIMEOUT_S) as response:
        try:
            yield from response.iter_content(CHUNK_BYTES)
        except OSError as exc:  # requests' errors are OSErrors, which would pass for the disk's
            raise RequestException(str(exc)) from exc


def _reason(exc: Exception) -> str:
    text = str(getattr(exc, "msg", exc)).strip()
    return text.splitlines()[-1] if text else type(exc).__name__
