"""The capture topics: one per source, holding what it sent, as it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from caudal.producers._producer import AsyncProducer, Position
from caudal.schemas.codec import Codec, Registry
from confluent_kafka import KafkaException

from caudal import kafka
from caudal.errors import BrokerUnavailable
from caudal.settings import Settings

__all__ = ["CaptureLog", "Captures"]

SAME_PARTITION_S = 0.005
KNOWN_WITHIN_S = 5.0


class CaptureLog(Protocol):
    """Where deliveries are stored."""

    def start(self) -> None:
        """Bind to the running event loop."""
        ...

    async def close(self) -> None:
        """Finish what is under way and stop."""
        ...

    def prepare(self, source: str) -> None:
        """Make sure that the source's topic and schema are there. Blocks."""
        ...

    def check(self) -> Collection[str]:
        """Make sure that the log can be reached; the prepared sources whose topic is gone. Blocks, for a second at most."""
        ...

    def append(self, capture: Mapping[str, Any]) -> asyncio.Future[Position]:
        """Store a capture of a source that is prepared; the future ends when it is safe."""
        ...


class Captures:
    """The capture topics in Kafka."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self._codec = Codec(registry)
        self._topics: dict[str, tuple[str, int]] = {}
        self._batch_bytes = kafka.BATCH_BYTES
        self._admin = kafka.admin(settings.kafka)

    def start(self) -> None:
        """Bind to the running event loop. Kafka need not be there yet."""
        self._producer = AsyncProducer(self._settings.kafka, timeout_s=self._settings.edge.produce_timeout_s)

    async def close(self) -> None:
        """Wait for what is under way, no longer than the produce timeout, and stop."""
        await self._producer.close()
        self._registry.close()

    def prepare(self, source: str) -> None:
        """Create the source's topic and register the schema for it, where they aren't there yet. Blocks.

        Raises:
            BrokerUnavailable: Kafka can't be reached.
            RegistryUnavailable: the registry can't be reached.
            Fatal: Kafka or the registry refuses.
        """
        kafka.ensure_topics(self._settings.kafka, [f"capture.{source}"])
        topic = kafka.capture_topic(self._settings.kafka, source)
        # a topic that was just created takes a moment to become known
        deadline = time.monotonic() + KNOWN_WITHIN_S
        while not (partitions := kafka.topics(self._settings.kafka, self._admin).get(topic)):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"the brokers don't know {topic} yet")
            time.sleep(0.02)
        self._codec.encode(topic, "Capture", {**_EMPTY, "source": source})
        if source in self._topics:  # it was deleted, and is another one now
            self._producer.renew(self._batch_bytes)
        self._topics[source] = topic, partitions
        largest = kafka.largest(self._settings.kafka, [topic], self._admin)[topic]
        if largest < self._batch_bytes:
            self._batch_bytes = largest
            self._producer.renew(largest)

    def check(self) -> Collection[str]:
        """Ask the brokers which topics there are; the sources that have lost theirs.

        Raises:
            BrokerUnavailable: no answer within a second.
        """
        try:
            there = self._admin.list_topics(timeout=1).topics
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        return [source for source, (topic, _) in list(self._topics.items()) if topic not in there]

    def append(self, capture: Mapping[str, Any]) -> asyncio.Future[Position]:
        """Queue a capture of a source that is prepared; the future ends when all in-sync replicas have it.

        It may end as `BrokerUnavailable` or `MessageTooLarge`.

        Raises:
            BrokerUnavailable: the queue to Kafka is full.
            MessageTooLarge: larger than the topic takes.
        """
        topic, partitions = self._topics[capture["source"]]
        # Nothing hangs on the order of captures, so those of a moment share a partition: they travel in one request
        partition = int(time.monotonic() / SAME_PARTITION_S) % partitions
        value = self._codec.encode(topic, "Capture", capture)
        return self._producer.send(topic, partition, capture["delivery_id"].encode(), value)


_EMPTY: dict[str, Any] = {
    "capture_id": "",
    "source": "",
    "connector": "",
    "delivery_id": "",
    "kind": None,
    "method": "",
    "url": "",
    "headers": {},
    "body": b"",
    "captured_at": datetime(1970, 1, 1, tzinfo=UTC),
}
"""Encoding it registers the schema, so that the first delivery needs no registry."""
