"""The translate step: captures become canonical events on `customer.changes`, each keyed by the customer it is about.

One batch goes: decode, translate (pure), decide identity (one transaction), produce links and events, confirm all of them, store
the offsets (one transaction). A crash anywhere repeats the batch, which gives the same events with the same ids, and links that
were committed but maybe not produced are produced again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain
from typing import Any, Protocol

import psycopg
from caudal.connectors import Delivery, LeftOut
from caudal.connectors import get as connector_named
from caudal.processors import _generation
from caudal.processors import rules as identity_rules
from caudal.processors._links import Connection, Erasure, Links, Mention, Resolved
from caudal.processors._reader import CARRIED
from caudal.processors.evidence import said
from caudal.processors.identity import Link
from caudal.processors.rules import Rules
from caudal.schemas import EVENT_TYPES, CustomerErased, Event, SubjectDeleted, SubjectLinked, derived_id
from caudal.schemas.codec import Codec
from caudal.schemas.dead_letters import bare, dead_letter
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from psycopg.types.json import Jsonb

from caudal import decisions, generations, kafka, offsets, postgres
from caudal.decisions import Decision
from caudal.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    LostPartition,
    Poison,
    UndecodableRecord,
    UninstalledConnector,
    UnknownConnector,
    UnusableEvent,
)
from caudal.kafka import Extent
from caudal.settings import Settings
from caudal.telemetry import BATCH_EVENTS, BATCH_SECONDS, DEAD_LETTERS, LEFT_OUT, TRANSLATED, Log, logger

__all__ = ["Batch", "Capture", "Translator"]

EVENTS = uuid.UUID("c3a1f7de-4f2b-5b7e-9a64-1d1c5c0b8a21").bytes
"""Namespace of the ids of events that this step makes itself."""
FLUSH_S = 30.0
"""Longest wait for the broker to confirm a batch; then it is tried again as a whole."""
SWEEP_S = 1.0
CLOCK_SKEW = timedelta(days=1)
"""What is said to have occurred later than this after it was captured, occurred when it was captured: the newest statement wins, and
one from a clock that runs years ahead would win for years."""
EVENT_MAX_BYTES = 1_000_000
"""Kafka's own limit for a message, less some room; the broker would refuse the whole batch."""

BATCH_LOCK = "0x62617463, hashtext(current_schema())"
"""Keys of the advisory lock that a batch holds, shared, from before it decides anything until its offsets are stored; who takes it
alone knows that no batch is under way, and holds up the next. The first one keeps clear of other users of the database: "batc"."""

_STORE = """
    WITH n AS (SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[]) n (topic, partition, expected, next_offset)),
         moved AS (UPDATE offsets o SET next_offset = n.next_offset FROM n
                   WHERE o.topic = n.topic AND o.partition = n.partition AND o.next_offset = n.expected
                   RETURNING 1),
         first AS (INSERT INTO offsets (topic, partition, next_offset)
                   SELECT topic, partition, next_offset FROM n WHERE expected IS NULL
                   ON CONFLICT DO NOTHING RETURNING 1),
         noted AS (INSERT INTO translated (topic, partition, next_offset, changes)
                   SELECT topic, partition, next_offset, %s FROM n
                   ON CONFLICT (topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, changes = EXCLUDED.changes),
         published AS (DELETE FROM unpublished_links WHERE batch = ANY(%s))
    SELECT 1 / ((SELECT count(*) FROM moved) + (SELECT count(*) FROM first) = (SELECT count(*) FROM n))::int,
           set_config('synchronous_commit', 'off', true)"""
"""How far a batch is done, as one statement, which is a transaction by itself. It fails, by a division by zero, where someone else has
moved an offset since it was read. Its commit doesn't wait for the disk: should PostgreSQL lose it by a crash, the batch is done again,
which gives the same."""

_SKIP = """
    WITH n AS (SELECT %s::text AS topic, * FROM unnest(%s::int[], %s::bigint[]) n (partition, next_offset)),
         noted AS (UPDATE translated t SET next_offset = n.next_offset FROM n WHERE (t.topic, t.partition) = (n.topic, n.partition))
    INSERT INTO offsets (topic, partition, next_offset) SELECT * FROM n
    ON CONFLICT (topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset"""

Partition = tuple[str, int]


@dataclass(slots=True)
class Capture:
    """One message of a capture topic and what it means. `poison` says why it, or an item of it, means nothing."""

    message: Message
    partition: Partition
    offset: int
    source: str | None = None
    kind: str | None = None
    events: list[Event] = field(default_factory=list)
    poison: Poison | None = None
    left_out: Sequence[LeftOut] = ()
    decision: Decision | None = None


@dataclass(slots=True)
class Batch:
    """A batch understood, before identity."""

    captures: list[Capture]

    def __len__(self) -> int:
        return len(self.captures)


PutAside = Callable[[Connection, Sequence[Capture]], None]


class Translator:
    """Turns captures into changes. `prepare` may run beside anything else; the other methods one at a time."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        *,
        rules: Rules | None = None,
        schema: str = "hub",
        put_aside: PutAside | None = None,
    ) -> None:
        """A translator into the generation of the log that `schema` belongs to.

        Args:
            settings: resolved settings (servers known).
            codec: how records are encoded and decoded.
            rules: of identity; those that `settings` name unless given.
            schema: where the identity tables and the offsets are.
            put_aside: takes what can't be used instead of the topic of dead letters, in the transaction that stores the offsets.
        """
        self._settings = settings
        self._codec = codec
        self._rules = rules or identity_rules.load(settings)
        self._schema = schema
        self._put_aside = put_aside
        self._links = Links(self._connection, self._rules)
        self._generation: int | None = None
        self._changes = ""
        self._dead_letters = kafka.topic(settings.kafka, kafka.DEAD_LETTERS)
        self._db: Connection | None = None
        self._producer: Producer | None = None
        self._positions: dict[Partition, int | None] = {}
        self._made: dict[int, int] = {}
        """Next offset by partition of customer.changes, over all that this worker and the owners before it made."""
        self._swept = 0.0
        self._admin: AdminClient | None = None
        self._dropped = False
        self.ids: dict[str, str] = {}
        """Kafka's own ids of the topics that the positions count in."""

    def assigned(self, partitions: Sequence[Partition]) -> None:
        """What is stored says who may go on with them."""

    def positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Take the partitions over: where to start reading each; those never read are missing.

        Captures that are another topic's than those that were read, or fewer, are read from their beginning: what is made of a capture
        has the same ids again. Captures that were deleted before they were read are passed over. Both is told.

        Raises:
            BrokerUnavailable, DatabaseUnavailable: try again.
        """
        known = self._read_positions(partitions)
        self._admin = self._admin or kafka.admin(self._settings.kafka)
        found = kafka.extents(self._settings.kafka, {*known, self._changes}, self._admin)
        if [topic for topic in known if topic in found and self._mended(topic, found[topic], known[topic])]:
            self._read_positions(partitions)
        self._clamp_made(found.get(self._changes))
        self.ids = {topic: extent.id for topic, extent in found.items()}
        return {partition: offset for partition, offset in self._positions.items() if offset is not None}

    def _read_positions(self, partitions: Sequence[Partition]) -> dict[str, offsets.Noted]:
        """Take note of the positions; what is known of their topics."""
        topics, numbers = [topic for topic, _ in partitions], [number for _, number in partitions]
        with self._batch():  # offsets and generation are of one moment
            rows = self._connection().execute(
                """SELECT p.topic, p.partition, o.next_offset, t.changes
                   FROM unnest(%s::text[], %s::int[]) p (topic, partition)
                   LEFT JOIN offsets o USING (topic, partition) LEFT JOIN translated t USING (topic, partition)""",
                (topics, numbers),
            )
            self._positions, self._made = {}, {}
            for topic, number, next_offset, changes in rows:
                self._positions[topic, number] = next_offset
                self._raise_made((int(partition), offset) for partition, offset in (changes or {}).items())
            return offsets.noted(self._connection(), sorted({*topics}))

    def _mended(self, topic: str, extent: Extent, known: offsets.Noted) -> bool:
        """Have the stored positions of a topic fit it; whether they didn't."""
        captures = not self._is_log(topic)
        reason, gone = self._judged(topic, extent, known.id)
        if reason is None and not gone:
            if captures and known.id != extent.id:
                with postgres.translated():
                    offsets.adopt(self._connection(), topic, extent.id)
            return False
        with self._batch(expected=self._generation):
            db = self._connection()
            with db.transaction():
                db.execute(
                    "LOCK TABLE hub.logs IN SHARE ROW EXCLUSIVE MODE"
                )  # of two workers that see it, one mends it
                rows = db.execute("SELECT partition, next_offset FROM offsets WHERE topic = %s", (topic,)).fetchall()
                self._positions.update({(topic, p): o for p, o in rows if (topic, p) in self._positions})
                reason, gone = self._judged(topic, extent, offsets.noted(db, [topic])[topic].id)
                if reason is not None:
                    for schema in (
                        ["hub", *map(_generation.schema_of, _generation.kept(db))] if captures else [self._schema]
                    ):
                        for table in (
                            ("offsets", "translated") if schema == "hub" else ("offsets", "translated", "put_aside")
                        ):
                            db.execute(f"DELETE FROM {schema}.{table} WHERE topic = %s", (topic,))
                    mine = {number for name, number in self._positions if name == topic}
                    gone = {p: count for p, count in offsets.unread({}, extent).items() if p in mine}
                db.execute(_SKIP, (topic, [*gone], [extent.starts[p] for p in gone]))
                if captures:
                    offsets.adopt(db, topic, extent.id, unread=sum(gone.values()))
        if reason is not None:
            offsets.tell(topic, reason)
        if gone:
            offsets.tell(topic, offsets.Misfit.UNREAD, records=sum(gone.values()), partitions=sorted(gone))
        return True

    def _judged(self, topic: str, extent: Extent, id_: str) -> tuple[offsets.Misfit | None, dict[int, int]]:
        """Whether the positions don't fit the topic; else of which partitions how many records were deleted before they were read."""
        mine = {number: offset for (name, number), offset in self._positions.items() if name == topic}
        stored = {number: offset for number, offset in mine.items() if offset is not None}
        reason = offsets.misfit(id_, stored, extent)
        gone = {} if reason else offsets.unread(stored, extent)
        return reason, {number: count for number, count in gone.items() if number in mine}

    def _clamp_made(self, log: Extent | None) -> None:
        """Promise nothing that lies beyond the end of the log: when it was made again, nobody would ever come to it."""
        made = {p: min(offset, log.ends.get(p, 0)) for p, offset in self._made.items()} if log else self._made
        if made != self._made:
            self._made = made
            with postgres.translated():
                self._connection().execute("UPDATE translated SET changes = %s", (_vector(made),))

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Others have them now; nothing is kept for them here."""

    def prepare(self, messages: Sequence[Message]) -> Batch:
        """Decode and translate; pure, and never raises for what a message holds.

        Raises:
            RegistryUnavailable: a schema isn't known yet and the registry can't be reached.
        """
        return Batch([self._understand(message) for message in messages])

    def apply(self, batch: Batch) -> None:
        """Decide identity, produce, and store how far it is done. What was done before is passed over.

        Raises:
            Retryable: nothing of the batch counts as done; try it again.
            LostPartition: another worker has one of its partitions.
        """
        started = time.perf_counter()
        captures = [c for c in batch.captures if c.offset >= (self._positions.get(c.partition) or 0)]
        if not captures:
            return
        try:
            with self._batch(expected=self._generation):
                events, changed = self._apply(captures)
        except (DatabaseUnavailable, BrokerUnavailable):
            self._drop_clients()
            raise
        seconds = time.perf_counter() - started
        BATCH_SECONDS.labels("translate").observe(seconds)
        BATCH_EVENTS.labels("translate").observe(len(captures))
        logger().debug(
            Log.BATCH_TRANSLATED, captures=len(captures), events=events, links=changed, seconds=round(seconds, 4)
        )

    def idle(self) -> None:
        """Produce links that a worker committed and did not live to produce. Cheap; meant for when there is nothing else to do.

        Raises:
            Retryable: try again.
        """
        if time.monotonic() - self._swept >= SWEEP_S:
            self._swept = time.monotonic()
            self.publish_left()

    def publish_left(self) -> None:
        """Produce links that are committed, not known to be produced, and under way with nobody.

        Raises:
            Retryable: try again.
        """
        try:
            with self._batch():
                left = self._links.unpublished()
                if left.batches:
                    self._produce([self._encoded(_link_event(link, left.decisions)) for link in left.changed], [])
                    self._links.published(left.batches)
        except (DatabaseUnavailable, BrokerUnavailable):
            self._drop_clients()
            raise

    def bury(self, batch: Batch) -> None:
        """Write the dead letters of captures that were put aside.

        Raises:
            BrokerUnavailable: some may be written; try again.
        """
        for capture in batch.captures:
            if capture.poison is None:  # what can't be used of it shows only when it is linked or stored
                capture.poison = UnusableEvent("an event of it can't be linked or stored")
        self._produce((), batch.captures)

    def close(self) -> None:
        """Let go of the servers."""
        self._drop_clients()

    @contextmanager
    def _batch(self, expected: int | None = None) -> Iterator[None]:
        """Hold `BATCH_LOCK` and take note of the generation.

        Raises:
            LostPartition: it is another than expected, so the positions are of another log too.
        """
        if self._db is not None and self._db.closed:
            self._db = None
        with postgres.translated():
            db = self._connection()
            # two statements at once: the second one looks after the first has its lock
            answers = db.execute(
                f"SELECT pg_advisory_lock_shared({BATCH_LOCK}); SELECT number FROM generation", prepare=False
            )
            answers.nextset()
            row = answers.fetchone()
            assert row is not None
            try:
                if expected not in {None, row[0]}:
                    raise LostPartition("captures go to a new generation of the log")
                self._generation = row[0]
                self._changes = generations.topic(self._settings.kafka, row[0])
                yield
            finally:
                if not db.closed:
                    db.execute(f"SELECT pg_advisory_unlock_shared({BATCH_LOCK})")

    def _understand(self, message: Message) -> Capture:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        capture = Capture(message, (topic, partition), offset)
        try:
            value = message.value()
            if value is None:
                raise UndecodableRecord("a capture without a value")
            record, row = self._codec.decode(value)
            if record in CARRIED and self._is_log(topic):
                capture.source, capture.kind = row["source"], record
                capture.events = [_carried(record, row)]
                return capture
            if record != "Capture":
                raise UndecodableRecord(f"a {record} where a Capture is expected")
            capture.source, capture.kind = row["source"], row["kind"]
            if row["connector"] == decisions.CONNECTOR:
                capture.decision = decisions.read(row["body"], row["captured_at"])
                return capture
            try:
                connector = connector_named(row["connector"])
            except UnknownConnector as exc:
                raise UninstalledConnector(exc.message, hint="install it where the workers run, then redrive") from None
            delivery = Delivery(
                source=row["source"],
                body=row["body"],
                headers=row["headers"],
                kind=row["kind"],
                delivery_id=row["delivery_id"],
                captured_at=row["captured_at"],
            )
            found = connector.salvage(delivery)
            capture.events, capture.poison, capture.left_out = found.events, found.poison, found.left_out
            latest = delivery.captured_at + CLOCK_SKEW
            for event in capture.events:
                # frozen for everyone else; these were made a moment ago, and copying forty fields takes longer than making them
                object.__setattr__(event, "identifiers", self._rules.usable(event.identifiers))
                if event.occurred_at > latest:
                    object.__setattr__(event, "occurred_at", delivery.captured_at)
        except Poison as exc:
            capture.poison = exc
        return capture

    def _is_log(self, topic: str) -> bool:
        return generations.number_of(topic.removeprefix(self._settings.kafka.topic_prefix)) is not None

    def _apply(self, captures: list[Capture]) -> tuple[int, int]:
        resolved = self._resolve(captures)
        ready: list[_Outgoing] = []
        whole_sources: list[SubjectDeleted] = []
        for capture in captures:
            refused: set[int] = set()
            for event in capture.events:
                try:
                    if isinstance(event, SubjectDeleted) and event.scope == "source":
                        whole_sources.append(event)
                    elif isinstance(event, CustomerErased):
                        ready += self._erasures(event, *resolved.links[event.subject])
                    else:
                        ready.append(self._linked(event, *resolved.links[event.subject]))
                except UnusableEvent as exc:  # costs itself; the capture's other events are others' too
                    capture.poison = capture.poison or exc
                    refused.add(id(event))
            if refused:
                capture.events = [event for event in capture.events if id(event) not in refused]
        links = (self._encoded(_link_event(link, resolved.decisions)) for link in resolved.changed)
        expanded = chain.from_iterable(map(self._of_each_subject, whole_sources))
        poisoned = [c for c in captures if c.poison is not None]
        never_taken = self._produce(chain(links, ready, expanded), poisoned if self._put_aside is None else [])
        if never_taken:
            poisoned = self._refused(captures, never_taken)
            self._produce((), poisoned if self._put_aside is None else [])
        self._store(captures, resolved.batches)
        self._note(captures)
        for subject, kind in resolved.withdrawn:
            logger().info(Log.EVIDENCE_WITHDRAWN, subject=subject, kind=kind)
        return len(ready), len(resolved.changed)

    def _resolve(self, captures: Sequence[Capture]) -> Resolved:
        """Identity for the captures. What PostgreSQL refuses to store is found by bisection and put aside."""
        mentions, erasures = [], []
        for event in chain.from_iterable(capture.events for capture in captures):
            mentions.append(
                Mention(
                    event.subject,
                    event.source,
                    event.occurred_at,
                    event.captured_at,
                    event.event_id,
                    said(event, self._rules),
                )
            )
            if isinstance(event, SubjectDeleted) and event.kind == "erased":
                erasures.append(Erasure(event.subject, event.occurred_at, event.scope))
            elif isinstance(event, CustomerErased):
                erasures.append(Erasure(event.subject, event.occurred_at, "customer"))
        try:
            return self._links.resolve(mentions, erasures, [c.decision for c in captures if c.decision is not None])
        except (*postgres.REFUSED, ValueError) as exc:
            if len(captures) == 1:
                capture = captures[0]
                capture.poison = UnusableEvent(f"PostgreSQL can't store the subject's identity ({type(exc).__name__})")
                capture.events, capture.decision = [], None
                return Resolved({})
            half = len(captures) // 2
            one, other = self._resolve(captures[:half]), self._resolve(captures[half:])
            changed = {link.subject: link for link in (*one.changed, *other.changed)}
            return Resolved(
                {**one.links, **other.links},
                [*changed.values()],
                sorted({*one.batches, *other.batches}),
                {**one.decisions, **other.decisions},
                [*one.withdrawn, *other.withdrawn],
            )

    def _linked(self, event: Event, customer_id: str, link_seq: int) -> _Outgoing:
        object.__setattr__(event, "customer_id", customer_id)  # see _understand
        object.__setattr__(event, "link_seq", link_seq)
        return self._encoded(event)

    def _erasures(self, event: CustomerErased, customer_id: str, link_seq: int) -> list[_Outgoing]:
        """An erasure names all subjects of its customer; of very many it is several events, for none may be too large to be stored."""
        subjects = sorted({*event.subjects, *self._links.subjects_of_customer(customer_id)})
        parts: list[list[str]] = [[]]
        size = 0
        for subject in subjects:
            size += len(subject.encode()) + 3
            if size > EVENT_MAX_BYTES // 2:
                parts.append([])
                size = 0
            parts[-1].append(subject)
        object.__setattr__(event, "subjects", tuple(parts[0]))
        more = [
            replace(event, subjects=tuple(part), event_id=derived_id(EVENTS, f"{event.event_id}\nsubjects {number}"))
            for number, part in enumerate(parts[1:], 1)
        ]
        return [self._linked(each, customer_id, link_seq) for each in (event, *more)]

    def _of_each_subject(self, event: SubjectDeleted) -> Iterator[_Outgoing]:
        for subject, customer_id, link_seq in self._links.subjects_of_source(event.source):
            yield self._encoded(
                replace(
                    event,
                    subject=subject,
                    customer_id=customer_id,
                    link_seq=link_seq,
                    scope="subject",
                    event_id=derived_id(EVENTS, f"{event.event_id}\n{subject}"),
                    identifiers=(),
                )
            )

    def _encoded(self, event: Event) -> _Outgoing:
        value = self._codec.encode_event(event)
        if len(value) > EVENT_MAX_BYTES:
            raise UnusableEvent(f"a {type(event).__name__} of {len(value)} bytes is more than customer.changes takes")
        return event.customer_id, type(event).__name__, value

    def _refused(self, captures: Iterable[Capture], values: set[bytes]) -> list[Capture]:
        """The captures of which events are refused for good; these are put aside, and all else of them goes on."""
        found = []
        for capture in captures:
            for event in capture.events:
                if capture.poison is None and (value := self._codec.encode_event(event)) in values:
                    capture.poison = UnusableEvent(
                        f"customer.changes takes no {type(event).__name__} of {len(value)} bytes"
                    )
                    found.append(capture)
        return found

    def _connected(self) -> Producer:
        """The producer; a new one makes topics again that are gone, and fills no batch that they don't take."""
        if self._producer is None:
            names = [self._changes.removeprefix(self._settings.kafka.topic_prefix), kafka.DEAD_LETTERS]
            if self._dropped:
                kafka.ensure_topics(self._settings.kafka, names)
            self._admin = self._admin or kafka.admin(self._settings.kafka)
            taken = kafka.largest(self._settings.kafka, [self._changes, self._dead_letters], self._admin)
            self._producer = kafka.producer(
                self._settings.kafka,
                **{
                    "linger.ms": 5,
                    "delivery.timeout.ms": int(FLUSH_S * 1000),
                    "batch.size": min((*taken.values(), kafka.BATCH_BYTES)),
                },
            )
        return self._producer

    def _produce(self, events: Iterable[_Outgoing], poisoned: Sequence[Capture]) -> set[bytes]:
        """Produce and confirm all; what the broker said of the offsets goes to `_made`. Gives the events that Kafka will never take.

        Raises:
            BrokerUnavailable: some may be written; try again.
        """
        producer = self._connected()
        report = _Report(self._changes)
        for key, name, value in events:
            _send(producer, self._changes, (key, value, [("event_type", name)]), report)
        for capture in poisoned:
            assert capture.poison is not None
            record = dead_letter("translate", capture.message, capture.poison, source=capture.source, kind=capture.kind)
            record["attempts"] = 1 + attempts(capture.message)
            value = self._codec.encode(self._dead_letters, "DeadLetter", record)
            headers: _Headers = [("code", capture.poison.code), ("stage", "translate")]
            _send(producer, self._dead_letters, (record["dead_letter_id"], value, headers), report)
        self._confirm(producer, report)
        refused, batch = set(), [*report.refused]
        for message in batch:  # of all that shared its batch, one may be at fault
            report.refused.clear()
            self._resend(producer, message, report)
            if report.refused and message.topic() == self._dead_letters:
                _, letter = self._codec.decode(message.value() or b"")
                report.refused.clear()
                self._resend(
                    producer, message, report, self._codec.encode(self._dead_letters, "DeadLetter", bare(letter))
                )
            if report.refused:
                key = (message.key() or b"").decode(errors="replace")
                logger().error(Log.CHANGE_PUT_ASIDE, topic=message.topic(), key=key, bytes=len(message.value() or b""))
                refused.add(message.value() or b"")
        self._made |= (
            report.ends
        )  # no maximum: what is acknowledged now lies behind all that ever was, unless the log is another one
        if report.unknown:
            self._raise_made(kafka.end_offsets(self._settings.kafka, [self._changes])[self._changes].items())
        return refused

    def _resend(self, producer: Producer, message: _Sent, report: _Report, value: bytes | None = None) -> None:
        topic, key = message.topic() or "", (message.key() or b"").decode()
        _send(producer, topic, (key, value or message.value() or b"", [*(message.headers() or ())]), report)
        self._confirm(producer, report)

    @staticmethod
    def _confirm(producer: Producer, report: _Report) -> None:
        if producer.flush(FLUSH_S):
            raise BrokerUnavailable(f"Kafka confirmed not all of a batch within {FLUSH_S:.0f} s")
        if report.error is not None:
            if report.error.fatal() or report.error.code() in {KafkaError._FATAL, *_NO_TOPIC}:
                raise BrokerUnavailable(f"Kafka took not all of a batch: {report.error.name()}")  # another producer may
            raise kafka.translate_error(KafkaException(report.error))

    def _store(self, captures: Sequence[Capture], batches: Sequence[int]) -> None:
        """Store how far the captures are done, where nobody else has moved it since it was read."""
        ends: dict[Partition, int] = {}
        for capture in captures:
            ends[capture.partition] = max(capture.offset + 1, ends.get(capture.partition, 0))
        rows = [(*partition, self._positions.get(partition), end) for partition, end in sorted(ends.items())]
        columns = [list(column) for column in zip(*rows, strict=True)]
        made = _vector(self._made)
        with postgres.translated():
            db = self._connection()
            with db.transaction() if self._put_aside is not None else nullcontext():
                try:
                    db.execute(_STORE, (*columns, made, list(batches)))
                except psycopg.errors.DivisionByZero:
                    raise LostPartition("another worker has translated a partition of this batch") from None
                if self._put_aside is not None:
                    self._put_aside(db, [c for c in captures if c.poison is not None])
        self._positions.update(ends)

    def _note(self, captures: Sequence[Capture]) -> None:
        left_out: dict[str, list[Capture]] = {}
        for capture in captures:
            if capture.left_out and capture.source and self._put_aside is None:
                left_out.setdefault(capture.source, []).append(capture)
            if capture.events:
                TRANSLATED.labels(capture.source).inc(len(capture.events))
            if capture.poison is not None and self._put_aside is None:
                DEAD_LETTERS.labels("translate", capture.poison.code).inc()
                logger().warning(
                    Log.CAPTURE_DEAD_LETTERED,
                    code=capture.poison.code,
                    source=capture.source,
                    topic=capture.partition[0],
                    partition=capture.partition[1],
                    offset=capture.offset,
                )
        for source, some in left_out.items():
            for part in chain.from_iterable(capture.left_out for capture in some):
                LEFT_OUT.labels(source, part.reason).inc()
            parts = dict.fromkeys(f"{part.path} {part.reason}" for capture in some for part in capture.left_out)
            topic, partition = some[0].partition
            logger().info(
                Log.PARTS_LEFT_OUT,
                source=source,
                captures=len(some),
                parts=[*parts][:20],
                topic=topic,
                partition=partition,
                offset=some[0].offset,
            )

    def _raise_made(self, ends: Iterable[tuple[int, int]]) -> None:
        for partition, end in ends:
            self._made[partition] = max(end, self._made.get(partition, 0))

    def _connection(self) -> Connection:
        if self._db is None:
            self._db = postgres.connect(self._settings.postgres, role="translate", schema=self._schema)
            postgres.let_go_after(self._db, self._settings.worker.session_timeout_ms)
        return self._db

    def _drop_clients(self) -> None:
        """Begin with fresh clients: what the old ones still have under way belongs to a batch that is done again."""
        self._dropped = True
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(1)
            self._producer = None
        if self._db is not None:
            self._db.close()
            self._db = None


_Outgoing = tuple[str, str, bytes]
"""Customer id, event type, message."""
_Headers = list[tuple[str, str | bytes | None]]


_NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


class _Sent(Protocol):
    """What is read of a message that was not taken."""

    def topic(self) -> str | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Any: ...


@dataclass(frozen=True)
class _Unsent:
    """One that librdkafka itself didn't take."""

    of: str
    by: bytes
    said: bytes
    with_: _Headers

    def topic(self) -> str:
        return self.of

    def key(self) -> bytes:
        return self.by

    def value(self) -> bytes:
        return self.said

    def headers(self) -> _Headers:
        return self.with_


class _Report:
    """Collects what the broker says of a batch's messages."""

    def __init__(self, changes: str) -> None:
        self._changes = changes
        self.ends: dict[int, int] = {}
        self.unknown = False
        self.error: KafkaError | None = None
        self.refused: list[_Sent] = []
        """What will never be taken, in this company or at all."""

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in kafka.REFUSED:
            self.refused.append(message)
        elif error is not None:
            self.error = error
        elif message.topic() == self._changes:
            partition, offset = message.partition(), message.offset()
            if partition is None or offset is None or offset < 0:
                self.unknown = True  # a repeat that the broker recognised: it doesn't say where the first one lies
            elif offset >= self.ends.get(partition, 0):
                self.ends[partition] = offset + 1


def _send(producer: Producer, topic: str, message: tuple[str, bytes, _Headers], report: _Report) -> None:
    key, value, headers = message
    until = time.monotonic() + FLUSH_S
    while True:
        try:
            producer.produce(topic, value, key, headers=headers, on_delivery=report)
        except KafkaException as exc:
            if exc.args[0].code() not in kafka.REFUSED:
                raise kafka.translate_error(exc) from exc
            report.refused.append(_Unsent(topic, key.encode(), value, headers))
            return
        except BufferError:
            # the local queue is full: wait until the broker has taken some
            producer.poll(0.1)
            if time.monotonic() > until:
                raise BrokerUnavailable(f"Kafka took nothing for {FLUSH_S:.0f} s") from None
        else:
            return


def _vector(ends: dict[int, int]) -> Jsonb:
    return Jsonb({str(partition): end for partition, end in ends.items()})


def attempts(message: Message) -> int:
    """How often the input of a redriven message has been tried before."""
    stated = dict(message.headers() or ()).get("attempts")
    return int(stated[:9]) if stated and stated.isdigit() else 0


def _carried(record: str, row: dict[str, Any]) -> Event:
    """An event of another generation of the log, which is about whoever its subject is linked to in this one."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return EVENT_TYPES[record](**{**fields, "identifiers": ()})


def _link_event(link: Link, decided: Mapping[str, tuple[str, str | None]]) -> SubjectLinked:
    actor, comment = decided.get(link.evidence[0].value, (None, None)) if link.evidence else (None, None)
    return SubjectLinked(
        event_id=derived_id(EVENTS, f"{link.subject}\n{link.link_seq}"),
        source=link.source,
        subject=link.subject,
        customer_id=link.customer_id,
        link_seq=link.link_seq,
        occurred_at=link.linked_at,
        captured_at=link.linked_at,
        reason=link.reason,
        previous_customer_id=link.previous_customer_id,
        evidence=link.evidence,
        actor=actor,
        comment=comment,
    )
