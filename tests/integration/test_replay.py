"""Replays on real servers: beside a live projection, with readers, with changed definitions, refused, cancelled, rolled back."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import orjson
import psycopg
import pytest
from api_server import running, token_of
from caudal.projections import VIEWS, Runner, _schema
from caudal.projections._view import View
from caudal.projections.metrics import metrics
from caudal.projections.replay import Record, _one_view, _replay, cancel, drop, held
from caudal.projections.replay import _load as loading
from caudal.projections.replay._log import Reader
from caudal.schemas.codec import Codec
from confluent_kafka import TopicPartition
from logs import NOTHING, PARTITIONS, apply, contents, fill, rebuilt
from programs import environment
from replays import Source, on_topic, projecting, replaying, until

from benchmarks import _generate
from caudal import kafka
from caudal.errors import Fatal, LogTruncated, ReplayCancelled, ReplayRefused, ReplayRunning
from caudal.settings import Settings


def projected(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT coalesce(sum(next_offset), 0)::int FROM live.offsets").fetchone()
    return row[0] if row else 0


def live_schema(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT 'live'::regnamespace::oid::int").fetchone()
    assert row is not None
    return int(row[0])


class Readers:
    """Reads of customers over the API, one after the other, until it is closed."""

    def __init__(self, address: str, token: str, customers: list[str]) -> None:
        self.statuses: dict[int | str, int] = {}
        self._stop = threading.Event()
        self._client = httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60)
        self._customers = customers
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for customer in self._customers:
                try:
                    status: int | str = self._client.get(f"/customers/{customer}").status_code
                except httpx.HTTPError as exc:
                    status = type(exc).__name__
                self.statuses[status] = self.statuses.get(status, 0) + 1


@pytest.mark.timeout(60)
def test_reading_to_an_end_is_not_held_up_by_what_is_written_behind_it(settings: Settings, codec: Codec) -> None:
    events = _generate.events(1_000_000, 200)
    with Source(settings, codec, events, rate=200) as source:
        until(lambda: source.sent > 50, "traffic")
        topic = kafka.topic(settings.kafka, kafka.CHANGES)
        ends = kafka.end_offsets(settings.kafka, [topic])[topic]
        reader = Reader(settings.kafka, topic, dict.fromkeys(ends, 0))
        # a chunk has room for whatever comes: it would never be full, and something always comes
        found = [message for chunk in reader.upto(ends, most=1_000_000) for message in chunk]
        reader.close()
    assert len(found) == sum(ends.values())
    assert reader.position == ends


@pytest.mark.timeout(300)
def test_a_rebuild_beside_writes_and_reads_changes_nothing_and_fails_no_read(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = _generate.events(100_000, 200, skew=0.5)  # one log, cut in two: no two statements may have the same version
    fill(settings, codec, itertools.islice(log, 1_500))
    with projecting(settings, codec) as projection:
        until(lambda: projected(conn) >= 1_500, "projection of the first events")
        customers = [c for (c,) in conn.execute("SELECT customer_id::text FROM live.profiles LIMIT 20").fetchall()]
        before = live_schema(conn)
        with (
            running(settings) as address,
            Readers(address, token_of(settings, "customers:read"), customers) as readers,
            Source(settings, codec, log, rate=60) as source,
            replaying(settings, codec) as replay,
        ):
            until(lambda: source.sent > 30 and readers.statuses.get(200, 0) > 20, "traffic")
            built = replay.full()
            assert built.diff is not None
            assert built.diff["differences"] == 0
            assert replay.swap(built.id).state == "swapped"
            seen, sent = readers.statuses[200], source.sent
            until(lambda: readers.statuses[200] > seen + 20 and source.sent > sent + 20, "traffic after the swap")
        until(lambda: projected(conn) == 1_500 + source.sent, "projection of the last events")
        assert projection.failed is None
    assert live_schema(conn) != before
    assert set(readers.statuses) == {200}
    assert rebuilt(conn) == NOTHING
    assert not any(value["rebuilt"] for _, value in on_topic(settings, codec, kafka.PROFILES) if value), (
        "nothing changed"
    )
    with replaying(settings, codec) as replay:
        diff = replay.full().diff
    assert diff is not None
    assert diff["differences"] == 0


def redefine(monkeypatch: pytest.MonkeyPatch, *changed: View) -> None:
    """Take these views in the place of those of the same name, or besides, as a new release would."""
    new = {view.name: view for view in changed}
    views = (*(new.pop(view.name, view) for view in VIEWS), *new.values())
    for module in (_schema, _one_view, _replay):
        monkeypatch.setattr(module, "VIEWS", views)


def test_a_changed_definition_is_built_beside_the_live_one_and_swapped_in(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fill(settings, codec, _generate.events(600, 80))
    apply(live, log, [300])
    live.flush()
    select = f"SELECT *, orders_count * 2 AS twice FROM ({metrics.select}) once"
    redefine(
        monkeypatch,
        replace(metrics, columns={**metrics.columns, "twice": "bigint"}, select=select),
        View("cities", ("customer_id",), {"customer_id": "uuid", "city": "text"}, ("profiles",),
             "SELECT p.customer_id, p.city FROM customers k JOIN {schema}.profiles p USING (customer_id)"),
    )  # fmt: skip
    with pytest.raises(Fatal, match="caudal replay"):
        Runner(settings, codec)
    with replaying(settings, codec) as replay:
        built = replay.full()
        assert built.diff is not None
        assert built.diff["definition_changed"]
        assert built.diff["views"]["metrics"]["columns_added"] == ["twice"]
        assert built.diff["views"]["cities"]["added"] > 0
        assert built.diff["changed_share"] == 0, "a new view and a new column change no row that was there"
        replay.swap(max_changed=0.0)
    assert conn.execute("SELECT bool_and(twice = orders_count * 2) FROM live.metrics").fetchone() == (True,)
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,), "no row changed that is published"
    Runner(settings, codec).close()


def corrupt(conn: psycopg.Connection[Any]) -> tuple[str, str, str]:
    """Change a profile, delete a row of metrics and a membership by hand; the customers whose rows they were."""
    ids = [
        c for (c,) in conn.execute("SELECT customer_id::text FROM live.segment_members ORDER BY 1 LIMIT 3").fetchall()
    ]
    first, *_ = changed = sorted(set(ids))
    other = conn.execute(
        "SELECT customer_id::text FROM live.profiles WHERE customer_id <> %s ORDER BY 1 DESC LIMIT 1", (first,)
    ).fetchone()
    assert other is not None
    conn.execute("UPDATE live.profiles SET city = 'Nowhere' WHERE customer_id = %s", (first,))
    conn.execute("DELETE FROM live.metrics WHERE customer_id = %s", other)
    conn.execute("DELETE FROM live.segment_members WHERE customer_id = %s", (first,))
    return first, other[0], changed[0]


@pytest.mark.timeout(300)
def test_rows_that_change_are_published_once_as_rebuilt_and_the_swap_can_be_undone(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    fill(settings, codec, _generate.events(600, 80))
    with projecting(settings, codec) as projection:
        until(lambda: projected(conn) == 600, "projection")
        until(lambda: conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,), "publishing")
        was = {name: len(on_topic(settings, codec, name)) for name in (kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS)}
        profile, figures, member = corrupt(conn)
        conn.execute("INSERT INTO live.rollup_support_new VALUES (now(), 'nowhere', 1, 0, 0, 0, 0, 0)")
        with replaying(settings, codec) as replay:
            diff = replay.full().diff
            assert diff is not None
            assert diff["rollups"] == {"sales": 0, "feedback": 0, "support": 1}
            views = diff["views"]
            assert views["profiles"]["examples"]["changed"] == [{"customer_id": profile, "fields": ["city"]}]
            assert views["metrics"]["examples"]["added"] == [{"customer_id": figures}]
            assert {e["customer_id"] for e in views["segment_members"]["examples"]["added"]} == {member}
            assert sum(s["after"] - s["before"] for s in diff["segments"].values()) == views["segment_members"]["added"]
            with pytest.raises(ReplayRefused, match="--force"):
                replay.swap(max_changed=0.001)
            assert conn.execute("SELECT count(*) FROM live.profiles WHERE city = 'Nowhere'").fetchone() == (1,)
            replay.swap(max_changed=0.001, force=True)
            assert rebuilt(conn) == NOTHING
            until(
                lambda: conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,), "publishing of what changed"
            )
            for name, customer in ((kafka.PROFILES, profile), (kafka.METRICS, figures), (kafka.SEGMENTS, member)):
                messages = on_topic(settings, codec, name)
                new = [value for key, value in messages if value and value["rebuilt"]]
                assert {value["customer_id"] for value in new} == {customer}, name
                assert len(messages) - was[name] == len(new), "nothing else was published"
                older = [v["version"] for k, v in messages if v and k == customer and not v["rebuilt"]]
                assert min(value["version"] for value in new) > max(older)
            assert replay.rollback().state == "rolled_back"
        assert conn.execute("SELECT count(*) FROM live.profiles WHERE city = 'Nowhere'").fetchone() == (1,)
        more = fill(settings, codec, _generate.events(700, 80), begin=600)
        until(lambda: projected(conn) == 600 + len(more), "projection after the rollback")
        assert projection.failed is None
        assert rebuilt(conn)["rollup_sales"] == ([], []), "triggers find their tables under any name of the schema"
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^(old|build|undone)_'").fetchall() == [
            ("undone_1",)
        ]
        with held(settings) as right:
            assert drop(right) == ["undone_1"]


def test_a_second_replay_is_refused_with_the_progress_of_the_first(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    apply(live, fill(settings, codec, _generate.events(200, 50)))
    refusals: list[str] = []

    def second(record: Record) -> None:
        if record.progress["stage"] == "facts" and not refusals:
            with pytest.raises(ReplayRunning) as refused, replaying(settings, codec):
                pass
            refusals.append(str(refused.value))

    with replaying(settings, codec, tell=second) as replay:
        built = replay.full()
    assert "replay 1 (full) runs" in refusals[0]
    assert "facts" in refusals[0]
    assert cancel(settings, built.id).state == "cancelled"
    assert conn.execute("SELECT to_regnamespace('build_1')").fetchone() == (None,)


def test_a_replay_is_cancelled_while_it_runs(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    apply(live, fill(settings, codec, _generate.events(200, 50)))
    before = contents(conn)
    with (
        pytest.raises(ReplayCancelled),
        replaying(
            settings, codec, tell=lambda record: record.state == "running" and cancel(settings) and None
        ) as replay,
    ):
        replay.full()
    assert contents(conn) == before
    with replaying(settings, codec) as replay:
        assert replay.interrupted() is None
    assert conn.execute("SELECT state FROM hub.replays").fetchall() == [("cancelled",)]
    assert conn.execute("SELECT to_regnamespace('build_1')").fetchone() == (None,)


def test_a_log_that_lost_its_first_events_is_refused_unless_told_to_start_there(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    log = fill(settings, codec, _generate.events(200, 50))
    apply(live, log)
    admin = kafka.admin(settings.kafka)
    place = TopicPartition(kafka.topic(settings.kafka, kafka.CHANGES), 1, 10)
    admin.delete_records([place])[place].result()
    with replaying(settings, codec) as replay, pytest.raises(LogTruncated, match="10 of partition 1"):
        replay.full()
    assert conn.execute("SELECT state, error FROM hub.replays").fetchall() == [("failed", "log_truncated")]
    with replaying(settings, codec) as replay:
        diff = replay.full(truncated=True).diff
    assert diff is not None
    assert diff["offsets"] == {str(p): sum(record.partition() == p for record in log) for p in range(PARTITIONS)}


def test_a_replay_interrupted_at_every_stage_is_gone_on_with(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "CHUNK", 50)
    apply(live, fill(settings, codec, _generate.events(300, 50)), [100])
    before = contents(conn)
    for stage in ("load", "facts", "views", "catch_up", "compare"):

        def interrupt(record: Record, stage: str = stage) -> None:
            if record.progress["stage"] == stage:
                raise KeyboardInterrupt

        with replaying(settings, codec, tell=interrupt) as replay, pytest.raises(KeyboardInterrupt):
            replay.full() if stage == "load" else replay.resume()
        assert contents(conn) == before
    with replaying(settings, codec) as replay:
        left = replay.interrupted()
        assert left is not None
        assert left.id == 1
        diff = replay.resume().diff
        assert diff is not None
        assert diff["differences"] == 0
        replay.swap()
    assert contents(conn) == before


def test_one_view_is_made_again_from_the_facts_while_the_live_projection_goes_on(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    log = fill(settings, codec, _generate.events(600, 80))
    apply(live, log[:300], [100])
    live.flush()
    lost = conn.execute("DELETE FROM live.metrics WHERE orders_count = 2 RETURNING customer_id::text").fetchall()
    assert lost
    batches = [log[300:400], log[400:]]
    done: list[str] = []

    def go_on(record: Record) -> None:
        if batches and record.progress["stage"] not in done:  # once while the view is made, once while it is compared
            done.append(record.progress["stage"])
            apply(live, batches.pop(0))

    with replaying(settings, codec, tell=go_on) as replay:
        diff = replay.view("metrics").diff
        assert diff is not None
        assert list(diff["views"]) == ["metrics", "segment_members"]
        assert 0 < diff["views"]["metrics"]["added"] <= len(lost), "some were made again by the batches that followed"
        assert diff["views"]["metrics"]["removed"] == diff["views"]["metrics"]["changed"] == 0
        assert replay.swap().state == "swapped"
    assert not batches
    assert rebuilt(conn) == NOTHING
    apply(live, fill(settings, codec, _generate.events(700, 80), begin=600))
    assert rebuilt(conn) == NOTHING
    assert conn.execute("SELECT count(*) FROM hub.touched").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname ~ '^build'").fetchone() == (0,)


def test_a_view_that_was_redefined_is_made_from_the_facts_and_stops_workers_of_the_release_before(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fill(settings, codec, _generate.events(300, 60))
    apply(live, log[:200], [100])
    select = f"SELECT *, orders_count * 2 AS twice FROM ({metrics.select}) once"
    redefine(monkeypatch, replace(metrics, columns={**metrics.columns, "twice": "bigint"}, select=select))
    with replaying(settings, codec) as replay:
        with pytest.raises(ReplayRefused, match="metrics was made by another definition"):
            replay.view("profiles")
        diff = replay.view("metrics").diff
        assert diff is not None
        assert diff["views"]["metrics"]["columns_added"] == ["twice"]
        replay.swap(max_changed=0.0)
    assert conn.execute("SELECT bool_and(twice = orders_count * 2) FROM live.metrics").fetchone() == (True,)
    runner = Runner(settings, codec)
    runner.positions(range(PARTITIONS))
    apply(runner, log[200:])
    runner.close()
    assert conn.execute("SELECT bool_and(twice = orders_count * 2) FROM live.metrics").fetchone() == (True,)
    monkeypatch.undo()
    with pytest.raises(Fatal):
        live.apply(live.decode(fill(settings, codec, _generate.events(310, 60), begin=300)))


@pytest.mark.timeout(300)
def test_the_api_starts_a_replay_tells_its_progress_and_swaps_it_in(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    apply(live, fill(settings, codec, _generate.events(300, 50)))
    live.flush()
    conn.execute(
        "UPDATE live.profiles SET city = 'Nowhere' WHERE customer_id = (SELECT min(customer_id::text)::uuid FROM live.profiles)"
    )
    headers = {"authorization": f"Bearer {token_of(settings, 'operate')}"}
    with running(settings) as address, httpx.Client(base_url=address, headers=headers, timeout=120) as client:
        assert client.post("/replays", json={"kind": "view"}).status_code == 422
        conn.execute("INSERT INTO hub.control (key, value) VALUES ('replay.paused', 'true')")
        started = client.post("/replays", json={"kind": "full"})
        assert started.status_code == 202, started.text
        number = started.json()["id"]
        refused = client.post("/replays", json={"kind": "view", "view": "profiles"})
        assert (refused.status_code, refused.json()["code"]) == (409, "replay_running")
        conn.execute("DELETE FROM hub.control")
        with client.stream("GET", f"/replays/{number}/progress") as events:
            told = [
                orjson.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line.startswith("data: ")
            ]
        assert told[-1]["state"] == "built"
        assert client.get(f"/replays/{number}/diff").json()["views"]["profiles"]["fields"] == {"city": 1}
        until(lambda: not client.get("/replays").json()["replays"][0]["active"], "the end of the process")
        tight = client.post(f"/replays/{number}/swap", params={"max_changed": 0})
        assert (tight.status_code, tight.json()["code"]) == (409, "replay_refused")
        assert client.post(f"/replays/{number}/swap").json()["state"] == "swapped"
        assert rebuilt(conn) == NOTHING
        assert client.post(f"/replays/{number}/cancel").status_code == 409
        assert client.post(f"/replays/{number}/rollback").json()["state"] == "rolled_back"
        assert client.get("/replays/99").status_code == 404
    assert conn.execute("SELECT count(*) FROM live.profiles WHERE city = 'Nowhere'").fetchone() == (1,)


def test_on_a_terminal_a_replay_shows_how_far_it_is_and_asks_before_it_swaps(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], live: Runner
) -> None:
    apply(live, fill(settings, codec, _generate.events(200, 50)))
    conn.execute("DELETE FROM live.metrics")
    with terminal(settings, "replay") as (process, read, write):
        shown = read(b"swap it in? [y/N]")
        assert conn.execute("SELECT count(*) FROM live.metrics").fetchone() == (0,)
        write(b"y\n")
        shown += read(b"`caudal replay rollback` goes back")
        assert process.wait(60) == 0
    assert all(stage in shown for stage in (b"load", b"200/200", b"facts", b"views", b"compare")), shown
    assert rebuilt(conn) == NOTHING


@contextmanager
def terminal(
    settings: Settings, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], bytes], Callable[[bytes], int]]]:
    """A command on a terminal of its own; reads what it shows up to a text, and types."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # so wide that no line is folded
    process = subprocess.Popen(
        [sys.executable, "-m", "caudal.cli", *words], env=environment(settings, TERM="xterm"),
        stdin=its, stdout=its, stderr=its, start_new_session=True,
    )  # fmt: skip
    os.close(its)

    def read(text: bytes) -> bytes:
        shown = b""
        while text not in shown:
            assert select.select([ours], [], [], 120)[0], shown
            shown += os.read(ours, 65_536)
        return shown

    try:
        yield process, read, partial(os.write, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
