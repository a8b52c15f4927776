"""The `_schemas` topic as a log that is read to its end and appended to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from caudal import kafka, telemetry
from caudal.errors import BrokerUnavailable
from caudal.settings import KafkaSettings

__all__ = ["Log"]

_TIMEOUT_S = 30.0
_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

Pair = tuple[bytes | None, bytes | None]


class Log:
    """Reader and writer of `_schemas`, which never takes the topic prefix. Not safe to share by threads."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Makes the topic if it is missing.

        Raises:
            BrokerUnavailable: the brokers can't be reached.
        """
        bare = settings.model_copy(update={"topic_prefix": ""})
        kafka.ensure_topics(bare, [kafka.SCHEMAS])
        self._partition = TopicPartition(kafka.SCHEMAS, 0, OFFSET_BEGINNING)
        self._consumer = kafka.consumer(bare, "caudal-registry", **{"enable.partition.eof": True})
        self._consumer.assign([self._partition])
        # asks where the topic ends: on the reader's connection that question would wait behind a fetch that waits for messages
        self._looker = kafka.consumer(bare, "caudal-registry")
        self._producer = kafka.producer(bare)
        self._settings = bare
        self._next = 0
        self._watch = kafka.Watch(bare)
        self._id = kafka.ids(bare, [kafka.SCHEMAS])
        self._known: dict[bytes | None, bytes | None] = {}
        """The newest value of each key, as the compacted topic keeps it."""

    def read(self) -> Iterator[Pair]:
        """Key and value of every message that was not read before, up to the topic's end of now.

        A topic that was deleted, made again or restored from a time before gets all that was read of the one before it: records lie on
        other topics that can't be read without.

        Raises:
            BrokerUnavailable: the brokers can't be reached.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        try:
            end = self._end()
            if end < self._next or self._watch.replaced(self._id):
                self._restore()
                end = self._end()
            while self._next < end:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable("Kafka can't be reached: reading _schemas takes too long")
                message = self._consumer.poll(1.0)  # not consume(n): that waits for n messages or the whole time
                if message is None:
                    continue
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                if error is not None:
                    self._next = max(self._next, message.offset() or 0)
                    continue
                self._next = (message.offset() or 0) + 1
                self._known[message.key()] = message.value()
                yield message.key(), message.value()
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc

    def _end(self) -> int:
        try:
            _, end = self._looker.get_watermark_offsets(self._partition, timeout=_TIMEOUT_S)
        except KafkaException as exc:
            if exc.args[0].code() not in _GONE:
                raise
            return -1
        return int(end)

    def _restore(self) -> None:
        telemetry.logger().error(telemetry.Log.LOG_TRUNCATED, topic=kafka.SCHEMAS, reason="made_again", records=0)
        kafka.ensure_topics(self._settings, [kafka.SCHEMAS])
        self._id = kafka.ids(self._settings, [kafka.SCHEMAS])
        self.append([(key, value) for key, value in self._known.items() if value is not None])
        self._next = 0
        self._consumer.assign([self._partition])

    def append(self, pairs: Sequence[Pair]) -> None:
        """Write messages; returns when all in-sync replicas have them.

        Raises:
            BrokerUnavailable: they may not have been written.
        """
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                failures.append(error)

        try:
            for key, value in pairs:
                self._producer.produce(kafka.SCHEMAS, key=key, value=value, partition=0, on_delivery=delivered)
            left = self._producer.flush(_TIMEOUT_S)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        if failures:
            raise kafka.translate_error(KafkaException(failures[0]))
        if left:
            raise BrokerUnavailable("Kafka can't be reached: writing _schemas takes too long")

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()
        self._looker.close()
        del self._producer  # librdkafka closes it with its last reference
