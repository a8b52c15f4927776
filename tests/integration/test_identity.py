"""Identity on real servers: any order, two workers at once, and crashes between commit and produce."""

from __future__ import annotations

import itertools
import random
import threading
from datetime import UTC, datetime, timedelta

import pytest
from captures import (
    capture,
    events,
    links_by_log,
    links_by_table,
    partition_of_subjects,
    take_over,
    translate,
    translator,
    with_people,
)
from caudal.processors import rules
from caudal.processors._links import LOCK, Erasure, Links, Mention
from caudal.processors.evidence import Said
from caudal.processors.identity import Key

from caudal import postgres
from caudal.errors import BrokerUnavailable
from caudal.settings import Settings

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SOURCES = ("shop", "crm", "desk")
ANA = {
    "shop": {
        "subject": "shop:customer:1",
        "identifiers": [["email", "Ana@Exemplo.com.br "], ["phone", "81 9234-5678"]],
    },
    "crm": {"subject": "crm:contact:2", "identifiers": [["email", "ana@exemplo.com.br"], ["cpf", "529.982.247-25"]]},
    "desk": {"subject": "desk:user:3", "identifiers": [["phone", "+55 (81) 99234-5678"]]},
}
ONE_CUSTOMER = {frozenset({"shop:customer:1", "crm:contact:2", "desk:user:3"})}


@pytest.fixture
def links(settings: Settings):
    with postgres.connect(settings.postgres, role="tests", schema="hub") as db:
        yield Links(lambda: db, rules.load(settings))


def says(subject: str, *identifiers: tuple[str, str], at: int = 0) -> Mention:
    moment = T0 + timedelta(seconds=at)
    found = tuple(Key(kind, value) for kind, value in identifiers)
    return Mention(subject, subject.partition(":")[0], moment, moment, f"e-{at}", Said(found))


@pytest.mark.parametrize("order", list(itertools.permutations(SOURCES)), ids="-".join)
def test_one_person_through_three_systems_is_one_customer_in_every_order(settings, order):
    for source in order:
        capture(settings, source, [ANA[source]])
        translate(settings, [source])
    assert partition_of_subjects(settings) == ONE_CUSTOMER
    assert links_by_log(settings) == links_by_table(settings)


def test_one_person_through_three_systems_in_one_batch_is_one_customer(settings):
    for source in SOURCES:
        capture(settings, source, [ANA[source]])
    translate(settings, SOURCES)
    assert partition_of_subjects(settings) == ONE_CUSTOMER
    assert len(events(settings, "SubjectLinked")) == 3, "nothing is linked twice"


def test_two_workers_at_once_never_split_a_person(settings):
    people = range(60)
    payloads = {
        source: [
            {
                "subject": f"{source}:person:{n}",
                "identifiers": [["email", f"p{n}@x.com"], ["external_id", f"{source}{n}"]],
            }
            for n in people
        ]
        for source in ("shop", "crm")
    }
    # half of the people are tied together only by a third record, which both workers may see while the others move
    payloads["desk"] = [
        {"subject": f"desk:person:{n}", "identifiers": [["external_id", f"shop{n}"], ["external_id", f"crm{n}"]]}
        for n in people
    ]
    for n, source in itertools.product(range(0, 60, 2), ("shop", "crm")):
        payloads[source][n]["identifiers"].pop(0)
    sides = (("shop", "desk"), ("crm",))
    for source, given in payloads.items():
        random.Random(7).shuffle(given)
        capture(settings, source, given)
    begin = threading.Barrier(2)
    failed = []

    def work(sources):
        step = translator(settings)
        messages = take_over(settings, step, sources)
        random.Random(len(sources)).shuffle(messages)
        messages.sort(key=lambda m: (m.topic(), m.partition(), m.offset()))
        begin.wait()
        try:
            for n in range(0, len(messages), 7):
                step.apply(step.prepare(messages[n : n + 7]))
        except Exception as exc:
            failed.append(exc)
        step.close()

    threads = [threading.Thread(target=work, args=(side,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert partition_of_subjects(settings) == {
        frozenset({f"shop:person:{n}", f"crm:person:{n}", f"desk:person:{n}"}) for n in people
    }
    assert links_by_log(settings) == links_by_table(settings)


def test_links_that_were_committed_and_not_produced_are_produced_by_the_repeated_batch(settings, monkeypatch):
    for source in SOURCES[:2]:
        capture(settings, source, [ANA[source]])
        translate(settings, [source])
    capture(settings, "desk", [{**ANA["desk"], "identifiers": [["phone", "81992345678"], ["external_id", "joins"]]}])
    capture(
        settings,
        "late",
        [{"subject": "late:person:9", "identifiers": [["external_id", "joins"], ["email", "b@x.com"]]}],
    )
    before = len(events(settings))
    dying = translator(settings)
    messages = take_over(settings, dying, ["desk", "late"])

    def no_broker(*_args: object) -> None:
        raise BrokerUnavailable("killed here")

    monkeypatch.setattr(dying, "_produce", no_broker)
    with pytest.raises(BrokerUnavailable):
        dying.apply(dying.prepare(messages))
    dying.close()
    assert len(events(settings)) == before, "nothing was produced"
    assert links_by_log(settings) != links_by_table(settings), "but the links are committed"

    other = translator(settings)
    messages = take_over(settings, other, ["desk", "late"])
    assert len(messages) == 2, "the offsets were not stored"
    other.apply(other.prepare(messages[:1]))
    assert links_by_log(settings) == links_by_table(settings), (
        "one message of the lost batch brings all of its links back"
    )
    other.apply(other.prepare(messages[1:]))
    other.close()
    with postgres.connect(settings.postgres, role="tests") as db:
        assert db.execute("SELECT count(*) FROM hub.unpublished_links").fetchone() == (0,)
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {*ONE_CUSTOMER.copy().pop(), "late:person:9"}


def test_links_that_a_dead_worker_left_are_produced_by_another_that_has_nothing_to_do(settings, links):
    links.resolve([says("shop:customer:1", ("email", "a@x.com"))])
    with postgres.connect(settings.postgres, role="tests") as db:
        step = translator(settings)
        step.idle()
        assert events(settings) == [], "they may be under way"
        db.execute("UPDATE hub.unpublished_links SET created_at = now() - interval '1 minute'")
        step._swept = 0.0
        step.idle()
        step.close()
        assert db.execute("SELECT count(*) FROM hub.unpublished_links").fetchone() == (0,)
    assert links_by_log(settings) == links_by_table(settings) != {}


def test_a_batch_of_known_things_takes_no_lock(settings, links):
    batch = [says("shop:customer:1", ("email", "a@x.com")), says("crm:contact:2", ("email", "a@x.com"))]
    first = links.resolve(batch)
    links.published(first.batches)
    with postgres.connect(settings.postgres, role="tests", schema="hub") as db, db.transaction():
        db.execute(LOCK)
        with postgres.connect(settings.postgres, role="tests", schema="hub", connect_timeout=30) as other:
            other.execute("SET lock_timeout = '2s'")
            again = Links(lambda: other, rules.load(settings)).resolve(batch)
    assert again.links == first.links
    assert again.changed == []


def test_stronger_evidence_moves_a_subject_out_in_the_database_as_in_the_pure_decision(links):
    links.resolve([says("shop:customer:1", ("email", "family@x.com"), ("cpf", "52998224725"))])
    links.resolve([says("shop:customer:2", ("email", "family@x.com"), at=1)])
    links.resolve([says("crm:ticket:5", ("subject", "shop:customer:2"), at=2)])
    found = links.resolve([says("shop:customer:2", ("cpf", "11144477735"), at=3)])
    moved = {link.subject: link for link in found.changed if link.link_seq == 2}
    assert moved.keys() == {"shop:customer:2", "crm:ticket:5"}
    assert {link.reason for link in moved.values()} == {"split"}
    again = links.resolve([says(s) for s in ("shop:customer:1", "shop:customer:2", "crm:ticket:5")])
    assert again.links["shop:customer:2"] == again.links["crm:ticket:5"] != again.links["shop:customer:1"]


def test_an_order_of_a_known_person_that_came_before_its_customer_joins_it(links):
    links.resolve([says("shop:order:5", ("subject", "shop:customer:1"))])
    links.resolve([says("shop:customer:1", ("email", "a@x.com"))])
    found = links.resolve([says("shop:order:5"), says("shop:customer:1")])
    assert found.links["shop:order:5"][0] == found.links["shop:customer:1"][0]


def test_erased_identifiers_link_nobody_also_when_they_arrive_late(settings, links):
    links.resolve([says("shop:customer:1", ("email", "a@x.com"))])
    links.resolve([says("shop:customer:1", at=10)], [Erasure("shop:customer:1", T0 + timedelta(seconds=10))])
    with postgres.connect(settings.postgres, role="tests") as db:
        assert db.execute("SELECT count(*) FROM hub.identifiers").fetchone() == (0,)
    links.resolve([says("shop:customer:1", ("email", "a@x.com"), at=5)])
    found = links.resolve([says("crm:contact:2", ("email", "a@x.com"), at=20)])
    assert found.links["crm:contact:2"][0] != links.resolve([says("shop:customer:1")]).links["shop:customer:1"][0]
    links.resolve([says("shop:customer:1", ("email", "a@x.com"), at=30)])
    assert len(partition_of_subjects(settings)) == 1, "what is stated after the erasure counts again"


def test_erasing_a_source_forgets_the_identifiers_of_its_subjects_only(settings, links):
    links.resolve([says("shop:customer:1", ("email", "a@x.com")), says("shop-2:customer:1", ("email", "b@x.com"))])
    links.resolve([says("shop:shop:1", at=5)], [Erasure("shop:shop:1", T0 + timedelta(seconds=5), "source")])
    with postgres.connect(settings.postgres, role="tests") as db:
        assert db.execute("SELECT subject FROM hub.identifiers").fetchall() == [("shop-2:customer:1",)]
