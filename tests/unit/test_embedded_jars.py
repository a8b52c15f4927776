"""The broker's jars: what is pinned is what is used."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caudal._embedded import _jars
from caudal._embedded._jars import Jar, classpath
from caudal.errors import EmbeddedServerFailed

CONTENTS = {"one": b"first" * 1000, "two": b"second" * 1000}
JARS = tuple(
    Jar("org.example", name, "1.0", len(content), hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
)


class Repository:
    def __init__(self, contents: dict[str, bytes] | None = None, failures: int = 0) -> None:
        self.contents = CONTENTS if contents is None else contents
        self.failures = failures
        self.asked: list[str] = []

    def __call__(self, jar: Jar) -> Iterator[bytes]:
        self.asked.append(jar.artifact)
        content = self.contents[jar.artifact]
        yield content[:100]
        if self.failures:
            self.failures -= 1
            raise ConnectionResetByPeer("connection reset by peer")
        yield content[100:]


class ConnectionResetByPeer(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jars, "BACKOFF_S", 0.0)


def _refuse(jar: Jar) -> Iterator[bytes]:
    raise AssertionError(f"{jar} was asked for")


def test_jars_are_fetched_once_and_kept(tmp_path: Path) -> None:
    repository = Repository()
    paths = classpath(tmp_path / "jars", JARS, fetch=repository)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert classpath(tmp_path / "jars", JARS, fetch=_refuse) == paths
    assert sorted(repository.asked) == ["one", "two"]


def test_only_what_is_lacking_is_fetched(tmp_path: Path) -> None:
    classpath(tmp_path, JARS[:1], fetch=Repository())
    repository = Repository()
    classpath(tmp_path, JARS, fetch=repository)
    assert repository.asked == ["two"]


def test_a_jar_that_was_damaged_on_disk_is_never_used(tmp_path: Path) -> None:
    damaged, sound = classpath(tmp_path, JARS, fetch=Repository())
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    repository = Repository()
    classpath(tmp_path, JARS, fetch=repository)
    assert repository.asked == ["one"]
    assert damaged.read_bytes() == CONTENTS["one"]
    assert sound.read_bytes() == CONTENTS["two"]


def test_a_jar_that_is_not_what_was_pinned_is_refused_and_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFailed, match=r"org\.example:two:1\.0 .* not the file that was pinned"):
        classpath(tmp_path, JARS, fetch=Repository({**CONTENTS, "two": b"s3cond" * 1000}))
    assert not list(tmp_path.glob("two*"))


def test_a_broken_connection_is_tried_again(tmp_path: Path) -> None:
    repository = Repository(failures=1)
    classpath(tmp_path, JARS, fetch=repository)
    assert len(repository.asked) == len(JARS) + 1


def test_a_download_that_keeps_failing_says_which_jar_why_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFailed) as failed:
        classpath(tmp_path, JARS[:1], fetch=Repository(failures=99))
    assert "org.example:one:1.0 can't be fetched: connection reset by peer" in str(failed.value)
    assert "one-1.0.jar" in str(failed.value)
    assert not list(tmp_path.glob("*.jar"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerFailed, match="CAUDAL_EMBEDDED__JARS_DIR"):
        classpath(tmp_path / "file" / "jars", JARS, fetch=Repository())


def test_several_at_once_fetch_each_jar_once(tmp_path: Path) -> None:
    repository = Repository()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: classpath(tmp_path, JARS, fetch=repository), range(4)))
    assert all(result == results[0] for result in results)
    assert sorted(repository.asked) == ["one", "two"]


def test_leftovers_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "old-1.0.jar.part").write_bytes(b"half")
    classpath(tmp_path, JARS, fetch=Repository())
    assert not list(tmp_path.glob("*.part"))


def test_who_waits_is_told_once_and_only_when_there_is_something_to_fetch(tmp_path: Path) -> None:
    said: list[str] = []
    classpath(tmp_path, JARS, fetch=Repository(), say=said.append)
    classpath(tmp_path, JARS, fetch=Repository(), say=said.append)
    assert len(said) == 1
    assert "2 files" in said[0]


def test_every_pin_is_whole() -> None:
    jars = _jars.pinned()
    assert len({jar.filename for jar in jars}) == len(jars)
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) and jar.size > 0 for jar in jars)
    assert f"org.apache.kafka:kafka_2.13:{_jars.kafka_version()}" in map(str, jars)


def test_nobody_else_may_write_where_the_jars_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jars"
    folder.mkdir()
    folder.chmod(0o777)
    classpath(folder, JARS, fetch=Repository())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    folder.chmod(0o775)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)  # a folder of somebody else's
    with pytest.raises(EmbeddedServerFailed, match="others may write to"):
        classpath(folder, JARS, fetch=_refuse)
    folder.chmod(0o755)
    classpath(folder, JARS, fetch=_refuse)
