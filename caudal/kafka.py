"""The one module that owns librdkafka: client settings, topics, error translation."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    TopicMetadata,
    UserScramCredentialUpsertion,
)

from caudal.errors import BadSettings, BrokerRefused, BrokerUnavailable, CaudalError, Fatal, LogTruncated
from caudal.settings import KafkaSettings
from caudal.telemetry import Log, Seldom

__all__ = [
    "CHANGES",
    "COMMANDS",
    "DEAD_LETTERS",
    "MAX_MESSAGE_BYTES",
    "METRICS",
    "PROFILES",
    "REFUSED",
    "SCHEMAS",
    "SEGMENTS",
    "Extent",
    "Watch",
    "admin",
    "answers",
    "capture_topic",
    "consumer",
    "delete_topics",
    "end_offsets",
    "ensure_topics",
    "extents",
    "ids",
    "largest",
    "options",
    "producer",
    "reach",
    "sessions",
    "set_password",
    "start_offsets",
    "tell_error",
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
    KafkaError.OFFSET_NOT_AVAILABLE,
}
"""What a leader answers that doesn't know yet that it leads: brokers tell of a new or moved partition a moment before."""
_COMPACTED = {PROFILES, METRICS, SCHEMAS}
_FOREVER = {CHANGES, DEAD_LETTERS, SEGMENTS}

DEFAULT_LARGEST = 1_048_588
"""`max.message.bytes` of a topic that says nothing else, in Kafka as it comes."""
BATCH_BYTES = 1_000_000
"""librdkafka's own bound of a batch; a topic that takes less refuses the batch as a whole."""
REFUSED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    }
)
"""What a broker says of a batch that it will never take, however often it is sent: one of its messages is too large or not allowed."""


def topic(settings: KafkaSettings, name: str) -> str:
    """The topic's full name: `name` after the configured prefix."""
    return settings.topic_prefix + name


def capture_topic(settings: KafkaSettings, source: str) -> str:
    """The topic that holds what `source` sent, as it came."""
    return topic(settings, f"capture.{source}")


def options(settings: KafkaSettings) -> dict[str, Any]:
    """What every client starts from: brokers plus the operator's own librdkafka options.

    librdkafka itself writes no lines (they are not JSON, and 150 a second in an outage); what its clients meet comes to `tell_error`.

    Raises:
        Fatal: no brokers are known (the caller must resolve the embedded servers first, see `caudal.embedded`).
    """
    if not settings.bootstrap_servers:
        raise Fatal("no Kafka brokers are set", hint="run `caudal up`, or set CAUDAL_KAFKA__BOOTSTRAP_SERVERS")
    conf: dict[str, Any] = {"bootstrap.servers": settings.bootstrap_servers, "log_level": 0, **settings.options}
    if settings.password is not None:
        conf["sasl.password"] = settings.password.get_secret_value()
    return conf


def producer(settings: KafkaSettings, **extra: Any) -> Producer:
    """A producer that stores before it says so: `acks=all`, idempotent, messages of a key in order.

    The partitioner is librdkafka's default (CRC32 of the key); the projection's stripes rely on nothing but the customer id.
    """
    return _made(
        Producer,
        {
            **options(settings),
            "error_cb": tell_error,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 0,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            **extra,
        },
    )


def consumer(settings: KafkaSettings, group: str, **extra: Any) -> Consumer:
    """A consumer that commits nothing by itself: offsets live in PostgreSQL, with the rows they made.

    Where the log doesn't hold the offset that it is to read at, it gives an error (`translate_error` makes it `LogTruncated`) and goes
    nowhere else by itself.
    """
    return _made(
        Consumer,
        {
            **options(settings),
            "error_cb": tell_error,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "allow.auto.create.topics": False,
            **extra,
        },
    )


def admin(settings: KafkaSettings) -> AdminClient:
    """An admin client."""
    return _made(
        AdminClient, options(settings)
    )  # nobody polls it: a callback for errors would be a queue that only grows


_Client = TypeVar("_Client")


def _made(client: Callable[[dict[str, Any]], _Client], conf: dict[str, Any]) -> _Client:
    try:
        return client(conf)
    except KafkaException as exc:
        said = re.sub(r'value ".*?"( for)?', r"value\1", exc.args[0].str())  # it may be a secret
        raise BadSettings(f"Kafka's client can't be made so: {said}", hint="CAUDAL_KAFKA__OPTIONS") from None
    except (TypeError, ValueError) as exc:
        raise BadSettings("Kafka's client can't be made so: a value is no text", hint="CAUDAL_KAFKA__OPTIONS") from exc


REACHED_S = 5.0


def reach(settings: KafkaSettings, timeout_s: float = REACHED_S) -> None:
    """Make sure that the brokers can be used, before other work waits for them in vain.

    Raises:
        BadSettings: no client can be made with these options.
        BrokerUnavailable: they can't be reached in time, or refuse us; the text says why.
    """
    said: list[KafkaError] = []
    lines = _Lines()
    client = _made(AdminClient, {**options(settings), "error_cb": said.append, "log_level": 7, "logger": lines.logger})
    until = time.monotonic() + timeout_s
    while True:
        try:
            if client.list_topics(timeout=0.5).brokers:
                return
        except KafkaException as exc:
            client.poll(0.05)
            refusal = _refusal(settings, said)
            if refusal is not None:
                raise refusal from None
            if time.monotonic() > until:
                if lines.closed:
                    raise _speaks_otherwise(settings) from None
                raise _absence(settings, said or [exc.args[0]]) from None


class _Lines(logging.Handler):
    """librdkafka's own lines, of which one is told nowhere else: that a broker which lets us connect hangs up on what we ask."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.logger = logging.Logger("librdkafka")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.closed = self.closed or "closed by peer" in record.getMessage()


def _speaks_otherwise(settings: KafkaSettings) -> BrokerRefused:
    return BrokerRefused(
        f"Kafka at {settings.bootstrap_servers} can't be used: what answers there doesn't speak this protocol",
        hint="security.protocol in CAUDAL_KAFKA__OPTIONS, or the port is another program's",
    )


def _refusal(settings: KafkaSettings, said: list[KafkaError]) -> BrokerRefused | None:
    """The error when trying again can't help; its own texts name addresses, never secrets."""
    where = f"Kafka at {settings.bootstrap_servers} can't be used"
    for error in said:
        text = error.str()
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}:
            return BrokerRefused(
                f"{where}: it refuses user or password", hint="CAUDAL_KAFKA__OPTIONS, CAUDAL_KAFKA__PASSWORD"
            )
        if error.code() == KafkaError._SSL or "SSL handshake" in text:
            return BrokerRefused(
                f"{where}: no TLS connection as configured",
                hint="security.protocol and ssl.ca.location in CAUDAL_KAFKA__OPTIONS",
            )
        if "security.protocol" in text or error.code() == KafkaError._BAD_MSG:
            return _speaks_otherwise(settings)
    return None


def _absence(settings: KafkaSettings, said: list[KafkaError]) -> BrokerUnavailable:
    texts = " ".join(error.str() for error in said)
    known = {"Failed to resolve": "the host's name isn't known", "Connection refused": "nothing listens there"}
    reason = next((words for sign, words in known.items() if sign in texts), "no answer in time")
    return BrokerUnavailable(
        f"Kafka at {settings.bootstrap_servers} can't be reached: {reason}", hint="CAUDAL_KAFKA__BOOTSTRAP_SERVERS"
    )


_unreachable = Seldom()


def tell_error(error: KafkaError) -> None:
    """What a client meets, as a log line now and then: all clients of a process meet the same when a broker is away."""
    _unreachable.warning(Log.SERVER_UNREACHABLE, server="kafka", code=error.name().lower().lstrip("_"))


def answers(settings: KafkaSettings, timeout_s: float = 5.0) -> bool:
    """Whether a broker serves metadata within the time."""
    try:
        return bool(admin(settings).list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


_SCRAM_ITERATIONS = 4096
"""The least that brokers take: our passwords are no words but 24 random bytes."""


def set_password(settings: KafkaSettings, user: str, mechanism: str) -> None:
    """Let `user` in with the password of `settings` by the SCRAM mechanism of that name.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    assert settings.password is not None
    scram = ScramCredentialInfo(ScramMechanism[mechanism.replace("-", "_")], _SCRAM_ITERATIONS)
    wanted = UserScramCredentialUpsertion(user, scram, settings.password.get_secret_value().encode())
    client = admin(settings)  # kept in a variable: no future resolves once its client is gone
    try:
        for done in client.alter_user_scram_credentials([wanted], request_timeout=5).values():
            done.result()
    except KafkaException as exc:
        raise translate_error(exc) from exc


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


@dataclass(frozen=True, slots=True)
class Extent:
    """A topic as it is now: Kafka's own id of it, which another of the same name doesn't have (empty: the broker tells none), and of each
    partition the first offset that it holds and the one that its next message gets.
    """

    id: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]

    @property
    def records(self) -> int:
        """How many offsets it spans."""
        return sum(end - self.starts.get(partition, 0) for partition, end in self.ends.items())


def extents(settings: KafkaSettings, names: Iterable[str], client: AdminClient | None = None) -> dict[str, Extent]:
    """The topics that there are of these (full names); `client` spares a connection.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    client = client or admin(settings)
    wanted = [*names]
    known = ids(
        settings, wanted, client
    )  # first: of a topic that is made again meanwhile no new id goes with old bounds
    starts = _offsets(settings, known, OffsetSpec.earliest(), client)  # type: ignore[no-untyped-call]  # has no annotation
    ends = _offsets(settings, known, OffsetSpec.latest(), client)  # type: ignore[no-untyped-call]  # has no annotation
    return {name: Extent(id_, starts.get(name, {}), ends.get(name, {})) for name, id_ in known.items() if name in ends}


def ids(settings: KafkaSettings, names: Sequence[str], client: AdminClient | None = None) -> dict[str, str]:
    """Kafka's own ids of the topics that there are of these.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    client = client or admin(settings)
    found: dict[str, str] = {}
    for name, future in client.describe_topics(TopicCollection([*names]), request_timeout=10).items() if names else ():
        try:
            found[name] = str(future.result().topic_id)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise translate_error(exc) from exc
    return {name: "" if id_ == NO_ID else id_ for name, id_ in found.items()}


class Watch:
    """Notices that a topic was deleted and another made under its name, of which readers get to know nothing. For one thread."""

    EVERY_S = 2.0

    def __init__(self, settings: KafkaSettings) -> None:
        self._client = admin(settings)
        self._asked = 0.0
        self._answers: dict[str, Any] = {}
        self._known: dict[str, str] = {}

    def replaced(self, known: Mapping[str, str]) -> list[str]:
        """Of topics (full names) with the ids that they had, those that have another now, as far as is known; never waits."""
        if self._answers and all(answer.done() for answer in self._answers.values()):
            answers, self._answers = self._answers, {}
            found = []
            for topic, answer in answers.items():
                with contextlib.suppress(KafkaException):  # it isn't there just now, or the brokers can't be reached
                    now, then = str(answer.result().topic_id), self._known[topic]
                    if then not in {"", now} and known.get(topic) == then:  # else it was asked of the one before
                        found.append(topic)
            return found
        if not self._answers and known and time.monotonic() - self._asked > self.EVERY_S:
            self._asked = time.monotonic()
            self._known = dict(known)
            self._answers = self._client.describe_topics(TopicCollection([*known]), request_timeout=10)
        return []


NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
"""What a broker without ids of topics tells: the UUID of zeros."""


def largest(settings: KafkaSettings, names: Iterable[str], client: AdminClient | None = None) -> dict[str, int]:
    """The largest batch of messages that each topic takes, `max.message.bytes`; Kafka's own where it doesn't tell.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    told = _configs(client or admin(settings), ResourceType.TOPIC, [*names], ("max.message.bytes",))
    return {name: values.get("max.message.bytes", DEFAULT_LARGEST) for name, values in told.items()}


def sessions(settings: KafkaSettings) -> tuple[int, int] | None:
    """The shortest and the longest session of a consumer that the brokers take, ms; None where they don't tell.

    Raises:
        BrokerUnavailable: the brokers can't be reached.
    """
    client = admin(settings)
    try:
        brokers = [*client.list_topics(timeout=10).brokers]
    except KafkaException as exc:
        raise translate_error(exc) from exc
    names = ("group.min.session.timeout.ms", "group.max.session.timeout.ms")
    told = _configs(client, ResourceType.BROKER, [str(broker) for broker in brokers[:1]], names)
    bounds = [values[name] for values in told.values() for name in names if name in values]
    return (bounds[0], bounds[1]) if len(bounds) == len(names) else None


def _configs(
    client: AdminClient, kind: ResourceType, names: list[str], keys: Sequence[str]
) -> dict[str, dict[str, int]]:
    resources = [ConfigResource(kind, name) for name in names]
    found: dict[str, dict[str, int]] = {}
    for resource, future in client.describe_configs(resources, request_timeout=10).items() if resources else ():
        told: Any = {}
        try:
            told = future.result()
        except (
            KafkaException
        ) as exc:  # one who may write a topic may not be allowed to see how it is set, or it isn't there
            if isinstance(error := translate_error(exc), BrokerUnavailable):
                raise error from exc
        found[resource.name] = {key: int(told[key].value) for key in keys if key in told}
    return found


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
    """Librdkafka's error as one of ours: retriable ones as `BrokerUnavailable`, an offset that isn't there as `LogTruncated`, the rest as
    `Fatal`.
    """
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
    if error.code() in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
        return LogTruncated("the log doesn't hold the offset that is to be read", hint="`caudal status` shows which")
    if error.retriable() or error.code() in unreachable:
        return BrokerUnavailable(f"Kafka can't be reached: {error.str()}")
    return Fatal(f"Kafka refused: {error.str()}")
