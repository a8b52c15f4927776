"""What people decide of subjects holds against all evidence, survives everything, and can be undone without loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import captures as made_up
import httpx
import psycopg
import pytest
from api_server import running, token_of
from captures import (
    T0,
    capture,
    dead_letters,
    events,
    links_by_log,
    links_by_table,
    partition_of_subjects,
    read,
    translate,
    with_people,
)
from caudal.processors._links import Links
from caudal.processors.retranslate import Retranslation
from caudal.processors.rules import load as load_rules
from caudal.projections import Runner
from caudal.schemas.codec import Codec, Registry
from caudal.serving import _decision_routes
from caudal.serving.models import DecisionAnswer
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from logs import PARTITIONS, contents
from programs import caudal

from caudal import decisions, kafka, postgres
from caudal.decisions import Decision
from caudal.errors import DecisionRefused, NotKnown
from caudal.settings import Settings

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]

ONE, TWO, THREE, FOUR = "shop:customer:1", "shop:customer:2", "crm:contact:3", "crm:contact:4"
DEAL = "crm:deal:9"
PHONE, OTHER = "+5581988887777", "+5581977776666"


def says(subject: str, at: int = 0, **fields: Any) -> dict[str, Any]:
    return {"subject": subject, "at": (T0 + timedelta(hours=at)).isoformat(), **fields}


def apart(*groups: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(group) for group in groups}


@pytest.fixture
def codec(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Codec]:
    registry = Registry(settings)
    found = Codec(registry)
    monkeypatch.setattr(made_up, "codec_of", lambda _settings: found)
    yield found
    registry.close()


class Hub:
    """Translates and projects by itself, one delivery or decision at a time."""

    def __init__(self, settings: Settings, codec: Codec, db: psycopg.Connection[Any]) -> None:
        self.settings, self.codec, self.db = settings, codec, db

    def told(self, *people: dict[str, Any]) -> set[frozenset[str]]:
        for person in people:
            capture(self.settings, "shop", [person])
            translate(self.settings, ["shop"])
        return self.customers()

    def customers(self) -> set[frozenset[str]]:
        assert links_by_log(self.settings) == links_by_table(self.settings)
        return partition_of_subjects(self.settings)

    def decide(self, decision: Decision) -> str:
        decisions.store(self.settings, self.codec, decision)
        translate(self.settings, [decisions.CONNECTOR])
        return decision.id

    def split(self, subject: str, **more: Any) -> str:
        return self.decide(decisions.plan_split(self.db, subject, actor="test", **more))

    def move(self, subject: str, to: str, **more: Any) -> str:
        return self.decide(decisions.plan_move(self.db, subject, to, actor="test", **more))

    def undo(self, decision: str) -> str:
        return self.decide(decisions.plan_undo(self.db, decision, actor="test"))

    def customer(self, subject: str) -> str:
        return links_by_table(self.settings)[subject][1]

    def views(self) -> dict[str, list[str]]:
        """All facts and views of the log, without the seq of the links, which only goes up."""
        runner = Runner(self.settings, self.codec)
        stored = runner.positions(list(range(PARTITIONS)))
        log = read(self.settings, [kafka.topic(self.settings.kafka, kafka.CHANGES)])
        if new := [m for m in log if m.offset() >= stored[m.partition()]]:
            runner.apply(runner.decode(new))
        runner.close()
        found = contents(self.db)
        rows = self.db.execute(
            "SELECT subject, customer_id::text, deleted_at, erased_at FROM live.links ORDER BY 1"
        ).fetchall()
        return {**found, "links": [str(row) for row in rows]}


@pytest.fixture
def hub(settings: Settings, codec: Codec) -> Iterator[Hub]:
    with postgres.connect(settings.postgres, role="tests") as db:
        yield Hub(settings, codec, db)


def family(hub: Hub) -> None:
    """Two accounts of a family with one phone, and one that the second bridges to by e-mail."""
    hub.told(
        says(ONE, email="a@x.com", phone=PHONE),
        says(TWO, email="b@x.com", phone=PHONE),
        says(DEAL, identifiers=[["subject", TWO]]),
    )


def test_a_split_account_takes_what_names_it_along_and_is_not_pulled_back(hub):
    family(hub)
    before = hub.customer(ONE)
    id_ = hub.split(TWO, comment="mother and daughter")
    assert hub.customers() == apart((ONE,), (TWO, DEAL))
    assert hub.customer(ONE) == before
    moved = [e for e in events(hub.settings, "SubjectLinked") if e["reason"] == "manual"]
    assert {(e["subject"], e["actor"], e["comment"], e["previous_customer_id"]) for e in moved} == {
        (TWO, "test", "mother and daughter", before),
        (DEAL, "test", "mother and daughter", before),
    }
    assert all(e["evidence"][0] == {"kind": "manual", "value": id_, "subject": None} for e in moved)
    assert hub.told(says(TWO, 1, phone=PHONE), says(ONE, 1, phone=PHONE)) == apart((ONE,), (TWO, DEAL))
    assert hub.told(says(ONE, 2, email="b@x.com")) == apart((ONE,), (TWO, DEAL)), "nor by new evidence"
    assert hub.told(says(THREE, phone=PHONE)) == apart((ONE, THREE), (TWO, DEAL)), "the older has the newcomer"


def test_the_oldest_account_leaves_the_id_to_those_who_stay(hub):
    family(hub)
    before = hub.customer(ONE)
    hub.split(ONE)
    assert hub.customer(TWO) == hub.customer(DEAL) == before != hub.customer(ONE)


def test_alone_parts_it_from_what_names_it_too(hub):
    family(hub)
    hub.split(TWO, alone=True)
    assert hub.customers() == apart((ONE,), (TWO,), (DEAL,))


def test_a_moved_account_stays_where_it_was_moved(hub):
    family(hub)
    hub.told(says(THREE, email="c@x.com"))
    there = hub.customer(THREE)
    hub.move(TWO, there)
    assert hub.customers() == apart((ONE,), (TWO, DEAL, THREE))
    assert hub.customer(TWO) == there
    assert hub.told(says(TWO, 1, phone=PHONE, email="d@x.com")) == apart((ONE,), (TWO, DEAL, THREE))
    assert hub.told(says(FOUR, email="c@x.com", phone=PHONE)) == apart((ONE,), (TWO, DEAL, THREE, FOUR))


def test_an_only_account_moves_to_a_younger_customer_by_its_id(hub):
    hub.told(says(ONE, email="a@x.com"), says(TWO, email="b@x.com"))
    there, was = hub.customer(TWO), hub.customer(ONE)
    id_ = hub.move(ONE, TWO)
    assert hub.customer(ONE) == there
    hub.undo(id_)
    assert (hub.customer(ONE), hub.customer(TWO)) == (was, there)


@pytest.mark.parametrize("who", [ONE, TWO])
def test_undoing_a_split_gives_the_views_of_before_to_the_byte(hub, who):
    family(hub)
    hub.told(says(THREE, email="a@x.com", name="Ana"))
    before, customers = hub.views(), hub.customers()
    id_ = hub.split(who)
    assert hub.views() != before
    hub.undo(id_)
    assert hub.customers() == customers
    assert hub.views() == before
    (link, *_) = [e for e in events(hub.settings, "SubjectLinked") if e["reason"] == "undo"]
    assert (link["actor"], link["evidence"][0]["kind"]) == ("test", "undo")
    with pytest.raises(DecisionRefused):
        hub.undo(id_)


@pytest.mark.parametrize("who", [ONE, TWO])
def test_undoing_a_move_gives_the_views_of_before_to_the_byte(hub, who):
    family(hub)
    hub.told(says(THREE, email="c@x.com", name="Cris"), says(FOUR, email="c@x.com"))
    before = hub.views()
    id_ = hub.move(who, THREE)
    assert hub.views() != before
    hub.undo(id_)
    assert hub.views() == before


def test_who_came_for_the_sake_of_a_moved_account_goes_back_with_it(hub):
    family(hub)
    hub.told(says(THREE, email="c@x.com"))
    id_ = hub.move(TWO, THREE)
    assert hub.told(says(FOUR, email="b@x.com")) == apart((ONE,), (TWO, DEAL, THREE, FOUR))
    hub.undo(id_)
    assert hub.customers() == apart((ONE, TWO, DEAL, FOUR), (THREE,))


def test_a_newer_decision_counts_before_an_older_one(hub):
    family(hub)
    first = hub.split(TWO)
    second = hub.move(TWO, ONE)
    assert hub.customers() == apart((ONE, TWO, DEAL))
    hub.undo(second)
    assert hub.customers() == apart((ONE,), (TWO, DEAL))
    hub.undo(first)
    assert hub.customers() == apart((ONE, TWO, DEAL))


def test_a_decision_counts_before_the_vendors_merge_and_before_a_cpf(hub):
    hub.told(says(ONE, cpf="52998224725"), says(TWO, identifiers=[["subject", ONE]]))
    hub.split(TWO)
    assert hub.customers() == apart((ONE,), (TWO,))
    hub.told(says(THREE, cpf="11144477735"))
    hub.move(THREE, ONE)
    assert hub.told(says(ONE, 1, cpf="52998224725"), says(THREE, 1, cpf="11144477735")) == apart((ONE, THREE), (TWO,))


def test_withdrawn_evidence_parts_nobody_whom_a_person_joined(hub):
    hub.told(says(ONE, phone=PHONE), says(TWO, phone=PHONE), says(THREE, phone=PHONE))
    hub.move(TWO, ONE) if hub.customer(TWO) != hub.customer(ONE) else None
    id_ = hub.split(TWO)
    hub.move(TWO, ONE)
    assert hub.told(says(TWO, 1, phone=OTHER)) == apart((ONE, TWO, THREE))
    assert hub.told(says(THREE, 1, phone=OTHER)) == apart((ONE, TWO, THREE)), "TWO and THREE share it now"
    assert id_


def test_the_same_decision_twice_is_done_once_and_a_damaged_one_is_put_aside(hub):
    family(hub)
    decision = decisions.plan_split(hub.db, TWO, actor="test")
    hub.decide(decision)
    links = links_by_table(hub.settings)
    hub.decide(decision)
    capture(hub.settings, decisions.CONNECTOR, [b"{}"], connector=decisions.CONNECTOR, kind="split")
    translate(hub.settings, [decisions.CONNECTOR])
    assert links_by_table(hub.settings) == links
    assert [letter["code"] for letter in dead_letters(hub.settings)] == ["invalid_payload"]


def test_a_preview_says_what_would_move_and_changes_nothing(hub):
    family(hub)
    decision = decisions.plan_split(hub.db, TWO, actor="test")
    with postgres.connect(hub.settings.postgres, role="tests", schema="hub") as db:
        links = Links(lambda: db, load_rules(hub.settings)).preview(decision)
    assert {link.subject for link in links} == {TWO, DEAL}
    assert hub.customers() == apart((ONE, TWO, DEAL))
    assert decisions.listed(hub.db) == []


def test_what_cant_be_decided_is_refused_by_name(hub):
    family(hub)
    hub.told(says(THREE, email="c@x.com"))
    for plan, error in (
        (lambda: decisions.plan_split(hub.db, THREE, actor="x"), DecisionRefused),
        (lambda: decisions.plan_split(hub.db, "shop:customer:99", actor="x"), NotKnown),
        (lambda: decisions.plan_move(hub.db, TWO, ONE, actor="x"), DecisionRefused),
        (lambda: decisions.plan_move(hub.db, TWO, "shop:customer:99", actor="x"), NotKnown),
        (lambda: decisions.plan_undo(hub.db, "nonsense", actor="x"), NotKnown),
    ):  # type: tuple[Callable[[], Decision], type[Exception]]
        with pytest.raises(error):
            plan()


def test_translating_all_captures_again_comes_to_the_same(hub):
    family(hub)
    hub.told(says(THREE, email="c@x.com"), says(FOUR, 1, email="c@x.com"))
    hub.split(TWO)
    moved = hub.move(FOUR, ONE)
    hub.told(says(ONE, 2, phone=OTHER, email="a@x.com"), says(TWO, 2, phone=PHONE))
    hub.undo(moved)
    hub.told(says(THREE, 3, email="e@x.com"))
    replay = Retranslation(hub.settings, hub.codec, 2)
    replay.run(replay.ends())
    replay.settle()
    found = replay.compare()
    replay.close()
    assert (found.merges, found.splits, found.renames, found.new_subjects, found.gone_subjects) == (0, 0, 0, 0, 0)
    assert found.unchanged == len(hub.customers())


def test_the_commands_preview_refuse_and_list(hub):
    family(hub)
    shown = caudal(hub.settings, "customers", "split", TWO, "--dry-run", "--json")
    assert shown.returncode == 0, shown.stderr
    assert {move["subject"] for move in json.loads(shown.stdout)["moves"]} == {TWO, DEAL}
    stored = caudal(hub.settings, "customers", "split", TWO, "--wait", "0", "--json", "--reason", "family")
    assert stored.returncode == 0, stored.stderr
    decision = json.loads(stored.stdout)
    assert decision["state"] == "stored"
    translate(hub.settings, [decisions.CONNECTOR])
    assert hub.customers() == apart((ONE,), (TWO, DEAL))
    listed = json.loads(caudal(hub.settings, "customers", "decisions", "--subject", DEAL, "--json").stdout)
    assert [(d["decision_id"], d["comment"]) for d in listed] == [(decision["decision_id"], "family")]
    assert caudal(hub.settings, "customers", "split", "shop:customer:99").returncode == 1
    assert caudal(hub.settings, "customers", "split", ONE).returncode == 70
    assert caudal(hub.settings, "customers", "undo", decision["decision_id"], "--wait", "0").returncode == 0
    translate(hub.settings, [decisions.CONNECTOR])
    assert hub.customers() == apart((ONE, TWO, DEAL))


def test_the_api_takes_the_same_decision_once_and_tells_what_became_of_it(hub, monkeypatch):
    monkeypatch.setattr(_decision_routes, "DONE_WITHIN_S", 0.2)
    family(hub)
    token = token_of(hub.settings, "customers:write", "customers:read", name="ana")
    reader = token_of(hub.settings, "customers:read", name="rui")
    with running(hub.settings) as address, httpx.Client(base_url=address, timeout=60) as http:

        def post(path: str, body: dict[str, Any] | None, key: str | None = None, by: str = token) -> httpx.Response:
            headers = {"authorization": f"Bearer {by}", **({"idempotency-key": key} if key else {})}
            return http.post(path, json=body, headers=headers)

        asked = {"kind": "split", "subject": TWO, "reason": "family"}
        assert post("/decisions", asked, by=reader).status_code == 403
        stored = post("/decisions", asked, "k-1")
        assert (stored.status_code, stored.json()["done"]) == (202, False)
        assert post("/decisions", asked, "k-1").json()["decision_id"] == stored.json()["decision_id"]
        translate(hub.settings, [decisions.CONNECTOR])
        assert hub.customers() == apart((ONE,), (TWO, DEAL))
        again = post("/decisions", asked, "k-1")
        assert (again.status_code, again.json()["actor"], again.json()["reason"]) == (200, "ana", "family")
        DecisionAnswer.model_validate(again.json())
        assert {move["subject"] for move in again.json()["moves"]} == {TWO, DEAL}
        assert post("/decisions", {**asked, "subject": ONE}, "k-1").status_code == 409
        assert post("/decisions", {**asked, "subject": ONE}).json()["code"] == "decision_refused"
        assert post("/decisions", {**asked, "subject": "shop:customer:99"}).status_code == 404
        assert post("/decisions", {"kind": "move", "subject": TWO}).status_code == 422
        found = http.get("/decisions", params={"subject": DEAL}, headers={"authorization": f"Bearer {reader}"}).json()
        assert [each["decision_id"] for each in found["decisions"]] == [stored.json()["decision_id"]]
        undo = post(f"/decisions/{stored.json()['decision_id']}/undo", None, "k-2")
        assert undo.status_code == 202
        translate(hub.settings, [decisions.CONNECTOR])
        assert hub.customers() == apart((ONE, TWO, DEAL))
        assert post(f"/decisions/{stored.json()['decision_id']}/undo", None).status_code == 409


SUBJECTS = [ONE, TWO, THREE, DEAL]
STEPS = st.lists(
    st.one_of(
        st.builds(lambda s, f: ("say", s, f), st.sampled_from(SUBJECTS), st.fixed_dictionaries({}, optional={
            "email": st.sampled_from(["a@x.com", "b@x.com"]), "phone": st.sampled_from([PHONE, OTHER]),
            "cleared": st.sampled_from([["email"], ["phone"]]),
            "identifiers": st.sampled_from([[["email", "b@x.com"]], [["subject", ONE]]]),
        })),
        st.tuples(st.sampled_from(["split", "undo"]), st.sampled_from(SUBJECTS)),
        st.tuples(st.just("move"), st.sampled_from(SUBJECTS), st.sampled_from(SUBJECTS)),
    ),
    max_size=10,
)  # fmt: skip


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_live_and_a_replay_from_captures_agree_whatever_was_stated_withdrawn_and_decided(
    own_settings, tmp_path_factory, steps
):
    with own_settings(tmp_path_factory.mktemp("hub")) as settings:
        codec = made_up.codec_of(settings)
        with postgres.connect(settings.postgres, role="tests") as db:
            hub, made = Hub(settings, codec, db), []
            for at, step in enumerate(steps):
                with suppress(DecisionRefused):
                    match step:
                        case ("say", subject, fields):
                            hub.told(says(subject, at, **fields))
                        case ("split", subject):
                            made.append(hub.split(subject))
                        case ("move", subject, other):
                            made.append(hub.move(subject, other))
                        case ("undo", _) if made:
                            hub.undo(made.pop())
            replay = Retranslation(settings, codec, 2)
            replay.run(replay.ends())
            replay.settle()
            found = replay.compare()
            replay.close()
            assert (found.merges, found.splits, found.renames) == (0, 0, 0), found
