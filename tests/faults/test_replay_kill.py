"""A replay, a worker or PostgreSQL killed at any moment of a replay leaves the live views right; gone on with, it ends right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from caudal.projections import Runner
from caudal.projections.replay import Record
from caudal.schemas.codec import Codec
from logs import NOTHING, PARTITIONS, apply, connect, contents, fill, rebuilt
from programs import environment
from replays import holding, replaying, until
from test_kill import projected, worker

from benchmarks import _generate
from caudal import embedded, postgres
from caudal.errors import DatabaseUnavailable, Retryable
from caudal.settings import PostgresSettings, Settings

EVENTS = 2_000
CUSTOMERS = 300
AMID_LOAD = "SELECT FROM build_1.load_offsets WHERE partition = 0 FOR UPDATE"
AMID_FACTS = "INSERT INTO build_1.build_steps VALUES ('orders')"
AMID_VIEWS = "INSERT INTO build_1.build_steps VALUES ('metrics')"
AMID_SWAP = "LOCK TABLE hub.outbox IN SHARE MODE"
PAUSE = "INSERT INTO hub.control (key, value) VALUES ('replay.paused', 'true')"
GO_ON = "DELETE FROM hub.control"


def command(settings: Settings, *words: str) -> subprocess.Popen[str]:
    """`caudal replay …` as a process of its own; its children are of its session."""
    return subprocess.Popen(
        [sys.executable, "-m", "caudal.cli", "replay", *words],
        env=environment(settings, CAUDAL_LOG_LEVEL="error"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[str], number: int, reached: Callable[[], bool]) -> None:
    """Kill it when it is there."""
    until(lambda: reached() or process.poll() is not None, "place to kill it at", timeout_s=240)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    process.communicate(timeout=120)


def loading(conn: psycopg.Connection[Any]) -> int | None:
    """What `build_1` loads into, if there is such a table."""
    row = conn.execute("SELECT to_regclass('build_1.load_offsets')::oid::bigint").fetchone()
    return row[0] if row else None


def state(conn: psycopg.Connection[Any]) -> tuple[str, str]:
    """State and stage of the first replay."""
    row = conn.execute("SELECT state, coalesce(progress ->> 'stage', '') FROM hub.replays WHERE id = 1").fetchone()
    return (row[0], row[1]) if row else ("", "")


def project(settings: Settings, codec: Codec) -> None:
    """A log, applied by the live projection."""
    runner = Runner(settings, codec)
    runner.positions(range(PARTITIONS))
    apply(runner, fill(settings, codec, _generate.events(EVENTS, CUSTOMERS, skew=0.5)))
    runner.flush()
    runner.close()


@pytest.mark.timeout(900)
def test_a_replay_killed_again_and_again_ends_right_when_it_is_gone_on_with(settings: Settings, codec: Codec) -> None:
    project(settings, codec)
    with connect(settings) as conn:
        before = contents(conn)
        conn.execute(PAUSE)
        process = command(settings, "--yes", "--json")
        until(lambda: loading(conn), "load tables", timeout_s=240)
        with holding(settings, AMID_LOAD) as reached:
            conn.execute(GO_ON)
            kill(process, signal.SIGKILL, reached)
        moments = (AMID_FACTS, signal.SIGINT), (AMID_VIEWS, signal.SIGKILL), (AMID_SWAP, signal.SIGKILL)
        for statement, number in moments:
            assert contents(conn) == before, "the live views are as they were"
            assert state(conn)[0] == "running"
            with holding(settings, statement) as reached:
                kill(command(settings, "resume", "--yes", "--json"), number, reached)
                until(lambda: not reached(), "end of its statements")  # though what they wait for is still held
        assert contents(conn) == before
        assert state(conn)[0] == "built"
        process = command(settings, "swap", "--json")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        told = json.loads(out)
        assert (told["state"], told["diff"]["differences"]) == ("swapped", 0)
        assert contents(conn) == before


@pytest.mark.timeout(900)
def test_a_worker_killed_during_a_replay_and_started_again_ends_where_a_rebuild_does(
    settings: Settings, codec: Codec
) -> None:
    project(settings, codec)
    fill(settings, codec, _generate.events(EVENTS + 500, CUSTOMERS, skew=0.5), begin=EVENTS)
    with connect(settings) as conn, ThreadPoolExecutor(1) as pool, replaying(settings, codec) as replay:
        with (
            holding(settings, "LOCK TABLE live.profiles IN SHARE MODE") as reached,
            worker(settings) as running,
        ):
            until(reached, "batch of the worker", timeout_s=240)
            building = pool.submit(replay.full)
            # it needs the live schema still, which this batch keeps it from
            until(lambda: state(conn) == ("running", "compare") or building.done(), "comparison", timeout_s=240)
            running.kill()
            running.wait()
            assert not building.done()
            assert projected(conn, settings) == EVENTS, "the batch was not committed"
        with worker(settings):
            built = building.result(240)
            assert replay.swap(built.id).state == "swapped"
            fill(settings, codec, _generate.events(EVENTS + 800, CUSTOMERS, skew=0.5), begin=EVENTS + 500)
            until(lambda: projected(conn, settings) == EVENTS + 800, "projection of all events", timeout_s=240)
        assert rebuilt(conn) == NOTHING
        diff = replay.full().diff
        assert diff is not None
        assert diff["differences"] == 0
        assert contents(conn) == contents(conn, "build_2")


@contextmanager
def own_postgres(settings: Settings) -> Iterator[Settings]:
    """The same with a PostgreSQL that may be killed; unresolved."""
    home = Path(tempfile.mkdtemp(prefix="caudal-home-"))  # not tmp_path, which other users can't reach
    alone = settings.model_copy(update={"home": home, "postgres": PostgresSettings()})
    try:
        yield alone
    finally:
        embedded.down(alone)
        shutil.rmtree(home)


def answers(settings: Settings) -> bool:
    try:
        postgres.connect(settings.postgres, role="tests").close()
    except DatabaseUnavailable:
        return False
    return True


@pytest.mark.timeout(900)
def test_a_replay_under_which_postgresql_is_killed_says_so_and_ends_right_when_it_is_gone_on_with(
    settings: Settings, codec: Codec
) -> None:
    def broken(
        ready: Settings, statement: str, victim: Callable[[], int | None], *, resume: bool
    ) -> BaseException | None:
        """What a replay raises when a process of PostgreSQL is killed while it is there."""

        def go() -> Record:
            with replaying(ready, codec) as replay:
                return replay.resume() if resume else replay.full()

        with connect(ready) as conn:
            was = loading(conn)
            conn.execute(PAUSE)
            replay = pool.submit(go)
            until(lambda: loading(conn) not in {None, was} or replay.done(), "load tables", timeout_s=240)
            with holding(ready, statement) as reached:
                conn.execute(GO_ON)
                until(lambda: reached() or replay.done(), "place to kill it at", timeout_s=240)
                assert not replay.done()
                pid = victim()
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                return replay.exception(120)

    with own_postgres(settings) as alone, ThreadPoolExecutor(1) as pool:
        ready = embedded.ensure(alone)
        postgres.migrate(ready.postgres)
        project(ready, codec)
        with connect(ready) as conn:
            before = contents(conn)

        def server() -> int | None:
            return next(one.pid for one in embedded.status(alone) if one.name == "postgres")

        def backend() -> int | None:
            with connect(ready) as conn:
                row = conn.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'caudal replay'"
                ).fetchone()
            return row[0] if row else None

        error = broken(ready, AMID_LOAD, server, resume=False)
        assert isinstance(error, DatabaseUnavailable), error
        ready = embedded.ensure(alone)
        with connect(ready) as conn:
            assert contents(conn) == before
        error = broken(ready, AMID_FACTS, backend, resume=True)
        assert isinstance(error, Retryable), error
        until(lambda: answers(ready), "recovery of PostgreSQL", timeout_s=120)
        with connect(ready) as conn, replaying(ready, codec) as again:
            assert contents(conn) == before
            diff = again.resume().diff
            assert diff is not None
            assert diff["differences"] == 0
            again.swap()
            assert contents(conn) == before
