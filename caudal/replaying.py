"""Replays as the program offers them: those of the log, and those from captures, which make a new generation of it first.

What is behind `caudal replay --from captures`: the captures are translated into the topic and the identity tables of a new generation,
the views are built from it beside the live ones, both are compared at the same captures, and one transaction exchanges views, identity
and the number of the generation. Up to that transaction nothing that is live was touched; whoever dies before it can be gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import psycopg
from confluent_kafka import KafkaException, TopicPartition

from caudal import generations, kafka, postgres
from caudal import offsets as offsets_of
from caudal.dead_letters import DeadLetters
from caudal.errors import BrokerUnavailable, DatabaseUnavailable, LogTruncated, ReplayRefused
from caudal.processors import _generation
from caudal.processors.retranslate import Place, Retranslation, freeze, thaw
from caudal.projections.replay import (
    PAUSED_S,
    Beside,
    Followed,
    Progress,
    Record,
    Replay,
    await_live,
    drop,
    offsets,
    paused,
    still,
)
from caudal.schemas.codec import Codec
from caudal.settings import Settings

__all__ = ["Replaying"]

NEAR_CAPTURES = 200
"""So few captures are translated in a moment: the live step may wait for them."""
ROUNDS = 20
LOCK_WAIT_S = 30.0
EXAMPLES = 20


class Replaying(Replay):
    """Replays of the log and from captures."""

    def captures(self, *, truncated: bool = False) -> Record:
        """Make a new generation of the log from the captures, build its views and compare; gives the replay, built.

        Raises:
            LogTruncated: a topic no longer holds its first captures, and `truncated` is not set.
            ReplayCancelled: someone cancelled it.
            Retryable: a server can't be reached; `resume` goes on.
        """
        with postgres.translated():
            current = generations.current(self._conn)
            number = 1 + max(self._numbers(current))
        return self._begin("captures", {"truncated": truncated, "generation": number, "from": current})

    def drop(self, id_: int | None = None, *, schema: str | None = None, topics: bool = False) -> list[str]:
        """Drop schemas that replays left, and identities that none of them can bring back any more; gives the names.

        Args:
            id_: only what this replay left.
            schema: only this one.
            topics: delete the topics of generations that can't be brought back, too. They hold what was known when.
        """
        return [*drop(self._conn, id_, schema=schema), *self._forget(topics=topics)]

    def _forget(self, *, topics: bool) -> list[str]:
        with postgres.translated():
            needed = {generations.current(self._conn)}
            for (params,) in self._conn.execute(_HELD).fetchall():
                needed |= {params["generation"], params["from"]}
            gone = [number for number in _generation.kept(self._conn) if number not in needed]
            for number in gone:
                _generation.drop(self._conn, number)
        topics_gone = [generations.name(number) for number in sorted(self._topics() - needed)] if topics else []
        kafka.delete_topics(self._settings.kafka, topics_gone)
        return [*map(_generation.schema_of, gone), *topics_gone]

    def _numbers(self, current: int) -> list[int]:
        """Every generation that there is or was: a number is never used again."""
        rows = self._conn.execute("SELECT (params->>'generation')::int FROM hub.replays WHERE kind = 'captures'")
        return [current, *self._topics(), *(number for (number,) in rows)]

    def _topics(self) -> set[int]:
        """The generations whose topic is there."""
        prefix = self._settings.kafka.topic_prefix
        names = [name.removeprefix(prefix) for name in kafka.topics(self._settings.kafka) if name.startswith(prefix)]
        return {number for name in names if (number := generations.number_of(name)) is not None}

    def _followed(self, record: Record) -> Followed:
        if record.kind != "captures":
            return super()._followed(record)
        back = record.state == "swapped"  # what is to be brought in again is what was live before
        number = record.params["from" if back else "generation"]
        current = generations.current(self._conn)
        if current != record.params["generation" if back else "from"]:
            raise ReplayRefused(
                f"generation {current} of the log is live, and replay {record.id} belongs to another",
                hint="replay from captures again",
            )
        return _NewGeneration(self._settings, self._codec, self._conn, record, number=number, current=current)


_HELD = """
    SELECT params FROM hub.replays
    WHERE kind = 'captures' AND (state = 'running' OR state IN ('built', 'swapped') AND to_regnamespace(schema) IS NOT NULL)
"""


class _NewGeneration:
    """What a replay from captures follows: the captures, through a generation of the log that is not live yet."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        conn: psycopg.Connection[Any],
        record: Record,
        *,
        number: int,
        current: int,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._conn = conn
        self._number = number
        self._current = current
        self._back = record.state == "swapped"
        self._truncated = bool(record.params.get("truncated"))
        self._step = Retranslation(settings, codec, number)
        self.topic = self._step.topic
        self._live_topic = generations.topic(settings.kafka, current)
        self._since: dict[int, int] = {}

    def prepare(self, noting: Callable[[Progress], None]) -> None:
        """Translate all that is captured now."""
        if not self._truncated:
            _untruncated(self._settings, [topic for topic, _ in self._step.ends() if topic != self._live_topic])
        ends = self._step.ends()
        total = self._step.waiting(ends)

        def note(left: int) -> None:
            noting(Progress("translate", total - left, total))
            while paused(self._conn):
                time.sleep(PAUSED_S)
                noting(Progress("translate", total - left, total))  # says so when it was cancelled

        note(total)
        self._step.run(ends, note)
        noting(Progress("identify", 0, 1))
        self._step.settle()
        noting(Progress("identify", 1, 1))

    def near(self, beside: Beside, noting: Callable[[Progress], None]) -> None:
        """Get so near to the end of the captures that the rest takes a moment."""
        for _ in range(ROUNDS):
            ends = self._step.ends()
            if self._step.waiting(ends) <= NEAR_CAPTURES:
                break
            self._step.run(ends)
        self._step.settle()
        beside.near(self._ends, noting)

    @contextmanager
    def standing(self, beside: Beside, *, exactly: bool) -> Iterator[int]:
        """While it lasts no capture is translated and no event is projected, and everything captured before is in both.

        Args:
            beside: the schema that is built.
            exactly: wait for the live projection too.
        """
        at = freeze(self._conn)
        try:
            live_ends = kafka.end_offsets(self._settings.kafka, [self._live_topic])[self._live_topic]
            self._step.run({**at, **{(self._live_topic, p): end for p, end in live_ends.items()}})
            self._step.settle()
            beside.to(self._ends())
            behind = await_live(self._conn, live_ends) if exactly else 0
            with still(self._conn):
                if exactly:
                    self._since = offsets(self._conn, "live")
                yield behind
        finally:
            if not self._conn.closed:
                thaw(self._conn)

    def touched(self, beside: Beside) -> set[str]:
        """Customers that either side touched since they were compared."""
        found = beside.touched()
        for message in self._live_since():
            found.add((message.key() or b"").decode())
            kind = dict(message.headers() or ()).get("event_type")
            if kind in {b"SubjectLinked", b"CustomerErased"}:
                _, row = self._codec.decode(message.value() or b"")
                if row.get("previous_customer_id"):
                    found.add(row["previous_customer_id"])
                for schema in ("hub", self._step.schema):
                    found.update(
                        customer
                        for (customer,) in self._conn.execute(
                            f"SELECT customer_id::text FROM {schema}.subjects WHERE subject = ANY(%s)",
                            (list(row.get("subjects", ())),),
                        )
                    )
        return found

    def told(self) -> dict[str, Any]:
        """What the replay does to customers and to what couldn't be used, for the report."""
        generations_ = {"live": self._current, "new": self._number}
        if self._back:
            return {"generation": generations_, "customers": asdict(self._step.compare()), "unmatched": []}
        dead = DeadLetters(self._settings, self._codec).places("translate")
        put_aside = self._step.put_aside()
        recovered = sorted(dead.keys() - put_aside.keys())
        new = {place: put_aside[place] for place in sorted(put_aside.keys() - dead.keys())}
        return {
            "generation": generations_,
            "customers": asdict(self._step.compare()),
            "dead_letters": {
                "still": len(put_aside) - len(new),
                "recovered": len(recovered),
                "new": len(new),
                "recovered_examples": [_place(place, dead[place]) for place in recovered[:EXAMPLES]],
                "new_examples": [_place(place, code) for place, (code, _) in list(new.items())[:EXAMPLES]],
            },
            "unmatched": [{"type": kind, "subject": subject} for kind, subject in self._step.unmatched()],
        }

    def refuse(self, diff: Mapping[str, Any]) -> None:
        """Refuse to let people come back from an erasure.

        Raises:
            ReplayRefused: an erasure, or a correction, is about subjects that no capture names any more.
        """
        if diff["unmatched"]:
            raise ReplayRefused(
                f"{len(diff['unmatched'])} subjects that were erased or corrected by hand bear other names now",
                hint="`caudal replay diff` lists them under `unmatched`; --force swaps all the same",
            )

    def take_over(self) -> None:
        """Make the generation live, in the transaction that swaps the views."""
        self._bury_new()
        self._lock_tables()
        _generation.exchange(self._conn, outgoing=self._current, incoming=self._number)
        offsets_of.adopt(self._conn, self.topic, kafka.ids(self._settings.kafka, [self.topic]).get(self.topic, ""))

    def close(self) -> None:
        """Let go of the servers."""
        self._step.close()

    def _ends(self) -> dict[int, int]:
        return kafka.end_offsets(self._settings.kafka, [self.topic]).get(self.topic, {})

    def _live_since(self) -> Iterator[Any]:
        """What the live log got since the comparison."""
        ends = kafka.end_offsets(self._settings.kafka, [self._live_topic])[self._live_topic]
        left = {p: end for p, end in ends.items() if self._since.get(p, 0) < end}
        if not left:
            return
        consumer = kafka.consumer(self._settings.kafka, kafka.topic(self._settings.kafka, "caudal.replay"))
        try:
            consumer.assign([TopicPartition(self._live_topic, p, self._since.get(p, 0)) for p in left])
            until = time.monotonic() + LOCK_WAIT_S
            while left:
                message = consumer.poll(0.5)
                if message is None:
                    if time.monotonic() > until:
                        raise BrokerUnavailable("Kafka doesn't give what the log got last")
                    continue
                if (error := message.error()) is not None:
                    raise kafka.translate_error(KafkaException(error))
                partition, offset = message.partition() or 0, message.offset() or 0
                if offset < left.get(partition, 0):
                    yield message
                if offset + 1 >= left.get(partition, 0):
                    left.pop(partition, None)
        finally:
            consumer.close()

    def _bury_new(self) -> None:
        """Write dead letters of captures that became unusable: from now on they are lost otherwise."""
        known = DeadLetters(self._settings, self._codec).places("translate")
        self._step.bury(self._step.put_aside().keys() - known.keys())

    def _lock_tables(self) -> None:
        """Take all identity tables at once or none: a reader that has one and waits for another would be a deadlock."""
        tables = ", ".join(f"hub.{table}" for table in _generation.TABLES)
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                with self._conn.transaction():
                    self._conn.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE NOWAIT")
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() > until:
                    raise DatabaseUnavailable(
                        "the identity tables are read without a pause", hint="try again"
                    ) from None
                time.sleep(0.002)
            else:
                return


def _untruncated(settings: Settings, topics: list[str]) -> None:
    """Raise `LogTruncated` when one of the capture topics no longer begins with its first capture."""
    missing = [
        (topic, partition, offset)
        for topic, partitions in kafka.start_offsets(settings.kafka, dict.fromkeys(topics)).items()
        for partition, offset in sorted(partitions.items())
        if offset > 0
    ]
    if missing:
        parts = ", ".join(f"{offset} of {topic}[{partition}]" for topic, partition, offset in missing[:EXAMPLES])
        raise LogTruncated(
            f"captures are gone: {parts}",
            hint="what they alone stated would be lost; --from-start-of-log replays what is left",
        )


def _place(place: Place, code: str) -> dict[str, Any]:
    topic, partition, offset = place
    return {"topic": topic, "partition": partition, "offset": offset, "code": code}
