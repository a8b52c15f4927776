"""A system made up for tests, its captures in Kafka, and what the translate step makes of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from caudal.connectors import Connector, Delivery, Hmac, Payload, identifiers, parse_json
from caudal.processors.translate import Translator
from caudal.schemas import Event, Identifier, ProfileStated, SubjectDeleted
from caudal.schemas.codec import Codec, LocalRegistry
from confluent_kafka import Message, TopicPartition

from caudal import connectors, kafka, postgres
from caudal.settings import Settings

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _items(delivery: Delivery) -> Iterator[tuple[str, str, Any]]:
    value = parse_json(delivery.body)
    for place, item in enumerate(value if isinstance(value, list) else [value]):
        yield delivery.kind or "", f"{delivery.delivery_id}:{place}", item


people = Connector(
    name="people",
    title="People",
    kind=lambda _headers, _body: "person",
    delivery_id=lambda _headers, _body: None,
    verify=Hmac(header="x-signature"),
    split=_items,
)
"""Its deliveries say what the event shall be, or are a list of such."""


class Person(Payload):
    subject: str
    name: str | None = None
    tags: tuple[str, ...] | None = None
    identifiers: tuple[tuple[str, str], ...] = ()
    at: datetime = T0
    email: str | None = None
    phone: str | None = None
    cpf: str | None = None
    other_emails: tuple[str, ...] | None = None
    cleared: tuple[str, ...] = ()


@people.on("person")
def person_stated(person: Person, _source: str) -> Iterator[Event]:
    own = identifiers(email=(person.email, *(person.other_emails or ())), phone=person.phone, cpf=person.cpf)
    yield ProfileStated(
        subject=person.subject,
        occurred_at=person.at,
        name=person.name,
        tags=person.tags,
        identifiers=(*own, *(Identifier(kind=kind, value=value) for kind, value in person.identifiers)),
        email=person.email,
        phone=person.phone,
        cpf=person.cpf,
        other_emails=person.other_emails,
        cleared=person.cleared,
    )


class Gone(Payload):
    subject: str
    kind: str = "deleted"
    scope: str = "subject"
    at: datetime = T0


@people.on("gone")
def person_gone(gone: Gone, _source: str) -> Iterator[Event]:
    yield SubjectDeleted(subject=gone.subject, occurred_at=gone.at, kind=gone.kind, scope=gone.scope)


@pytest.fixture
def with_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the made-up connector."""
    installed = {**connectors.registry(), people.name: people}
    monkeypatch.setattr(connectors, "registry", lambda: installed)


def codec_of(settings: Settings) -> Codec:
    """Ids are the same everywhere, so that no test of this step waits for a registry."""
    return Codec(LocalRegistry(settings.kafka.topic_prefix))


def capture(
    settings: Settings,
    source: str,
    payloads: Sequence[Mapping[str, Any] | bytes],
    *,
    connector: str = "people",
    kind: str = "person",
    partition: int | None = None,
) -> None:
    """Put deliveries of a source on its topic."""
    codec = codec_of(settings)
    kafka.ensure_topics(settings.kafka, [f"capture.{source}"])
    topic = kafka.capture_topic(settings.kafka, source)
    producer = kafka.producer(settings.kafka)
    errors: list[object] = []
    for payload in payloads:
        delivery_id = uuid.uuid4().hex
        row = {
            "capture_id": delivery_id,
            "source": source,
            "connector": connector,
            "delivery_id": delivery_id,
            "kind": kind,
            "method": "POST",
            "url": f"/in/{source}",
            "headers": {},
            "body": payload if isinstance(payload, bytes) else orjson.dumps(payload),
            "captured_at": datetime.now(UTC),
        }
        where = {} if partition is None else {"partition": partition}
        value = codec.encode(topic, "Capture", row)
        producer.produce(topic, value, delivery_id, on_delivery=lambda error, _: errors.append(error), **where)
    assert producer.flush(30) == 0
    assert not any(errors), errors


def read(settings: Settings, topics: Sequence[str]) -> list[Message]:
    """Every message that the topics (full names) hold now."""
    consumer = kafka.consumer(settings.kafka, "unused")
    ends = kafka.end_offsets(settings.kafka, topics)
    left = {(topic, partition): end for topic in topics for partition, end in ends[topic].items() if end}
    consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in left])
    found: list[Message] = []
    until = time.monotonic() + 60
    while left:
        assert time.monotonic() < until, f"not all of {topics} could be read"
        for message in consumer.consume(5000, 0.1):
            assert message.error() is None, message.error()
            found.append(message)
            key = (message.topic(), message.partition())
            if message.offset() + 1 >= left.get(key, 0):
                left.pop(key, None)
    consumer.close()
    return found


def events(settings: Settings, name: str | None = None) -> list[dict[str, Any]]:
    """The events on customer.changes, as dictionaries with their type, key and partition, by partition and offset."""
    codec = codec_of(settings)
    messages = read(settings, [kafka.topic(settings.kafka, kafka.CHANGES)])
    messages.sort(key=lambda m: (m.partition(), m.offset()))
    found = []
    for message in messages:
        record, row = codec.decode(message.value())
        assert dict(message.headers())["event_type"] == record.encode()
        assert message.key() == row["customer_id"].encode()
        found.append({"type": record, "partition": message.partition(), "offset": message.offset(), **row})
    return [event for event in found if name in (None, event["type"])]


def dead_letters(settings: Settings) -> list[dict[str, Any]]:
    """The dead letters."""
    codec = codec_of(settings)
    return [codec.decode(m.value())[1] for m in read(settings, [kafka.topic(settings.kafka, kafka.DEAD_LETTERS)])]


def translator(settings: Settings) -> Translator:
    return Translator(settings, codec_of(settings))


def take_over(settings: Settings, step: Translator, sources: Sequence[str]) -> list[Message]:
    """Give the step all partitions of the sources; the messages that it has not done yet."""
    topics = [kafka.capture_topic(settings.kafka, source) for source in sources]
    partitions = [(topic, n) for topic in topics for n in range(settings.kafka.partitions)]
    stored = step.positions(partitions)
    messages = read(settings, topics)
    return [m for m in messages if m.offset() >= stored.get((m.topic(), m.partition()), 0)]


def translate(settings: Settings, sources: Sequence[str], *, size: int = 1000) -> None:
    """Translate what the sources have sent."""
    step = translator(settings)
    messages = take_over(settings, step, sources)
    for begin in range(0, len(messages), size):
        step.apply(step.prepare(messages[begin : begin + size]))
    step.close()


def partition_of_subjects(settings: Settings) -> set[frozenset[str]]:
    """Subjects by customer, as hub.subjects has them."""
    with postgres.connect(settings.postgres, role="tests") as db:
        rows = db.execute("SELECT array_agg(subject) FROM hub.subjects GROUP BY customer_id").fetchall()
    return {frozenset(subjects) for (subjects,) in rows}


def links_by_log(settings: Settings) -> dict[str, tuple[int, str]]:
    """The newest link of every subject, as a reader of customer.changes sees it."""
    newest: dict[str, tuple[int, str]] = {}
    for event in events(settings, "SubjectLinked"):
        link = event["link_seq"], event["customer_id"]
        newest[event["subject"]] = max(link, newest.get(event["subject"], link))
    return newest


def links_by_table(settings: Settings) -> dict[str, tuple[int, str]]:
    """The newest link of every subject, as hub.subjects has it."""
    with postgres.connect(settings.postgres, role="tests") as db:
        rows = db.execute("SELECT subject, link_seq, customer_id::text FROM hub.subjects").fetchall()
    return {subject: (seq, customer) for subject, seq, customer in rows}
