"""One contender, once: its process, its clock, what it took, and whether its table is right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks._processes import Watched, servers
from benchmarks._stage import Stage, wait_until
from benchmarks.race import _workspace
from benchmarks.race._connect import Connect
from benchmarks.race._work import EXPECTED, TABLE, differences
from caudal import connecting, postgres

__all__ = ["CONTENDERS", "Contender", "connect", "run"]

CONTENDERS_FOLDER = Path(__file__).parent / "contenders"
MARKED = 500
"""How many of the newest rows tell that a contender is through; only then the whole table is compared."""
LONGEST_S = 300.0
_POLL = (
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_bitmapscan = off;"
    " SET enable_material = off; SET plan_cache_mode = force_custom_plan"
)
"""The look whether it is through must never scan the table, which would cost the contender."""


@dataclass(frozen=True)
class Contender:
    """How one is started: a command after the interpreter, the format it reads, in how many processes."""

    name: str
    command: tuple[str, ...]
    encoding: str
    processes: int = 1


CONTENDERS = (
    Contender("quix", ("quix.py",), "json"),
    Contender("bytewax", ("-m", "bytewax.run", "bytewax_flow:flow"), "json"),
    Contender("bytewax_2", ("-m", "bytewax.run", "bytewax_flow:flow", "-w", "2"), "json", 2),
    Contender("faust", ("faust_app.py",), "json"),
    Contender("loop_avro", ("loop.py",), "avro"),
    Contender("loop_json", ("loop.py",), "json"),
    Contender("loop_json_2", ("loop.py",), "json", 2),
)


def run(one: Stage, contender: Contender, topic: str, count: int) -> dict[str, float]:
    """One drain of `count` records."""
    _fresh(one.conn)
    environment = {
        "RACE_KAFKA": one.settings.kafka.bootstrap_servers or "",
        "RACE_ACCESS": json.dumps(_access(one)),
        "RACE_DSN": postgres.dsn(one.settings.postgres),
        "RACE_TOPIC": topic,
        "RACE_FOLDER": str(one.folder),
        "RACE_GROUP": f"race-{uuid.uuid4().hex[:8]}",
        "RACE_FORMAT": contender.encoding,
        "RACE_PROCESSES": str(contender.processes),
    }
    log = one.folder / f"{contender.name}.out"
    with _process([str(_workspace.python()), *contender.command], environment, log) as process:
        _alive(process, log, lambda: _started(log))
        with Watched({"it": process.pid, **servers()}) as watched:
            _through(one.conn, process, log)
            watched.look()
    start = _started(log)
    assert start is not None
    return _found(contender.name, one.conn, start, count, watched)


def connect(one: Stage, topic: str, count: int) -> dict[str, float]:
    """A drain by a Connect worker that just started, and one by the same worker, now warm."""
    _fresh(one.conn)
    log = one.folder / "connect.out"
    folder = one.folder / "connect"
    folder.mkdir(exist_ok=True)
    worker = Connect(
        folder,
        kafka=connecting.kafka_properties(one.settings.kafka, java=True),
        dsn=postgres.dsn(one.settings.postgres),
        log=log,
    )
    found: dict[str, float] = {}
    with _process(worker.command, {}, log) as process:
        for name, begin in (("connect_cold", lambda: worker.create(topic)), ("connect", worker.resume)):
            with Watched({"it": process.pid, **servers()}) as watched:
                start = begin()
                _through(one.conn, process, log)
                watched.look()
            found |= _found(name, one.conn, start, count, watched)
            if name == "connect_cold":
                worker.rewind()
                _fresh(one.conn)
    return found


def _access(one: Stage) -> dict[str, str]:
    """Librdkafka's options for getting in."""
    properties = connecting.kafka_properties(one.settings.kafka)
    found = {name: value for name, value in properties.items() if name.startswith(("sasl.", "security."))}
    return {**found, "security.protocol": found.get("security.protocol", "plaintext").lower()}


def _found(name: str, conn: psycopg.Connection[Any], start: float, count: int, watched: Watched) -> dict[str, float]:
    if wrong := differences(conn):
        raise AssertionError(f"{name} left {wrong} rows that are not as they should be")
    row = conn.execute(
        "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(x)))::float8 FROM (SELECT DISTINCT xmin AS x FROM profile) s"
    ).fetchone()
    assert row is not None
    return {
        f"race_{name}_events_per_s": count / (row[0] - start),
        f"race_{name}_processor_us": watched.processor_s["it"] / count * 1e6,
        f"race_{name}_postgres_us": watched.processor_s["postgres"] / count * 1e6,
        f"race_{name}_mb": watched.peak_mb["it"],
    }


def _fresh(conn: psycopg.Connection[Any]) -> None:
    """The table, empty; and the rows that are looked for, where there are none yet."""
    conn.execute("DROP TABLE IF EXISTS profile")
    conn.execute(f"CREATE TABLE profile ({TABLE}, PRIMARY KEY (id))")
    conn.execute(
        f"CREATE TABLE IF NOT EXISTS marker AS SELECT id, updated_at FROM {EXPECTED} ORDER BY updated_at DESC LIMIT {MARKED}"
    )
    conn.execute("VACUUM ANALYZE profile")
    conn.execute("CHECKPOINT")


def _through(conn: psycopg.Connection[Any], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the table is whole."""
    missing = """SELECT count(*) FROM marker m
                 WHERE NOT EXISTS (SELECT FROM profile p WHERE p.id = m.id AND p.updated_at = m.updated_at)"""
    conn.execute(_POLL)
    _alive(process, log, lambda: conn.execute(missing).fetchone() == (0,), every_s=0.1)
    conn.execute("RESET ALL")
    _alive(process, log, lambda: not differences(conn), every_s=0.5)


def _alive(process: subprocess.Popen[bytes], log: Path, condition: Callable[[], Any], *, every_s: float = 0.01) -> None:
    def looked() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
        return bool(condition())

    wait_until(looked, timeout_s=LONGEST_S, what=f"end of {log.stem}", every_s=every_s)


def _started(log: Path) -> float | None:
    said = re.search(rb"START ([\d.]+)\n", log.read_bytes())
    return float(said[1]) if said else None


@contextlib.contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=CONTENDERS_FOLDER,
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        time.sleep(0.5)  # forked members end with their group; their sessions go
