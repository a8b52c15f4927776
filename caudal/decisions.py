"""What people decide of subjects: one is split off its customer, moved to another, or a decision is undone.

A decision is a capture of its own topic, `capture.decisions`: a record that says by name which subjects are meant, and why. The translate
step does it, in its turn and under its locks, so that it survives restarts, and a replay from captures comes to the same. What is
decided holds for good: no evidence joins what was parted, or parts what was joined, until the decision is undone or a newer one says
otherwise.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
import psycopg
from confluent_kafka import KafkaException
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caudal import kafka, postgres
from caudal.errors import BrokerUnavailable, DecisionRefused, InvalidPayload, NotKnown
from caudal.schemas.codec import Codec
from caudal.settings import Settings

__all__ = [
    "CONNECTOR",
    "TOPIC",
    "Decision",
    "Kind",
    "listed",
    "one",
    "plan_move",
    "plan_split",
    "plan_undo",
    "read",
    "store",
    "wait",
]

CONNECTOR = "decisions"
"""What the captures name as their connector; no source can have it."""
TOPIC = f"capture.{CONNECTOR}"
SUBJECTS_MAX = 5_000
"""Most subjects that a decision names: its record stays small, and what it looks at again is done in a moment."""
STORED_S = 30.0
POLL_S = 0.05

Kind = Literal["split", "move", "undo"]
Subject = Annotated[str, Field(min_length=3, max_length=500)]
Connection = psycopg.Connection[Any]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    decision_id: uuid.UUID
    kind: Kind
    subject: Subject
    leaving: tuple[Subject, ...] = ()
    apart: tuple[Subject, ...] = ()
    into: Subject | None = None
    free: tuple[Subject, ...] = ()
    undoes: uuid.UUID | None = None
    actor: str
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Attributes:
        id: a UUID; the same decision twice is done once.
        kind: `split`, `move` or `undo`.
        subject: who is split off or moved.
        at: when it was decided.
        actor: who decided.
        comment: why, in their words.
        leaving: what belongs to the subject and goes with it.
        apart: subjects that it was together with, and isn't the same as.
        into: a subject of the customer that it is moved to.
        free: the others of that customer: what was decided between them and the subject before counts no more.
        undoes: the decision that is undone.
    """

    id: str
    kind: Kind
    subject: str
    at: datetime
    actor: str
    comment: str | None = None
    leaving: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    into: str | None = None
    free: tuple[str, ...] = ()
    undoes: str | None = None


def read(body: bytes, at: datetime) -> Decision:
    """The decision in a capture's body.

    Raises:
        InvalidPayload: there is none.
    """
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as exc:
        raise InvalidPayload(f"no decision: {exc.error_count()} of its fields can't be used") from None
    given = {
        name: getattr(found, name)
        for name in ("kind", "subject", "actor", "comment", "leaving", "apart", "into", "free")
    }
    return Decision(id=str(found.decision_id), at=at, undoes=str(found.undoes) if found.undoes else None, **given)


# ---- what a decision would name


def plan_split(
    db: Connection, subject: str, *, actor: str, comment: str | None = None, alone: bool = False, id_: str | None = None
) -> Decision:
    """The subject is nobody of the customer it is with. What names it (its orders, deals, tickets) goes with it, unless `alone`.

    Raises:
        DecisionRefused: it isn't known, or nobody would be left.
    """
    with postgres.translated():
        others = _others(db, subject)
        leaving = () if alone else _belongings(db, subject, others)
    apart = tuple(other for other in others if other not in set(leaving))
    if not apart:
        raise DecisionRefused(
            f"{subject} is its customer's only account" if not leaving else f"all of the customer belongs to {subject}",
            hint="there is nothing to split it from",
        )
    return Decision(_id(id_), "split", subject, _now(), actor, comment, leaving, apart)


def plan_move(
    db: Connection,
    subject: str,
    to: str,
    *,
    actor: str,
    comment: str | None = None,
    alone: bool = False,
    id_: str | None = None,
) -> Decision:
    """The subject is the customer `to`, given by id or by one of its subjects, and nobody of the customer it is with.

    Raises:
        DecisionRefused: one of them isn't known, or they are together already.
    """
    with postgres.translated():
        others = _others(db, subject)
        into, there = _target(db, to)
        leaving = () if alone else _belongings(db, subject, others)
    if subject in there:
        raise DecisionRefused(f"{subject} belongs to that customer already", hint="there is nothing to move")
    apart = tuple(other for other in others if other not in set(leaving))
    free = tuple(other for other in there if other != into)
    return Decision(_id(id_), "move", subject, _now(), actor, comment, leaving, apart, into, free)


def plan_undo(
    db: Connection, decision_id: str, *, actor: str, comment: str | None = None, id_: str | None = None
) -> Decision:
    """As if the decision had not been made.

    Raises:
        DecisionRefused: there is none of this id, or it can't be undone (again).
    """
    found = one(db, decision_id)
    if found is None:
        raise NotKnown(f"no decision has the id {decision_id}", hint="`caudal customers decisions` lists them")
    if found["undone_by"] is not None:
        raise DecisionRefused(f"it was undone by {found['undone_by']}", hint="decide anew instead")
    if found["kind"] == "undo":
        raise DecisionRefused("an undoing can't be undone", hint="decide anew instead")
    return Decision(_id(id_), "undo", found["subject"], _now(), actor, comment, undoes=found["decision_id"])


def _others(db: Connection, subject: str) -> list[str]:
    rows = db.execute(
        """SELECT o.subject FROM hub.subjects s JOIN hub.subjects o USING (customer_id) WHERE s.subject = %s
           ORDER BY o.created_at, o.subject LIMIT %s""",
        (subject, SUBJECTS_MAX + 2),
    ).fetchall()
    return _few([other for (other,) in rows], subject)


def _target(db: Connection, to: str) -> tuple[str, list[str]]:
    """A subject of the customer, the one that it began with unless another is named, and all of them."""
    try:
        where, value = "customer_id = %s::uuid", str(uuid.UUID(to))
    except ValueError:
        where, value = "customer_id = (SELECT customer_id FROM hub.subjects WHERE subject = %s)", to
    rows = db.execute(
        f"SELECT subject FROM hub.subjects WHERE {where} ORDER BY created_at, subject LIMIT %s",
        (value, SUBJECTS_MAX + 2),
    ).fetchall()
    found = [subject for (subject,) in rows]
    if not found:
        raise NotKnown(f"{to[:200]} is neither a customer nor a subject that is known")
    _few([*found, ""], "")
    return (to if to in found else found[0]), found


def _few(subjects: list[str], subject: str) -> list[str]:
    if subject not in subjects:
        raise NotKnown(f"no subject {subject[:200]} is known", hint="a subject is <source>:<type>:<id>")
    if len(subjects) > SUBJECTS_MAX + 1:
        raise DecisionRefused(f"the customer has more than {SUBJECTS_MAX:,} subjects, more than a decision can name")
    return [other for other in subjects if other != subject]


def _belongings(db: Connection, subject: str, others: Sequence[str]) -> tuple[str, ...]:
    """Of the others those that name the subject, or what belongs to it, as the same person, and that it doesn't name itself."""
    rows = db.execute(
        """SELECT subject, value FROM hub.identifiers
           WHERE subject = ANY(%s) AND kind = 'subject' AND links AND value = ANY(%s)""",
        ([subject, *others], [subject, *others]),
    ).fetchall()
    names: dict[str, set[str]] = {}
    for one_, named in rows:
        names.setdefault(one_, set()).add(named)
    found = {subject}
    while more := {one_ for one_, named in names.items() if named & found} - found - names.get(subject, set()):
        found |= more
    return tuple(other for other in others if other in found)


def _id(given: str | None) -> str:
    return given or str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC)


# ---- storing decisions, and what became of them


def store(settings: Settings, codec: Codec, decision: Decision) -> None:
    """Put the decision on its topic; it is done when the translate step gets to it.

    Raises:
        BrokerUnavailable: it isn't sure to be stored; the same decision may be stored again.
        RegistryUnavailable: its schema can't be looked up.
    """
    body = {
        "decision_id": decision.id, "kind": decision.kind, "subject": decision.subject, "leaving": decision.leaving,
        "apart": decision.apart, "into": decision.into, "free": decision.free, "undoes": decision.undoes,
        "actor": decision.actor, "comment": decision.comment,
    }  # fmt: skip
    kafka.ensure_topics(settings.kafka, [TOPIC])
    topic = kafka.topic(settings.kafka, TOPIC)
    value = codec.encode(topic, "Capture", {
        "capture_id": decision.id, "source": CONNECTOR, "connector": CONNECTOR, "delivery_id": decision.id, "kind": decision.kind,
        "method": "", "url": "", "headers": {}, "body": orjson.dumps(body), "captured_at": decision.at,
    })  # fmt: skip
    errors: list[object] = []

    def report(error: object, _message: object) -> None:
        if error is not None:
            errors.append(error)

    producer = kafka.producer(settings.kafka, **{"delivery.timeout.ms": int(STORED_S * 1000)})
    try:
        # one partition keeps an undoing behind what it undoes
        producer.produce(topic, value, decision.id, 0, on_delivery=report)
    except KafkaException as exc:
        raise kafka.translate_error(exc) from exc
    if producer.flush(STORED_S) or errors:
        raise BrokerUnavailable("Kafka did not confirm the decision")


def wait(db: Connection, decision_id: str, seconds: float) -> dict[str, Any] | None:
    """What became of the decision, as soon as it is done; None when it isn't by then.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    until = time.monotonic() + seconds
    while (found := one(db, decision_id)) is None and time.monotonic() < until:
        time.sleep(POLL_S)
    return found


_SELECT = """
    SELECT decision_id::text, kind, subject, decided_at, actor, comment, undoes::text, undone_by::text,
           (SELECT coalesce(jsonb_agg(jsonb_build_object('subject', m ->> 0, 'from', m ->> 1, 'to', m ->> 2) ORDER BY m ->> 0), '[]')
            FROM jsonb_array_elements(moves) m) AS moves
    FROM hub.decisions d
"""


def one(db: Connection, decision_id: str) -> dict[str, Any] | None:
    """A decision that was done, with the subjects that it moved.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    try:
        wanted = uuid.UUID(decision_id)
    except ValueError:
        return None
    with postgres.translated(), db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"{_SELECT} WHERE decision_id = %s", (wanted,)).fetchone()


def listed(db: Connection, *, subject: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Decisions that were done, the newest first; with `subject` only those that name or moved it.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    of = """WHERE %(subject)s::text IS NULL OR subject = %(subject)s
            OR EXISTS (SELECT FROM jsonb_array_elements(moves) m WHERE m ->> 0 = %(subject)s)"""
    with postgres.translated(), db.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"{_SELECT} {of} ORDER BY decided_at DESC, decision_id LIMIT %(limit)s",
            {"subject": subject, "limit": limit},
        )
        return rows.fetchall()
