"""The one module that owns librdkafka: client settings, topics, error translation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec, TopicMetadata

from caudal.errors import BrokerUnavailable, CaudalError, Fatal
from caudal.settings import KafkaSettings

__all__ = [
    "CHANGES",
    "COMMANDS",
    "DEAD_LETTERS",
    "MAX_MESSAGE_BYTES",
    "METRICS",
    "PROFILES",
    "SCHEMAS",
    "SEGMENTS",
    "admin",
    "answers",
    "capture_topic",
    "consumer",
    "delete_topics",
    "end_offsets",
    "ensure_topics",
    "options",
    "producer",
    "start_offsets",
    "topic",
    "topics",
    "translate_error",
]

CHANGES = "customer.changes"
PROFILES = "customer.profiles"
METRICS = "customer.metrics"
SEGMENTS = "customer.segments"
DEAD_LETTERS = "dead.letters"
COMMANDS = "caudal.commands"
SCHEMAS = "_schemas"

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message of capture topics and of `dead.letters`, which hold what was sent as it came. Kafka's own limit is 1 MB."""

LEADERS_S = 20.0
"""Longest wait for new topics to get their leaders, and for deleted ones to be forgotten."""
_NOT_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
}
"""What a leader answers that doesn't know yet that it leads: brokers tell of a new or moved partition a moment before."""
_COMPACTED = {PROFILES, METRICS, SCHEMAS}
_FOREVER = {CHANGES, DEAD_LETTERS, SEGMENTS}


def topic(settings: KafkaSettings, name: str) -> str:
    """The topic's full name: `name` after the configured prefix."""
    return settings.topic_prefix + name


def capture_topic(settings: KafkaSettings, source: str) -> str:
    """The topic that holds what `source` sent, as it came."""
    return topic(settings, f"capture.{source}")


def options(settings: KafkaSettings) -> dict[str, Any]:
    """What every client starts from: brokers plus the operator's own librdkafka options.

    Raises:
        Fatal: no brokers are known (the caller must resolve the embedded servers first, see `caudal.embedded`).
    """
    if not settings.bootstrap_servers:
        raise Fatal("no Kafka brokers are set", hint="run `caudal up`, or set CAUDAL_KAFKA__BOOTSTRAP_SERVERS")
    conf: dict[str, Any] = {"bootstrap.servers": settings.bootstrap_servers, "log_level": 3, **settings.options}
    if settings.password is not None:
        conf["sasl.password"] = settings.password.get_secret_value()
    return conf


def producer(settings: KafkaSettings, **extra: Any) -> Producer:
    """A producer that stores before it says so: `acks=all`, idempotent, messages of a key in order.

    The partitioner is librdkafka's default (CRC32 of the key); the projection's stripes rely on nothing but the customer id.
    """
    return Producer(
        {
            **options(settings),
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 0,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            **extra,
        }
    )


def consumer(settings: KafkaSettings, group: str, **extra: Any) -> Consumer:
    """A consumer that commits nothing by itself: offsets live in PostgreSQL, with the rows they made."""
    conf = {
        **options(settings),
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
        **extra,
    }
    return Consumer(conf)


def admin(settings: KafkaSettings) -> AdminClient:
    """An admin client."""
    return AdminClient(options(settings))


def answers(settings: KafkaSettings, timeout_s: float = 5.0) -> bool:
    """Whether a broker serves metadata within the time."""
    try:
        return bool(admin(settings).list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def ensure_topics(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Create the topics that don't exist yet (names without the prefix), and wait until they can be written; others are left as they
    are.

    Raises:
        BrokerUnavailable: the brokers can't be reached, or a new topic gets no leader in time.
    """
    client = admin(settings)
    new = []
    for name in names:
        config = {"cleanup.policy": "compact"} if name in _COMPACTED else {}
        if name in _FOREVER or name.startswith(("capture.", f"{CHANGES}.")):
            config = {"cleanup.policy": "delete", "retention.ms": "-1"}
        if name == DEAD_LETTERS or name.startswith("capture."):
            config["max.message.bytes"] = str(MAX_MESSAGE_BYTES)
        partitions = 1 if name in {SCHEMAS, COMMANDS} else settings.partitions
        new.append(NewTopic(topic(settings, name), partitions, settings.replication_factor, config=config))
    for future in client.create_topics(new, operation_timeout=20).values() if new else ():
        try:
            future.result()
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise translate_error(exc) from exc
    _await_leaders(client, [new_topic.topic for new_topic in new])
    end_offsets(
        settings, [new_topic.topic for new_topic in new], client
    )  # answered only once the leaders know that they lead


def delete_topics(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Delete topics (names without the prefix) with all that they hold, and wait until the brokers have forgotten them; those that
    don't exist are no error.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    client = admin(settings)
    wanted = [topic(settings, name) for name in names]
    for future in client.delete_topics(wanted).values() if wanted else ():
        try:
            future.result()
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise translate_error(exc) from exc
    until = time.monotonic() + LEADERS_S
    while wanted and not topics(settings, client).keys().isdisjoint(wanted) and time.monotonic() < until:
        time.sleep(0.05)


def _await_leaders(client: AdminClient, wanted: list[str]) -> None:
    """Wait until the brokers tell of every partition who leads it: a producer that asks earlier may fail its first messages."""
    until = time.monotonic() + LEADERS_S
    missing = set(wanted)
    while missing:
        try:
            known = client.list_topics(timeout=10).topics
        except KafkaException as exc:
            raise translate_error(exc) from exc
        missing = {name for name in wanted if not _led(known.get(name))}
        if missing and time.monotonic() > until:
            raise BrokerUnavailable(f"{len(missing)} new topics got no leader within {LEADERS_S:.0f} s")
        if missing:
            time.sleep(0.05)


def _led(topic: TopicMetadata | None) -> bool:
    return topic is not None and bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())


def topics(settings: KafkaSettings, client: AdminClient | None = None) -> dict[str, int]:
    """Every topic there is, by full name, with its number of partitions; `client` spares a connection.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    try:
        metadata = (client or admin(settings)).list_topics(timeout=10).topics
    except KafkaException as exc:
        raise translate_error(exc) from exc
    return {name: len(topic.partitions) for name, topic in sorted(metadata.items())}


def end_offsets(
    settings: KafkaSettings, names: Iterable[str], client: AdminClient | None = None
) -> dict[str, dict[int, int]]:
    """Where each partition ends: the offset that the next message gets, by full topic name and partition.

    Topics that don't exist are left out. `client` spares a connection.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    return _offsets(settings, names, OffsetSpec.latest(), client)  # type: ignore[no-untyped-call]  # has no annotation


def start_offsets(settings: KafkaSettings, names: Iterable[str]) -> dict[str, dict[int, int]]:
    """The first offset that each partition still holds, by full topic name and partition; topics that don't exist are left out.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    return _offsets(settings, names, OffsetSpec.earliest(), None)  # type: ignore[no-untyped-call]  # has no annotation


def _offsets(
    settings: KafkaSettings, names: Iterable[str], spec: OffsetSpec, client: AdminClient | None
) -> dict[str, dict[int, int]]:
    client = client or admin(settings)  # kept in a variable: no future resolves once its client is gone
    counts = topics(settings, client)
    found: dict[str, dict[int, int]] = {}
    wanted = [TopicPartition(name, partition) for name in names for partition in range(counts.get(name, 0))]
    until = time.monotonic() + LEADERS_S
    while wanted:
        left = []
        for place, future in client.list_offsets(dict.fromkeys(wanted, spec), request_timeout=10).items():
            try:
                found.setdefault(place.topic, {})[place.partition] = future.result().offset
            except KafkaException as exc:
                if exc.args[0].code() not in _NOT_YET or time.monotonic() > until:
                    raise translate_error(exc) from exc
                left.append(place)
        if left:
            time.sleep(0.02)
        wanted = left
    return found


def translate_error(exc: KafkaException) -> CaudalError:
    """Librdkafka's error as one of ours: retriable ones as `BrokerUnavailable`, the rest as `Fatal`."""
    error = exc.args[0]
    unreachable = {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
    if error.retriable() or error.code() in unreachable:
        return BrokerUnavailable(f"Kafka can't be reached: {error.str()}")
    return Fatal(f"Kafka refused: {error.str()}")
