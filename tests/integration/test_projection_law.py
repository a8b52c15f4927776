"""The law of design D2: any reordering, duplication and batching of a log gives byte-equal facts and views, and those of a rebuild."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from caudal.projections import Runner, _crowd, _runner
from caudal.projections.custom.metric import Metric, install, store
from caudal.projections.replay import Build
from caudal.projections.replay._load import Loader
from caudal.schemas import (
    Answer,
    ConsentStated,
    CustomerErased,
    Event,
    FeedbackStated,
    FieldCorrected,
    Identifier,
    InteractionRecorded,
    OrderLine,
    OrderStated,
    ProfileStated,
    Refund,
    SubjectDeleted,
    SubjectLinked,
    SubscriptionStated,
    TicketStated,
)
from caudal.schemas.codec import Codec, LocalRegistry
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from logs import NOTHING, PARTITIONS, Record, apply, clear, connect, contents, rebuilt, records

from caudal.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
CUSTOMERS = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(3)]
SUBJECTS = ["crm:contact:1", "crm:contact:2", "shop:customer:1", "shop:order:9", "help:user:1"]

words = st.sampled_from(["ana", "bea", "são", ""])
some_words = st.none() | words
times = st.integers(0, 6).map(lambda h: START + timedelta(hours=h))
money = st.integers(0, 500)
ids = st.sampled_from(["1", "2"])
FIELDS = ("name", "email", "city", "tags", "birth_date")

lines = st.lists(
    st.builds(
        OrderLine,
        line_id=ids,
        category=some_words,
        product=some_words,
        sku=some_words,
        quantity=st.integers(1, 3),
        unit_price_minor=money,
    ),
    max_size=3,
).map(tuple)
refunds = st.lists(
    st.builds(
        Refund, refund_id=ids, refunded_at=times, amount_minor=money, currency=st.sampled_from(["BRL", "EUR"])
    ), max_size=2, unique_by=lambda r: r.refund_id,
).map(tuple)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn) -> Event:
    """Any event; header fields other than the link are set here, the link by `logs`."""
    header = {"subject": draw(st.sampled_from(SUBJECTS)), "occurred_at": draw(times)}
    kind = draw(st.sampled_from(["profile"] * 4 + ["order"] * 4 + ["ticket", "subscription", "consent", "feedback", "did", "correct"] * 2
                                + ["linked", "deleted", "erased", "forgotten"] + ["merged"] * 2))  # fmt: skip
    cleared = tuple(draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)))
    if kind == "profile":
        return ProfileStated(
            **header, cleared=cleared, name=draw(some_words), email=draw(some_words), city=draw(some_words),
            tags=draw(st.none() | st.lists(words, max_size=2).map(tuple)),
            birth_date=draw(st.none() | st.just(date(1990, 2, 3))),
            attributes=draw(st.dictionaries(st.sampled_from(["a", "b"]), some_words, max_size=2)),
        )  # fmt: skip
    if kind == "order":
        return OrderStated(
            **header, order_id=draw(ids), status=draw(st.none() | st.sampled_from(["paid", "cancelled", "pending"])),
            currency=draw(st.none() | st.sampled_from(["BRL", "EUR"])), total_minor=draw(st.none() | money),
            discount_minor=draw(st.none() | money), channel=draw(some_words),
            placed_at=draw(st.none() | times.map(lambda t: t + 9 * (t - START))), lines=draw(st.none() | lines), refunds=draw(refunds),
        )  # fmt: skip
    if kind == "ticket":
        return TicketStated(
            **header, ticket_id=draw(ids), status=draw(st.none() | st.sampled_from(["open", "solved", "deleted"])),
            satisfaction=draw(st.none() | st.sampled_from(["good", "bad"])), opened_at=draw(st.none() | times),
            first_replied_at=draw(st.none() | times),
        )  # fmt: skip
    if kind == "subscription":
        return SubscriptionStated(
            **header, subscription_id=draw(ids), status=draw(st.sampled_from(["active", "cancelled", None]))
        )
    if kind == "consent":
        return ConsentStated(
            **header,
            purpose=draw(st.sampled_from(["marketing_email", "terms"])),
            state=draw(st.sampled_from(["granted", "withdrawn"])),
        )
    if kind == "feedback":
        return FeedbackStated(
            **header, feedback_id=draw(ids), kind=draw(st.sampled_from(["nps", "csat", "ces", "review"])), answered_at=draw(times),
            score=draw(st.none() | st.integers(0, 10).map(float)), scale_min=draw(st.none() | st.just(1.0)),
            scale_max=draw(st.none() | st.sampled_from([5.0, 7.0, 10.0])),
            answers=draw(st.none() | st.just((Answer(question="why", answer="a"),))),
        )  # fmt: skip
    if kind == "did":
        return InteractionRecorded(
            **header,
            interaction_id=draw(ids),
            kind=draw(st.sampled_from(["email.sent", "email.opened"])),
            properties=draw(st.sampled_from([{}, {"k": draw(words)}])),
        )
    if kind == "correct":
        return FieldCorrected(
            **header, field=draw(st.sampled_from(["name", "city"])), value=draw(some_words), actor="steward"
        )
    if kind == "deleted":
        return SubjectDeleted(**header, kind="deleted", reason="vendor_deleted")
    if kind == "merged":
        into = Identifier(kind="subject", value=draw(st.sampled_from(SUBJECTS)))
        of = draw(st.sampled_from(["deleted", "merged"]))
        return SubjectDeleted(**header, identifiers=(into,), kind=of, reason="merged")
    if kind == "erased":
        return SubjectDeleted(**header, kind="erased", reason="redact")
    if kind == "forgotten":
        return CustomerErased(
            **header, subjects=tuple(draw(st.lists(st.sampled_from(SUBJECTS), max_size=3, unique=True)))
        )
    return SubjectLinked(**header, reason="manual")


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A log as the identity step would write it: a subject's seq goes up, and each seq names one customer."""
    links: dict[str, tuple[str, int]] = {}
    log = []
    for number, event in enumerate(draw(st.lists(statements(), min_size=1, max_size=14))):
        customer, seq = links.get(event.subject, (draw(st.sampled_from(CUSTOMERS)), 1))
        if isinstance(event, SubjectLinked):
            customer, seq = draw(st.sampled_from(CUSTOMERS)), seq + 1
        links[event.subject] = (customer, seq)
        header = {
            "event_id": f"{draw(st.integers(0, 9))}-{number}",
            "source": event.subject.partition(":")[0],
            "customer_id": customer,
            "link_seq": seq,
            "captured_at": START + timedelta(hours=draw(st.integers(0, 2))),
        }
        log.append(type(event)(**{**{f: getattr(event, f) for f in fields_of(event)}, **header}))
    return log


def fields_of(event: Event) -> list[str]:
    return [name for cls in type(event).__mro__ for name in getattr(cls, "__slots__", ())]


CUSTOM = Metric(
    "law", "",
    """
        SELECT s.customer_id, count(DISTINCT o.order_id) FILTER (WHERE o.status = 'paid') AS paid,
               round(avg(o.total_minor), 2) AS mean_minor, max(o.placed_at) AS placed_at, bool_or(s.deleted_at IS NOT NULL) AS left_us,
               string_agg(DISTINCT a.value, ',' ORDER BY a.value) AS words, 60 / nullif(sum(o.total_minor), 300) AS share
        FROM subjects s LEFT JOIN orders o USING (subject) LEFT JOIN profile_attributes a USING (subject) GROUP BY 1
    """,
    {"paid": "integer", "mean_minor": "number", "placed_at": "time", "left_us": "boolean", "words": "text", "share": "number"},
    ("subjects", "orders", "profile_attributes"),
)  # fmt: skip
"""Of three facts and all types; of customers whose orders come to nothing it can't be computed: they have no value of it."""


@pytest.fixture
def runner(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setattr(_runner, "FOLD_BATCHES", 2)
    with connect(settings) as conn:
        install(conn, [CUSTOM])
        store(conn, [CUSTOM], "tests")
    runner = Runner(settings, Codec(LocalRegistry(settings.kafka.topic_prefix)))
    runner.positions(range(PARTITIONS))
    yield runner
    runner.close()


@pytest.fixture
def runners(settings: Settings, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Runner, Runner]]:
    """The runner, and one to which a subject with one order has very many."""
    monkeypatch.setattr(_crowd, "LARGE", 1)
    crowding = Runner(settings, Codec(LocalRegistry(settings.kafka.topic_prefix)))
    crowding.positions(range(PARTITIONS))
    yield runner, crowding
    crowding.close()


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(log=logs(), seed=st.integers(0, 2**16), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_any_order_duplication_and_batching_of_a_log_gives_the_same_tables(
    settings: Settings, runners: tuple[Runner, Runner], log: list[Event], seed: int, sizes: list[int]
) -> None:
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))
    with connect(settings) as conn:
        clear(conn)
        apply(runners[0], records(codec, log))
        straight = contents(conn)
        assert rebuilt(conn) == NOTHING

        rnd = random.Random(seed)
        shuffled = log + [rnd.choice(log) for _ in range(len(log) // 2)]
        rnd.shuffle(shuffled)
        ends = [0] * PARTITIONS
        other = []
        for event in shuffled:  # on any partition: what is right must not hang on the partitioner
            partition = rnd.randrange(PARTITIONS)
            other.append(Record((partition, ends[partition]), codec.encode_event(event), event.customer_id))
            ends[partition] += 1
        clear(conn)
        apply(rnd.choice(runners), other, sizes)
        assert contents(conn) == straight
        assert rebuilt(conn) == NOTHING


def test_a_thing_that_went_to_another_subject_is_gone_with_it_in_any_order(settings: Settings, runner: Runner) -> None:
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))

    def header(number: int, subject: str, customer: str) -> dict[str, Any]:
        at = START + timedelta(hours=number)
        return {"event_id": str(number), "source": "shop", "subject": subject, "customer_id": customer, "link_seq": 1,
                "occurred_at": at, "captured_at": at}  # fmt: skip

    refund = Refund(refund_id="r", refunded_at=START, amount_minor=5, currency="BRL")
    log = [
        OrderStated(**header(0, "shop:order:9", CUSTOMERS[0]), order_id="1", status="paid", total_minor=1, refunds=(refund,)),
        OrderStated(**header(1, "shop:customer:1", CUSTOMERS[1]), order_id="1", status="paid", total_minor=2, refunds=(refund,)),
        OrderStated(**header(2, "shop:customer:1", CUSTOMERS[1]), order_id="1", status="cancelled"),
        SubjectDeleted(**header(3, "shop:customer:1", CUSTOMERS[1]), kind="erased", reason="redact"),
    ]  # fmt: skip
    seen = []
    with connect(settings) as conn:
        for order in itertools.permutations(log):
            clear(conn)
            apply(runner, records(codec, order), [1])
            seen.append(contents(conn))
            assert rebuilt(conn) == NOTHING
    assert all(each == seen[0] for each in seen)
    assert not any("5" in row or "BRL" in row for row in seen[0]["refunds"]), "what was erased is gone"


def test_what_another_subject_says_later_of_a_thing_is_seen_by_the_one_that_has_it(
    settings: Settings, runner: Runner
) -> None:
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))

    def header(number: int, subject: str, customer: str) -> dict[str, Any]:
        at = START + timedelta(hours=number)
        return {"event_id": str(number), "source": "shop", "subject": subject, "customer_id": customer, "link_seq": 1,
                "occurred_at": at, "captured_at": at, "order_id": "1"}  # fmt: skip

    late = OrderStated(**header(0, "shop:order:9", CUSTOMERS[0]), currency="BRL", total_minor=500)
    has = OrderStated(**header(1, "shop:customer:1", CUSTOMERS[1]), status="paid")
    with connect(settings) as conn:
        clear(conn)
        apply(runner, records(codec, [has, late]), [1])
        assert rebuilt(conn) == NOTHING


class BuildOf(Build):
    """A build of given messages, whatever lies in Kafka."""

    messages: list[Record]

    def _load(self, *_: object) -> None:
        loader = Loader(self._settings, self._codec, self._schema, name="tests")
        for message in self.messages:  # chunks of one: what is loaded apart must come together
            loader.load([message])
        loader.close()


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(log=logs(), seed=st.integers(0, 2**16))
def test_a_build_of_a_log_equals_what_the_live_projection_makes_of_it(
    settings: Settings, runner: Runner, log: list[Event], seed: int
) -> None:
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))
    with connect(settings) as conn:
        clear(conn)
        conn.execute("DROP SCHEMA IF EXISTS build_1 CASCADE")
        apply(runner, records(codec, log), [3])
        random.Random(seed).shuffle(log)
        build = BuildOf(settings, codec, schema="build_1")
        build.messages = records(codec, log)
        build.run()
        assert contents(conn, "build_1") == contents(conn)
