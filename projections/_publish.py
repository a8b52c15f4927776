"""Changed rows onto the change topics: encoded by the column, produced by the batch, confirmed before the outbox forgets them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import pyarrow as pa
from caudal.projections._view import View
from caudal.schemas.codec import Codec, arrow_schema

from caudal import kafka, telemetry
from caudal.errors import BrokerUnavailable
from caudal.settings import KafkaSettings

__all__ = ["Change", "Pending", "Publisher", "output_partition"]

RECORDS = {kafka.PROFILES: "CustomerProfile", kafka.METRICS: "CustomerMetrics", kafka.SEGMENTS: "SegmentChanged"}


def output_partition(customer_id: str, partitions: int) -> int:
    """The partition of a customer on every customer topic: librdkafka's default partitioner."""
    return crc32(customer_id.encode()) % partitions


@dataclass
class Change:
    """Rows of one view that changed, as its columns; `gone` are customers whose row was deleted."""

    view: View
    rows: Sequence[tuple[Any, ...]] = ()
    gone: Sequence[str] = ()
    version: int = 0

    def customers(self) -> list[str]:
        """Every customer in it, once."""
        return list(dict.fromkeys([*(row[0] for row in self.rows), *self.gone]))


@dataclass
class Pending:
    """Messages under way; `outbox` are the ids to forget when all are acknowledged."""

    outbox: list[int]
    left: int = 0
    failed: list[str] = field(default_factory=list)

    def delivered(self, error: Any, _message: Any) -> None:
        """Delivery report of one message."""
        self.left -= 1
        if error is not None:
            self.failed.append(error.str())


class Publisher:
    """Publishes changes in the order given; not for several threads at once."""

    def __init__(self, settings: KafkaSettings, codec: Codec, *, timeout_ms: int) -> None:
        # a message older than the group's session may already have been published, newer, by the partition's next owner
        self._producer = kafka.producer(
            settings, **{"message.timeout.ms": timeout_ms, "queue.buffering.max.messages": 1_000_000}
        )
        self._settings = settings
        self._codec = codec
        self._pending: deque[Pending] = deque()

    def publish(self, changes: Iterable[Change], outbox: list[int], *, rebuilt: bool = False) -> None:
        """Queue the messages of `changes`; returns before they are acknowledged.

        Raises:
            BrokerUnavailable: the queue stays full, or earlier messages were refused.
        """
        pending = Pending(outbox)
        for change in changes:
            topic = change.view.topic
            if topic is None:
                continue
            keys, values = self._encoded(change, topic, rebuilt=rebuilt)
            messages: list[dict[str, Any]] = [{"key": k, "value": v} for k, v in zip(keys, values, strict=True)]
            messages += [{"key": c.encode(), "value": None} for c in change.gone]
            pending.left += len(messages)
            self._produce(kafka.topic(self._settings, topic), messages, pending)
            telemetry.PUBLISHED.labels(topic).inc(len(messages))
        self._pending.append(pending)
        self._producer.poll(0)

    def _produce(self, topic: str, messages: list[dict[str, Any]], pending: Pending) -> None:
        deadline = time.monotonic() + 30
        while messages:
            self._producer.produce_batch(topic, messages, on_delivery=pending.delivered)
            messages = [{"key": m["key"], "value": m["value"]} for m in messages if "_error" in m]
            if messages and time.monotonic() > deadline:
                raise BrokerUnavailable("Kafka takes no change messages: the queue stays full")
            if messages:
                self._producer.poll(0.05)

    def confirmed(self, *, wait_s: float = 0.0) -> list[int]:
        """Outbox ids whose messages are all acknowledged since the last call, in order.

        Raises:
            BrokerUnavailable: messages were refused; the outbox still holds them.
        """
        self._producer.poll(0)
        if wait_s:
            self._producer.flush(wait_s)
        done: list[int] = []
        while self._pending and self._pending[0].left == 0:
            pending = self._pending.popleft()
            if pending.failed:
                self._pending.clear()
                raise BrokerUnavailable(f"Kafka refused {len(pending.failed)} change messages: {pending.failed[0]}")
            done += pending.outbox
        return done

    def put_aside(self, topic: str, letters: Sequence[tuple[bytes, bytes, str]]) -> None:
        """Write (key, value, code) dead letters and wait for the acknowledgement.

        Raises:
            BrokerUnavailable: not acknowledged in time.
        """
        pending = Pending([], left=len(letters))
        for key, value, code in letters:
            self._producer.produce(topic, key=key, value=value, headers={"code": code}, on_delivery=pending.delivered)
        self._producer.flush(30)
        if pending.left or pending.failed:
            raise BrokerUnavailable("Kafka did not take the dead letters")

    @property
    def under_way(self) -> list[int]:
        """Outbox ids whose messages are not yet known to be acknowledged."""
        return [id_ for pending in self._pending for id_ in pending.outbox]

    def close(self) -> None:
        """Wait a little for what is under way; the outbox has whatever is not acknowledged."""
        self._producer.flush(5)

    def _encoded(self, change: Change, topic: str, *, rebuilt: bool) -> tuple[list[bytes], list[bytes]]:
        if not change.rows:
            return [], []
        record = RECORDS[topic]
        now = datetime.now(UTC)
        if topic == kafka.SEGMENTS:
            columns = dict(
                zip(("customer_id", "segment", "entered", "cause"), zip(*change.rows, strict=True), strict=True)
            )
            columns["change"] = tuple("entered" if e else "left" for e in columns.pop("entered"))
        else:
            columns = dict(zip(change.view.columns, zip(*change.rows, strict=True), strict=True))
        count = len(change.rows)
        columns |= {"version": (change.version,) * count, "rebuilt": (rebuilt,) * count, "changed_at": (now,) * count}
        schema = arrow_schema(record)
        arrays = []
        for name in schema.names:
            values: Any = columns[name]
            type_ = schema.field(name).type
            if pa.types.is_map(type_):
                values = [list(v.items()) for v in values]
            arrays.append(pa.array(values, type_))
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        return [c.encode() for c in columns["customer_id"]], self._codec.encode_columns(
            kafka.topic(self._settings, topic), record, batch
        )
