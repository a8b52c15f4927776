"""Whatever ends a command, at whatever moment: nothing of what it started is left running, and nothing is left for others to read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import environment, until

from caudal import embedded, presence
from caudal import settings as caudal_settings
from caudal.settings import Settings


@pytest.fixture(scope="module")
def alone() -> Iterator[Settings]:
    """Settings with servers of its own; what one test leaves the next one finds."""
    home = Path(tempfile.mkdtemp(prefix="caudal-home-"))
    made = caudal_settings.load(home=home, config_file=home / "caudal.toml", embedded={"kafka_heap_mb": 256})
    yield made
    embedded.down(made)
    shutil.rmtree(home)


class Command:
    """A command whose words on standard error are heard as they come."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "caudal.cli", *arguments],
            env={**environment(settings), "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o022,
            start_new_session=True,
        )
        self._said: list[str] = []
        self._heard = threading.Thread(target=self._hear)
        self._heard.start()

    def _hear(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            for line in said:
                self._said.append(line)

    @property
    def said(self) -> str:
        return "".join(self._said)

    def says(self, words: str) -> None:
        until(lambda: words in self.said or self.process.poll() is not None)
        assert words in self.said, self.said

    def end(self, number: int = 0) -> int:
        if number:
            self.process.send_signal(number)
        status = self.process.wait(120)
        self._heard.join()
        return status


def left(settings: Settings) -> list[str]:
    """Processes that belong to the home: its servers, and what was started with it as its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(settings.home) in argument for argument in process.cmdline()):
                found.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "words", "numbers"),
    [
        (("up",), "starting Kafka", (signal.SIGTERM,)),
        (("up",), "starting the schema registry", (signal.SIGHUP,)),
        (("run",), "starting Kafka", (signal.SIGTERM, signal.SIGTERM)),
        (("run",), "starting PostgreSQL", (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)),
        (("run",), "starting the schema registry", (signal.SIGINT, signal.SIGTERM)),
        (("run",), "edge http", (signal.SIGTERM,)),
        (("run", "--role", "api"), "", (signal.SIGTERM,)),
        (("demo", "--once"), "starting PostgreSQL", (signal.SIGTERM, signal.SIGTERM)),
        (("demo", "--once"), "starting edge", (signal.SIGHUP,)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_a_start_that_is_ended_leaves_nothing_running(alone, arguments, words, numbers):
    command = Command(alone, *arguments)
    if words:
        command.says(words)
    else:
        until(lambda: embedded.running(alone))
    for number in numbers[:-1]:
        command.process.send_signal(number)
    assert command.end(numbers[-1]) in {0, 130, 143}, command.said
    assert left(alone) == []
    assert "Traceback" not in command.said
    assert presence.alive(alone.home) == []


def test_what_a_killed_run_had_started_goes_with_the_next_and_stays_after_up(alone):
    for keeps in (False, True):
        first = Command(alone, "run")
        first.says("edge http")
        first.end(signal.SIGKILL)
        assert embedded.running(alone) == {"kafka", "postgres", "registry"}
        if keeps:
            assert Command(alone, "up").end() == 0
        second = Command(alone, "run")
        second.says("edge http")
        assert second.end(signal.SIGTERM) == 0
        assert embedded.running(alone) == ({"kafka", "postgres", "registry"} if keeps else set())
    embedded.down(alone)


def test_the_servers_are_not_taken_away_from_those_who_use_them_and_nobody_else_can_read_what_is_written(alone):
    run = Command(alone, "run")
    until(lambda: {one.name for one in presence.alive(alone.home)} >= {"run", "edge", "translate", "project", "api"})

    refused = Command(alone, "down")
    assert refused.end() == 70
    assert "servers_in_use" in refused.said
    assert all(f"{name} (pid " in refused.said for name in ("run", "edge", "api"))
    assert embedded.running(alone) == {"kafka", "postgres", "registry"}

    assert Command(alone, "sources", "add", "shop", "--connector", "shopify", "--secret", "0123456789abcdef").end() == 0
    open_to_others = {
        str(path): oct(path.lstat().st_mode)
        for path in (alone.home, *alone.home.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    }
    assert open_to_others == {}
    written = {path.relative_to(alone.home).parts[0] for path in alone.home.rglob("*") if path.is_file()}
    assert written >= {"kafka", "postgres", "logs", "run", "registry", "caudal.toml"}

    assert Command(alone, "down", "--force").end() == 0
    assert run.end(signal.SIGTERM) == 0
    assert left(alone) == []


def test_a_second_edge_on_another_port_leaves_the_first_ones_file_alone(settings):
    files = [settings.home / "run" / name for name in ("edge.json", "edge-2.json")]
    first = Command(settings, "run", "--role", "edge")
    until(files[0].exists)
    told = json.loads(files[0].read_text())
    second = Command(settings, "run", "--role", "edge")
    until(files[1].exists)
    assert {one.pid for one in presence.alive(settings.home)} == {first.process.pid, second.process.pid}
    second.end(signal.SIGTERM)
    assert json.loads(files[0].read_text()) == told
    assert not files[1].exists()
    os.kill(first.process.pid, signal.SIGKILL)
    first.end()
    assert presence.alive(settings.home) == []
    third = Command(settings, "run", "--role", "edge")
    until(lambda: presence.alive(settings.home))
    assert json.loads(files[0].read_text())["pid"] == third.process.pid
    third.end(signal.SIGTERM)
    assert not any(map(Path.exists, files))
