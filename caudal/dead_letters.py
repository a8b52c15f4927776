"""Dead letters: what could not be used, why, and putting it back on its topic once the cause is mended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from caudal import generations, kafka, postgres
from caudal.errors import BrokerUnavailable, UndecodableRecord
from caudal.schemas.codec import Codec
from caudal.settings import Settings

__all__ = ["DeadLetter", "DeadLetters", "Filter", "Redrive"]

QUIET_S = 30.0
"""A broker that sends nothing for so long, although there is more to read, is gone."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. `redriven_at` says when it was last put back; `payload` and `key` are bytes as they came, unless
    `payload_left_out` says that the payload was too large to be kept.
    """

    dead_letter_id: str
    stage: str
    code: str
    message: str
    source: str | None
    kind: str | None
    topic: str
    partition: int
    offset: int
    key: bytes | None
    payload: bytes
    failed_at: datetime
    attempts: int
    payload_left_out: bool = False
    redriven_at: datetime | None = None

    @property
    def text(self) -> str | None:
        """The payload as text; None when it isn't printable UTF-8. A capture's payload is its Avro record, see `body`."""
        return _printable(self.payload)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: all conditions that are set hold."""

    ids: frozenset[str] = frozenset()
    stage: str | None = None
    code: str | None = None
    source: str | None = None
    redriven: bool | None = None

    def holds(self, letter: DeadLetter) -> bool:
        """Whether the dead letter is meant."""
        return (
            (not self.ids or letter.dead_letter_id in self.ids)
            and self.stage in {None, letter.stage}
            and self.code in {None, letter.code}
            and self.source in {None, letter.source}
            and self.redriven in {None, letter.redriven_at is not None}
        )


@dataclass(frozen=True, slots=True)
class Redrive:
    """What a redrive did: how many were put back; how many were left, put back before or of a former generation of the log."""

    redriven: int
    skipped: int


Headers = list[tuple[str, str | bytes | None]]


class DeadLetters:
    """The dead letters of a hub."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        """`settings` are resolved: the servers are known."""
        self._settings = settings
        self._codec = codec
        self._topic = kafka.topic(settings.kafka, kafka.DEAD_LETTERS)

    def list(self, where: Filter | None = None, *, limit: int = 50) -> Sequence[DeadLetter]:
        """The newest ones that the filter means, newest first.

        Raises:
            BrokerUnavailable, DatabaseUnavailable: try again.
        """
        newest: dict[str, DeadLetter] = {}
        for letter in self._read(where or Filter()):
            newest[letter.dead_letter_id] = letter
            if len(newest) > 2 * limit + 100:  # payloads are large: never hold many more than are wanted
                newest = {x.dead_letter_id: x for x in nlargest(limit, newest.values(), key=_age)}
        return nlargest(limit, newest.values(), key=_age)

    def show(self, dead_letter_id: str) -> DeadLetter | None:
        """One dead letter by its id, or by a beginning of it that only one has; None when there is none.

        Raises:
            BrokerUnavailable, DatabaseUnavailable: try again.
        """
        found = {x.dead_letter_id: x for x in self._read(Filter()) if x.dead_letter_id.startswith(dead_letter_id)}
        return next(iter(found.values())) if len(found) == 1 else None

    def places(self, stage: str) -> dict[tuple[str, int, int], str]:
        """The code of each input that could not be used at a stage, by topic, partition and offset.

        Raises:
            BrokerUnavailable, DatabaseUnavailable: try again.
        """
        return {(x.topic, x.partition, x.offset): x.code for x in self._read(Filter(stage=stage))}

    def body(self, letter: DeadLetter) -> dict[str, Any] | None:
        """The record that the payload holds, its body as text where that is printable; None when it is no record."""
        try:
            _, row = self._codec.decode(letter.payload)
        except UndecodableRecord:
            return None
        return {
            name: (text if (text := _printable(value)) is not None else value) if isinstance(value, bytes) else value
            for name, value in row.items()
        }

    def redrive(self, where: Filter, *, again: bool = False) -> Redrive:
        """Put the inputs back on the topics they came from, byte for byte, with the same key. An input that the letter doesn't hold is
        read where it stands; a change that its topic refused is published anew by the workers.

        Safe to repeat: those put back before are left unless `again`, and an input that is used twice changes nothing, since
        the events made of it have the same ids.

        Raises:
            BrokerUnavailable, DatabaseUnavailable: some may be back on their topic without being noted; repeat it.
        """
        failed: list[KafkaError] = []

        def report(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        log = generations.current_topic(self._settings)
        producer = kafka.producer(self._settings.kafka)
        done: set[str] = set()
        skipped: set[str] = set()
        unpublished: list[DeadLetter] = []
        try:
            for letter in self._read(where):
                if letter.dead_letter_id in done:
                    continue  # a repeated batch writes its dead letters again
                former = letter.stage == "project" and letter.topic != log  # its capture was translated again since
                if former or (letter.redriven_at is not None and not again):
                    skipped.add(letter.dead_letter_id)
                    continue
                if letter.stage == "publish":
                    unpublished.append(letter)
                elif (payload := self._payload(letter)) is None:
                    skipped.add(letter.dead_letter_id)
                    continue
                else:
                    _produce(producer, letter, payload, self._headers(letter), report)
                done.add(letter.dead_letter_id)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        if producer.flush(QUIET_S) or failed:
            raise BrokerUnavailable("Kafka did not confirm all of the redriven inputs", hint="repeat the command")
        with postgres.translated(), postgres.connect(self._settings.postgres, role="redrive") as db:
            db.execute(
                """INSERT INTO hub.redrives (dead_letter_id) SELECT unnest(%s::uuid[])
                   ON CONFLICT (dead_letter_id) DO UPDATE SET redriven_at = now(), times = hub.redrives.times + 1""",
                (sorted(done),),
            )
            prefix = len(self._settings.kafka.topic_prefix)
            db.cursor().executemany(
                "INSERT INTO hub.outbox (partitions, topic, customer_ids) VALUES (ARRAY[%s::int], %s, ARRAY[%s::uuid])",
                [
                    (x.partition, x.topic[prefix:], (x.key or b"").decode())
                    for x in unpublished
                    if x.topic[prefix:] != kafka.SEGMENTS
                ],
            )
        return Redrive(redriven=len(done), skipped=len(skipped))

    def _payload(self, letter: DeadLetter) -> bytes | None:
        """What is to be put back; None when it is gone."""
        if not letter.payload_left_out:
            return letter.payload
        consumer = kafka.consumer(self._settings.kafka, kafka.topic(self._settings.kafka, "caudal.dead-letters"))
        try:
            consumer.assign([TopicPartition(letter.topic, letter.partition, letter.offset)])
            message = consumer.poll(QUIET_S)
            if message is None:
                raise BrokerUnavailable(f"Kafka sent nothing for {QUIET_S:.0f} s")
            return message.value() if message.error() is None and message.offset() == letter.offset else None
        finally:
            consumer.close()

    def _headers(self, letter: DeadLetter) -> Headers:
        headers: Headers = [
            ("redriven", letter.dead_letter_id),
            ("attempts", str(letter.attempts)),
        ]
        if letter.stage == "project":
            try:
                record, _ = self._codec.decode(letter.payload)
                headers.append(("event_type", record))
            except UndecodableRecord:
                pass  # it had none that could be told from its bytes
        return headers

    def _read(self, where: Filter) -> Iterator[DeadLetter]:
        """Every dead letter that is meant, partition by partition; one that a repeated batch wrote again comes again."""
        redriven = self._redriven()
        for message in self._messages():
            try:
                _, row = self._codec.decode(message.value() or b"")
            except UndecodableRecord:
                continue  # someone else's record: it can't be shown, nor put back anywhere
            letter = DeadLetter(**row, redriven_at=redriven.get(uuid.UUID(row["dead_letter_id"])))
            if where.holds(letter):
                yield letter

    def _redriven(self) -> dict[uuid.UUID, datetime]:
        with postgres.translated(), postgres.connect(self._settings.postgres, role="dead letters") as db:
            return dict(db.execute("SELECT dead_letter_id, redriven_at FROM hub.redrives").fetchall())

    def _messages(self) -> Iterator[Message]:
        """Every message that the topic holds now."""
        consumer = kafka.consumer(self._settings.kafka, kafka.topic(self._settings.kafka, "caudal.dead-letters"))
        try:
            ends = self._ends(consumer)
            consumer.assign([TopicPartition(self._topic, partition, OFFSET_BEGINNING) for partition in ends])
            heard = time.monotonic()
            while ends:
                messages = consumer.consume(500, 0.2)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > QUIET_S:
                    raise BrokerUnavailable(f"Kafka sent nothing for {QUIET_S:.0f} s")
                for message in messages:
                    partition, offset = message.partition(), message.offset()
                    if message.error() is not None or partition is None or offset is None:
                        continue
                    end = ends.get(partition, 0)
                    if offset < end:
                        yield message
                    if offset + 1 >= end:
                        ends.pop(partition, None)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        finally:
            consumer.close()

    def _ends(self, consumer: Consumer) -> dict[int, int]:
        """Where each partition that holds something ends."""
        until = time.monotonic() + QUIET_S
        while True:
            try:
                ends = {}
                for partition in consumer.list_topics(self._topic, timeout=QUIET_S).topics[self._topic].partitions:
                    place = TopicPartition(self._topic, partition)
                    low, high = consumer.get_watermark_offsets(place, timeout=QUIET_S)
                    if low < high:
                        ends[partition] = high
            except KafkaException as exc:
                error = kafka.translate_error(exc)
                if not isinstance(error, BrokerUnavailable) or time.monotonic() > until:
                    raise error from exc
                time.sleep(0.1)  # a leader is being elected
            else:
                return ends


def _age(letter: DeadLetter) -> tuple[datetime, str]:
    return letter.failed_at, letter.dead_letter_id


def _produce(
    producer: Producer, letter: DeadLetter, payload: bytes, headers: Headers, report: Callable[..., None]
) -> None:
    while True:
        try:
            producer.produce(letter.topic, payload, letter.key, headers=headers, on_delivery=report)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def _printable(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\r\n\t" for c in text) else None
