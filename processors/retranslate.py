"""Translate all captures again, with today's connectors and rules, into a new generation of the log with an identity of its own.

What is done is stored as the live translate step stores it, so a run that was broken off goes on where it was. Dead letters of a run
are only noted: they go to their topic when the generation becomes live.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from caudal.processors import _generation
from caudal.processors._generation import Compared, Connection
from caudal.processors._reader import Partition, Place, Reader, fetch
from caudal.processors.rules import Rules
from caudal.processors.translate import BATCH_LOCK, Batch, Capture, Translator
from caudal.schemas import CustomerErased
from caudal.schemas.codec import Codec

from caudal import generations, kafka, postgres
from caudal.settings import Settings

__all__ = ["Place", "Retranslation", "freeze", "thaw"]

BATCH = 2_000


class Retranslation:
    """The new generation `number` in the making. Not for use from several threads at once."""

    def __init__(self, settings: Settings, codec: Codec, number: int, *, rules: Rules | None = None) -> None:
        """Make its tables and its topic, if they aren't there yet.

        Raises:
            DatabaseUnavailable, BrokerUnavailable: try again.
        """
        self._settings = settings
        self.number = number
        self.schema = _generation.schema_of(number)
        with postgres.translated(), postgres.connect(settings.postgres, role="replay") as db:
            self._live = generations.topic(settings.kafka, generations.current(db))
            _generation.make(db, number)
        self.topic = generations.topic(settings.kafka, number)
        partitions = kafka.topics(settings.kafka)[self._live]
        kafka.ensure_topics(settings.kafka.model_copy(update={"partitions": partitions}), [generations.name(number)])
        self._translator = Translator(settings, codec, rules=rules, schema=self.schema, put_aside=_put_aside)
        self._reader: Reader | None = None
        self._db: Connection | None = None

    def ends(self) -> dict[Partition, int]:
        """Where what is to be translated ends now: the captures of all sources, and the live generation of the log.

        Raises:
            BrokerUnavailable: try again.
        """
        prefix = self._settings.kafka.topic_prefix
        topics = [name for name in kafka.topics(self._settings.kafka) if name.startswith(f"{prefix}capture.")]
        ends = kafka.end_offsets(self._settings.kafka, [*topics, self._live])
        return {(topic, partition): end for topic, found in ends.items() for partition, end in found.items()}

    def waiting(self, ends: Mapping[Partition, int]) -> int:
        """How many messages lie before `ends` that were not read yet."""
        return self._at(ends).waiting(ends)

    def run(self, ends: Mapping[Partition, int], progress: Callable[[int], None] = lambda _: None) -> None:
        """Translate what lies before `ends`; `progress` is told how many messages are left after each batch.

        Raises:
            Retryable: what was stored stays so; call it again.
        """
        reader = self._at(ends)
        try:
            with ThreadPoolExecutor(1, "caudal-replay-read") as ahead:
                for batch, left in _one_ahead(ahead, self._prepared(reader, ends)):
                    self._note_unmatched(batch)
                    self._translator.apply(batch)
                    progress(left)
        except BaseException:
            self._reader = None  # its positions are ahead of what was stored
            raise

    def settle(self) -> int:
        """Give the customers the ids of the live ones that they continue (see `_generation.settle_ids`).

        Raises:
            Retryable: call it again.
        """
        with postgres.translated():
            db = self._connection()
            done = _generation.settle_ids(db, self._translator.publish_left)
            _generation.remember_former(db)
        return done

    def compare(self) -> Compared:
        """How its customers differ from the live ones."""
        with postgres.translated():
            return _generation.compare(self._connection())

    def put_aside(self) -> dict[Place, tuple[str, str | None]]:
        """Code and source of each capture that can't be used."""
        with postgres.translated():
            rows = self._connection().execute('SELECT topic, partition, "offset", code, source FROM put_aside')
            return {(topic, partition, offset): (code, source) for topic, partition, offset, code, source in rows}

    def bury(self, places: Iterable[Place]) -> None:
        """Write dead letters of these captures.

        Raises:
            BrokerUnavailable: some may be written; try again.
        """
        messages = fetch(self._settings, places)
        while some := list(itertools.islice(messages, 100)):
            self._translator.bury(self._translator.prepare(some))

    def unmatched(self) -> list[tuple[str, str]]:
        """Type and subject of what people said (`CARRIED`) of subjects that no capture names any more."""
        with postgres.translated():
            rows = self._connection().execute("SELECT event_type, subject FROM unmatched ORDER BY 1, 2")
            return [(kind, subject) for kind, subject in rows]

    def captured(self) -> dict[Partition, int]:
        """The next offset of each capture topic's partition."""
        return _captured(self._connection(), self.schema)

    def close(self) -> None:
        """Let go of the servers."""
        self._translator.close()
        if self._db is not None:
            self._db.close()

    def _at(self, ends: Iterable[Partition]) -> Reader:
        """The reader; the translator knows all partitions."""
        if self._reader is None or any(place not in self._reader.positions for place in ends):
            known = dict(self._reader.positions) if self._reader else {}
            stored = self._translator.positions(sorted({*ends, *known}))
            # what was read of the log and not carried leaves no trace, and needs no second look
            positions = {place: max(stored.get(place, 0), known.get(place, 0)) for place in {*ends, *known}}
            self._reader = Reader(self._settings, self._live, positions)
        return self._reader

    def _prepared(self, reader: Reader, ends: Mapping[Partition, int]) -> Iterator[tuple[Batch, int]]:
        for messages in reader.batches(ends, BATCH):
            yield self._translator.prepare(messages), reader.waiting(ends)

    def _note_unmatched(self, batch: Batch) -> None:
        """An event in `CARRIED` comes alone, after what was captured before it: by then its subjects are known, or never."""
        for event in itertools.chain.from_iterable(c.events for c in batch.captures if c.partition[0] == self._live):
            subjects = {event.subject, *(event.subjects if isinstance(event, CustomerErased) else ())}
            with postgres.translated():
                self._connection().execute(
                    """INSERT INTO unmatched SELECT %s, s FROM unnest(%s::text[]) s
                       WHERE NOT EXISTS (SELECT FROM subjects WHERE subject = s) ON CONFLICT DO NOTHING""",
                    (type(event).__name__, sorted(subjects)),
                )

    def _connection(self) -> Connection:
        if self._db is None or self._db.closed:
            self._db = postgres.connect(self._settings.postgres, role="replay", schema=self.schema)
        return self._db


def freeze(db: Connection) -> dict[Partition, int]:
    """Hold up the live translate step until `thaw`, or until `db` is closed; returns how far captures are translated.

    No batch is under way then, and what is captured meanwhile waits in its topics.
    """
    db.execute(f"SELECT pg_advisory_lock({_LIVE_LOCK})")
    return _captured(db, "hub")


def thaw(db: Connection) -> None:
    """Let the live translate step go on, in whichever generation is live now."""
    db.execute(f"SELECT pg_advisory_unlock({_LIVE_LOCK})")


_LIVE_LOCK = BATCH_LOCK.replace("current_schema()", "'hub'")


def _captured(db: Connection, schema: str) -> dict[Partition, int]:
    rows = db.execute(
        f"SELECT topic, partition, next_offset FROM {schema}.translated WHERE topic ~ '(^|\\.)capture\\.'"
    )
    return {(topic, partition): offset for topic, partition, offset in rows}


def _put_aside(db: Connection, captures: Sequence[Capture]) -> None:
    if captures:
        with db.cursor() as cursor:
            cursor.executemany(
                """INSERT INTO put_aside (topic, partition, "offset", code, source, kind) VALUES (%s, %s, %s, %s, %s, %s)
                   ON CONFLICT DO NOTHING""",
                [(*c.partition, c.offset, c.poison.code, c.source, c.kind) for c in captures if c.poison is not None],
            )


def _one_ahead(pool: ThreadPoolExecutor, items: Iterator[tuple[Batch, int]]) -> Iterator[tuple[Batch, int]]:
    """The items, each made in the pool while the one before is used."""
    made = pool.submit(next, items, None)
    while (item := made.result()) is not None:
        made = pool.submit(next, items, None)
        yield item
