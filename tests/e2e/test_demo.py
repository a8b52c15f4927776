"""`caudal demo`, as `make demo` runs it: it checks itself, shows what it claims, and leaves nothing running."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil
import pytest
from programs import environment, running, until

from caudal._demo_data import SOURCES
from caudal.demo import SEGMENTS


@pytest.fixture
def home():
    """A folder that other users can enter: PostgreSQL is one of them when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="caudal-demo-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _env(settings, home: Path) -> dict[str, str]:
    """The settings of other servers are there, and must not be touched."""
    return {**environment(settings), "CAUDAL_HOME": str(home), "CAUDAL_EMBEDDED__KAFKA_HEAP_MB": "384"}


def _left(home: Path) -> list[list[str]]:
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(home) in part for part in line)]


def test_once_with_json_prints_one_summary_that_holds_and_stops_everything(settings, home):
    done = subprocess.run(
        [sys.executable, "-m", "caudal.cli", "demo", "--once", "--json"],
        env=_env(settings, home),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout)
    assert summary["ok"] is True
    assert summary["faults"] == []
    counts = summary["counts"]
    assert counts["deliveries"] == counts["captures"] + 1
    assert counts["refused"] == {"401": 1}
    assert counts["dead_letters"] == {"invalid_payload": 1}
    assert counts["events"] == sum(counts["events_by_type"].values())
    assert {"ProfileStated", "OrderStated", "TicketStated", "ConsentStated", "SubjectLinked"} <= set(
        counts["events_by_type"]
    )
    assert counts["merged_subjects"] == counts["subjects"] - counts["customers"] > 0
    assert counts["views"]["profiles"] == counts["customers"]
    assert all(counts["change_messages"].values())
    assert counts["segments"].keys() == SEGMENTS.keys()
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert summary["deliveries_per_s"]["accepted"] >= summary["deliveries_per_s"]["readable"] > 0
    assert summary["versions"]["kafka"].startswith("4.")
    assert summary["versions"]["postgres"].startswith("18.")
    maria = summary["person"]
    assert set(maria["sources"]) == set(SOURCES)
    assert {subject["subject"].rsplit(":", 1)[0] for subject in maria["subjects"]} >= {
        "shop-br:customer",
        "crm:contact",
        "help:user",
    }
    assert maria["metrics"]["orders_count"] == 4
    assert maria["metrics"]["tickets_count"] == 2
    assert maria["metrics"]["refunded_minor"]["BRL"] > 0
    assert summary["metrics_from"] == {"order": ["shop-br"], "ticket": ["help"]}
    assert _left(home) == []


def test_it_stays_up_with_commands_that_work_until_interrupted(settings, home, tmp_path):
    log = tmp_path / "demo.log"
    env = _env(settings, home)
    with running(["demo"], env, log) as demo:
        shown = until(lambda: (text := log.read_text()).count("Try next") and text, log, 280)
        token = re.search(r"^  token  (cdl_\S+)$", shown, flags=re.MULTILINE)[1]
        docs = re.search(r"^  API    (\S+)$", shown, flags=re.MULTILINE)[1]
        assert httpx.get(docs, timeout=30).status_code == 200
        assert token in docs
        commands = shown.split("Try next")[1].strip().splitlines()[2:5]
        assert [command.split("CAUDAL_CONFIG_FILE=")[-1].split()[1:3] for command in commands[1:]] == [
            ["caudal", "customers"],
            ["caudal", "tail"],
        ]
        for command in (*commands[:2], f"{commands[2]} --max 3"):
            done = subprocess.run(
                ["bash", "-c", command], env=_plain(env), capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert done.stdout
        again = subprocess.run(
            [sys.executable, "-m", "caudal.cli", "demo"],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert again.returncode == 70
        assert "a demo is running here already" in again.stderr
        demo.send_signal(signal.SIGINT)
        assert demo.wait(120) == 0, log.read_text()[-4000:]
    assert _left(home) == []


def _plain(env: dict[str, str]) -> dict[str, str]:
    """A terminal of someone who has set nothing."""
    return {name: value for name, value in env.items() if not name.startswith("CAUDAL_")}
