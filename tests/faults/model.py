"""What must come of what was said, in plain Python: written from the documentation, knowing nothing of the code under test.

The newest statement of a field wins within a subject; between subjects the subject whose newest statement is newer; what was said of
a record before it was merged away at its source comes behind that, and what an order says of its buyer comes last. Subjects that share
an identifier are one person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

PROFILE = ("name", "given_name", "family_name", "email", "phone", "city")
ORDER = ("status", "total_minor", "fulfillment_status")
TICKET = ("status", "priority", "title")
NO_ORDER = {"cancelled", "voided", "deleted", "abandoned"}
PAID = {"paid", "partially_paid", "partially_refunded", "refunded"}
NOT_OPEN = {"solved", "closed", "deleted"}

Thing = tuple[str, str]
"""Source and id."""


@dataclass
class _Stated:
    """Fields of one thing, each with when it was stated."""

    at: datetime | None = None
    subject: str = ""
    fields: dict[str, tuple[datetime, Any]] = field(default_factory=dict)

    def say(self, at: datetime, subject: str, fields: dict[str, Any]) -> None:
        if self.at is None or at >= self.at:
            self.at, self.subject = at, subject
        for name, value in fields.items():
            known = self.fields.get(name)
            if known is None or at >= known[0]:
                self.fields[name] = (at, value)

    def get(self, name: str) -> Any:
        return self.fields.get(name, (None, None))[1]


@dataclass
class Person:
    """What is expected of one customer."""

    subjects: frozenset[str]
    sources: tuple[str, ...]
    profile: dict[str, Any] | None
    metrics: dict[str, Any]


class Model:
    """Told everything, in any order."""

    def __init__(self) -> None:
        self._profiles: dict[str, _Stated] = defaultdict(_Stated)
        self._orders: dict[Thing, _Stated] = defaultdict(_Stated)
        self._tickets: dict[Thing, _Stated] = defaultdict(_Stated)
        self._refunds: dict[Thing, tuple[str, int, str]] = {}
        self._consents: dict[tuple[str, str], tuple[datetime, str]] = {}
        self._merged: dict[str, datetime] = {}
        self._evidence: dict[str, set[str]] = defaultdict(set)
        self._fielded: dict[tuple[str, str], dict[datetime, str | None]] = defaultdict(dict)
        """What the e-mail and the phone of a subject were said to be, by when."""
        self.subjects: set[str] = set()

    # ---- what is said

    def link(self, subject: str, identifiers: Iterable[str] = ()) -> None:
        self.subjects.add(subject)
        self._evidence[subject].update(identifier.removeprefix("subject ") for identifier in identifiers)

    def profile(self, subject: str, at: datetime, identifiers: Iterable[str] = (), **fields: Any) -> None:
        """A value of None empties the field."""
        self.link(subject, identifiers)
        self._profiles[subject].say(at, subject, fields)
        for kind in {"email", "phone"} & fields.keys():
            self._fielded[subject, kind][at] = fields[kind] and f"{kind} {fields[kind]}"

    def merge(self, subject: str, at: datetime, identifiers: Iterable[str] = ()) -> None:
        """Its record went into another one."""
        self.link(subject, identifiers)
        self._merged[subject] = max(at, self._merged.get(subject, at))

    def order(
        self, source: str, order_id: str, subject: str, at: datetime, identifiers: Iterable[str] = (), **fields: Any
    ) -> None:
        self.link(subject, identifiers)
        self._orders[source, order_id].say(at, subject, fields)

    def refund(self, source: str, refund_id: str, subject: str, amount_minor: int, currency: str) -> None:
        self._refunds[source, refund_id] = (subject, amount_minor, currency)

    def ticket(self, source: str, ticket_id: str, subject: str, at: datetime, **fields: Any) -> None:
        self.link(subject)
        self._tickets[source, ticket_id].say(at, subject, fields)

    def consent(self, subject: str, purpose: str, at: datetime, state: str, identifiers: Iterable[str] = ()) -> None:
        self.link(subject, identifiers)
        known = self._consents.get((subject, purpose))
        if known is None or at >= known[0]:
            self._consents[subject, purpose] = (at, state)

    # ---- what must come of it

    def orders(self) -> dict[Thing, tuple[str, dict[str, Any]]]:
        """Thing → the subject that it is said of, and its fields."""
        return {key: (row.subject, {name: row.get(name) for name in ORDER}) for key, row in self._orders.items()}

    def tickets(self) -> dict[Thing, tuple[str, dict[str, Any]]]:
        return {key: (row.subject, {name: row.get(name) for name in TICKET}) for key, row in self._tickets.items()}

    def refunds(self) -> dict[Thing, tuple[str, int, str]]:
        return dict(self._refunds)

    def consents(self) -> dict[tuple[str, str], str]:
        return {key: state for key, (_, state) in self._consents.items()}

    def people(self) -> list[Person]:
        return [self._person(subjects) for subjects in self._clusters()]

    def _clusters(self) -> list[frozenset[str]]:
        """The subjects that share evidence: a value that a field stated and states no more is none."""
        carriers: dict[str, set[str]] = {subject: {subject} for subject in self.subjects}
        for subject in self.subjects:
            evidence = set(self._evidence[subject])
            for kind in ("email", "phone"):
                said = self._fielded.get((subject, kind), {})
                evidence -= set(said.values())
                evidence |= {said[max(said)]} if said else set()
            for identifier in evidence - {None, subject}:
                carriers.setdefault(identifier, set()).add(subject)
        found: list[set[str]] = []
        for together in carriers.values():
            touching = [cluster for cluster in found if cluster & together]
            found = [cluster for cluster in found if not cluster & together]
            found.append(together.union(*touching))
        return [frozenset(cluster & self.subjects) for cluster in found]

    def _person(self, subjects: frozenset[str]) -> Person:
        found = [
            (
                subject.split(":")[1] != "order",  # what is said of a buyer comes behind what is said of a person
                subject not in self._merged or row.at > self._merged[subject],
                row.at,
                row,
            )
            for subject in subjects
            if (row := self._profiles.get(subject)) and row.at
        ]
        stated = [row for *_, row in sorted(found, key=itemgetter(0, 1, 2), reverse=True)]
        profile = {
            name: next((value for one in stated if (value := one.get(name)) is not None), None) for name in PROFILE
        }
        sources = tuple(sorted({subject.partition(":")[0] for subject in subjects}))
        return Person(subjects, sources, profile, self._metrics(subjects))

    def _metrics(self, subjects: frozenset[str]) -> dict[str, Any]:
        orders = [row for row in self._orders.values() if row.subject in subjects]
        counted = [row for row in orders if row.get("status") not in NO_ORDER]
        refunds = [(amount, currency) for subject, amount, currency in self._refunds.values() if subject in subjects]
        tickets = [row for row in self._tickets.values() if row.subject in subjects]
        spend = sum(row.get("total_minor") for row in counted if row.get("status") in PAID)
        return {
            "orders_count": len(counted),
            "refunds_count": len(refunds),
            "tickets_count": len(tickets),
            "open_tickets_count": sum(row.get("status") not in NOT_OPEN for row in tickets),
            "spend": spend - sum(amount for amount, _ in refunds),
        }
