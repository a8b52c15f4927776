"""A replay killed at any moment leaves the live views right; gone on with, it ends right."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from caudal.projections import Runner
from caudal.schemas.codec import Codec, Registry
from logs import PARTITIONS, apply, connect, contents, fill
from replays import until

from benchmarks import _generate
from caudal import postgres
from caudal.settings import Settings

EVENTS = 30_000
CUSTOMERS = 3_000


def command(settings: Settings, *words: str) -> subprocess.Popen[str]:
    """`caudal replay …` as a process of its own; its children are of its session."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAUDAL_")} | {
        "CAUDAL_HOME": str(settings.home),
        "CAUDAL_CONFIG_FILE": str(settings.config_file),
        "CAUDAL_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers or "",
        "CAUDAL_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "CAUDAL_POSTGRES__DSN": postgres.dsn(settings.postgres),
        "CAUDAL_REGISTRY__URL": settings.registry.url or "",
        "CAUDAL_LOG_LEVEL": "error",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "caudal.cli", "replay", *words],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON that it prints at its end."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def stage(conn: psycopg.Connection[Any]) -> str | None:
    row = conn.execute("SELECT progress ->> 'stage' FROM hub.replays ORDER BY id DESC LIMIT 1").fetchone()
    return row[0] if row else None


def await_stage(process: subprocess.Popen[str], conn: psycopg.Connection[Any], *stages: str) -> None:
    """Wait until it is at a stage, or has ended."""
    until(lambda: process.poll() is not None or stage(conn) in stages, stages[0], timeout_s=180)


@contextmanager
def projected(settings: Settings) -> Iterator[Runner]:
    """The log, applied by the live projection."""
    registry = Registry(settings)
    codec = Codec(registry)
    log = fill(settings, codec, _generate.events(EVENTS, CUSTOMERS, skew=0.5))
    runner = Runner(settings, codec)
    runner.positions(range(PARTITIONS))
    apply(runner, log, [10_000])
    runner.flush()
    yield runner
    runner.close()
    registry.close()


@pytest.mark.timeout(600)
def test_a_replay_killed_again_and_again_ends_right_when_it_is_gone_on_with(settings: Settings) -> None:
    rnd = random.Random()
    with projected(settings), connect(settings) as conn:
        before = contents(conn)
        words: tuple[str, ...] = ("--yes", "--json")
        for moment in ("load", "facts", "views"):
            process = command(settings, *words)
            await_stage(process, conn, moment)
            time.sleep(rnd.uniform(0, 0.3))
            if process.poll() is None:
                process.send_signal(rnd.choice((signal.SIGKILL, signal.SIGINT)))
            process.communicate(timeout=60)
            assert contents(conn) == before, "the live views are as they were"
            row = conn.execute("SELECT state FROM hub.replays ORDER BY id DESC LIMIT 1").fetchone()
            assert row is not None
            if row[0] != "running":
                break  # it was quicker than the kill
            words = ("resume", "--yes", "--json")
        else:
            told = ended(command(settings, *words))
            assert told["state"] == "swapped"
            assert told["diff"]["differences"] == 0
        assert contents(conn) == before
