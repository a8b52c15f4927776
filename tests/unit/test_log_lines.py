"""Log lines in an outage: every one of them JSON, and few."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest

from caudal import kafka, telemetry
from caudal.settings import KafkaSettings
from caudal.telemetry import Log, Seldom


@pytest.fixture
def lines(capfd):
    """What was logged since."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    telemetry.configure_logging("info", json=True, process="edge")
    telemetry.structlog.configure(
        cache_logger_on_first_use=False, logger_factory=telemetry.structlog.PrintLoggerFactory()
    )
    yield lambda: [json.loads(line) for line in "".join(capfd.readouterr()).splitlines()]
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)
    telemetry.structlog.reset_defaults()


def test_what_repeats_itself_is_told_at_once_and_then_counted(lines, monkeypatch):
    seldom = Seldom(20.0)
    now = time.monotonic()
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    for number in range(500):
        seldom.warning(Log.BATCH_RETRIED, step="project", code="broker_unavailable", wait_s=number / 10)
    seldom.warning(Log.BATCH_RETRIED, step="translate", code="broker_unavailable")
    assert [(line["step"], line.get("more_since_last")) for line in lines()] == [("project", None), ("translate", None)]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now + 21)
    seldom.warning(Log.BATCH_RETRIED, step="project", code="broker_unavailable", wait_s=5)
    assert [line["more_since_last"] for line in lines()] == [499]


def test_lines_of_libraries_are_json_and_few(lines):
    for _ in range(500):
        logging.getLogger("aiokafka").error("Unable to connect to %s", "127.0.0.1:1")
    logging.getLogger("psycopg.pool").warning("error connecting")
    [one, other] = lines()
    assert (one["event"], one["level"], one["logger"]) == ("library.logged", "error", "aiokafka")
    assert (one["text"], one["process"]) == ("Unable to connect to 127.0.0.1:1", "edge")
    assert other["logger"] == "psycopg.pool"


def test_clients_of_a_broker_that_is_away_write_a_line_together(lines, monkeypatch):
    monkeypatch.setattr(kafka, "_unreachable", Seldom())
    away = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", options={"reconnect.backoff.max.ms": "10", "reconnect.backoff.ms": "10"}
    )
    clients = [kafka.producer(away) for _ in range(3)]
    consumer = kafka.consumer(away, "group")
    admin = kafka.admin(away)
    until = time.monotonic() + 60
    told: list[dict[str, object]] = []
    while not told:
        assert time.monotonic() < until
        for client in clients:
            client.poll(0.05)
        consumer.poll(0.05)
        assert not kafka.answers(away, 0.1)
        told += lines()
    consumer.close()
    del admin
    assert {line["event"] for line in told} == {"server.unreachable"}
    assert {line["server"] for line in told} == {"kafka"}
    assert len(told) <= 2, "one for each kind of error"


@pytest.mark.parametrize("role", ["all", "edge", "translate", "api"])
def test_a_process_says_at_once_that_kafka_is_away(role, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAUDAL_")} | {
        "CAUDAL_HOME": str(tmp_path),
        "CAUDAL_CONFIG_FILE": str(tmp_path / "caudal.toml"),
        "CAUDAL_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "CAUDAL_POSTGRES__DSN": "host=127.0.0.1 port=1",
        "CAUDAL_REGISTRY__URL": "http://127.0.0.1:1",
        "CAUDAL_EDGE__PORT": "0",
        "CAUDAL_LOG_JSON": "true",
    }
    command = [sys.executable, "-m", "caudal.cli", "run", "--role", role]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            told = [json.loads(process.stderr.readline())]
            while told[-1]["event"] != "server.unreachable":
                told.append(json.loads(process.stderr.readline()))
        finally:
            process.kill()
    assert (told[-1]["server"], told[-1]["address"]) == ("kafka", "127.0.0.1:1")
