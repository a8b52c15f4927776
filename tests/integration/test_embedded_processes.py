"""Background processes: found by their marker, never mistaken, stopped for good."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from caudal._embedded import _processes
from caudal._embedded._processes import HOST, Run, Server
from caudal.errors import EmbeddedServerFailed

LISTEN = """
import signal, socket, sys
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
signal.pause()
"""
DIE = "raise SystemExit('Error: no such disk')"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = _server(tmp_path)
    yield made
    for pid in _processes.find(made.marker):
        os.kill(pid, signal.SIGKILL)


def _server(home: Path, program: str = LISTEN, *arguments: str, port: int = 0) -> Server:
    (home / "run").mkdir(exist_ok=True)
    log = home / "server.out"
    marker = f"marker-{uuid.uuid4()}"
    return Server(
        name="kafka",
        title="Kafka",
        home=home,
        marker=marker,
        port=port,
        port_setting="CAUDAL_EMBEDDED__KAFKA_PORT",
        logs=(log,),
        prepare=lambda port: (
            lambda: _processes.spawn([sys.executable, "-c", program, str(port), marker, *arguments], log)
        ),
        answers=lambda run: True,
    )


def _start(server: Server) -> Run:
    return _processes.await_ready(server, _processes.launch(server))


def test_a_started_server_is_found_again_and_stopped(server: Server) -> None:
    run = _start(server)
    assert _processes.running(server) == run
    assert _processes.find(server.marker) == [run.pid]
    _processes.stop(server, [run.pid])
    assert _processes.running(server) is None
    assert not _processes.port_taken(run.port)


def test_a_server_is_no_child_of_its_starter(server: Server) -> None:
    run = _start(server)
    assert psutil.Process(run.pid) not in psutil.Process().children()
    assert os.getsid(run.pid) != os.getsid(0)


def test_a_server_comes_back_on_its_last_port(server: Server) -> None:
    first = _start(server)
    os.kill(first.pid, signal.SIGKILL)
    second = _start(server)
    assert second.port == first.port
    assert second.pid != first.pid


def test_a_server_whose_last_port_was_taken_moves(server: Server) -> None:
    first = _start(server)
    _processes.stop(server, [first.pid])
    with socket.create_server((HOST, first.port)):
        assert _start(server).port != first.port


def test_a_pid_that_belongs_to_another_by_now_is_not_trusted(server: Server) -> None:
    server.run_file.write_text(json.dumps({"pid": os.getpid(), "port": 1}))
    assert _processes.running(server) is None
    _processes.stop(server, [os.getpid()])  # we are still here


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"other": 1}'])
def test_a_damaged_run_file_is_no_run_file(server: Server, text: str) -> None:
    server.run_file.write_text(text)
    assert _processes.running(server) is None


def test_a_server_that_was_never_written_down_gives_way(server: Server) -> None:
    lost = _start(server)
    server.run_file.unlink()
    found = _start(server)
    assert _processes.find(server.marker) == [found.pid]
    assert found.pid != lost.pid


def test_a_server_that_ignores_the_request_to_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "GRACE_S", 0.1)
    deaf = _server(tmp_path, LISTEN, "deaf")
    run = _start(deaf)
    _processes.stop(deaf, [run.pid])
    assert not _processes.find(deaf.marker)


def test_a_server_that_ends_while_starting_leaves_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFailed, match=r"Kafka ended while starting: Error: no such disk .*server\.out"):
        _start(_server(tmp_path, DIE))


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    mute = _server(tmp_path, "import signal; signal.pause()")
    run = _processes.launch(mute)
    try:
        with pytest.raises(EmbeddedServerFailed, match="gave no answer"):
            _processes.await_ready(mute, run, timeout_s=0.1)
    finally:
        _processes.stop(mute, [run.pid])


def test_a_fixed_port_that_is_taken_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedServerFailed, match=f"port {port}.*CAUDAL_EMBEDDED__KAFKA_PORT"):
            _processes.launch(_server(tmp_path, port=port))


def test_output_goes_to_the_log_and_nowhere_else(server: Server) -> None:
    run = _start(server)
    while (
        server.logs[0].read_text() != "listening\n"
    ):  # it says so a moment after it listens; else the test's own limit ends this
        time.sleep(0.01)
    assert subprocess.run(["kill", "-0", str(run.pid)], check=False).returncode == 0
