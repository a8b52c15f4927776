"""The race: the same work done by Caudal and by what one would use instead, on the same servers, with the same durability.

In each round the contenders run one after the other, so that ratios are of neighbours: the machine's speed drifts. The clock of a contender
starts with its first message (Connect: its first position; Caudal: the assignment of its partitions) and ends with the commit of the
last row. Every final table is compared with what it must be.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _generate
from benchmarks._machine import repeated
from benchmarks._processes import Watched, servers
from benchmarks._stage import Stage, stage
from benchmarks.drain import awaited, check, fill
from benchmarks.growth import joined
from benchmarks.race import _contest, _limits, _work, _workspace

__all__ = ["measure"]

EVENTS = 100_000


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`race_<contender>_events_per_s`, processor time of it and of PostgreSQL for each event, its peak memory; and paired ratios."""
    _workspace.connect()
    packages = _workspace.versions(
        "quixstreams", "bytewax", "faust-streaming", "confluent-kafka", "psycopg", "fastavro", "orjson"
    )
    figures = repeated(runs, lambda run: _round(int(EVENTS * scale), run))
    figures[0]["versions"] = {**packages, **_workspace.java_versions()}
    return figures


def _round(count: int, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    records = [_work.flat(event) for event in _work.profiles(count, seed)]
    found |= _caudal("caudal", count, records, seed)
    found |= _caudal("caudal_2", count, records, seed, workers=2)
    with stage() as one:
        topics = {encoding: _work.fill(one, records, encoding) for encoding in _work.encoders}
        _work.expect(one.conn, records)
        found |= _contest.connect(one, topics["avro"], count)
        for contender in _contest.CONTENDERS:
            found |= _contest.run(one, contender, topics[contender.encoding], count)
        found |= _limits.limits(one, topics, records)
    found |= _everything(count, seed)
    ours = found["race_caudal_events_per_s"]
    for name in ("connect", *(contender.name for contender in _contest.CONTENDERS)):
        found[f"race_caudal_to_{name}_ratio"] = ours / found[f"race_{name}_events_per_s"]
    return found


def _caudal(name: str, count: int, records: list[dict[str, Any]], seed: int, *, workers: int = 1) -> dict[str, float]:
    """Caudal on the same changes: until the rows are committed, and until every change is published too."""
    with stage() as one:
        fill(one, _work.profiles(count, seed))
        found = _drained(one, name, count, workers)
        _work.expect(one.conn, records)
        if wrong := _work.differences(one.conn, ours=True):
            raise AssertionError(f"{name} left {wrong} rows that are not as they should be")
        return found | (_limits.columnar(one, count) if workers == 1 else {})


def _everything(count: int, seed: int) -> dict[str, float]:
    """Caudal on a mixed log: profiles, orders and tickets into every fact, view and change topic. The others have no such thing."""
    with stage() as one:
        fill(one, _generate.events(count, count // 3, seed=seed))
        return _drained(one, "caudal_everything", count, 1)


def _drained(one: Stage, name: str, count: int, workers: int) -> dict[str, float]:
    for _ in range(workers):
        one.start("worker", CAUDAL_WORKER__WEB_PORT="0")
    start = joined(one, 1)
    mine = one.pids()
    with Watched({**mine, **servers()}) as watched:
        awaited(one, count)
        published = time.time()
        watched.look()
    row = one.conn.execute(
        "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(x)))::float8 FROM (SELECT DISTINCT xmin AS x FROM live.profiles) s"
    ).fetchone()
    assert row is not None
    one.stop()
    check(one)
    return {
        f"race_{name}_events_per_s": count / (row[0] - start),
        f"race_{name}_published_events_per_s": count / (published - start),
        f"race_{name}_processor_us": sum(watched.processor_s[role] for role in mine) / count * 1e6,
        f"race_{name}_postgres_us": watched.processor_s["postgres"] / count * 1e6,
        f"race_{name}_mb": sum(watched.peak_mb[role] for role in mine),
    }
