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
from typing import Any
from zlib import crc32

import orjson
import pyarrow as pa
from caudal.projections._view import View
from caudal.schemas.codec import Codec, arrow_schema
from confluent_kafka import KafkaError, KafkaException, Producer

from caudal import kafka, telemetry
from caudal.errors import BrokerUnavailable
from caudal.settings import KafkaSettings
from caudal.telemetry import Log, logger

__all__ = ["Change", "Publisher", "encoded", "output_partition"]

WAITING_MOST = 2
"""Batches that may wait to be published; then the next one waits to be applied."""
FEW = 30
"""Up to so many rows are encoded one by one, at some 25 to 70 microseconds each; by the column the first takes 1 to 2 milliseconds."""
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
    done: bool = False
    dropped: bool = False

    def refused(self, error: Any, _message: Any) -> None:
        """Delivery report of a message that was not stored."""
        if error is not None:
            self.failed.append(error.str())


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
        self._producer = self._connect()
        self._codec = codec
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
                    raise BrokerUnavailable(f"Kafka refused {len(job.failed)} change messages: {job.failed[0]}")
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

    def put_aside(self, topic: str, letters: Sequence[tuple[bytes, bytes, str]]) -> None:
        """Write (key, value, code) dead letters and wait until they are stored.

        Raises:
            BrokerUnavailable: not acknowledged in time.
        """
        job, producer = _Job([]), self._producer
        try:
            for key, value, code in letters:
                producer.produce(topic, key=key, value=value, headers={"code": code}, on_delivery=job.refused)
        except (BufferError, KafkaException) as exc:
            job.failed.append(type(exc).__name__)
        if producer.flush(30) or job.failed:
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

    def _connect(self) -> Producer:
        return kafka.producer(
            self._settings,
            **{
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
                keys, values = self._encoded(change, topic, rebuilt=job.rebuilt)
                messages: list[dict[str, Any]] = [{"key": k, "value": v} for k, v in zip(keys, values, strict=True)]
                messages += [{"key": c.encode(), "value": None} for c in change.gone]
                self._look()
                if job.dropped or job.made < self._stood_still + self._quiet_s:
                    job.failed.append("too old")
                    break
                self._produce(producer, kafka.topic(self._settings, topic), messages, job)
                telemetry.PUBLISHED.labels(topic).inc(len(messages))
        except Exception as exc:
            # whatever it is, the rows stay in the outbox and are tried again
            logger().exception(Log.PROCESS_FAILED, process="worker", step="publish", error=type(exc).__name__)
            job.failed.append(type(exc).__name__)
        return not job.failed

    def _look(self) -> None:
        """Note when too much time has passed since the last look."""
        before, self._seen = self._seen, time.monotonic()
        if self._seen - before > self._patience_s:
            self._stood_still = self._seen

    @staticmethod
    def _produce(producer: Producer, topic: str, messages: list[dict[str, Any]], job: _Job) -> None:
        deadline = time.monotonic() + 30
        while messages:
            producer.produce_batch(topic, messages, on_delivery=job.refused)
            refused = [m for m in messages if "_error" in m]
            if ended := next((m["_error"] for m in refused if m["_error"].code() != KafkaError._QUEUE_FULL), None):
                raise BrokerUnavailable(f"Kafka takes no change messages: {ended.name()}")
            messages = [{"key": m["key"], "value": m["value"]} for m in refused]
            if messages and time.monotonic() > deadline:
                raise BrokerUnavailable("Kafka takes no change messages: the queue stays full")
            if messages:
                producer.poll(0.05)

    def _encoded(self, change: Change, topic: str, *, rebuilt: bool) -> tuple[list[bytes], list[bytes]]:
        rows = change.rows()
        if not rows or rows[0][0] is None:
            return [], []
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
        return [c.encode() for c in columns["customer_id"]], encoded(
            self._codec, kafka.topic(self._settings, topic), record, columns
        )


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
