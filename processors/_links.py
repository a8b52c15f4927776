"""Identity kept in PostgreSQL: loads what a batch needs, lets `identity.resolve` decide, writes the decisions, all set-based.

A batch in which everything is known takes no lock. Any other takes one advisory lock until its commit: a row lock per identifier
would leave a gap while one worker attaches to a customer that another is moving. Links are committed as unpublished first; the
caller marks them published once Kafka has them, so that a crash in between loses none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any

import orjson
import psycopg
from caudal.processors.identity import (
    Carrier,
    Customer,
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

__all__ = ["Erasure", "Links", "Mention", "Resolved"]

LOCK = "SELECT pg_advisory_xact_lock(0x6C696E6B, hashtext(current_schema()))"
"""One lock for each schema with identity tables; the first key keeps clear of other users of the database: "link"."""
STALE_S = 5
"""Unpublished links older than this are re-emitted by whoever sees them: the worker that made them is gone."""
PAGE = 5_000
UNLIMITED = 1_000_000_000

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Mention:
    """One event's word on a subject. `identifiers` are usable (see `Rules.usable`)."""

    subject: str
    source: str
    occurred_at: datetime
    captured_at: datetime
    identifiers: tuple[Key, ...]


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
    """

    links: dict[str, tuple[str, int]]
    changed: list[Link] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


class Links:
    """The identity step. Not for use from several threads at once."""

    def __init__(self, connection: Callable[[], Connection], rules: Rules) -> None:
        """`connection` gives the connection to use, an autocommit one whose search path is the schema of the identity tables."""
        self._connection = connection
        self._rules = rules

    def resolve(self, mentions: Sequence[Mention], erasures: Sequence[Erasure] = ()) -> Resolved:
        """Give every mentioned subject its customer, and commit it.

        Raises:
            DatabaseUnavailable: nothing is decided; try again.
        """
        if not mentions:
            return Resolved({})
        with postgres.translated():
            db = self._connection()
            stated = _Stated(mentions, erasures)
            known, held, batches = _load_known(db, stated, unpublished=True)
            changed = _links_of(db, batches)
            if erasures or stated.news(known, held):
                with db.transaction():
                    db.execute(LOCK)
                    known, held, _ = _load_known(db, stated)
                    links = self._decide(db, stated, known, held)
                    _erase(db, erasures)
                    if links:
                        batches.append(_mark_unpublished(db, links))
                known = {**known, **{link.subject: _known(link) for link in links}}
                changed = [*({link.subject: link for link in (*changed, *links)}.values())]
            return Resolved(
                links={subject: (known[subject].customer_id, known[subject].link_seq) for subject in stated.subjects},
                changed=changed,
                batches=batches,
            )

    def unpublished(self) -> Resolved:
        """Links that a worker left behind unpublished.

        Raises:
            DatabaseUnavailable: try again.
        """
        with postgres.translated():
            db = self._connection()
            batches = [batch for (batch,) in db.execute(f"SELECT batch FROM unpublished_links u WHERE {_STALE}")]
            return Resolved(links={}, changed=_links_of(db, batches), batches=batches)

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

    def _decide(
        self, db: Connection, stated: _Stated, known: Mapping[str, _Row], held: frozenset[tuple[str, Key]]
    ) -> list[Link]:
        statements = stated.news(known, held)
        if not statements:
            return []
        state = _load_state(db, statements, known, held, self._rules)
        while True:
            decisions = resolve(state, statements, self._rules)
            if not decisions.expand:
                break
            members = {**state.members, **_load_members(db, decisions.expand)}
            state = replace(state, members=members)
        links = decisions.links
        _write(db, links, decisions.identifiers)
        for merge in decisions.merges:
            links += _write_merge(db, merge)
        return links


@dataclass(frozen=True, slots=True)
class _Row:
    customer_id: str
    link_seq: int
    created_at: datetime
    erased_at: datetime | None


def _known(link: Link) -> _Row:
    return _Row(link.customer_id, link.link_seq, link.created_at, None)


class _Stated:
    """A batch by subject."""

    def __init__(self, mentions: Sequence[Mention], erasures: Sequence[Erasure]) -> None:
        self._erased: dict[str, datetime] = {}
        for erasure in erasures:
            key = f"{erasure.subject.partition(':')[0]}:" if erasure.scope == "source" else erasure.subject
            self._erased[key] = max(erasure.occurred_at, self._erased.get(key, erasure.occurred_at))
        self._first: dict[str, Mention] = {}
        self._identifiers: defaultdict[str, dict[Key, datetime]] = defaultdict(dict)
        for mention in mentions:
            first = self._first.get(mention.subject)
            if first is None or mention.captured_at < first.captured_at:
                self._first[mention.subject] = mention
            found = self._identifiers[mention.subject]
            for identifier in mention.identifiers:
                found[identifier] = max(mention.occurred_at, found.get(identifier, mention.occurred_at))
        self.subjects = list(self._first)

    def pairs(self) -> list[tuple[str, Key]]:
        """Every (subject, identifier) stated."""
        return [(subject, identifier) for subject, found in self._identifiers.items() for identifier in found]

    def news(self, known: Mapping[str, _Row], held: frozenset[tuple[str, Key]]) -> list[Statement]:
        """What is new: unknown subjects, and identifiers that their subject doesn't have; without what is erased."""
        news = []
        for subject, first in self._first.items():
            row = known.get(subject)
            identifiers = tuple(i for i in self._identifiers[subject] if (subject, i) not in held)
            if identifiers and (self._erased or row is not None):
                identifiers = self._not_erased(subject, first.source, row, identifiers)
            if row is None or identifiers:
                news.append(Statement(subject, first.source, first.captured_at, identifiers))
        return news

    def _not_erased(self, subject: str, source: str, row: _Row | None, identifiers: tuple[Key, ...]) -> tuple[Key, ...]:
        marks = (row.erased_at if row else None, self._erased.get(subject), self._erased.get(f"{source}:"))
        erased = [at for at in marks if at is not None]
        stated = self._identifiers[subject]
        return (
            tuple(i for i in identifiers if not any(stated[i] <= until for until in erased)) if erased else identifiers
        )


def _load_known(
    db: Connection, stated: _Stated, *, unpublished: bool = False
) -> tuple[dict[str, _Row], frozenset[tuple[str, Key]], list[int]]:
    """The subjects that are known and the pairs that are held; with `unpublished` also the batches of links about the subjects, and
    stale ones, that are not known to be published.
    """
    pairs = stated.pairs()
    subjects = orjson.dumps(stated.subjects).decode()
    values = [subjects, *_json([(i.kind, i.value, subject) for subject, i in pairs], 3)]
    rows = db.execute(_KNOWN + _OR_UNPUBLISHED, [*values, subjects]) if unpublished else db.execute(_KNOWN, values)
    known: dict[str, _Row] = {}
    held: list[tuple[str, Key]] = []
    batches: list[int] = []
    for subject, customer_id, link_seq, created_at, erased_at, n, batch in rows:
        if subject is not None:
            known[subject] = _Row(customer_id, link_seq, created_at, erased_at)
        elif n is not None:
            held.append(pairs[n - 1])
        else:
            batches.append(batch)
    return known, frozenset(held), batches


def _load_state(
    db: Connection,
    statements: Sequence[Statement],
    known: Mapping[str, _Row],
    held: frozenset[tuple[str, Key]],
    rules: Rules,
) -> State:
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
    customers = {row.customer_id for row in subjects.values()}
    customers.update(carrier.customer_id for found in carriers.values() for carrier in found)
    return State(
        subjects=subjects,
        held=held,
        carriers=carriers,
        customers=_load_customers(db, list(customers), rules),
        taken=taken,
    )


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
        """SELECT s.subject, s.source, s.customer_id::text, s.link_seq, s.created_at,
                  coalesce(array_agg(i.kind ORDER BY i.kind, i.value) FILTER (WHERE i.links), '{}'),
                  coalesce(array_agg(i.value ORDER BY i.kind, i.value) FILTER (WHERE i.links), '{}')
           FROM subjects s LEFT JOIN identifiers i USING (subject)
           WHERE s.customer_id = ANY(%s::uuid[]) GROUP BY s.subject ORDER BY s.created_at, s.subject""",
        (list(customers),),
    )
    members: defaultdict[str, list[Member]] = defaultdict(list)
    for subject, source, customer_id, seq, created_at, kinds, values in rows:
        identifiers = tuple(Key(k, v) for k, v in zip(kinds, values, strict=True))
        members[customer_id].append(Member(subject, source, Known(customer_id, seq, created_at), identifiers))
    return dict(members)


def _write(db: Connection, links: Sequence[Link], identifiers: Sequence[tuple[str, Key, bool]]) -> None:
    if not links and not identifiers:
        return
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
        )
        for link in links
    ]
    held = [(i.kind, i.value, subject, stated) for subject, i, stated in identifiers]
    db.execute(_WRITE, [*_json(rows, 9), *_json(held, 4)])


def _write_merge(db: Connection, merge: Merge) -> list[Link]:
    rows = db.execute(
        f"""UPDATE subjects SET customer_id = %s::uuid, link_seq = link_seq + 1, linked_at = %s, reason = 'merge',
                   previous_customer_id = customer_id, evidence = %s::jsonb
            WHERE customer_id = %s::uuid RETURNING {_LINK}""",
        (merge.into, merge.linked_at, _evidence_json(merge.evidence), merge.customer_id),
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
            f"UPDATE subjects SET erased_at = greatest(erased_at, %(at)s), evidence = '[]' WHERE {which}", values
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


_WRITE = f"""
    WITH written AS (
        INSERT INTO subjects (subject, customer_id, link_seq, source, created_at, linked_at, reason, previous_customer_id, evidence)
        SELECT subject, customer_id::uuid, link_seq::bigint, source, created_at::timestamptz, linked_at::timestamptz,
               reason, previous_customer_id::uuid, evidence::jsonb
        FROM {
    _table(
        "subject",
        "customer_id",
        "link_seq",
        "source",
        "created_at",
        "linked_at",
        "reason",
        "previous_customer_id",
        "evidence",
    )
}
        ON CONFLICT (subject) DO UPDATE SET
            customer_id = EXCLUDED.customer_id, link_seq = EXCLUDED.link_seq, linked_at = EXCLUDED.linked_at,
            reason = EXCLUDED.reason, previous_customer_id = EXCLUDED.previous_customer_id, evidence = EXCLUDED.evidence
    )
    INSERT INTO identifiers (kind, value, subject, links)
    SELECT kind, value, subject, links::boolean FROM {_table("kind", "value", "subject", "links")}
    ON CONFLICT DO NOTHING"""
# LATERAL with LIMIT keeps it one index probe per pair, whatever the planner thinks of the array's length
_KNOWN = f"""
    SELECT subject, customer_id::text, link_seq, created_at, erased_at, NULL::bigint AS n, NULL::bigint AS batch FROM subjects
    WHERE subject IN (SELECT subject FROM {_table("subject")})
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, t.n, NULL FROM {_table("kind", "value", "subject")}
    CROSS JOIN LATERAL (SELECT FROM identifiers i
                        WHERE i.kind = t.kind AND i.value = t.value AND i.subject = t.subject LIMIT 1) i"""
_STALE = f"created_at < clock_timestamp() - make_interval(secs => {STALE_S})"
_OR_UNPUBLISHED = f"""
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, batch FROM unpublished_links u
    WHERE {_STALE} OR EXISTS (SELECT FROM {_table("subject")} WHERE subject = ANY(u.subjects))"""
