"""Where the log begins and ends, and reading a part of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import KafkaException, Message, TopicPartition

from caudal import kafka
from caudal.errors import BrokerUnavailable, LogTruncated
from caudal.settings import KafkaSettings

__all__ = ["Reader", "ends", "starts"]

IDLE_S = 0.2
GATHER_S = 0.05
"""How long the next message of a chunk is waited for."""
SILENCE_S = 60.0
"""How long a partition may give nothing before its end until Kafka counts as gone."""


def ends(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """The offset that the next message of each partition gets."""
    return kafka.end_offsets(settings, [topic]).get(topic, {})


def starts(settings: KafkaSettings, topic: str, *, truncated: bool = False) -> dict[int, int]:
    """The first offset of each partition.

    Args:
        settings: of Kafka.
        topic: its full name.
        truncated: whether the log may begin after its first event.

    Raises:
        LogTruncated: it does, and may not.
        BrokerUnavailable: Kafka can't be reached.
    """
    first = kafka.start_offsets(settings, [topic]).get(topic, {})
    missing = {partition: offset for partition, offset in first.items() if offset > 0}
    if missing and not truncated:
        parts = ", ".join(f"{offset} of partition {partition}" for partition, offset in sorted(missing.items()))
        raise LogTruncated(
            f"the log no longer holds its first events: {parts} are gone",
            hint="what they alone stated would be lost; --from-start-of-log rebuilds from what is left",
        )
    return first


class Reader:
    """Reads partitions from given offsets up to given ends, which may be moved on. For one thread."""

    def __init__(self, settings: KafkaSettings, topic: str, starts: Mapping[int, int]) -> None:
        """A reader that stands at `starts` (partition → offset)."""
        self._topic = topic
        self.position = dict(starts)
        self._consumer = kafka.consumer(
            settings,
            kafka.topic(
                settings, "caudal.replay"
            ),  # the group is only a name: partitions are assigned, nothing is committed
            **{
                "queued.min.messages": 100_000,
                "queued.max.messages.kbytes": 16 * 1024,
                "fetch.queue.backoff.ms": 10,
            },
        )

    def upto(self, ends: Mapping[int, int], *, most: int) -> Iterator[list[Message]]:
        """Messages below `ends`, in chunks of at most `most`; a partition without an end is left alone.

        Raises:
            BrokerUnavailable: nothing comes, though there should be more.
        """
        wanted = {p: end for p, end in ends.items() if self.position.get(p, 0) < end}
        self._consumer.assign([TopicPartition(self._topic, p, self.position.get(p, 0)) for p in wanted])
        heard = time.monotonic()
        chunk: list[Message] = []
        while wanted:
            # never more than is left: what is written meanwhile would keep a chunk open for as long as it keeps coming
            room = min(most - len(chunk), self.left(wanted))
            found = self._consumer.consume(room, GATHER_S if chunk else IDLE_S)
            for message in found:
                if (error := message.error()) is not None:
                    raise kafka.translate_error(KafkaException(error))
                partition, offset = message.partition() or 0, message.offset() or 0
                if self.position.get(partition, 0) <= offset < ends[partition]:
                    chunk.append(message)
                    self.position[partition] = offset + 1
            if found:
                heard = time.monotonic()
            elif not chunk:
                self._skip(wanted)
                if time.monotonic() - heard > SILENCE_S:
                    raise BrokerUnavailable(f"Kafka gives none of the {self.left(ends)} events that are left")
            done = [p for p, end in wanted.items() if self.position.get(p, 0) >= end]
            if done:  # nothing more of them is fetched while the others go on
                self._consumer.incremental_unassign([TopicPartition(self._topic, p) for p in done])
                wanted = {p: end for p, end in wanted.items() if p not in done}
            if chunk and (not found or not wanted or len(chunk) >= most):
                yield chunk
                chunk = []

    def left(self, ends: Mapping[int, int]) -> int:
        """How many offsets lie before the ends."""
        return sum(max(end - self.position.get(partition, 0), 0) for partition, end in ends.items())

    def close(self) -> None:
        """Let go of Kafka."""
        self._consumer.close()

    def _skip(self, wanted: Mapping[int, int]) -> None:
        """Step over offsets that hold no message: the consumer stands behind them."""
        for at in self._consumer.position([TopicPartition(self._topic, p) for p in wanted]):
            if at.offset >= 0:
                self.position[at.partition] = max(
                    self.position.get(at.partition, 0), min(at.offset, wanted[at.partition])
                )
