"""Single messages out of a topic, by their offsets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaException, Message, TopicPartition

from caudal import kafka
from caudal.errors import BrokerUnavailable, Fatal
from caudal.settings import KafkaSettings

__all__ = ["Picker"]

NEAR = 200
"""Offsets ahead that are read through rather than sought: about what one fetch brings anyway."""
SILENCE_S = 30.0


class Picker:
    """Reads messages at given offsets. For one thread; keep it, since the first read connects."""

    def __init__(self, settings: KafkaSettings) -> None:
        """A reader of any topic."""
        # small fetches, each at once: ten single messages in 5 ms, where librdkafka's own settings took 100 and more
        self._consumer = kafka.consumer(
            settings,
            kafka.topic(settings, "caudal.pick"),  # only a name: nothing is subscribed or committed
            **{
                "fetch.message.max.bytes": 32_768,
                "queued.min.messages": 1,
                "fetch.wait.max.ms": 5,
                "fetch.queue.backoff.ms": 0,
            },
        )

    def pick(self, topic: str, wanted: Mapping[int, Sequence[int]]) -> list[Message]:
        """The messages of a topic (its full name) at these offsets (partition → ascending offsets), in no particular order.

        Raises:
            Fatal: the log no longer holds some of them.
            BrokerUnavailable: Kafka gives nothing.
        """
        left = {partition: list(reversed(offsets)) for partition, offsets in wanted.items() if offsets}
        picked: list[Message] = []
        self._consumer.assign([TopicPartition(topic, p, offsets[-1]) for p, offsets in left.items()])
        heard = time.monotonic()
        while left:
            message = self._consumer.poll(0.5)
            if message is None:
                if time.monotonic() - heard > SILENCE_S:
                    raise BrokerUnavailable("Kafka gives none of the events that are asked for")
                continue
            if (error := message.error()) is not None:
                raise kafka.translate_error(KafkaException(error))
            heard = time.monotonic()
            partition, offset = message.partition() or 0, message.offset() or 0
            offsets = left.get(partition, [])
            if not offsets or offset < offsets[-1]:
                continue
            if offset > offsets[-1]:
                raise Fatal(
                    f"the log no longer holds offset {offsets[-1]} of partition {partition}",
                    hint="what it stated can't be proved any more",
                )
            picked.append(message)
            offsets.pop()
            if not offsets:
                del left[partition]
                self._consumer.incremental_unassign([TopicPartition(topic, partition)])
            elif offsets[-1] - offset > NEAR:
                self._consumer.seek(TopicPartition(topic, partition, offsets[-1]))
        return picked

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
