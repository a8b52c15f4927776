"""The list of a home folder's processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caudal import presence
from caudal.errors import BadSettings

ANNOUNCE = """
import sys
from pathlib import Path
from caudal import presence
with presence.announced(Path(sys.argv[1]), "edge", host="127.0.0.1", port=2):
    print("there", flush=True)
    sys.stdin.read()
"""


def _other(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCE, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_who_is_there_is_told_and_nobody_takes_anothers_place(tmp_path: Path) -> None:
    with presence.announced(tmp_path, "edge", host="127.0.0.1", port=1):
        mine = (tmp_path / "run" / "edge.json").read_text()
        other = _other(tmp_path)
        assert [(one.name, one.port) for one in presence.alive(tmp_path)] == [("edge", 2), ("edge", 1)]
        other.communicate("")
        assert (tmp_path / "run" / "edge.json").read_text() == mine
        assert [one.port for one in presence.alive(tmp_path)] == [1]
    assert presence.alive(tmp_path) == []
    assert presence.killed(tmp_path, "edge") == []


def test_who_was_killed_counts_for_nothing_and_gives_way(tmp_path: Path) -> None:
    other = _other(tmp_path)
    other.kill()
    other.communicate()
    assert presence.alive(tmp_path) == []
    assert [one.pid for one in presence.killed(tmp_path, "edge")] == [other.pid]
    with presence.announced(tmp_path, "edge", port=3):
        assert json.loads((tmp_path / "run" / "edge.json").read_text())["port"] == 3
        presence.forget(tmp_path, "edge")
        assert [one.port for one in presence.alive(tmp_path)] == [3]


def test_a_pid_that_was_given_to_another_proves_nothing(tmp_path: Path) -> None:
    with presence.announced(tmp_path, "api", port=1):
        file = tmp_path / "run" / "api.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps({**told, "started": told["started"] - 3600}))
        assert presence.alive(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1, "port": 2, "details": {}}', '{"name": "edge"}', "null"])
def test_a_file_of_another_kind_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "edge.json").write_text(text)
    assert presence.alive(tmp_path) == []
    with presence.announced(tmp_path, "edge"):
        assert len(presence.alive(tmp_path)) == 1


def test_a_home_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with (
        pytest.raises(BadSettings, match=r"home folder .* can't be used"),
        presence.announced(tmp_path / "home", "edge"),
    ):
        pass
