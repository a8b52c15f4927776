"""The pure decision who is one customer, against a store that lives in memory."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from caudal.processors.identity import (
    Carrier,
    Customer,
    Decided,
    Decisions,
    Key,
    Known,
    Link,
    Member,
    State,
    Statement,
    founded,
    resolve,
)
from caudal.processors.rules import Kind, Rules
from hypothesis import given, settings
from hypothesis import strategies as st

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PRIORITY = ("subject", "external_id", "cpf", "cnpj", "email", "phone", "device")


def rules(**kinds: Kind) -> Rules:
    return Rules({kind: n for n, kind in enumerate(PRIORITY)}, {kind: kinds.get(kind, Kind()) for kind in PRIORITY})


def says(subject: str, *identifiers: str, at: int = 0) -> Statement:
    """`says("shop:customer:1", "email=a@x.com")`."""
    parts = (text.partition("=") for text in identifiers)
    found = tuple(Key(kind, value) for kind, _, value in parts)
    return Statement(subject, subject.partition(":")[0], T0 + timedelta(seconds=at), found)


@dataclass
class Store:
    """What the database holds, and how a batch changes it."""

    rules: Rules
    subjects: dict[str, Link] = field(default_factory=dict)
    held: dict[tuple[str, Key], bool] = field(default_factory=dict)
    log: list[Link] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    """The newest first."""

    def take(self, *statements: Statement) -> Decisions:
        merged: dict[str, Statement] = {}
        for s in statements:
            before = merged.get(s.subject)
            merged[s.subject] = (
                replace(s, at=min(s.at, before.at), identifiers=(*before.identifiers, *s.identifiers)) if before else s
            )
        news = []
        for s in merged.values():
            new = tuple(dict.fromkeys(i for i in s.identifiers if (s.subject, i) not in self.held))
            if new or s.subject not in self.subjects:
                news.append(replace(s, identifiers=new))
        if not news:
            return Decisions()
        members: dict[str, list[Member]] = {}
        while (decisions := resolve(self._state(news, members), news, self.rules)).expand:
            assert not decisions.expand & members.keys()
            members.update({customer: self._members(customer) for customer in decisions.expand})
        self._write(decisions)
        return decisions

    def decide(self, subject: str, *, apart: Iterable[str] = (), together: Iterable[str] = ()) -> None:
        """Decide, and look at the customers that are meant subject by subject."""
        number = str(len(self.decided))
        new = [Decided(subject, other, False, number) for other in apart]
        new += [Decided(subject, other, True, number) for other in together]
        pairs = {frozenset((one.subject, one.other)) for one in new}
        self.decided = new + [one for one in self.decided if frozenset((one.subject, one.other)) not in pairs]
        self.review({name for one in new for name in (one.subject, one.other)}, leaving={subject})

    def undecide(self, subject: str) -> None:
        """Undo what was decided of a subject."""
        named = {one.other for one in self.decided if one.subject == subject} | {subject}
        self.decided = [one for one in self.decided if one.subject != subject]
        self.review(named)

    def withdraw(self, subject: str, identifier: Key) -> None:
        """The subject states it no more."""
        if self.held.pop((subject, identifier), False):
            self.review({subject})

    def review(self, subjects: Iterable[str], leaving: Iterable[str] = ()) -> None:
        customers = {self.customer(s) for s in subjects if s in self.subjects}
        members = {customer: self._members(customer) for customer in customers}
        everybody = [
            says(m.subject, *(f"{i.kind}={i.value}" for i in m.identifiers))
            for found in members.values()
            for m in found
        ]
        while (
            decisions := resolve(
                replace(self._state(everybody, members), leaving=frozenset(leaving)), (), self.rules, T0
            )
        ).expand:
            members.update({customer: self._members(customer) for customer in decisions.expand})
        self._write(decisions)

    def partition(self) -> set[frozenset[str]]:
        groups = defaultdict(set)
        for subject, link in self.subjects.items():
            groups[link.customer_id].add(subject)
        return {frozenset(group) for group in groups.values()}

    def customer(self, subject: str) -> str:
        return self.subjects[subject].customer_id

    def _known(self, subject: str) -> Known:
        link = self.subjects[subject]
        return Known(link.customer_id, link.link_seq, link.created_at)

    def _identifiers(self, subject: str) -> tuple[Key, ...]:
        return tuple(i for (s, i), links in self.held.items() if s == subject and links)

    def _members(self, customer: str) -> list[Member]:
        return [
            Member(s, link.source, self._known(s), self._identifiers(s))
            for s, link in self.subjects.items()
            if link.customer_id == customer
        ]

    def _state(self, news: Sequence[Statement], members: dict[str, list[Member]]) -> State:
        subjects = {s.subject: self._known(s.subject) for s in news if s.subject in self.subjects}
        wanted = {i for s in news for i in s.identifiers} | {Key("subject", s.subject) for s in news}
        carriers = {}
        for i in wanted:
            who = [s for (s, held), links in self.held.items() if held == i and links]
            who += [i.value] if i.kind == "subject" and i.value in self.subjects else []
            found = defaultdict(list)
            for s in who:
                found[self.customer(s)].append(s)
            carriers[i] = [Carrier(customer, len(s), min(s)) for customer, s in found.items()]
        ids = {known.customer_id for known in subjects.values()}
        ids |= {carrier.customer_id for found in carriers.values() for carrier in found}
        customers = {}
        for customer in ids:
            mine = self._members(customer)
            values = defaultdict(set)
            for member in mine:
                for i in member.identifiers:
                    values[i.kind].add(i.value)
            customers[customer] = Customer(
                min(m.known.created_at for m in mine), {kind: frozenset(found) for kind, found in values.items()}
            )
        decided = [
            replace(
                one,
                subject_customer=self.customer(one.subject) if one.subject in self.subjects else None,
                other_customer=self.customer(one.other) if one.other in self.subjects else None,
            )
            for one in self.decided
        ]
        for one in decided:
            for customer in {one.subject_customer, one.other_customer} - {None} if one.together else ():
                first = min(m.known.created_at for m in self._members(customer))
                customers.setdefault(customer, Customer(first, {}))
        return State(subjects, frozenset(), carriers, customers, members, decided=decided)

    def _write(self, decisions: Decisions) -> None:
        written = list(decisions.links)
        for merge in decisions.merges:
            for link in self.subjects.values():
                if link.customer_id == merge.customer_id:
                    written.append(
                        replace(
                            link,
                            customer_id=merge.into,
                            link_seq=link.link_seq + 1,
                            linked_at=merge.linked_at,
                            reason="merge",
                            previous_customer_id=link.customer_id,
                            evidence=merge.evidence,
                        )
                    )
        for link in written:
            assert link.link_seq == (self.subjects[link.subject].link_seq + 1 if link.subject in self.subjects else 1)
            self.subjects[link.subject] = link
        self.log += written
        for subject, identifier, links in decisions.identifiers:
            self.held[subject, identifier] = links


def connected(statements: Iterable[Statement]) -> set[frozenset[str]]:
    """The partition by the definition: subjects that share a value, or of which one names the other, are together."""
    groups: list[tuple[set[str], set[Key]]] = []
    for s in statements:
        subjects, values = {s.subject}, {*s.identifiers, Key("subject", s.subject)}
        rest = []
        for other in groups:
            if other[1] & values:
                subjects |= other[0]
                values |= other[1]
            else:
                rest.append(other)
        groups = [*rest, (subjects, values)]
    return {frozenset(subjects) for subjects, _ in groups}


SUBJECTS = st.sampled_from([f"{source}:customer:{n}" for source in ("shop", "crm", "desk") for n in range(4)])
IDENTIFIERS = st.one_of(
    st.builds(Key, st.sampled_from(["email", "phone", "cpf"]), st.sampled_from("abcdef")),
    st.builds(Key, st.just("subject"), SUBJECTS),
)
STATEMENTS = st.lists(
    st.builds(
        Statement,
        subject=SUBJECTS,
        source=st.just("s"),
        at=st.integers(0, 50).map(lambda s: T0 + timedelta(seconds=s)),
        identifiers=st.lists(IDENTIFIERS, max_size=2).map(tuple),
    ),
    max_size=14,
)


@settings(deadline=None)  # shared machines stall
@given(statements=STATEMENTS, data=st.data())
def test_any_order_and_batching_gives_the_partition_of_what_is_connected(statements, data):
    store = Store(rules())
    shuffled = data.draw(st.permutations(statements))
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        store.take(*shuffled[:size])
        shuffled = shuffled[size:]
    assert store.partition() == connected(statements)


@settings(deadline=None)  # shared machines stall
@given(statements=STATEMENTS, data=st.data())
def test_limits_hold_in_any_order_and_every_subject_has_one_customer(statements, data):
    store = Store(rules(cpf=Kind(most=1), email=Kind(most=2, shared_by=3), phone=Kind(shared_by=1)))
    for statement in data.draw(st.permutations(statements)):
        store.take(statement)
    values = defaultdict(set)
    for (subject, identifier), links in store.held.items():
        if links:
            values[store.customer(subject), identifier.kind].add(identifier.value)
    assert all(len(found) <= 1 for (_, kind), found in values.items() if kind == "cpf")
    assert all(len(found) <= 2 for (_, kind), found in values.items() if kind == "email")
    assert store.subjects.keys() == {s.subject for s in statements}


@settings(deadline=None)  # shared machines stall
@given(statements=STATEMENTS)
def test_the_same_batch_again_changes_nothing(statements):
    store = Store(rules(cpf=Kind(most=1), email=Kind(most=2, shared_by=3)))
    store.take(*statements)
    log = list(store.log)
    store.take(*statements)
    assert store.log == log


def test_a_new_subject_founds_a_customer_with_an_id_of_its_own_name():
    store = Store(rules())
    store.take(says("shop:customer:1", "email=a@x.com"))
    link = store.subjects["shop:customer:1"]
    assert (link.customer_id, link.link_seq, link.reason) == (founded("shop:customer:1"), 1, "new")
    assert uuid.UUID(link.customer_id)
    assert link.evidence == ()


def test_a_new_subject_takes_no_id_that_others_have():
    taken = State(taken=frozenset({founded("shop:customer:1")}))
    (link,) = resolve(taken, [says("shop:customer:1")], rules()).links
    assert link.customer_id != founded("shop:customer:1")
    assert resolve(taken, [says("shop:customer:1")], rules()).links == [link], "and always the same other one"


def test_a_subject_that_shares_an_identifier_joins_and_the_link_says_by_what():
    store = Store(rules())
    store.take(says("shop:customer:1", "email=a@x.com"))
    store.take(says("crm:contact:2", "email=a@x.com"))
    link = store.subjects["crm:contact:2"]
    assert link.customer_id == founded("shop:customer:1")
    assert link.reason == "identifier"
    assert [(e.kind, e.value, e.subject) for e in link.evidence] == [("email", "a@x.com", "shop:customer:1")]


def test_the_customer_that_was_created_first_survives_a_merge():
    store = Store(rules())
    store.take(says("shop:customer:1", "email=a@x.com", at=20))
    store.take(says("crm:contact:2", "phone=1", at=10))
    store.take(says("desk:user:3", "email=a@x.com", "phone=1", at=30))
    assert set(store.partition()) == {frozenset({"shop:customer:1", "crm:contact:2", "desk:user:3"})}
    assert store.customer("shop:customer:1") == founded("crm:contact:2")
    moved = store.subjects["shop:customer:1"]
    assert (moved.link_seq, moved.reason, moved.previous_customer_id) == (2, "merge", founded("shop:customer:1"))
    assert [(e.kind, e.value, e.subject) for e in moved.evidence] == [("email", "a@x.com", "desk:user:3")]


def test_an_unknown_subject_that_is_named_joins_when_it_comes():
    store = Store(rules())
    store.take(says("crm:ticket:7", "subject=crm:contact:3"))
    store.take(says("crm:ticket:8", "subject=crm:contact:3"))
    store.take(says("crm:contact:3", "email=a@x.com"))
    assert len(store.partition()) == 1


def test_two_cpfs_keep_two_people_apart_although_they_share_a_phone():
    store = Store(rules(cpf=Kind(most=1)))
    store.take(says("shop:customer:1", "cpf=1", "phone=9", at=1))
    store.take(says("shop:customer:2", "cpf=2", "phone=9", at=2))
    assert len(store.partition()) == 2
    store.take(says("desk:user:3", "phone=9", at=3))
    assert store.customer("desk:user:3") == founded("shop:customer:1"), "of two that fit, the older one"


def test_stronger_evidence_takes_apart_what_weaker_evidence_joined():
    store = Store(rules(cpf=Kind(most=1)))
    store.take(says("shop:customer:1", "email=family@x.com", "cpf=1", at=1))
    store.take(
        says("shop:customer:2", "email=family@x.com", at=2), says("crm:ticket:5", "subject=shop:customer:2", at=2)
    )
    assert len(store.partition()) == 1
    store.take(says("shop:customer:2", "cpf=2", at=3))
    assert store.partition() == {frozenset({"shop:customer:1"}), frozenset({"shop:customer:2", "crm:ticket:5"})}
    assert store.customer("shop:customer:1") == founded("shop:customer:1")
    link = store.subjects["shop:customer:2"]
    assert (link.link_seq, link.reason, link.previous_customer_id) == (2, "split", founded("shop:customer:1"))


def test_who_splits_off_joins_the_customer_that_the_stronger_evidence_names():
    store = Store(rules(cpf=Kind(most=1)))
    store.take(says("crm:contact:9", "cpf=2", at=0))
    store.take(says("shop:customer:1", "email=family@x.com", "cpf=1", at=1))
    store.take(says("shop:customer:2", "email=family@x.com", at=2))
    store.take(says("shop:customer:2", "cpf=2", at=3))
    assert store.partition() == {frozenset({"shop:customer:1"}), frozenset({"crm:contact:9", "shop:customer:2"})}


def test_the_order_of_a_cpf_and_a_shared_email_does_not_matter():
    statements = [
        says("shop:customer:1", "email=family@x.com", at=1),
        says("shop:customer:1", "cpf=1", at=2),
        says("shop:customer:2", "email=family@x.com", at=3),
        says("shop:customer:2", "cpf=2", at=4),
    ]
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [2, 0, 3, 1], [3, 2, 1, 0], [0, 2, 3, 1]):
        store = Store(rules(cpf=Kind(most=1)))
        for n in order:
            store.take(statements[n])
        assert len(store.partition()) == 2, order


def test_a_subject_that_states_a_second_cpf_keeps_the_first_and_remembers_the_other_for_lookups():
    store = Store(rules(cpf=Kind(most=1)))
    store.take(says("shop:customer:1", "cpf=1"))
    store.take(says("shop:customer:1", "cpf=2"))
    store.take(says("shop:customer:2", "cpf=2"))
    assert len(store.partition()) == 2
    assert store.held["shop:customer:1", Key("cpf", "2")] is False


def test_a_value_that_too_many_share_links_no_more_and_takes_nothing_apart():
    store = Store(rules(phone=Kind(shared_by=3), cpf=Kind(most=1)))
    for n in range(6):
        store.take(says(f"shop:customer:{n}", "phone=1", at=n))
    assert sorted(map(len, store.partition())) == [1, 1, 1, 3]
    store.take(says("shop:customer:0", "cpf=1", at=7))
    store.take(says("shop:customer:1", "cpf=2", at=8))
    assert sorted(map(len, store.partition())) == [1, 1, 1, 1, 2], "only the contradicting subject leaves"


@pytest.mark.parametrize("size", [2, 3])
def test_a_customer_takes_no_more_values_than_its_limit(size):
    store = Store(rules(email=Kind(most=size)))
    for n in range(5):
        store.take(says(f"shop:customer:{n}", f"email={n}@x.com", "phone=1", at=n))
    assert max(map(len, store.partition())) == size


def test_a_decision_parts_what_evidence_joins_and_the_rest_keeps_the_id():
    store = Store(rules())
    store.take(
        says("shop:customer:1", "phone=p"),
        says("shop:customer:2", "phone=p", at=1),
        says("shop:order:9", "subject=shop:customer:1", at=2),
    )
    before = store.customer("shop:customer:2")
    store.decide("shop:customer:1", apart=["shop:customer:2"])
    assert store.partition() == {frozenset({"shop:customer:1", "shop:order:9"}), frozenset({"shop:customer:2"})}
    assert store.customer("shop:customer:2") == before
    store.take(says("shop:customer:3", "phone=p", "email=e", at=3))
    store.take(says("shop:customer:1", "email=e", at=4))
    assert store.customer("shop:customer:1") != store.customer("shop:customer:2")


def test_a_decision_joins_over_a_limit_and_what_adds_nothing_still_joins():
    store = Store(rules(cpf=Kind(most=1)))
    store.take(says("shop:customer:1", "cpf=1"), says("shop:customer:2", "cpf=2", at=1))
    store.decide("shop:customer:1", together=["shop:customer:2"])
    assert len(store.partition()) == 1
    store.take(says("crm:contact:3", "cpf=2", at=2))
    assert len(store.partition()) == 1
    store.take(says("crm:contact:4", "cpf=3", "subject=shop:customer:1", at=3))
    assert store.customer("crm:contact:4") != store.customer("shop:customer:1")


def test_an_erased_member_stays_with_those_who_keep_the_id():
    erased = Member("shop:customer:1", "shop", Known("c", 1, T0), (), erased=True)
    alive = Member("shop:customer:2", "shop", Known("c", 1, T0 + timedelta(1)), (Key("phone", "p"),))
    decisions = resolve(State(customers={"c": Customer(T0)}, members={"c": [erased, alive]}), (), rules(), T0)
    assert decisions.links == []


DECIDING = st.lists(
    st.one_of(
        st.builds(
            lambda s: ("say", s),
            st.builds(says, SUBJECTS, st.sampled_from(["email=a", "email=b", "phone=a", "phone=b"])),
        ),
        st.builds(
            lambda s, i: ("withdraw", s, i),
            SUBJECTS,
            st.builds(Key, st.sampled_from(["email", "phone"]), st.sampled_from("ab")),
        ),
        st.builds(lambda s: ("split", s), SUBJECTS),
        st.builds(lambda s, o: ("join", s, o), SUBJECTS, SUBJECTS),
        st.builds(lambda s: ("undo", s), SUBJECTS),
    ),
    max_size=16,
)


@settings(deadline=None)  # shared machines stall
@given(steps=DECIDING)
def test_decisions_hold_whatever_is_stated_and_without_them_evidence_alone_decides(steps):
    store = Store(rules())
    for step in steps:
        match step:
            case ("say", statement):
                store.take(statement)
            case ("withdraw", subject, identifier):
                store.withdraw(subject, identifier)
            case ("split", subject) if subject in store.subjects:
                others = [
                    s
                    for s, link in store.subjects.items()
                    if link.customer_id == store.customer(subject) and s != subject
                ]
                store.decide(subject, apart=others)
            case ("join", subject, other) if {subject, other} <= store.subjects.keys() and subject != other:
                store.decide(subject, together=[other])
            case ("undo", subject):
                store.undecide(subject)
        for one in store.decided:
            if not one.together and {one.subject, one.other} <= store.subjects.keys():
                assert store.customer(one.subject) != store.customer(one.other)
    for subject in list(store.subjects):
        store.undecide(subject)
    left = [
        says(s, *(f"{i.kind}={i.value}" for (of, i), links in store.held.items() if of == s and links))
        for s in store.subjects
    ]
    assert store.partition() == connected(left)
