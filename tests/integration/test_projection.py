"""The live runner on real PostgreSQL and Kafka: what it writes, publishes, puts aside, and leaves to others."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from caudal.projections import PROVENANCE, Runner, _vet, priority_sql
from caudal.projections._copy import encode, encode_by_rows
from caudal.schemas import Event, OrderStated, ProfileStated, SubjectDeleted, SubjectLinked
from caudal.schemas.codec import Codec
from logs import PARTITIONS, Record, apply, connect, records
from replays import until

from caudal import kafka, postgres
from caudal.errors import BrokerUnavailable, DatabaseUnavailable, Fatal, LostPartition
from caudal.settings import Settings, WorkerSettings

START = datetime(2026, 3, 1, tzinfo=UTC)
ANA = str(uuid.uuid5(uuid.NAMESPACE_OID, "ana"))
RUI = str(uuid.uuid5(uuid.NAMESPACE_OID, "rui"))


@pytest.fixture
def runners(settings: Settings, codec: Codec) -> Iterator[Callable[..., Runner]]:
    made: list[Runner] = []

    def make(partitions: Sequence[int] = range(PARTITIONS), **options: Any) -> Runner:
        runner = Runner(settings, codec, **options)
        runner.positions(list(partitions))
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner.close()


def stated(subject: str, customer: str, at: int = 0, *, seq: int = 1, **fields: Any) -> ProfileStated:
    when = START + timedelta(hours=at)
    return ProfileStated(
        subject=subject, source=subject.partition(":")[0], customer_id=customer, link_seq=seq, occurred_at=when, captured_at=when,
        event_id=f"{subject}-{at}", **fields,
    )  # fmt: skip


def ordered(subject: str, customer: str, order_id: str, at: int = 0, *, seq: int = 1, **fields: Any) -> OrderStated:
    when = START + timedelta(hours=at)
    return OrderStated(
        subject=subject, source=subject.partition(":")[0], customer_id=customer, link_seq=seq, occurred_at=when, captured_at=when,
        event_id=f"{order_id}-{at}", order_id=order_id, status="paid", currency="BRL", placed_at=when, **fields,
    )  # fmt: skip


def published(settings: Settings, codec: Codec, name: str, count: int) -> list[tuple[str, dict[str, Any] | None]]:
    """The first `count` messages of a topic as (key, value), in order within each key."""
    consumer = kafka.consumer(settings.kafka, "tests", **{"auto.offset.reset": "earliest"})
    topic = kafka.topic(settings.kafka, name)
    consumer.subscribe([topic])
    found: list[tuple[str, dict[str, Any] | None]] = []
    deadline = time.monotonic() + 90
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            value = message.value()
            found.append(((message.key() or b"").decode(), codec.decode(value)[1] if value else None))
    consumer.close()
    return found


def test_two_subjects_of_one_customer_make_one_profile_by_priority_then_age(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners(priorities={"crm": 10})
    log: list[Event] = [
        stated("shop:customer:1", ANA, 5, name="Ana do Carmo", city="Recife", phone="+5581999990000"),
        stated("crm:contact:1", ANA, 1, name="Ana C.", email="ana@example.com"),
    ]
    apply(runner, records(codec, log))
    row = conn.execute("SELECT customer_id::text, sources, name, city, email, phone FROM live.profiles").fetchall()
    assert row == [(ANA, ["crm", "shop"], "Ana C.", "Recife", "ana@example.com", "+5581999990000")]
    sql = PROVENANCE.format(schema="live", priority=priority_sql({"crm": 10}))
    came = {field: (source, since) for field, source, _, since in conn.execute(sql, {"customer_id": ANA}).fetchall()}
    assert came["name"] == ("crm", START + timedelta(hours=1))
    assert came["city"] == ("shop", START + timedelta(hours=5))


def test_a_record_of_the_person_counts_before_what_an_order_says_of_them(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners(priorities={"shop": 10})
    log: list[Event] = [
        stated("crm:contact:1", ANA, 0, name="Ana Souza"),
        stated("shop:order:5", ANA, 9, name="Rui Lima", city="Olinda"),
        stated("shop:order:4", ANA, 8, name="Rui", city="Natal", phone="+5581999990000"),
    ]
    apply(runner, records(codec, log), [1])
    assert conn.execute("SELECT name, city, phone FROM live.profiles").fetchall() == [
        ("Ana Souza", "Olinda", "+5581999990000")
    ]
    sql = PROVENANCE.format(schema="live", priority=priority_sql({"shop": 10}))
    came = {field: subject for field, _, subject, _ in conn.execute(sql, {"customer_id": ANA}).fetchall()}
    assert (came["name"], came["city"]) == ("crm:contact:1", "shop:order:5")


def test_an_absent_field_stays_and_a_cleared_one_goes(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners()
    log: list[Event] = [
        stated("crm:contact:1", ANA, 0, name="Ana", city="Recife", phone="+5581999990000"),
        stated("crm:contact:1", ANA, 1, city="Olinda"),
        stated("crm:contact:1", ANA, 2, cleared=("phone",)),
    ]
    apply(runner, records(codec, log), [1])
    assert conn.execute("SELECT name, city, phone FROM live.profiles").fetchall() == [("Ana", "Olinda", None)]


def test_fields_stated_beside_an_erasure_are_still_there_when_others_are_stated(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    erased = SubjectDeleted(
        subject="shop:customer:9", source="shop", customer_id=RUI, link_seq=1, occurred_at=START, captured_at=START,
        event_id="gone", kind="erased", reason="redact",
    )  # fmt: skip
    log: list[Event] = [
        erased,
        stated("crm:contact:1", ANA, 0, city="Olinda"),
        stated("crm:contact:1", ANA, 1, name="Ana"),
    ]
    apply(runners(), records(codec, log), [2, 1])
    assert conn.execute("SELECT name, city FROM live.profiles").fetchall() == [("Ana", "Olinda")]


def test_a_merge_moves_orders_and_an_undo_moves_them_back(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners()
    ends: dict[int, int] = {}

    def spend() -> dict[str, tuple[int, dict[str, int]]]:
        found = conn.execute("SELECT customer_id::text, orders_count, spend_minor FROM live.metrics").fetchall()
        return {customer: (count, spent) for customer, count, spent in found}

    apart: list[Event] = [
        ordered("shop:customer:1", ANA, "1", total_minor=100),
        ordered("shop:customer:2", RUI, "2", total_minor=50),
    ]
    apply(runner, records(codec, apart, start=ends))
    before = spend()
    assert before == {ANA: (1, {"BRL": 100}), RUI: (1, {"BRL": 50})}
    link = SubjectLinked(
        subject="shop:customer:2",
        source="shop",
        customer_id=ANA,
        link_seq=2,
        occurred_at=START,
        captured_at=START,
        event_id="l",
        reason="merge",
    )
    apply(runner, records(codec, [link], start=ends))
    assert spend() == {ANA: (2, {"BRL": 150})}
    undo = SubjectLinked(
        subject="shop:customer:2",
        source="shop",
        customer_id=RUI,
        link_seq=3,
        occurred_at=START,
        captured_at=START,
        event_id="u",
        reason="undo",
    )
    apply(runner, records(codec, [undo], start=ends))
    assert spend() == before


def test_figures_go_with_the_last_order_that_moves_to_another_subject(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners()
    log: list[Event] = [
        ordered("shop:order:1", ANA, "1", total_minor=100),
        ordered("shop:customer:2", RUI, "1", 1, total_minor=100),
    ]
    apply(runner, records(codec, log), [1])
    assert conn.execute("SELECT customer_id::text FROM live.metrics").fetchall() == [(RUI,)]


def test_every_changed_row_is_published_once_with_rising_versions(
    settings: Settings, runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners()
    log: list[Event] = [
        stated("crm:contact:1", ANA, 0, name="Ana"),
        stated("crm:contact:1", ANA, 0, name="Ana"),  # says nothing new
        stated("crm:contact:1", ANA, 1, name="Ana Maria"),
    ]
    apply(runner, records(codec, log), [1])
    runner.flush()
    found = published(settings, codec, kafka.PROFILES, 2)
    assert [(key, value and value["name"]) for key, value in found] == [(ANA, "Ana"), (ANA, "Ana Maria")]
    versions = [value["version"] for _, value in found if value]
    assert versions == sorted(set(versions))
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)


def test_an_erased_subject_leaves_a_tombstone_and_no_data(
    settings: Settings, runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    runner = runners()
    gone = SubjectDeleted(
        subject="shop:customer:1", source="shop", customer_id=ANA, link_seq=1, occurred_at=START + timedelta(hours=2), captured_at=START,
        event_id="gone", kind="erased", reason="redact",
    )  # fmt: skip
    late = stated("shop:customer:1", ANA, 1, name="Ana, late")
    log = [
        stated("shop:customer:1", ANA, 0, name="Ana"),
        ordered("shop:customer:1", ANA, "1", total_minor=5),
        gone,
        late,
    ]
    apply(runner, records(codec, log), [1])
    runner.flush()
    for table in ("profile_statements", "profiles", "metrics", "segment_members"):
        assert conn.execute(f"SELECT count(*) FROM live.{table}").fetchone() == (0,), table
    (left,) = conn.execute("SELECT jsonb_strip_nulls(to_jsonb(o)) FROM live.orders o").fetchone()
    assert set(left) == {"order_id", "source", "subject", "occurred_at", "captured_at", "event_id", "stated"}
    assert left["subject"] == "~shop:customer:1"
    assert published(settings, codec, kafka.PROFILES, 2)[-1] == (ANA, None)


def test_what_was_committed_and_not_published_is_published_by_the_next_owner(
    settings: Settings,
    runners: Callable[..., Runner],
    codec: Codec,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dying = runners()
    monkeypatch.setattr(dying._publisher, "publish", lambda *_args, **_options: None)  # as if killed after the commit
    apply(
        dying,
        records(
            codec, [stated("crm:contact:1", ANA, 0, name="Ana"), ordered("crm:contact:1", ANA, "1", total_minor=7)]
        ),
    )
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() != (0,)
    assert runners().recover(range(PARTITIONS)) == 3  # profile, metrics, segments
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)
    assert published(settings, codec, kafka.PROFILES, 1)[0][1]["name"] == "Ana"  # type: ignore[index]
    assert published(settings, codec, kafka.METRICS, 1)[0][1]["orders_count"] == 1  # type: ignore[index]
    assert published(settings, codec, kafka.SEGMENTS, 1)[0][1]["segment"] == "buyers"  # type: ignore[index]


def test_a_worker_whose_partitions_were_given_away_leaves_the_outbox_to_their_owner(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], runners: Callable[..., Runner]
) -> None:
    before, now = runners(), runners()
    before.assigned(range(PARTITIONS))
    now.assigned([0, 1])
    now.assigned([2, 3])
    conn.execute(
        "INSERT INTO hub.outbox (partitions, topic, customer_ids) VALUES (%s, 'customer.profiles', %s)",
        ([*range(PARTITIONS)], [ANA]),
    )
    with pytest.raises(LostPartition):
        before.recover(range(PARTITIONS))
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (1,)
    assert now.recover(range(PARTITIONS)) == 1
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)


def test_a_worker_that_stood_still_publishes_nothing_old_and_then_what_the_outbox_holds(
    settings: Settings,
    runners: Callable[..., Runner],
    codec: Codec,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runners()
    monkeypatch.setattr(runner._publisher, "_patience_s", -1.0)  # as if it had stood still between any two looks
    monkeypatch.setattr(runner._publisher, "_quiet_s", 0.2)
    apply(runner, records(codec, [stated("crm:contact:1", ANA, 0, name="Ana")]))
    with pytest.raises(BrokerUnavailable):
        runner.flush()
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (1,)
    monkeypatch.setattr(runner._publisher, "_patience_s", 60.0)
    monkeypatch.setattr(runner._publisher, "_quiet_s", 0.0)
    assert runner.recover(range(PARTITIONS)) == 1
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)
    found = published(settings, codec, kafka.PROFILES, 1)
    assert [(key, value and value["name"]) for key, value in found] == [(ANA, "Ana")]


def test_a_worker_that_stood_still_between_commit_and_publishing_publishes_nothing_old(
    settings: Settings, runners: Callable[..., Runner], codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie, owner = runners(), runners()
    monkeypatch.setattr(zombie._publisher, "_patience_s", 0.05)
    publish = zombie._publisher.publish

    def publish_later(*arguments: Any, **options: Any) -> None:
        assert owner.recover(range(PARTITIONS)) == 1  # it has taken over meanwhile
        time.sleep(0.1)  # the zombie stands still
        publish(*arguments, **options)

    monkeypatch.setattr(zombie._publisher, "publish", publish_later)
    apply(zombie, records(codec, [stated("crm:contact:1", ANA, 0, name="Ana")]))
    zombie.flush()
    assert zombie._publisher._producer.flush(30) == 0
    topic = kafka.topic(settings.kafka, kafka.PROFILES)
    assert sum(kafka.end_offsets(settings.kafka, [topic])[topic].values()) == 1


def test_a_worker_that_has_stood_still_publishes_nothing_before_the_group_could_take_its_partitions_away(
    settings: Settings,
    runners: Callable[..., Runner],
    codec: Codec,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runners()
    log = records(codec, [stated("crm:contact:1", ANA, at, name=f"Ana {at}") for at in range(2)])
    apply(runner, log[:1])
    runner.flush()
    monkeypatch.setattr(runner._publisher, "_stood_still", time.monotonic())
    topic, before = kafka.topic(settings.kafka, kafka.PROFILES), []

    def rest() -> None:
        before.append(sum(kafka.end_offsets(settings.kafka, [topic])[topic].values()))
        monkeypatch.setattr(runner._publisher, "_quiet_s", 0.0)  # as if the time were over

    monkeypatch.setattr(runner._publisher, "rest", rest)
    apply(runner, log[1:])
    runner.flush()  # goes on by itself
    assert before == [1]
    assert sum(kafka.end_offsets(settings.kafka, [topic])[topic].values()) == 2
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)


def test_changes_of_customers_on_other_partitions_are_left_to_their_owner(
    settings: Settings, runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = records(codec, [stated("crm:contact:1", ANA, 0, name="Ana")])
    home = log[0].partition()
    stranger = runners([p for p in range(PARTITIONS) if p != home])
    apply(stranger, log)
    stranger.flush()
    assert conn.execute("SELECT partitions FROM hub.outbox WHERE topic = 'customer.profiles'").fetchall() == [([home],)]
    owner = runners([home])
    owner.idle()  # and apply, under load
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (0,)
    assert [key for key, _ in published(settings, codec, kafka.PROFILES, 1)] == [ANA]


def test_a_value_that_postgres_refuses_becomes_a_dead_letter_and_the_rest_is_applied(
    settings: Settings,
    runners: Callable[..., Runner],
    codec: Codec,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_vet, "faults", lambda event, records: {})  # as if nothing were known of such values
    runner = runners()
    log = [stated(f"crm:contact:{n}", ANA, n, name="a\0b" if n == 2 else f"Ana {n}") for n in range(5)]
    made = records(codec, log)
    garbage = Record((made[0].partition(), len(made)), b"\0\0\0\0\1garbage", ANA)
    apply(runner, [*made, garbage])
    assert conn.execute("SELECT subject FROM live.profile_statements ORDER BY 1").fetchall() == [
        (f"crm:contact:{n}",) for n in (0, 1, 3, 4)
    ]
    # the batch is tried again in halves, and the damaged one put aside again: the same letter twice
    letters = {
        value["dead_letter_id"]: value for _, value in published(settings, codec, kafka.DEAD_LETTERS, 3) if value
    }
    assert sorted(letter["code"] for letter in letters.values()) == ["undecodable_record", "unusable_event"]
    assert all("Ana" not in letter["message"] and letter["stage"] == "project" for letter in letters.values())


def test_a_batch_that_another_worker_has_applied_is_refused(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = records(codec, [stated("crm:contact:1", ANA, 0, name="Ana")])
    first, zombie = runners(), runners()
    apply(first, log)
    with pytest.raises(LostPartition):
        apply(zombie, log)
    assert conn.execute("SELECT name FROM live.profiles").fetchall() == [("Ana",)]


def test_copy_by_rows_gives_the_bytes_of_copy_by_columns() -> None:
    table = pa.table(
        {
            "text": pa.array(["a", None, "ção"]),
            "small": pa.array([1, None, -3], pa.int32()),
            "large": pa.array([2**40, None, -1], pa.int64()),
            "real": pa.array([1.5, None, -0.0]),
            "yes": pa.array([True, None, False]),
            "day": pa.array([0, None, 20_000], pa.int32()).cast(pa.date32()),
            "at": pa.array([0, None, 1_700_000_000_000_001], pa.timestamp("us", tz="UTC")),
            "words": pa.array([["a", None], None, ["b"]], pa.list_(pa.string())),
            "counts": pa.array([[1, 2], None, [3]], pa.list_(pa.int32())),
            "sums": pa.array([[1], None, [2**50]], pa.list_(pa.int64())),
            "none": pa.array([[], None, []], pa.list_(pa.string())),
            "json": pa.array(['{"a":1}', None, "[]"]),
        }
    )
    assert encode(table, frozenset({"json"})) == encode_by_rows(table, frozenset({"json"}))


def test_a_runner_goes_on_in_a_schema_of_the_same_definition_that_took_the_name(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    live, beside = runners(), runners(schema="build_1", feed=False)
    log = records(codec, [stated("shop:customer:1", ANA, name="Ana"), stated("shop:customer:2", RUI, name="Rui")])
    for runner in (live, beside):
        runner.apply(runner.decode(log[:1]))
    assert beside.touched == {ANA}
    assert conn.execute("SELECT count(*) FROM hub.outbox").fetchone() == (1,), "what is built beside publishes nothing"
    conn.execute("ALTER SCHEMA live RENAME TO old_1")
    conn.execute("ALTER SCHEMA build_1 RENAME TO live")
    live.apply(live.decode(log[1:]))
    assert conn.execute("SELECT name FROM live.profiles ORDER BY name").fetchall() == [("Ana",), ("Rui",)]
    assert conn.execute("SELECT name FROM old_1.profiles").fetchall() == [("Ana",)]


def test_a_runner_stops_at_a_schema_of_another_definition_that_took_the_name(
    runners: Callable[..., Runner], codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    live = runners()
    runners(schema="build_1", feed=False)
    log = records(codec, [stated("shop:customer:1", ANA, name="Ana")])
    conn.execute("ALTER TABLE build_1.profiles DROP COLUMN city")
    conn.execute("COMMENT ON SCHEMA build_1 IS 'other'")
    conn.execute("ALTER SCHEMA live RENAME TO old_1")
    conn.execute("ALTER SCHEMA build_1 RENAME TO live")
    with pytest.raises(Fatal, match="caudal replay"):
        live.apply(live.decode(log))
    assert conn.execute("SELECT count(*) FROM live.links").fetchone() == (0,)


def test_a_worker_that_stands_still_in_a_batch_does_not_keep_its_locks(
    settings: Settings, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LONGEST", 2)
    settings = settings.model_copy(update={"worker": WorkerSettings(session_timeout_ms=1000)})
    log = records(codec, [stated("shop:customer:1", ANA, name="Ana")])
    stands, goes_on = threading.Event(), threading.Event()
    still, other = Runner(settings, codec), Runner(settings, codec)
    advance = still._advance

    def stand_still(*arguments: Any) -> None:  # in the middle of a pipeline
        stands.set()
        assert goes_on.wait(120)
        advance(*arguments)

    def applied() -> bool:
        with suppress(DatabaseUnavailable):  # while it waits for the lock it may be ended, too
            apply(other, log)
            return True
        return False

    monkeypatch.setattr(still, "_advance", stand_still)
    with ThreadPoolExecutor(1) as pool, closing(still), closing(other):
        for runner in (still, other):
            runner.positions(range(PARTITIONS))
        batch = pool.submit(apply, still, log)
        try:
            assert stands.wait(60)
            until(applied, "batch of the other worker")
        finally:
            goes_on.set()
        assert isinstance(batch.exception(60), DatabaseUnavailable)
    with connect(settings) as conn:
        assert conn.execute("SELECT name FROM live.profiles").fetchall() == [("Ana",)]
