"""`caudal tail`: what arrives on the topics, decoded. Reads beside every consumer group and leaves no trace in the broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from caudal import generations, kafka
from caudal.errors import BadSettings, UndecodableRecord
from caudal.schemas.codec import Codec, Registry
from caudal.settings import Settings

__all__ = ["FEEDS", "Record", "feed_topics", "tail"]

FEEDS = {
    "changes": kafka.CHANGES,
    "profiles": kafka.PROFILES,
    "metrics": kafka.METRICS,
    "segments": kafka.SEGMENTS,
    "dead-letters": kafka.DEAD_LETTERS,
}
"""Short names of topics; `captures` stands for all `capture.*`, `changes` for the live generation."""
_POLL_S = 0.5


@dataclass(frozen=True)
class Record:
    """One message, decoded. `value` is None for a tombstone; `undecodable` says why there is no value otherwise."""

    topic: str
    partition: int
    offset: int
    at: datetime
    key: str | None
    type: str | None
    value: dict[str, Any] | None
    undecodable: str | None = None


def feed_topics(settings: Settings, feeds: Sequence[str]) -> list[str]:
    """Full names of the topics that `feeds` name: short names, `captures`, or topics as they are called in the docs.

    Raises:
        BadSettings: a name that is no topic.
        BrokerUnavailable, DatabaseUnavailable: a server can't be reached.
    """
    prefix = settings.kafka.topic_prefix
    there = {name for name in kafka.topics(settings.kafka) if name.startswith(prefix)}
    found: list[str] = []
    for feed in feeds:
        if feed == "captures":
            found += sorted(name for name in there if name.startswith(f"{prefix}capture."))
        elif feed == "changes":
            found.append(generations.current_topic(settings))
        elif (name := prefix + FEEDS.get(feed, feed)) in there:
            found.append(name)
        else:
            raise BadSettings(f"there is no topic {feed!r}", hint=f"one of {', '.join([*FEEDS, 'captures'])}")
    return list(dict.fromkeys(found))


def tail(settings: Settings, topics: Sequence[str], *, from_beginning: bool = False) -> Iterator[Record]:
    """Records of `topics` as they arrive, for ever; from their first or from now on.

    Raises:
        CaudalError: the brokers or the registry can't be reached.
    """
    codec = Codec(Registry(settings))
    consumer = kafka.consumer(settings.kafka, f"tail-{uuid.uuid4()}")
    start = OFFSET_BEGINNING if from_beginning else OFFSET_END
    try:
        metadata = consumer.list_topics(timeout=10).topics
        consumer.assign([TopicPartition(name, p, start) for name in topics for p in metadata[name].partitions])
        while True:
            for message in consumer.consume(100, _POLL_S):
                if message.error():
                    raise kafka.translate_error(KafkaException(message.error()))
                yield _record(codec, message, len(settings.kafka.topic_prefix))
    except KafkaException as exc:
        raise kafka.translate_error(exc) from exc
    finally:
        consumer.close()


def _record(codec: Codec, message: Any, prefix: int) -> Record:
    kind, value, undecodable = None, None, None
    if message.value() is not None:
        try:
            kind, value = codec.decode(message.value())
        except UndecodableRecord as exc:
            undecodable = str(exc)
    return Record(
        topic=message.topic()[prefix:],
        partition=message.partition(),
        offset=message.offset(),
        at=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
        key=None if message.key() is None else message.key().decode(errors="replace"),
        type=kind,
        value=value,
        undecodable=undecodable,
    )
