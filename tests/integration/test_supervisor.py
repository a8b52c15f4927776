"""The supervised tree, with small scripts in place of the real roles."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caudal.errors import Fatal
from caudal.supervisor import Supervisor, members

STAY = """
import signal, sys, time
from caudal.supervisor import stop_with_parent
def stop(*_):
    open({log!r}, "a").write("stop " + {name!r} + chr(10)); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
stop_with_parent()
open({log!r}, "a").write("start " + {name!r} + chr(10))
while True: time.sleep(0.05)
"""


def _lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1] if log.exists() else []


def _until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def _staying(log: Path):
    return lambda name: [sys.executable, "-c", STAY.format(log=str(log), name=name)]


def test_a_tree_has_edge_workers_and_api_in_this_order():
    assert members(2) == [("edge",), ("translate-1", "project-1", "translate-2", "project-2"), ("api",)]


def test_children_stop_in_reverse_order(tmp_path):
    log = tmp_path / "log"
    tree = Supervisor([("a",), ("b",)], command=_staying(log))
    tree.start()
    _until(lambda: len(_lines(log)) == 2)
    tree.stop()
    assert _lines(log)[2:] == ["stop b", "stop a"]


def test_a_child_that_dies_is_started_again(tmp_path):
    log = tmp_path / "log"
    tree = Supervisor([("a",)], command=_staying(log))
    tree.start()
    try:
        _until(lambda: len(_lines(log)) == 1)
        os.kill(tree.pids()["a"], signal.SIGKILL)

        def again() -> bool:
            tree.check()
            return _lines(log) == ["start a", "start a"]

        _until(again)
    finally:
        tree.stop()


def test_a_configuration_error_stops_the_tree_and_is_not_retried():
    tree = Supervisor([("a",)], command=lambda _: [sys.executable, "-c", "raise SystemExit(78)"])
    with pytest.raises(Fatal, match="a can't run as it is configured"):
        tree.run()


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_supervisor import _staying
from caudal.supervisor import Supervisor
Supervisor([("a",), ("b",)], command=_staying(Path({log!r}))).run()
"""


def _parent(log: Path) -> subprocess.Popen[bytes]:
    code = PARENT.format(here=str(Path(__file__).parent), log=str(log))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all(tmp_path, number):
    log = tmp_path / "log"
    parent = _parent(log)
    _until(lambda: len(_lines(log)) == 2)
    parent.send_signal(number)
    assert parent.wait(60) == 0
    assert sorted(_lines(log)[2:]) == ["stop a", "stop b"]


def test_children_end_when_the_parent_is_killed(tmp_path):
    log = tmp_path / "log"
    parent = _parent(log)
    _until(lambda: len(_lines(log)) == 2)
    parent.kill()
    parent.wait(60)
    _until(lambda: sorted(_lines(log)[2:]) == ["stop a", "stop b"])
