"""Customers rebuilt one by one from the log: equal to the live tables, and what puts them right where they are not."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from caudal.projections import Runner, _places
from caudal.projections import replay as replays
from caudal.projections._prove import Prover, known, sample
from caudal.schemas import CustomerErased, Event, OrderStated, ProfileStated, SubjectLinked
from caudal.schemas.codec import Codec, LocalRegistry
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from logs import PARTITIONS, Record, apply, clear, connect, contents, records
from test_projection_law import CUSTOMERS, logs

from caudal import kafka, postgres, telemetry
from caudal._nightly import Nightly
from caudal.errors import ReplayRefused
from caudal.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
ANA, RUI = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("ana", "rui"))


class Hub:
    """A log in Kafka, its live tables and who proves them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.codec = Codec(LocalRegistry(settings.kafka.topic_prefix))
        self.runner = Runner(settings, self.codec)
        self.runner.positions(range(PARTITIONS))
        self.prover = Prover(settings, self.codec)
        self.conn = connect(settings)
        self._producer = kafka.producer(settings.kafka)

    def write(self, events: Sequence[Event], sizes: Sequence[int] = ()) -> None:
        """Put events on the topic and project them."""
        made: list[Record] = []

        def stored(error: Any, message: Any) -> None:
            assert error is None
            made.append(Record((message.partition(), message.offset()), message.value(), message.key().decode()))

        topic = kafka.topic(self.settings.kafka, kafka.CHANGES)
        for record in records(self.codec, events):
            self._producer.produce(
                topic, key=record.key(), value=record.value(), partition=record.partition(), on_delivery=stored
            )
        assert self._producer.flush(60) == 0
        apply(self.runner, made, sizes)

    def close(self) -> None:
        self.runner.close()
        self.prover.close()
        self.conn.close()


@pytest.fixture
def hub(settings: Settings) -> Iterator[Hub]:
    made = Hub(settings)
    yield made
    made.close()


def stated(subject: str, customer: str, at: int, *, seq: int = 1, **fields: Any) -> ProfileStated:
    return ProfileStated(**header(subject, customer, at, seq), **fields)


def ordered(subject: str, customer: str, order_id: str, at: int, *, seq: int = 1, total: int = 100) -> OrderStated:
    return OrderStated(
        **header(subject, customer, at, seq), order_id=order_id, status="paid", currency="BRL", total_minor=total
    )


def know(hub: Hub, subject: str, customer: str) -> None:
    """What the identity step keeps of a subject."""
    hub.conn.execute(
        """INSERT INTO hub.subjects (subject, customer_id, link_seq, source, created_at, linked_at, reason)
           VALUES (%s, %s, 1, 'crm', now(), now(), 'new')""",
        (subject, customer),
    )


def header(subject: str, customer: str, at: int, seq: int = 1) -> dict[str, Any]:
    when = START + timedelta(hours=at)
    return {
        "subject": subject, "source": subject.partition(":")[0], "customer_id": customer, "link_seq": seq, "occurred_at": when,
        "captured_at": when, "event_id": f"{subject}-{at}",
    }  # fmt: skip


@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(log=logs(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_customer_rebuilt_alone_is_as_the_live_tables_have_it(
    hub: Hub, log: list[Event], sizes: list[int]
) -> None:
    clear(hub.conn)
    hub.write(log, sizes)
    for customer in CUSTOMERS:
        assert hub.prover.rebuild(customer).differences == []


def test_what_was_edited_by_hand_is_named_and_put_right(hub: Hub) -> None:
    hub.write(
        [
            stated("crm:contact:1", ANA, 0, name="Ana", city="Recife"),
            stated("shop:customer:1", ANA, 1, email="ana@example.com"),
            ordered("shop:customer:1", ANA, "1", 2),
            ordered("shop:customer:2", RUI, "2", 3),
            stated("crm:contact:1", ANA, 4, city="Olinda"),
        ],
        [2],
    )
    know(hub, "crm:contact:1", ANA)
    sound = contents(hub.conn)
    found = hub.prover.rebuild(ANA)
    assert (found.events, found.subjects, found.differences) == (4, ["crm:contact:1", "shop:customer:1"], [])
    edits = {
        ("profiles", "city", "changed"): "UPDATE live.profiles SET city = 'Natal' WHERE city = 'Olinda'",
        ("orders", "total_minor", "changed"): "UPDATE live.orders SET total_minor = 7 WHERE order_id = '1'",
        ("links", "customer_id", "changed"): f"UPDATE live.links SET customer_id = '{RUI}' WHERE subject LIKE 'crm:%'",
        ("profile_statements", "city", "missing"): "DELETE FROM live.profile_statements WHERE subject LIKE 'crm:%'",
        ("profile_statements_parts", "city", "missing"): "DELETE FROM live.profile_statements_parts WHERE city = 'Olinda'",
        ("segment_members", "segment", "extra"): f"INSERT INTO live.segment_members VALUES ('{ANA}', 'unhappy')",
        ("metrics", "orders_count", "missing"): f"DELETE FROM live.metrics WHERE customer_id = '{ANA}'",
    }  # fmt: skip
    for (table, field, what), edit in edits.items():
        hub.conn.execute(edit)
        [seen] = [d for d in hub.prover.rebuild(ANA).differences if d.table == table]
        assert (seen.customer_id, seen.what, field in seen.fields) == (ANA, what, True), edit
        assert contents(hub.conn) != sound, "looking changes nothing"
        hub.prover.rebuild(ANA, repair=True)
        assert hub.prover.rebuild(ANA).differences == [], edit
        assert contents(hub.conn) == sound, edit
    left = hub.conn.execute("SELECT topic FROM hub.outbox").fetchall()
    assert {topic for (topic,) in left} == {"customer.profiles", "customer.metrics", "customer.segments"}


def test_merged_split_and_erased_customers_are_proved_too(hub: Hub) -> None:
    hub.write(
        [
            stated("crm:contact:1", ANA, 0, name="Ana"),
            stated("shop:customer:1", RUI, 1, name="Rui"),
            SubjectLinked(**header("shop:customer:1", ANA, 2, seq=2), reason="merge"),
            ordered("shop:customer:1", ANA, "1", 3, seq=2),
            ordered("crm:contact:1", ANA, "9", 4),
        ]
    )
    assert hub.prover.rebuild(ANA).events == 5
    assert hub.prover.rebuild(RUI).differences == []
    hub.write([CustomerErased(**header("crm:contact:1", ANA, 9), subjects=("crm:contact:1", "shop:customer:1"))])
    assert hub.prover.rebuild(ANA).differences == []
    hub.conn.execute("INSERT INTO live.profiles (customer_id, name) VALUES (%s, 'Ana')", (ANA,))
    assert [(d.table, d.what) for d in hub.prover.rebuild(ANA, repair=True).differences] == [("profiles", "extra")]
    assert hub.conn.execute("SELECT count(*) FROM live.profiles").fetchone() == (0,)


def test_a_sample_holds_customers_that_only_the_profiles_or_only_the_identity_state_know(hub: Hub) -> None:
    hub.conn.execute("INSERT INTO live.profiles (customer_id) VALUES (%s)", (ANA,))
    know(hub, "crm:contact:1", RUI)
    assert sample(hub.conn, 4) == sorted([ANA, RUI])
    zoe = "01890000-0000-7000-8000-00000000000f"
    hub.conn.execute("INSERT INTO live.metrics (customer_id) VALUES (%s)", (zoe,))
    assert sample(hub.conn, 3) == sorted([ANA, RUI, zoe])
    assert known(hub.conn) == 3


def test_a_sample_is_drawn_of_all_each_as_likely_as_another(hub: Hub) -> None:
    # ids that lie close together, and one far away: the gap before an id must not make it likelier
    hub.conn.execute(
        """INSERT INTO live.profiles (customer_id)
           SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid FROM generate_series(1, 22) n
           UNION ALL SELECT 'ffffffff-0000-4000-8000-000000000000'"""
    )
    assert known(hub.conn) == 23
    for number in (23, 24, 100, 10_000):
        assert len(sample(hub.conn, number)) == 23
    drawn = Counter(customer for _ in range(400) for customer in sample(hub.conn, 5))
    assert len(sample(hub.conn, 5)) == 5
    assert len(drawn) == 23
    assert max(drawn.values()) < 3 * min(drawn.values()), "5 of 23, 400 times: 87 each, 8 off on average"


def test_places_are_found_again_after_they_were_folded_and_sorted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_places, "SORT_KEYS", 3)
    before = {}
    for number in range(4):
        hub.write([stated(f"crm:contact:{number}", ANA, number)])
        before[number] = _places.find(hub.conn, "live", [f"crm:contact:{number}"])
        with hub.conn.transaction(), hub.conn.cursor() as cur:
            _places.tidy(cur, "live")
    buckets = {bucket for (bucket,) in hub.conn.execute("SELECT bucket FROM live.places").fetchall()}
    assert -1 not in buckets
    assert any(bucket >= 0 for bucket in buckets)
    for number, places in before.items():
        [[_]] = places.values()
        assert _places.find(hub.conn, "live", [f"crm:contact:{number}"]) == places
    assert _places.find(hub.conn, "live", ["crm:contact:77"]) == {}


def test_a_whole_rebuild_names_every_row_that_is_not_what_the_log_says(hub: Hub) -> None:
    hub.write(
        [
            stated("crm:contact:1", ANA, 0, name="Ana", city="Recife"),
            stated("crm:contact:2", RUI, 1, name="Rui"),
            ordered("crm:contact:2", RUI, "1", 2),
        ]
    )
    with replays.Proof.opened(hub.settings, hub.codec, priorities={}) as proof:
        findings, told = proof.verify()
    assert (findings.customers, findings.rows, findings.plain()["equal"]) == (2, 0, True)
    assert all(table["equal"] for table in told["tables"].values())
    assert told["tables"]["orders"]["live"]["rows"] == 1

    hub.conn.execute("UPDATE live.profiles SET city = 'Natal' WHERE name = 'Ana'")
    hub.conn.execute("DELETE FROM live.orders")
    with replays.Proof.opened(hub.settings, hub.codec, priorities={}) as proof:
        findings, told = proof.verify()
    assert [(d.customer_id, d.table, d.what) for d in findings.differences] == [
        *sorted([(ANA, "profiles", "changed"), (RUI, "orders", "missing")]),
        (None, "rollup_sales", "missing"),
    ]
    [profile] = [d for d in findings.differences if d.table == "profiles"]
    assert profile.fields == {"city": ("Natal", "Recife")}
    assert (findings.differing, findings.tables) == (2, {"profiles": 1, "orders": 1, "rollup_sales": 1})
    assert [name for name, table in told["tables"].items() if not table["equal"]] == [
        "orders",
        "profiles",
        "rollup_sales",
    ]
    left = hub.conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'verify%'").fetchall()
    assert left == []


def test_the_views_as_of_a_time_hold_what_was_captured_by_then(hub: Hub) -> None:
    hub.write([stated("crm:contact:1", ANA, 0, city="Recife"), stated("crm:contact:1", ANA, 30, city="Olinda")])
    with replays.Proof.opened(hub.settings, hub.codec, priorities={}) as proof:
        record = proof.as_of(replays.moment("2026-03-01"), "march")
        assert (record.kind, record.state, record.schema) == ("as_of", "built", "march")
        with pytest.raises(ReplayRefused, match="is there"):
            proof.as_of(replays.moment("2026-03-01"), "march")
        assert hub.conn.execute("SELECT city FROM march.profiles").fetchall() == [("Recife",)]
        assert hub.conn.execute("SELECT city FROM live.profiles").fetchall() == [("Olinda",)]
        said = hub.conn.execute("SELECT obj_description('march'::regnamespace, 'pg_namespace')").fetchone()
        assert said is not None
        assert "2026-03-01T23:59:59.999999+00:00" in said[0]
        proof.as_of(replays.moment("2026-03-05T00:00-03:00"), "march", replace=True)
        assert hub.conn.execute("SELECT city FROM march.profiles").fetchall() == [("Olinda",)]
        hub.conn.execute("CREATE SCHEMA april")
        with pytest.raises(ReplayRefused, match="not made by a replay"):
            proof.as_of(replays.moment("2026-03-01"), "april", replace=True)
    with replays.held(hub.settings) as conn:
        assert replays.drop(conn) == [], "by name only"
        assert replays.drop(conn, schema="march") == ["march"]


def test_one_worker_proves_a_sample_a_day_and_all_show_the_result(hub: Hub) -> None:
    hub.write(
        [
            stated("crm:contact:1", ANA, 0, city="Recife"),
            stated("crm:contact:2", RUI, 1),
            ordered("crm:contact:2", RUI, "1", 2),
        ]
    )
    one, other = (Nightly(hub.settings, hub.codec) for _ in range(2))
    first = one.prove("2026-03-01")
    assert first is not None
    assert (first["customers"] > 0, first["differing_customers"], first["differing_rollup_rows"]) == (True, 0, 0)
    hub.conn.execute("UPDATE live.profiles SET city = 'Natal'")
    hub.conn.execute("INSERT INTO live.rollup_support_new VALUES (now(), 'help', 1, 1, 0, 0, 0, 0)")
    assert other.prove("2026-03-01") == first, "it was done on that day"
    with connect(hub.settings) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (postgres.Lock.PROOF,))
        assert other.prove("2026-03-02") is None, "another worker is at it"
    second = other.prove("2026-03-02")
    assert second is not None
    assert second["differing_customers"] >= 1
    assert telemetry.VERIFY_DIFFERENCES._value.get() == second["differing_customers"]
    assert telemetry.VERIFY_ROLLUPS._value.get() == second["differing_rollup_rows"] == 1
    assert telemetry.VERIFY_LAST._value.get() == second["at"]
