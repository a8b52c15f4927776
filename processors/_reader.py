"""Reads captures of all sources in the order in which they were captured, and what of a log was not made of captures.

The order matters little to identity (see `identity`), but where erasures come in or limits bite it does, and so it is kept as it was
as well as timestamps tell. A partition that is ahead of the others waits, so memory stays bounded whatever the topics hold.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from caudal import kafka
from caudal.errors import BrokerUnavailable
from caudal.settings import Settings

__all__ = ["CARRIED", "Partition", "Place", "Reader", "fetch"]

CARRIED = frozenset({"CustomerErased", "FieldCorrected"})
"""Events that people make: no capture can bring them back, so a new generation of the log takes them over from the one before."""
MEMORY_BYTES = 64 * 1024 * 1024
"""What waits to be taken, over all partitions."""
QUIET_S = 30.0

Partition = tuple[str, int]
Place = tuple[str, int, int]
"""Topic, partition and offset of a message."""


@dataclass(slots=True)
class _Track:
    """One partition on the way to its end."""

    place: Partition
    end: int
    next: int
    read_to_ms: int = -1
    waiting: deque[Message] = field(default_factory=deque)
    waiting_bytes: int = 0
    held: bool = False

    @property
    def open(self) -> bool:
        return self.next < self.end


class Reader:
    """Knows how far each partition was taken; not for use from several threads at once."""

    def __init__(self, settings: Settings, log: str, positions: Mapping[Partition, int]) -> None:
        """A reader that goes on at `positions`; partitions that aren't named are read from their beginning.

        Args:
            settings: Kafka's are used.
            log: full name of the topic of canonical events, of which only the events in `CARRIED` are taken.
            positions: next offsets.
        """
        self._settings = settings
        self._log = log
        self.positions = dict(positions)

    def waiting(self, ends: Mapping[Partition, int]) -> int:
        """How many messages lie between the positions and `ends`."""
        return sum(max(end - self.positions.get(place, 0), 0) for place, end in ends.items())

    def batches(self, ends: Mapping[Partition, int], size: int) -> Iterator[list[Message]]:
        """Messages up to `ends`, oldest first, at most `size` at a time; an event in `CARRIED` comes alone.

        Raises:
            BrokerUnavailable: nothing came for a while.
        """
        tracks = {
            place: _Track(place, end, self.positions.get(place, 0))
            for place, end in ends.items()
            if self.positions.get(place, 0) < end
        }
        if not tracks:
            return
        consumer = kafka.consumer(
            self._settings.kafka,
            kafka.topic(self._settings.kafka, "caudal.replay"),
            **{"enable.partition.eof": True, "queued.max.messages.kbytes": 32 * 1024, "fetch.queue.backoff.ms": 10},
        )
        try:
            consumer.assign([TopicPartition(*track.place, track.next) for track in tracks.values()])
            yield from self._merge(consumer, tracks, size)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        finally:
            consumer.close()
        self.positions.update({place: track.next for place, track in tracks.items()})

    def _merge(self, consumer: Consumer, tracks: dict[Partition, _Track], size: int) -> Iterator[list[Message]]:
        most = MEMORY_BYTES // len(tracks)
        heads: list[tuple[int, Partition]] = []
        batch: list[Message] = []
        heard = time.monotonic()
        while heads or any(track.open for track in tracks.values()):
            first = consumer.poll(0.2 if any(track.open for track in tracks.values()) else 0)
            if first is not None:
                heard = time.monotonic()
                for message in (first, *consumer.consume(5000, 0)):
                    self._take(message, tracks, heads)
            elif time.monotonic() - heard > QUIET_S:
                raise BrokerUnavailable(f"Kafka sent nothing for {QUIET_S:.0f} s")
            # nothing older can come any more than what every open partition was read to
            safe_ms = min((t.read_to_ms for t in tracks.values() if t.open), default=None)
            while heads and (safe_ms is None or heads[0][0] <= safe_ms):
                _, place = heapq.heappop(heads)
                track = tracks[place]
                message = track.waiting.popleft()
                track.waiting_bytes -= _size(message)
                if track.waiting:
                    heapq.heappush(heads, (_time_ms(track.waiting[0]), place))
                alone = place[0] == self._log
                if batch and (alone or len(batch) >= size):
                    yield batch
                    batch = []
                batch.append(message)
                self.positions[place] = (message.offset() or 0) + 1
                if alone:
                    yield batch
                    batch = []
                heard = time.monotonic()  # whoever takes the batches may be slow
            self._hold(consumer, tracks, most)
        if batch:
            yield batch

    def _take(self, message: Message, tracks: dict[Partition, _Track], heads: list[tuple[int, Partition]]) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return
        track = tracks[topic, partition]
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                track.next = max(track.next, offset)
            elif error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise KafkaException(error)
            return
        if offset >= track.end:
            track.next = track.end
            return
        track.next = offset + 1
        track.read_to_ms = max(track.read_to_ms, _time_ms(message))
        if topic == self._log and not _is_carried(message):
            return
        track.waiting.append(message)
        track.waiting_bytes += _size(message)
        if len(track.waiting) == 1:
            heapq.heappush(heads, (_time_ms(message), track.place))

    @staticmethod
    def _hold(consumer: Consumer, tracks: dict[Partition, _Track], most: int) -> None:
        """Have those wait that are ahead, and those go on that have little left; what is read to its end is read no further."""
        done = [track.place for track in tracks.values() if not track.open and not track.held]
        ahead = [t.place for t in tracks.values() if t.open and not t.held and t.waiting_bytes > most]
        behind = [t.place for t in tracks.values() if t.open and t.held and t.waiting_bytes < most // 2]
        if done or ahead:
            consumer.pause([TopicPartition(*place) for place in (*done, *ahead)])
        if behind:
            consumer.resume([TopicPartition(*place) for place in behind])
        for place in (*done, *ahead):
            tracks[place].held = True
        for place in behind:
            tracks[place].held = False


def fetch(settings: Settings, places: Iterable[Place]) -> Iterator[Message]:
    """The messages at `places`.

    Raises:
        BrokerUnavailable: one doesn't come.
    """
    consumer = kafka.consumer(settings.kafka, kafka.topic(settings.kafka, "caudal.replay"))
    try:
        for place in sorted(places):
            consumer.assign([TopicPartition(*place)])
            message = consumer.poll(QUIET_S)
            if message is None:
                raise BrokerUnavailable(f"Kafka sent nothing for {QUIET_S:.0f} s")
            if (error := message.error()) is not None:
                raise kafka.translate_error(KafkaException(error))
            yield message
    except KafkaException as exc:
        raise kafka.translate_error(exc) from exc
    finally:
        consumer.close()


def _is_carried(message: Message) -> bool:
    kind = dict(message.headers() or ()).get("event_type")
    return isinstance(kind, bytes) and kind.decode(errors="replace") in CARRIED


def _size(message: Message) -> int:
    return len(message.value() or b"") + 1000  # a message object takes about that much


def _time_ms(message: Message) -> int:
    return int(message.timestamp()[1])
