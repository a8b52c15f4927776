"""Captures translated again into a new generation of the log, beside the live one, on real servers."""

from __future__ import annotations

import random
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import captures as made_up
import hypothesis
import pytest
from captures import (
    T0,
    Person,
    capture,
    codec_of,
    events,
    people,
    read,
    translate,
    with_people,
)
from caudal.connectors import Delivery
from caudal.processors import _generation, retranslate
from caudal.processors.retranslate import Retranslation, freeze, thaw
from caudal.processors.rules import Kind, Rules
from caudal.processors.rules import load as load_rules
from caudal.processors.translate import Translator
from caudal.schemas import CustomerErased, FieldCorrected, Identifier, ProfileStated
from hypothesis import given
from hypothesis import strategies as st

from caudal import generations, kafka, postgres
from caudal.errors import BrokerUnavailable
from caudal.settings import Settings

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]

SOURCES = ("shop", "crm", "desk")


@pytest.fixture
def second(settings: Settings):
    step = Retranslation(settings, codec_of(settings), 2)
    yield step
    step.close()


def again(step: Retranslation) -> None:
    """All of it, as a replay does it before it builds the views."""
    step.run(step.ends())
    step.settle()


def person(source: str, n: int, *identifiers: tuple[str, str], **fields: object) -> dict[str, object]:
    return {"subject": f"{source}:person:{n}", "identifiers": identifiers, **fields}


def log_of(settings: Settings, number: int) -> list[dict[str, object]]:
    """The events of a generation."""
    codec = codec_of(settings)
    found = []
    for message in read(settings, [generations.topic(settings.kafka, number)]):
        record, row = codec.decode(message.value())
        assert message.key() == row["customer_id"].encode()
        found.append({"type": record, **row})
    return found


def newest_links(settings: Settings, number: int) -> dict[str, str]:
    """Customer of each subject, as a reader of the generation sees it."""
    newest: dict[str, tuple[int, str]] = {}
    for event in log_of(settings, number):
        link = event["link_seq"], event["customer_id"]
        newest[event["subject"]] = max(link, newest.get(event["subject"], link))
    return {subject: customer for subject, (_, customer) in newest.items()}


def identity(settings: Settings, schema: str = "hub") -> dict[str, str]:
    """Customer of each subject, by the tables."""
    with postgres.connect(settings.postgres, role="tests", schema=schema) as db:
        return dict(db.execute("SELECT subject, customer_id::text FROM subjects").fetchall())


def test_with_the_same_connectors_and_rules_every_subject_has_the_same_customer_again(settings):
    kinds = '"subject", "external_id", "cpf", "cnpj", "email", "phone", "device"'
    (settings.config_file.parent / "identity.toml").write_text(
        f"priority = [{kinds}]\n[kinds]\n"
    )  # no limits: order is free
    chance = random.Random(11)
    for round_ in range(4):
        for source in SOURCES:
            stated = []
            for n in chance.sample(range(40), 15):
                values = [("external_id", f"{chance.randrange(30)}"), ("email", f"p{chance.randrange(60)}@x.com")]
                stated.append(person(source, n, *chance.sample(values, chance.randint(0, 2)), name=f"{round_}"))
            capture(settings, source, stated)
        order = chance.sample(SOURCES, len(SOURCES))  # the live step saw them in another order than they were captured
        for source in order:
            translate(settings, [source], size=chance.choice([1, 7, 1000]))
    live = identity(settings)
    assert len(live) > len(set(live.values())) > 5, "some are joined and some are not"
    second = Retranslation(settings, codec_of(settings), 2)
    again(second)
    assert identity(settings, second.schema) == live
    assert newest_links(settings, 2) == live
    compared = second.compare()
    second.close()
    assert (compared.merges, compared.splits, compared.renames, compared.new_subjects, compared.gone_subjects) == (
        0,
    ) * 5
    assert compared.unchanged == len(set(live.values()))
    statements = [
        sorted(e["event_id"] for e in log if e["type"] != "SubjectLinked")
        for log in (events(settings), log_of(settings, 2))
    ]
    assert statements[0] == statements[1]
    assert identity(settings) == live, "the live one was left alone"


def test_a_mended_mapping_changes_what_it_touches_and_who_shares_the_mended_identifier(settings, second, monkeypatch):
    capture(settings, "shop", [person("shop", n, ("email", f"p{n}@x.com")) for n in range(3)])
    capture(settings, "crm", [person("crm", n, ("external_id", f"P{n}@X.com"), name=f"n{n}") for n in range(3)])
    capture(settings, "crm", [b"{damaged", person("crm", 7, name="new")], kind="renamed")
    translate(settings, ["shop", "crm"])
    live = identity(settings)
    assert len(set(live.values())) == 6

    def mended(stated: Person, _source: str, _delivery: Delivery):
        values = tuple(Identifier(kind="email", value=value) for _, value in stated.identifiers)
        yield ProfileStated(subject=stated.subject, occurred_at=stated.at, name=stated.name, identifiers=values)

    monkeypatch.setitem(people.translators, "renamed", people.translators["person"])
    monkeypatch.setitem(people.translators, "person", (Person, mended))
    again(second)
    found = identity(settings, second.schema)
    assert {found[f"crm:person:{n}"] for n in range(3)} == {live[f"shop:person:{n}"] for n in range(3)}, (
        "the older id stays"
    )
    compared = second.compare()
    assert compared.merges == 3
    assert compared.merged[live["shop:person:1"]] == sorted([live["shop:person:1"], live["crm:person:1"]])
    assert (compared.splits, compared.unchanged, compared.new_examples) == (0, 0, ["crm:person:7"])
    left = {place[0]: code for place, (code, _) in second.put_aside().items()}
    assert left == {kafka.capture_topic(settings.kafka, "crm"): "invalid_payload"}
    assert len(made_up.dead_letters(settings)) == 2, "those of the live step alone"
    with postgres.connect(settings.postgres, role="tests") as db:
        former = db.execute("SELECT customer_id::text FROM identity_2.former_customers").fetchall()
    assert {(live[f"crm:person:{n}"],) for n in range(3)} <= set(former), "who has the old id finds where they went"


def test_other_rules_merge_and_split_customers_and_who_has_the_id_already_keeps_it(settings):
    capture(settings, "shop", [person("shop", n, ("email", "till@x.com")) for n in range(3)])
    capture(settings, "crm", [person("crm", n, ("device", "kiosk")) for n in range(2)])
    translate(settings, ["shop", "crm"])
    live = identity(settings)
    assert len(set(live.values())) == 2
    standard = load_rules(settings)
    kinds = {**standard.kinds, "email": Kind(shared_by=1), "external_id": Kind()}
    capture(settings, "desk", [person("desk", 1, ("subject", "shop:person:0"), ("subject", "crm:person:0"))])
    step = Retranslation(settings, codec_of(settings), 2, rules=Rules(standard.priority, kinds))
    again(step)
    compared = step.compare()
    step.close()
    found = identity(settings, "identity_2")
    assert found["shop:person:0"] == found["crm:person:0"] == found["desk:person:1"] == live["shop:person:0"]
    assert len({found[f"shop:person:{n}"] for n in range(3)}) == 3
    assert compared.merges == compared.splits == 1
    assert compared.merged == {live["shop:person:0"]: sorted([live["shop:person:0"], live["crm:person:0"]])}
    assert list(compared.split) == [live["shop:person:0"]]
    assert sorted(compared.split[live["shop:person:0"]]) == sorted({found[f"shop:person:{n}"] for n in range(3)})
    assert newest_links(settings, 2) == found


def test_a_run_that_broke_off_anywhere_is_gone_on_with_and_nothing_is_there_twice(settings, monkeypatch):
    monkeypatch.setattr(retranslate, "BATCH", 5)
    for source in SOURCES:
        capture(settings, source, [person(source, n, ("email", f"p{n}@x.com"), name="n") for n in range(12)])
    translate(settings, SOURCES)
    chance = random.Random(5)
    produce, store = Translator._produce, Translator._store
    for _ in range(6):
        step = Retranslation(settings, codec_of(settings), 2)
        fatal, at = chance.choice(["_produce", "_store"]), chance.randrange(2)
        seen = iter(range(100))

        def dies(self, *args, seen=seen, at=at, then={"_produce": produce, "_store": store}[fatal]):
            if next(seen) == at:
                raise BrokerUnavailable("killed here")
            return then(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Translator, fatal, dies)
            with pytest.raises(BrokerUnavailable):
                step.run(step.ends())
        step.close()
    step = Retranslation(settings, codec_of(settings), 2)
    again(step)
    step.close()
    assert identity(settings, "identity_2") == identity(settings) == newest_links(settings, 2)
    stated = {e["event_id"] for e in log_of(settings, 2) if e["type"] == "ProfileStated"}
    assert stated == {e["event_id"] for e in events(settings, "ProfileStated")}


def test_what_people_said_and_no_capture_holds_is_taken_over_and_who_was_erased_stays_so(settings, second):
    capture(settings, "shop", [person("shop", 1, ("email", "a@x.com"), name="Ana"), person("shop", 2)])
    translate(settings, ["shop"])
    live = identity(settings)
    now = datetime.now(UTC)
    said = [
        CustomerErased(
            event_id="5c1e6f2a-0000-5000-8000-000000000001", source="steward", subject="shop:person:1",
            customer_id=live["shop:person:1"], link_seq=1, occurred_at=now, captured_at=now,
            subjects=("shop:person:1", "shop:person:99"),
        ),
        FieldCorrected(
            event_id="5c1e6f2a-0000-5000-8000-000000000002", source="steward", subject="shop:person:2",
            customer_id=live["shop:person:2"], link_seq=1, occurred_at=now, captured_at=now,
            field="name", value="Rui", actor="a steward",
        ),
    ]  # fmt: skip
    codec = codec_of(settings)
    producer = kafka.producer(settings.kafka)
    for event in said:
        headers = [("event_type", type(event).__name__)]
        producer.produce(
            kafka.topic(settings.kafka, kafka.CHANGES), codec.encode_event(event), event.customer_id, headers=headers
        )
    assert producer.flush(30) == 0
    # whoever comes with the erased identifier afterwards is another person
    capture(settings, "crm", [person("crm", 3, ("email", "a@x.com"))])
    again(second)
    found = identity(settings, second.schema)
    carried = {e["type"]: e for e in log_of(settings, 2) if e["type"] in {"CustomerErased", "FieldCorrected"}}
    assert {e["event_id"] for e in carried.values()} == {e.event_id for e in said}
    assert carried["CustomerErased"]["customer_id"] == found["shop:person:1"] == live["shop:person:1"]
    assert set(carried["CustomerErased"]["subjects"]) == {"shop:person:1", "shop:person:99"}
    assert carried["FieldCorrected"]["value"] == "Rui"
    assert found["crm:person:3"] != found["shop:person:1"]
    assert second.unmatched() == [("CustomerErased", "shop:person:99")]
    with postgres.connect(settings.postgres, role="tests") as db:
        rows = db.execute("SELECT subject FROM identity_2.identifiers").fetchall()
    assert rows == [("crm:person:3",)], "the erased one has none"
    second.run(second.ends())
    assert len([e for e in log_of(settings, 2) if e["type"] == "CustomerErased"]) == 1


def test_while_the_live_step_is_frozen_it_stores_nothing_and_goes_on_when_the_freezer_dies(settings):
    capture(settings, "shop", [person("shop", 1)])
    translate(settings, ["shop"])
    freezer = postgres.connect(settings.postgres, role="tests")
    at = freeze(freezer)
    assert sum(at.values()) == 1
    capture(settings, "shop", [person("shop", 2)])
    with ThreadPoolExecutor(1) as pool:
        translating = pool.submit(translate, settings, ["shop"])
        with pytest.raises(TimeoutError):
            translating.result(1)
        assert set(identity(settings)) == {"shop:person:1"}
        freezer.close()
        translating.result(30)
    assert set(identity(settings)) == {"shop:person:1", "shop:person:2"}
    with postgres.connect(settings.postgres, role="tests") as db:
        freeze(db)
        thaw(db)
        translate(settings, ["shop"])


# ---- ids


@pytest.fixture
def tables(settings: Settings):
    with postgres.connect(settings.postgres, role="tests") as db:
        _generation.make(db, 2)
    with postgres.connect(settings.postgres, role="tests", schema="identity_2") as db:
        yield db


_customers = st.lists(st.integers(0, 5), min_size=8, max_size=8)


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@given(
    live=_customers,
    new=_customers,
    known=st.lists(st.booleans(), min_size=16, max_size=16),
    broken_at=st.integers(0, 3),
)
def test_an_unchanged_set_of_subjects_keeps_its_id_whatever_the_new_generation_called_it(
    tables, live, new, known, broken_at
):
    # six ids for either side, so that customers of the new generation often hold the id of another live one
    def fill(table, ids, there):
        tables.execute(f"TRUNCATE {table}")
        for n, customer in enumerate(ids):
            if there[n]:
                tables.execute(
                    f"INSERT INTO {table} (subject, customer_id, link_seq, source, created_at, linked_at, reason)"
                    " VALUES (%s, %s::uuid, 1, 's', %s, now(), 'new')",
                    (f"s:p:{n}", str(uuid.UUID(int=customer)), T0 + timedelta(seconds=n)),
                )

    tables.execute("TRUNCATE relabelled, unpublished_links")
    fill("hub.subjects", live, known[:8])
    fill("identity_2.subjects", new, known[8:])
    published = iter(range(100))

    def publish():
        if next(published) == broken_at:
            raise BrokerUnavailable("killed here")

    def sets(table):
        found = defaultdict(set)
        for subject, customer in tables.execute(f"SELECT subject, customer_id::text FROM {table}"):
            found[customer].add(subject)
        return {frozenset(subjects): customer for customer, subjects in found.items()}

    before, other = sets("identity_2.subjects"), sets("hub.subjects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation, "PAGE", 2)
        try:
            _generation.settle_ids(tables, publish)
        except BrokerUnavailable:
            _generation.settle_ids(tables, lambda: None)
    after = sets("identity_2.subjects")
    assert after.keys() == before.keys(), "nobody is joined or parted by it"
    for subjects in after.keys() & other.keys():
        assert after[subjects] == other[subjects]
    taken = {customer for subjects, customer in after.items() if customer in other.values()}
    assert taken <= {other[o] for o in other for a in after if o & a}, "an id goes only where one of its subjects is"
    assert _generation.settle_ids(tables, lambda: None) == 0, "it has settled"
