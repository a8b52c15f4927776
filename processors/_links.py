"""Identity kept in PostgreSQL: loads what a batch needs, lets `identity.resolve` decide, writes the decisions, all set-based.

A batch in which everything is known takes no lock. Any other takes one advisory lock until its commit: a row lock per identifier
would leave a gap while one worker attaches to a customer that another is moving. Links are committed as unpublished first; the
caller marks them published once Kafka has them, so that a crash in between loses none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any

import orjson
import psycopg
from caudal.processors.evidence import Said, Version, dump, load, newest, values, version
from caudal.processors.identity import (
    EVIDENCE_MAX,
    Carrier,
    Customer,
    Decided,
    Key,
    Known,
    Link,
    Member,
    Merge,
    State,
    Statement,
    founded,
    resolve,
)
from caudal.processors.rules import Rules
from caudal.schemas import Evidence

from caudal import postgres
from caudal.decisions import Decision
from caudal.errors import DatabaseUnavailable

__all__ = ["Erasure", "Links", "Mention", "Resolved"]

_FIELDED, _WITHDRAWN = 1, 2
"""What is noted of an identifier of a subject: that a field of the account stated it, and that the field states it no more."""

LOCK = "SELECT pg_advisory_xact_lock(0x6C696E6B, hashtext(current_schema()))"
"""One lock for each schema with identity tables; the first key keeps clear of other users of the database: "link"."""
STALE_S = 5
"""Unpublished links older than this are re-emitted by whoever sees them: the worker that made them is gone."""
PAGE = 5_000
UNLIMITED = 1_000_000_000

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Mention:
    """One event's word on a subject. Identifiers are usable (see `Rules.usable`)."""

    subject: str
    source: str
    occurred_at: datetime
    captured_at: datetime
    event_id: str
    said: Said


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was stated up to `occurred_at` is to be forgotten: about a subject, a whole source, or a subject's whole customer."""

    subject: str
    occurred_at: datetime
    scope: str = "subject"


@dataclass(slots=True)
class Resolved:
    """The outcome for a batch.

    Attributes:
        links: subject → (customer id, link seq), for every subject mentioned.
        changed: new links, and older ones not known to be published: all must be produced.
        batches: what `published` takes once they are.
        decisions: who decided, and why, of the decisions that links in `changed` follow, by id.
        withdrawn: what subjects state no more and rules have kept as evidence: (subject, kind).
    """

    links: dict[str, tuple[str, int]]
    changed: list[Link] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    decisions: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    withdrawn: list[tuple[str, str]] = field(default_factory=list)


class Links:
    """The identity step. Not for use from several threads at once."""

    def __init__(self, connection: Callable[[], Connection], rules: Rules) -> None:
        """`connection` gives the connection to use, an autocommit one whose search path is the schema of the identity tables."""
        self._connection = connection
        self._rules = rules

    def resolve(
        self,
        mentions: Sequence[Mention],
        erasures: Sequence[Erasure] = (),
        decisions: Sequence[Decision] = (),
    ) -> Resolved:
        """Give every mentioned subject its customer, do what people decided, and commit it.

        Raises:
            DatabaseUnavailable: nothing is decided; try again.
        """
        if not mentions and not decisions:
            return Resolved({})
        with postgres.translated():
            db = self._connection()
            stated = _Stated(mentions, erasures, self._rules)
            known, held, batches = _load_known(db, stated, unpublished=True)
            changed = _links_of(db, batches)
            news = stated.news(known, held)
            if erasures or decisions or any(one.weighs for one in news) or not _restate(db, news):
                with db.transaction():
                    db.execute(LOCK)
                    known, held, _ = _load_known(db, stated)
                    news = stated.news(known, held)
                    links = self._decide(db, news, known)
                    _erase(db, erasures)
                    for decision in decisions:
                        links += self._obey(db, decision)
                    if links:
                        batches.append(_mark_unpublished(db, links))
                known = {**known, **{link.subject: _known(link) for link in links}}
                changed = [*({link.subject: link for link in (*changed, *links)}.values())]
            return Resolved(
                links={subject: (known[subject].customer_id, known[subject].link_seq) for subject in stated.subjects},
                changed=changed,
                batches=batches,
                decisions=_decisions_of(db, changed),
                withdrawn=[(one.statement.subject, kind) for one in news for kind in one.reported],
            )

    def preview(self, decision: Decision) -> list[Link]:
        """The links that a decision would make now; nothing is changed.

        Raises:
            DatabaseUnavailable: try again.
        """
        with postgres.translated():
            db = self._connection()
            with db.transaction(force_rollback=True):
                db.execute(LOCK)
                return self._obey(db, decision)

    def unpublished(self) -> Resolved:
        """Links that a worker left behind unpublished.

        Raises:
            DatabaseUnavailable: try again.
        """
        with postgres.translated():
            db = self._connection()
            batches = [batch for (batch,) in db.execute(f"SELECT batch FROM unpublished_links u WHERE {_STALE}")]
            changed = _links_of(db, batches)
            return Resolved(links={}, changed=changed, batches=batches, decisions=_decisions_of(db, changed))

    def published(self, batches: Sequence[int]) -> None:
        """Note that the links of these batches are on the topic; call it inside the transaction that stores the offsets."""
        if batches:
            self._connection().execute("DELETE FROM unpublished_links WHERE batch = ANY(%s)", (list(batches),))

    def subjects_of_source(self, source: str) -> Iterator[tuple[str, str, int]]:
        """Every known subject of a source with its link (subject, customer id, link seq), in order, read page by page."""
        after = f"{source}:"
        while True:
            rows = (
                self._connection()
                .execute(
                    """SELECT subject, customer_id::text, link_seq FROM subjects
                   WHERE subject > %s AND subject < %s ORDER BY subject LIMIT %s""",
                    (after, f"{source};", PAGE),  # ; follows : in ASCII
                )
                .fetchall()
            )
            yield from rows
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def subjects_of_customer(self, customer_id: str) -> list[str]:
        """Every subject of a customer, in order."""
        rows = self._connection().execute(
            "SELECT subject FROM subjects WHERE customer_id = %s::uuid ORDER BY subject", (customer_id,)
        )
        return [subject for (subject,) in rows]

    def _decide(self, db: Connection, news: Sequence[_News], known: Mapping[str, _Row]) -> list[Link]:
        if not news:
            return []
        _withdraw(db, news)
        review = _resting_on(db, news)
        statements = [one.statement for one in news if one.statement.identifiers or one.statement.subject not in known]
        links = []
        if statements or review:
            state = _load_state(db, statements, known, self._rules, also=review)
            at = max(one.statement.at for one in news)
            links = self._settle(db, state, statements, review, at, news=news)
        _keep_contacts(db, [one for one in news if one.statement.subject in known])
        return links

    def _settle(
        self,
        db: Connection,
        state: State,
        statements: Sequence[Statement],
        review: Collection[str],
        at: datetime,
        *,
        news: Sequence[_News] = (),
        why: Evidence | None = None,
    ) -> list[Link]:
        """Decide and write. The customers in `review` are looked at subject by subject; `why` is the decision that it is for."""
        state = replace(state, members=_load_members(db, review))
        while (decisions := resolve(state, statements, self._rules, at)).expand:
            state = replace(state, members={**state.members, **_load_members(db, decisions.expand)})
        links, merges = decisions.links, decisions.merges
        if why is not None:
            links = [replace(one, reason=why.kind, evidence=_because(why, one.evidence)) for one in links]
            merges = [replace(one, evidence=_because(why, one.evidence)) for one in merges]
        _write(db, links, decisions.identifiers, news)
        for merge in merges:
            links += _write_merge(db, merge, why.kind if why else "merge")
        return links

    def _obey(self, db: Connection, decision: Decision) -> list[Link]:
        """Do what a person decided, once: one that was done before, or that undoes nothing, changes nothing."""
        taken = _take(db, decision)
        if taken is None:
            return []
        members = _load_members(db, taken.customers)
        keys = [
            key
            for found in members.values()
            for member in found
            for key in (*member.identifiers, Key("subject", member.subject))
        ]
        carriers, _ = _load_carriers(db, list(dict.fromkeys(keys)), self._rules, [])
        customers = {*members, *(carrier.customer_id for found in carriers.values() for carrier in found)}
        state = _with_customers(db, State(carriers=carriers), customers, (), self._rules)
        leaving = {*taken.back} if decision.undoes else {decision.subject, *decision.leaving}
        state = replace(state, leaving=frozenset(leaving), ids=taken.back)
        why = Evidence(kind="undo" if decision.kind == "undo" else "manual", value=decision.id)
        links = self._settle(db, state, (), members, decision.at, why=why)
        moves = [(link.subject, link.previous_customer_id, link.customer_id) for link in links]
        db.execute(
            "UPDATE decisions SET moves = %s::jsonb WHERE decision_id = %s", (orjson.dumps(moves).decode(), decision.id)
        )
        return links


@dataclass(frozen=True, slots=True)
class _Taken:
    """A decision taken in: the customers to look at again, and which ones subjects go to."""

    customers: list[str]
    back: dict[str, str]


def _take(db: Connection, decision: Decision) -> _Taken | None:
    """Note a decision; None when it was noted before, or there is nothing for it to undo."""
    noted = db.execute(
        """INSERT INTO decisions (decision_id, kind, subject, decided_at, actor, comment, undoes)
           VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
        (decision.id, decision.kind, decision.subject, decision.at, decision.actor, decision.comment, decision.undoes),
    )
    if not noted.rowcount:
        return None
    back: dict[str, str] = {}
    if decision.undoes is not None:
        undone = db.execute(
            """UPDATE decisions SET undone_by = %s WHERE decision_id = %s AND undone_by IS NULL AND kind <> 'undo'
               RETURNING moves""",
            (decision.id, decision.undoes),
        ).fetchone()
        if undone is None:
            return None
        back = {subject: was for subject, was, _ in undone[0] if was is not None}
        pairs = db.execute("DELETE FROM decided WHERE decision_id = %s RETURNING subject, other", (decision.undoes,))
        named = {*back, *chain.from_iterable(pairs.fetchall())}
    else:
        verdicts: dict[str, str] = {
            **dict.fromkeys(decision.free, "free"),
            **dict.fromkeys(decision.apart, "apart"),
            **({decision.into: "together"} if decision.into else {}),
        }
        named = {decision.subject, *decision.leaving, *verdicts}
        pairs_of = [(*sorted((decision.subject, other)), verdict) for other, verdict in verdicts.items()]
        db.execute(
            f"""INSERT INTO decided (subject, other, decision_id, decided_at, verdict)
                SELECT subject, other, %s, %s, verdict FROM {_table("subject", "other", "verdict")}""",
            (decision.id, decision.at, *_json(pairs_of, 3)),
        )
        into = db.execute("SELECT customer_id::text FROM subjects WHERE subject = %s", (decision.into,)).fetchone()
        if into is not None:
            back = {subject: str(into[0]) for subject in (decision.subject, *decision.leaving)}
    rows = db.execute(
        "SELECT DISTINCT customer_id::text FROM subjects WHERE subject = ANY(%s) OR customer_id = ANY(%s::uuid[])",
        (list(named), list(set(back.values()))),
    )
    return _Taken([customer_id for (customer_id,) in rows], back)


def _decisions_of(db: Connection, links: Iterable[Link]) -> dict[str, tuple[str, str | None]]:
    """Who decided, and why, what these links follow."""
    ids = [link.evidence[0].value for link in links if link.reason in _DECIDED and link.evidence]
    if not ids:
        return {}
    rows = db.execute(
        "SELECT decision_id::text, actor, comment FROM decisions WHERE decision_id = ANY(%s::uuid[])", (ids,)
    )
    return {decision_id: (actor, comment) for decision_id, actor, comment in rows}


_DECIDED = {"manual", "undo"}


def _because(why: Evidence, evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    return (why, *(one for one in evidence if one.kind != why.kind))[:EVIDENCE_MAX]


@dataclass(frozen=True, slots=True)
class _Row:
    customer_id: str
    link_seq: int
    created_at: datetime
    erased_at: datetime | None
    contacts: str


def _known(link: Link) -> _Row:
    return _Row(link.customer_id, link.link_seq, link.created_at, None, "")


@dataclass(frozen=True, slots=True)
class _News:
    """What is new of a subject.

    Attributes:
        statement: itself, with the identifiers that it didn't have.
        fielded: of all its identifiers here, those that a field of the account states.
        marked: those that it had, and that a field states now.
        withdrawn: those that fields stated and state no more.
        reported: kinds of which that is only told.
        was, contacts: what fields stated before and state now (see `evidence.dump`).
    """

    statement: Statement
    fielded: frozenset[Key]
    marked: tuple[Key, ...]
    withdrawn: tuple[Key, ...]
    reported: frozenset[str]
    was: str
    contacts: str
    known: bool

    @property
    def weighs(self) -> bool:
        """Whether it may change who is one customer; else only a version is newer."""
        return not self.known or bool(self.statement.identifiers or self.marked or self.withdrawn or self.reported)


class _Stated:
    """A batch by subject."""

    def __init__(self, mentions: Sequence[Mention], erasures: Sequence[Erasure], rules: Rules) -> None:
        self._rules = rules
        self._erased: dict[str, datetime] = {}
        for erasure in erasures:
            which = f"{erasure.subject.partition(':')[0]}:" if erasure.scope == "source" else erasure.subject
            self._erased[which] = max(erasure.occurred_at, self._erased.get(which, erasure.occurred_at))
        self._first: dict[str, Mention] = {}
        self._lasting: defaultdict[str, dict[Key, datetime]] = defaultdict(dict)
        self._fields: defaultdict[str, list[tuple[datetime, Version, Said]]] = defaultdict(list)
        for mention in mentions:
            subject, at, said = mention.subject, mention.occurred_at, mention.said
            first = self._first.get(subject)
            if first is None or mention.captured_at < first.captured_at:
                self._first[subject] = mention
            lasting = self._lasting[subject]
            for key in said.lasting:
                lasting[key] = max(at, lasting.get(key, at))
            if said.fields or said.attributes:
                self._fields[subject].append((at, version(at, mention.captured_at, mention.event_id), said))
            for key in chain.from_iterable(said.fields.values()):
                if not rules.splits(key.kind):
                    lasting[key] = max(at, lasting.get(key, at))
        self.subjects = list(self._first)

    def pairs(self) -> list[tuple[str, Key]]:
        """Every (subject, identifier) stated."""
        found = {(subject, key): None for subject, keys in self._lasting.items() for key in keys}
        for subject, statements in self._fields.items():
            for _, _, said in statements:
                for keys in said.fields.values():
                    found.update({(subject, key): None for key in keys})
        return list(found)

    def news(self, known: Mapping[str, _Row], held: Mapping[tuple[str, Key], int]) -> list[_News]:
        """What is new: unknown subjects, identifiers that their subject doesn't have, and fields that state something else, or the same
        anew; without what is erased.
        """
        news = []
        for subject, first in self._first.items():
            row = known.get(subject)
            one = self._news_of(first, row, held)
            if row is None or one.weighs or one.contacts != one.was:
                news.append(one)
        return news

    def _news_of(self, first: Mention, row: _Row | None, held: Mapping[tuple[str, Key], int]) -> _News:
        subject = first.subject
        lasting: Iterable[Key] = self._lasting[subject]
        statements = self._fields.get(subject, [])
        if (self._erased or row is not None) and (until := self._erased_until(first, row)) is not None:
            lasting = [key for key in lasting if self._lasting[subject][key] > until]
            statements = [one for one in statements if one[0] > until]
        was = row.contacts if row else ""
        if not statements:
            new = tuple(key for key in lasting if (subject, key) not in held)
            return _News(_statement(first, new), frozenset(), (), (), frozenset(), was, was, row is not None)
        before = load(was)
        fields = newest(before, [(at, said) for _, at, said in statements])
        had, now = values(before), values(fields)
        stated = {
            key
            for _, _, said in statements
            for keys in said.fields.values()
            for key in keys
            if self._rules.splits(key.kind)
        }
        current = sorted(stated & now)
        notes = {key: held.get((subject, key)) for key in stated}
        new = tuple(key for key in current if (note := notes[key]) is None or note & _WITHDRAWN)
        marked = tuple(key for key in current if notes[key] == 0)
        gone = {key for key in had - now if self._rules.splits(key.kind)}
        gone |= {key for key in stated - now if not (notes[key] or 0) & _WITHDRAWN}
        new += tuple(key for key in lasting if key not in stated and key not in gone and (subject, key) not in held)
        reported = frozenset(key.kind for key in had - now if not self._rules.splits(key.kind))
        return _News(
            _statement(first, new),
            frozenset(stated),
            marked,
            tuple(sorted(gone)),
            reported,
            was,
            dump(fields),
            row is not None,
        )

    def _erased_until(self, first: Mention, row: _Row | None) -> datetime | None:
        marks = (row.erased_at if row else None, self._erased.get(first.subject), self._erased.get(f"{first.source}:"))
        return max((at for at in marks if at is not None), default=None)


def _statement(first: Mention, identifiers: tuple[Key, ...]) -> Statement:
    return Statement(first.subject, first.source, first.captured_at, identifiers)


def _load_known(
    db: Connection, stated: _Stated, *, unpublished: bool = False
) -> tuple[dict[str, _Row], dict[tuple[str, Key], int], list[int]]:
    """The subjects that are known, and of the pairs that are held what is noted; with `unpublished` also the batches of links about the
    subjects, and stale ones, that are not known to be published.
    """
    pairs = stated.pairs()
    subjects = orjson.dumps(stated.subjects).decode()
    values = [subjects, *_json([(i.kind, i.value, subject) for subject, i in pairs], 3)]
    rows = db.execute(_KNOWN + _OR_UNPUBLISHED, [*values, subjects]) if unpublished else db.execute(_KNOWN, values)
    known: dict[str, _Row] = {}
    held: dict[tuple[str, Key], int] = {}
    batches: list[int] = []
    for subject, customer_id, link_seq, created_at, erased_at, contacts, n, batch in rows:
        if subject is not None:
            known[subject] = _Row(customer_id, link_seq, created_at, erased_at, contacts)
        elif n is not None:
            held[pairs[n - 1]] = link_seq
        else:
            batches.append(batch)
    return known, held, batches


def _load_state(
    db: Connection,
    statements: Sequence[Statement],
    known: Mapping[str, _Row],
    rules: Rules,
    also: Iterable[str] = (),
) -> State:
    """What is known that matters to the statements, and of the customers in `also`."""
    subjects = {
        s.subject: Known(row.customer_id, row.link_seq, row.created_at)
        for s in statements
        if (row := known.get(s.subject)) is not None
    }
    wanted = dict.fromkeys(
        chain(
            (identifier for s in statements for identifier in s.identifiers),
            # who already points at a subject that is new
            (Key("subject", s.subject) for s in statements if s.subject not in subjects),
        )
    )
    carriers, taken = _load_carriers(
        db, list(wanted), rules, [founded(s.subject) for s in statements if s.subject not in subjects]
    )
    customers = {*also, *(row.customer_id for row in subjects.values())}
    customers.update(carrier.customer_id for found in carriers.values() for carrier in found)
    state = State(subjects=subjects, carriers=carriers, taken=taken)
    return _with_customers(db, state, customers, [s.subject for s in statements], rules)


def _with_customers(
    db: Connection, state: State, customers: Collection[str], subjects: Sequence[str], rules: Rules
) -> State:
    """With these customers, and with what people decided of their subjects and of these."""
    rows = db.execute(_DECISIONS, [*_json([(s,) for s in subjects], 1), *_json([(c,) for c in customers], 1)])
    decided = [Decided(*row) for row in rows]
    joined = (c for one in decided if one.together for c in (one.subject_customer, one.other_customer) if c is not None)
    return replace(state, customers=_load_customers(db, sorted({*customers, *joined}), rules), decided=decided)


def _load_carriers(
    db: Connection, wanted: Sequence[Key], rules: Rules, ids: Sequence[str]
) -> tuple[dict[Key, list[Carrier]], frozenset[str]]:
    """Who carries each key, and which of the ids are customers'."""
    caps = {kind: limit if (limit := rules.shared_by(kind)) is not None else UNLIMITED for kind in rules.kinds}
    pointed_at = [(i.value,) for i in wanted if i.kind == "subject"]
    rows = db.execute(
        f"""SELECT t.n, c.* FROM {_table("kind", "value", "cap")}
            CROSS JOIN LATERAL (
                SELECT customer_id::text, count(*), min(subject) FROM (
                    SELECT s.customer_id, s.subject FROM identifiers i JOIN subjects s USING (subject)
                    WHERE i.kind = t.kind AND i.value = t.value AND i.links LIMIT t.cap::bigint + 1
                ) x GROUP BY 1
            ) c
            UNION ALL
            SELECT NULL, customer_id::text, 1, subject FROM subjects
            WHERE subject IN (SELECT subject FROM {_table("subject")})
            UNION ALL
            SELECT NULL, id, 0, NULL FROM {_table("id")} WHERE EXISTS (SELECT FROM subjects WHERE customer_id = id::uuid)""",
        [
            *_json([(i.kind, i.value, caps[i.kind]) for i in wanted], 3),
            *_json(pointed_at, 1),
            *_json([(customer_id,) for customer_id in ids], 1),
        ],
    )
    carriers: defaultdict[Key, list[Carrier]] = defaultdict(list)
    taken = set()
    for n, customer_id, count, subject in rows:
        if not count:
            taken.add(customer_id)
            continue
        key = Key("subject", subject) if n is None else wanted[n - 1]
        carriers[key].append(Carrier(customer_id, count, subject))
    return dict(carriers), frozenset(taken)


def _load_customers(db: Connection, customers: list[str], rules: Rules) -> dict[str, Customer]:
    if not customers:
        return {}
    limited = [kind for kind in rules.kinds if rules.most(kind) is not None]
    ids = _json([(customer_id,) for customer_id in customers], 1)
    rows = db.execute(
        f"""SELECT t.id, (SELECT min(created_at) FROM subjects WHERE customer_id = t.id::uuid), NULL, NULL FROM {_table("id")}
            UNION ALL
            SELECT s.customer_id::text, NULL, i.kind, array_agg(DISTINCT i.value)
            FROM {_table("id")} JOIN subjects s ON s.customer_id = t.id::uuid JOIN identifiers i USING (subject)
            WHERE i.links AND i.kind = ANY(%s) GROUP BY s.customer_id, i.kind""",
        [*ids, *ids, limited],
    )
    created: dict[str, datetime] = {}
    values: defaultdict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for customer_id, created_at, kind, found in rows:
        if kind is None:
            created[customer_id] = created_at
        else:
            values[customer_id][kind] = frozenset(found)
    return {customer_id: Customer(at, values.get(customer_id, {})) for customer_id, at in created.items()}


def _load_members(db: Connection, customers: Iterable[str]) -> dict[str, list[Member]]:
    rows = db.execute(
        """SELECT s.subject, s.source, s.customer_id::text, s.link_seq, s.created_at, s.erased_at IS NOT NULL,
                  coalesce(array_agg(i.kind ORDER BY i.kind, i.value) FILTER (WHERE i.links), '{}'),
                  coalesce(array_agg(i.value ORDER BY i.kind, i.value) FILTER (WHERE i.links), '{}')
           FROM subjects s LEFT JOIN identifiers i USING (subject)
           WHERE s.customer_id = ANY(%s::uuid[]) GROUP BY s.subject ORDER BY s.created_at, s.subject""",
        (list(customers),),
    )
    members: defaultdict[str, list[Member]] = defaultdict(list)
    for subject, source, customer_id, seq, created_at, erased, kinds, found in rows:
        identifiers = tuple(Key(k, v) for k, v in zip(kinds, found, strict=True))
        members[customer_id].append(Member(subject, source, Known(customer_id, seq, created_at), identifiers, erased))
    return dict(members)


def _write(
    db: Connection, links: Sequence[Link], identifiers: Sequence[tuple[str, Key, bool]], news: Sequence[_News]
) -> None:
    if not links and not identifiers:
        return
    said = {one.statement.subject: one for one in news}
    rows = [
        (
            link.subject,
            link.customer_id,
            link.link_seq,
            link.source,
            link.created_at,
            link.linked_at,
            link.reason,
            link.previous_customer_id,
            _evidence_json(link.evidence),
            said[link.subject].contacts if link.subject in said else "",
        )
        for link in links
    ]
    held = [(i.kind, i.value, subject, links, i in said[subject].fielded) for subject, i, links in identifiers]
    db.execute(_WRITE, [*_json(rows, 10), *_json(held, 5)])


def _withdraw(db: Connection, news: Sequence[_News]) -> None:
    """Note what fields state no more, and what they state besides others."""
    gone = [(key.kind, key.value, one.statement.subject) for one in news for key in one.withdrawn]
    marked = [(key.kind, key.value, one.statement.subject) for one in news for key in one.marked]
    if gone:
        db.execute(
            f"""INSERT INTO identifiers (kind, value, subject, links, fielded, withdrawn)
                SELECT kind, value, subject, false, true, true FROM {_table("kind", "value", "subject")}
                ON CONFLICT (kind, value, subject) DO UPDATE SET links = false, fielded = true, withdrawn = true""",
            _json(gone, 3),
        )
    if marked:
        db.execute(
            f"""UPDATE identifiers i SET fielded = true FROM {_table("kind", "value", "subject")}
                WHERE i.kind = t.kind AND i.value = t.value AND i.subject = t.subject""",
            _json(marked, 3),
        )


def _resting_on(db: Connection, news: Sequence[_News]) -> list[str]:
    """The customers of whom others carry what a subject states no more: what it held together is looked at again."""
    gone = [(key.kind, key.value, one.statement.subject) for one in news if one.known for key in one.withdrawn]
    if not gone:
        return []
    rows = db.execute(
        f"""SELECT DISTINCT s.customer_id::text FROM {_table("kind", "value", "subject")}
            JOIN subjects s ON s.subject = t.subject
            WHERE EXISTS (
                SELECT FROM identifiers i JOIN subjects o USING (subject)
                WHERE i.kind = t.kind AND i.value = t.value AND i.links AND o.subject <> t.subject AND o.customer_id = s.customer_id
            ) OR (t.kind = 'subject' AND EXISTS (
                SELECT FROM subjects o WHERE o.subject = t.value AND o.customer_id = s.customer_id
            ))""",
        _json(gone, 3),
    )
    return [customer_id for (customer_id,) in rows]


def _restate(db: Connection, news: Sequence[_News]) -> bool:
    """Note that fields state the same anew; whether nobody else has changed them meanwhile."""
    rows = [(one.statement.subject, one.was, one.contacts) for one in news]
    if not rows:
        return True
    counted = db.execute(
        f"""WITH kept AS ({_KEEP} RETURNING 1)
            SELECT count(*), set_config('synchronous_commit', 'off', true) FROM kept""",
        _json(rows, 3),
    ).fetchone()
    return counted is not None and counted[0] == len(rows)


def _keep_contacts(db: Connection, news: Sequence[_News]) -> None:
    """Note what fields state now.

    Raises:
        DatabaseUnavailable: a worker that took no lock was quicker.
    """
    rows = [(one.statement.subject, one.was, one.contacts) for one in news if one.contacts != one.was]
    if rows and db.execute(_KEEP, _json(rows, 3)).rowcount != len(rows):
        raise DatabaseUnavailable("what subjects state has changed meanwhile")


def _write_merge(db: Connection, merge: Merge, reason: str) -> list[Link]:
    rows = db.execute(
        f"""UPDATE subjects SET customer_id = %s::uuid, link_seq = link_seq + 1, linked_at = %s, reason = %s,
                   previous_customer_id = customer_id, evidence = %s::jsonb
            WHERE customer_id = %s::uuid RETURNING {_LINK}""",
        (merge.into, merge.linked_at, reason, _evidence_json(merge.evidence), merge.customer_id),
    )
    return [_link(row) for row in rows]


def _erase(db: Connection, erasures: Sequence[Erasure]) -> None:
    for erasure in erasures:
        if erasure.scope == "source":
            source = erasure.subject.partition(":")[0]
            which = "subject > %(from)s AND subject < %(to)s"
        elif erasure.scope == "customer":
            source = ""
            which = """subject IN (SELECT subject FROM subjects WHERE customer_id =
                       (SELECT customer_id FROM subjects WHERE subject = %(subject)s))"""
        else:
            source = ""
            which = "subject = %(subject)s"
        values = {"subject": erasure.subject, "from": f"{source}:", "to": f"{source};", "at": erasure.occurred_at}
        db.execute(
            f"UPDATE subjects SET erased_at = greatest(erased_at, %(at)s), evidence = '[]', contacts = '' WHERE {which}",
            values,
        )
        db.execute(f"DELETE FROM identifiers WHERE {which}", values)


def _mark_unpublished(db: Connection, links: Sequence[Link]) -> int:
    row = db.execute(
        f"""INSERT INTO unpublished_links (subjects)
            SELECT array_agg(subject) FROM {_table("subject")} RETURNING batch""",
        _json([(link.subject,) for link in links], 1),
    ).fetchone()
    assert row is not None
    return int(row[0])


def _links_of(db: Connection, batches: Sequence[int]) -> list[Link]:
    """All links that were made in the batches, as they are now."""
    if not batches:
        return []
    rows = db.execute(
        f"""SELECT {_LINK} FROM subjects
            WHERE subject IN (SELECT unnest(subjects) FROM unpublished_links WHERE batch = ANY(%s)) ORDER BY subject""",
        (batches,),
    )
    return [_link(row) for row in rows]


_LINK = """subject, source, customer_id::text, link_seq, created_at, linked_at, reason, previous_customer_id::text, evidence"""


def _link(row: tuple[Any, ...]) -> Link:
    *columns, evidence = row
    return Link(*columns, tuple(Evidence(**one) for one in evidence))  # type: ignore[call-arg] # a row has one column each


def _evidence_json(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return "[]"
    return orjson.dumps([{"kind": e.kind, "value": e.value, "subject": e.subject} for e in evidence]).decode()


def _table(*columns: str) -> str:
    """A table `t` of rows given as one JSON array per column, all text, numbered by `n` from 1.

    psycopg takes ten times as long to write a list as an array as orjson does, and that time has no other thread run.
    """
    arrays = ", ".join(["json_array_elements_text(%s::json)"] * len(columns))
    return f"ROWS FROM ({arrays}) WITH ORDINALITY t ({', '.join(columns)}, n)"


def _json(rows: Sequence[tuple[Any, ...]], columns: int) -> list[str]:
    """The parameters of `_table`."""
    if not rows:
        return ["[]"] * columns
    return [orjson.dumps(column).decode() for column in zip(*rows, strict=True)]


_COLUMNS = (
    "subject", "customer_id", "link_seq", "source", "created_at", "linked_at", "reason", "previous_customer_id", "evidence",
    "contacts",
)  # fmt: skip
_WRITE = f"""
    WITH written AS (
        INSERT INTO subjects ({", ".join(_COLUMNS)})
        SELECT subject, customer_id::uuid, link_seq::bigint, source, created_at::timestamptz, linked_at::timestamptz,
               reason, previous_customer_id::uuid, evidence::jsonb, contacts
        FROM {_table(*_COLUMNS)}
        ON CONFLICT (subject) DO UPDATE SET
            customer_id = EXCLUDED.customer_id, link_seq = EXCLUDED.link_seq, linked_at = EXCLUDED.linked_at,
            reason = EXCLUDED.reason, previous_customer_id = EXCLUDED.previous_customer_id, evidence = EXCLUDED.evidence
    )
    INSERT INTO identifiers AS i (kind, value, subject, links, fielded)
    SELECT kind, value, subject, links::boolean, fielded::boolean FROM {_table("kind", "value", "subject", "links", "fielded")}
    ON CONFLICT (kind, value, subject) DO UPDATE SET links = excluded.links, fielded = true, withdrawn = false
    WHERE i.withdrawn AND excluded.fielded"""
_KEEP = f"""
    UPDATE subjects s SET contacts = t.contacts FROM {_table("subject", "was", "contacts")}
    WHERE s.subject = t.subject AND s.contacts = t.was"""
_DECISIONS = f"""
    WITH named AS MATERIALIZED (
        SELECT subject FROM {_table("subject")} WHERE EXISTS (SELECT FROM decided)
        UNION
        SELECT s.subject FROM {_table("customer_id")} JOIN subjects s ON s.customer_id = t.customer_id::uuid
        WHERE EXISTS (SELECT FROM decided)
    ), newest AS (
        SELECT DISTINCT ON (subject, other) * FROM (
            SELECT d.* FROM named JOIN decided d USING (subject)
            UNION ALL
            SELECT d.* FROM named n JOIN decided d ON d.other = n.subject
        ) d ORDER BY subject, other, decided_at DESC, decision_id DESC
    )
    SELECT d.subject, d.other, d.verdict = 'together', d.decision_id::text, a.customer_id::text, b.customer_id::text
    FROM newest d LEFT JOIN subjects a USING (subject) LEFT JOIN subjects b ON b.subject = d.other
    WHERE d.verdict <> 'free'
    ORDER BY d.decided_at DESC, d.decision_id DESC, d.subject, d.other"""
"""What people decided last of each two subjects, of which one is named or belongs to a customer that is."""
# LATERAL with LIMIT keeps it one index probe per pair, whatever the planner thinks of the array's length
_KNOWN = f"""
    SELECT subject, customer_id::text, link_seq, created_at, erased_at, contacts, NULL::bigint AS n, NULL::bigint AS batch FROM subjects
    WHERE subject IN (SELECT subject FROM {_table("subject")})
    UNION ALL
    SELECT NULL, NULL, i.noted, NULL, NULL, NULL, t.n, NULL FROM {_table("kind", "value", "subject")}
    CROSS JOIN LATERAL (SELECT i.fielded::int * {_FIELDED} + i.withdrawn::int * {_WITHDRAWN} AS noted FROM identifiers i
                        WHERE i.kind = t.kind AND i.value = t.value AND i.subject = t.subject LIMIT 1) i"""
_STALE = f"created_at < clock_timestamp() - make_interval(secs => {STALE_S})"
_OR_UNPUBLISHED = f"""
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, batch FROM unpublished_links u
    WHERE {_STALE} OR EXISTS (SELECT FROM {_table("subject")} WHERE subject = ANY(u.subjects))"""
