"""Changed rows onto the change topics, in a thread of its own: read from PostgreSQL's answer, encoded (a few by the row, many by the
column), produced, and confirmed before the outbox forgets them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from zlib import crc32

import orjson
import pyarrow as pa
from caudal.projections._view import View
from caudal.schemas.codec import Codec, arrow_schema
from caudal.schemas.dead_letters import bare, dead_letter
from confluent_kafka import KafkaError, KafkaException, Producer

from caudal import kafka, telemetry
from caudal.errors import BrokerUnavailable, CaudalError, RefusedRecord, UnusableEvent
from caudal.settings import KafkaSettings
from caudal.telemetry import Log, logger

__all__ = ["Change", "Publisher", "encoded", "output_partition"]

WAITING_MOST = 2
"""Batches that may wait to be published; then the next one waits to be applied."""
FEW = 30
"""Up to so many rows are encoded one by one, at some 25 to 70 microseconds each; by the column the first takes 1 to 2 milliseconds."""
CAREFUL_S = 60.0
ROOM = 200
"""What a message takes besides key and value, at most."""
RECORDS = {kafka.PROFILES: "CustomerProfile", kafka.METRICS: "CustomerMetrics", kafka.SEGMENTS: "SegmentChanged"}


def output_partition(customer_id: str, partitions: int) -> int:
    """The partition of a customer on every customer topic: librdkafka's default partitioner."""
    return crc32(customer_id.encode()) % partitions


@dataclass(frozen=True)
class Change:
    """Rows of one view that changed, each the view's columns (of memberships: customer, value, entered, cause) and its version.

    Attributes:
        view: whose rows.
        outbox: the row of the outbox that notes them, if one does.
        rows: gives the rows; called once, by the publishing thread. A first row of nulls stands for none.
        gone: customers whose row was deleted.
    """

    view: View
    outbox: int | None
    rows: Callable[[], Sequence[tuple[Any, ...]]]
    gone: Sequence[str] = ()


@dataclass
class _Job:
    """Changes on their way; `outbox` are the ids to forget when all are acknowledged."""

    changes: Sequence[Change]
    rebuilt: bool = False
    outbox: list[int] = field(default_factory=list)
    made: float = 0.0
    failed: list[str] = field(default_factory=list)
    refused_for_good: bool = False
    done: bool = False
    dropped: bool = False

    def refused(self, error: Any, _message: Any) -> None:
        """Delivery report of a message that was not stored. One that will never be is reported of all that shared its batch."""
        if error is not None:
            self.failed.append(error.str())
            self.refused_for_good |= error.code() in kafka.REFUSED


@dataclass(frozen=True)
class _Message:
    """One message; `cut` makes a shorter value of it that isn't longer than asked, and names what it leaves out, if it can."""

    key: bytes
    value: bytes | None
    cut: Callable[[int], tuple[bytes, list[str]] | None] = lambda _: None

    @property
    def size(self) -> int:
        return len(self.key) + len(self.value or b"") + ROOM


@dataclass(frozen=True)
class _Place:
    """What `dead_letter` reads of a message: of one that is in no log, by its customer."""

    to: str
    number: int
    customer: bytes

    def topic(self) -> str:
        return self.to

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return -1

    def key(self) -> bytes:
        return self.customer

    def value(self) -> bytes:
        return self.customer


class Publisher:
    """Publishes changes in the order given. Its methods are for one thread at a time.

    Nothing may be published that the partition's next owner may already have published, newer. When this process stood still for a
    while, the group may have given its partitions away: what was waiting then is refused, and what comes before the group had time to
    say so. The outbox decides.
    """

    def __init__(self, settings: KafkaSettings, codec: Codec, *, session_ms: int) -> None:
        """Publisher of a member of the consumer group whose session times out after `session_ms`."""
        self._patience_s = self._quiet_s = session_ms / 2000
        self._settings = settings
        self._timeout_ms = int(session_ms * 0.45)  # with the patience less than the session
        self._largest: dict[str, int] = {}
        """Topic (full name) → largest batch that it takes."""
        self._careful_until = -math.inf
        """Until then each message is sent alone: something among many was refused for good."""
        self._codec = codec
        self._producer = self._connect()
        self._jobs: deque[_Job] = deque()
        """Under way, in order; only the methods append and remove, only the thread sets `done`."""
        self._changed = threading.Condition()
        self._closing = False
        self._seen = 0.0
        self._stood_still = -math.inf
        self._thread: threading.Thread | None = None

    def publish(self, changes: Sequence[Change], *, made: float, rebuilt: bool = False) -> None:
        """Queue `changes`; returns before they are acknowledged, unless too many wait.

        Args:
            changes: in their order.
            made: a moment (`time.monotonic`) before they got their versions. If the process stood still between that and the sending,
                the partition may have a new owner who has published newer ones.
            rebuilt: they come of a rebuild.

        Raises:
            BrokerUnavailable: nothing gets through.
        """
        if self._thread is None:
            self._seen = made
            self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
            self._thread.start()
        outbox = [change.outbox for change in changes if change.outbox is not None]
        with self._changed:
            if not self._changed.wait_for(lambda: sum(not job.done for job in self._jobs) < WAITING_MOST, 60):
                raise BrokerUnavailable("Kafka takes no change messages")
            self._jobs.append(_Job(changes, rebuilt, outbox, made))
            self._changed.notify_all()

    def confirmed(self, *, wait_s: float = 0.0) -> list[int]:
        """Outbox ids whose messages are all acknowledged since the last call, in order.

        Raises:
            BrokerUnavailable: messages were refused; the outbox still holds them.
        """
        ids: list[int] = []
        with self._changed:
            if wait_s:
                self._changed.wait_for(lambda: all(job.done for job in self._jobs), wait_s)
            while self._jobs and self._jobs[0].done:
                job = self._jobs[0]
                if job.failed:
                    # those after it are not told apart from it: what the outbox holds of them is published again
                    self._changed.wait_for(lambda: all(job.done for job in self._jobs), 30)
                    self._jobs.clear()
                    raise BrokerUnavailable(f"{len(job.failed)} change messages are to be sent again: {job.failed[0]}")
                ids += self._jobs.popleft().outbox
        return ids

    def settle(self, timeout_s: float) -> None:
        """Wait for what is under way, and drop what isn't done by then: others go on with the partitions."""
        with self._changed:
            self._changed.wait_for(lambda: all(job.done for job in self._jobs), timeout_s)
            left = [job for job in self._jobs if not job.done]
            for job in left:
                job.dropped = True
                self._jobs.remove(job)

    def rest(self) -> None:
        """Wait until changes may be published again after this process stood still."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(self._stood_still + self._quiet_s - time.monotonic(), 0))

    def put_aside(self, letters: Sequence[Mapping[str, Any]]) -> None:
        """Write dead letters and wait until they are stored: one that the topic doesn't take, without its payload.

        Raises:
            BrokerUnavailable: not acknowledged in time.
        """
        topic = kafka.topic(self._settings, kafka.DEAD_LETTERS)
        job, producer = _Job([]), self._producer
        try:
            for letter in letters:
                key, headers = letter["dead_letter_id"].encode(), {"code": letter["code"]}
                producer.produce(topic, key=key, value=self._letter(letter), headers=headers, on_delivery=job.refused)
        except BufferError as exc:
            job.failed.append(type(exc).__name__)
        except KafkaException as exc:
            job.refused(exc.args[0], None)
        if producer.flush(30) or (job.failed and not job.refused_for_good):
            self._producer = self._connect()  # see _work
            raise BrokerUnavailable("Kafka did not take the dead letters")
        if job.refused_for_good:
            self._put_aside_singly(topic, letters)

    def _put_aside_singly(self, topic: str, letters: Sequence[Mapping[str, Any]]) -> None:
        for letter in letters:
            key: bytes = letter["dead_letter_id"].encode()
            headers: dict[str, str | bytes | None] = {"code": letter["code"]}
            failed = self._failure(self._producer, topic, key, self._letter(letter), headers)
            if failed is not None and failed.code() in kafka.REFUSED:
                failed = self._failure(self._producer, topic, key, self._letter(bare(dict(letter))), headers)
            if failed is not None and failed.code() in kafka.REFUSED:
                logger().error(Log.CHANGE_PUT_ASIDE, topic=kafka.DEAD_LETTERS, key=key.decode(), error=failed.name())
            elif failed is not None:
                self._producer = self._connect()  # see _work
                raise BrokerUnavailable("Kafka did not take the dead letters")

    @property
    def under_way(self) -> list[int]:
        """Outbox ids whose messages are not yet known to be acknowledged."""
        return [id_ for job in self._jobs for id_ in job.outbox]

    def close(self) -> None:
        """Wait a little for what is under way; the outbox has whatever is not acknowledged."""
        self.settle(5)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(5)

    def _letter(self, letter: Mapping[str, Any]) -> bytes:
        return self._codec.encode(kafka.topic(self._settings, kafka.DEAD_LETTERS), "DeadLetter", dict(letter))

    def _connect(self) -> Producer:
        """A producer for the topics as they are now; those that are gone are made again."""
        names = [*RECORDS, kafka.DEAD_LETTERS]
        try:
            if self._largest:
                kafka.ensure_topics(self._settings, names)
            self._largest = kafka.largest(self._settings, [kafka.topic(self._settings, name) for name in names])
        except CaudalError:
            pass  # what isn't known now shows when something is refused
        least = min((*self._largest.values(), kafka.BATCH_BYTES))
        return kafka.producer(
            self._settings,
            **{
                "batch.size": least,
                "message.timeout.ms": self._timeout_ms,
                "queue.buffering.max.messages": 1_000_000,
                "delivery.report.only.error": True,
            },
        )

    # ---- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or any(not job.done for job in self._jobs), max(self._patience_s / 4, 0.01)
                )
                self._look()
                jobs = [job for job in self._jobs if not job.done]
                broken = any(job.failed for job in self._jobs)
            if self._closing:
                return
            if not jobs:
                continue
            started = time.perf_counter()
            producer = (
                self._producer
            )  # `put_aside` may take another one meanwhile; what is acknowledged is asked of this one
            for job in jobs:
                if broken:
                    job.failed.append("one before it was refused")
                elif not self._sent(producer, job):
                    broken = True
            while producer.flush(0.2) and not self._closing:
                self._look()
            if any(job.refused_for_good for job in jobs):
                self._careful_until = time.monotonic() + CAREFUL_S
            if broken or any(job.failed for job in jobs):
                # a fatal error ends an idempotent producer for good, and none of them tells that it had one: the next takes a new one
                self._producer = self._connect()
            telemetry.BATCH_SECONDS.labels("publish").observe(time.perf_counter() - started)
            with self._changed:
                for job in jobs:
                    job.done = True
                self._changed.notify_all()

    def _sent(self, producer: Producer, job: _Job) -> bool:
        """Hand a job's messages to the producer; False when that is not possible."""
        try:
            for change in job.changes:
                topic = change.view.topic
                assert topic is not None
                messages = [
                    *self._encoded(change, topic, rebuilt=job.rebuilt),
                    *(_Message(c.encode(), None) for c in change.gone),
                ]
                self._look()
                if job.dropped or job.made < self._stood_still + self._quiet_s:
                    job.failed.append("too old")
                    break
                full = kafka.topic(self._settings, topic)
                most = min(self._largest.get(full, kafka.DEFAULT_LARGEST), kafka.MAX_MESSAGE_BYTES)
                if time.monotonic() < self._careful_until:
                    most = 0
                together = [{"key": m.key, "value": m.value} for m in messages if m.size <= most]
                self._produce(producer, full, together, job)
                for message in messages:
                    if message.size > most and not self._sent_alone(producer, full, message, job):
                        return False
                telemetry.PUBLISHED.labels(topic).inc(len(messages))
        except Exception as exc:
            # whatever it is, the rows stay in the outbox and are tried again
            logger().exception(Log.PROCESS_FAILED, process="worker", step="publish", error=type(exc).__name__)
            job.failed.append(type(exc).__name__)
        return not job.failed

    def _sent_alone(self, producer: Producer, topic: str, message: _Message, job: _Job) -> bool:
        """Send one message and wait until it is stored: shorter if it must be, or not at all if Kafka won't ever take it, and then that is
        told. False when it must be sent again.
        """
        failed = self._failure(producer, topic, message.key, message.value)
        name = topic.removeprefix(self._settings.topic_prefix)
        if failed is not None and failed.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            most = self._largest.get(topic, kafka.DEFAULT_LARGEST) - len(message.key) - ROOM
            while failed is not None and failed.code() in kafka.REFUSED and (short := message.cut(most)) is not None:
                value, omitted = short
                most = len(value) - 1  # the limit may be another than was told
                failed = self._failure(producer, topic, message.key, value)
                if failed is None:
                    logger().warning(
                        Log.CHANGE_CUT, topic=name, customer=message.key.decode(), bytes=message.size, omitted=omitted
                    )
                    telemetry.CHANGES_CUT.labels(name).inc()
        if failed is not None and failed.code() in kafka.REFUSED:
            failed = self._put_aside(producer, topic, message, failed)
        if failed is not None:
            job.failed.append(failed.str())
        return failed is None

    def _put_aside(self, producer: Producer, topic: str, message: _Message, why: KafkaError) -> KafkaError | None:
        """Go on without the message. What it says is in the views; the letter names the customer, so that it can be published again."""
        name = topic.removeprefix(self._settings.topic_prefix)
        reason = RefusedRecord(f"{name} takes no message of {message.size} bytes: {why.name()}")
        partitions = kafka.topics(self._settings).get(topic, 1)
        place = _Place(topic, output_partition(message.key.decode(), partitions), message.key)
        letter = bare(dead_letter("publish", place, reason))
        headers: dict[str, str | bytes | None] = {"code": reason.code}
        to, key = kafka.topic(self._settings, kafka.DEAD_LETTERS), letter["dead_letter_id"].encode()
        failed = self._failure(producer, to, key, self._letter(letter), headers)
        if failed is not None and failed.code() not in kafka.REFUSED:
            return failed
        logger().error(
            Log.CHANGE_PUT_ASIDE, topic=name, customer=message.key.decode(), bytes=message.size, error=why.name()
        )
        telemetry.DEAD_LETTERS.labels("publish", reason.code).inc()
        return None

    def _failure(
        self,
        producer: Producer,
        topic: str,
        key: bytes,
        value: bytes | None,
        headers: dict[str, str | bytes | None] | None = None,
    ) -> KafkaError | None:
        """Send one message and wait: why it is not stored, if it isn't."""
        errors: list[KafkaError | None] = []
        try:
            producer.produce(
                topic, key=key, value=value, headers=headers or {}, on_delivery=lambda error, _: errors.append(error)
            )
            until = time.monotonic() + 30
            while producer.flush(0.2) and time.monotonic() < until and not self._closing:
                self._look()
        except KafkaException as exc:
            errors.append(exc.args[0])
        except BufferError:
            errors.append(KafkaError(KafkaError._QUEUE_FULL))
        found = [error for error in errors if error is not None]
        if not found and len(producer):
            return KafkaError(KafkaError._MSG_TIMED_OUT)
        return found[0] if found else None

    def _look(self) -> None:
        """Note when too much time has passed since the last look."""
        before, self._seen = self._seen, time.monotonic()
        if self._seen - before > self._patience_s:
            self._stood_still = self._seen

    @staticmethod
    def _produce(producer: Producer, topic: str, messages: list[dict[str, Any]], job: _Job) -> None:
        deadline = time.monotonic() + 30
        while messages:
            producer.produce_batch(topic, messages, on_delivery=job.refused)  # nothing, when the list is empty
            refused = [m for m in messages if "_error" in m]
            if ended := next((m["_error"] for m in refused if m["_error"].code() != KafkaError._QUEUE_FULL), None):
                raise BrokerUnavailable(f"Kafka takes no change messages: {ended.name()}")
            messages = [{"key": m["key"], "value": m["value"]} for m in refused]
            if messages and time.monotonic() > deadline:
                raise BrokerUnavailable("Kafka takes no change messages: the queue stays full")
            if messages:
                producer.poll(0.05)

    def _encoded(self, change: Change, topic: str, *, rebuilt: bool) -> list[_Message]:
        rows = change.rows()
        if not rows or rows[0][0] is None:
            return []
        record = RECORDS[topic]
        segments = topic == kafka.SEGMENTS
        names = ("customer_id", "segment", "entered", "cause") if segments else change.view.columns
        columns: dict[str, Sequence[Any]] = dict(zip((*names, "version"), zip(*rows, strict=True), strict=True))
        if segments:
            columns["change"] = tuple("entered" if e else "left" for e in columns.pop("entered"))
            columns["cause"] = tuple(cause or ("rebuild" if rebuilt else "links") for cause in columns["cause"])
        if "custom" in columns:
            columns["custom"] = [{k: _text(v) for k, v in (value or {}).items()} for value in columns["custom"]]
        columns |= {"rebuilt": (rebuilt,) * len(rows), "changed_at": (datetime.now(UTC),) * len(rows)}
        columns["omitted"] = (None,) * len(rows)
        full = kafka.topic(self._settings, topic)

        def cut(number: int, most: int) -> tuple[bytes, list[str]] | None:
            return shortened(
                self._codec, full, record, {name: values[number] for name, values in columns.items()}, most
            )

        values = encoded(self._codec, full, record, columns)
        return [
            _Message(customer.encode(), value, partial(cut, number))
            for number, (customer, value) in enumerate(zip(columns["customer_id"], values, strict=True))
        ]


_KEPT = frozenset({"customer_id", "version", "rebuilt", "changed_at", "segment", "change", "omitted"})


def shortened(codec: Codec, topic: str, record: str, row: dict[str, Any], most: int) -> tuple[bytes, list[str]] | None:
    """The row as a message of at most so many bytes, and the fields that it leaves out, the heaviest first; None if none is that short."""
    left = {field.name: len(str(row[field.name])) for field in arrow_schema(record) if field.name not in _KEPT}
    omitted: list[str] = []
    for name in sorted(left, key=lambda name: (-left[name], name)):
        value = row[name]
        if not isinstance(value, (str, list, tuple, dict)):
            continue
        row = {**row, name: type(value)() if not isinstance(value, str) else None}
        omitted.append(name)
        try:
            message = codec.encode(topic, record, {**row, "omitted": omitted})
        except UnusableEvent:  # it can't be without this one
            row, omitted = {**row, name: value}, omitted[:-1]
            continue
        if len(message) <= most:
            return message, omitted
    return None


def encoded(codec: Codec, topic: str, record: str, columns: Mapping[str, Sequence[Any]]) -> list[bytes]:
    """Each row of the columns as a message on `topic` (full name)."""
    if len(columns["customer_id"]) <= FEW:
        rows = zip(*columns.values(), strict=True)
        return [codec.encode(topic, record, dict(zip(columns, row, strict=True))) for row in rows]
    schema = arrow_schema(record)
    arrays = []
    for wanted in schema:
        values = columns[wanted.name]
        if pa.types.is_map(wanted.type):
            values = [list(v.items()) for v in values]
        arrays.append(pa.array(values, wanted.type))
    return codec.encode_columns(topic, record, pa.RecordBatch.from_arrays(arrays, schema=schema))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
