"""The registry on real Kafka, asked by Confluent's own client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import uvicorn
from caudal.schemas._registry_log import Log
from caudal.schemas._registry_server import build
from caudal.schemas._types import schema_of
from caudal.schemas.codec import Codec, Registry
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from caudal import kafka
from caudal.errors import IncompatibleSchema
from caudal.settings import Settings

TOPICS = (kafka.CHANGES, kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS, kafka.DEAD_LETTERS, "capture.shop-br")


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """A registry of our own over the same topic; gives its address."""
    server = uvicorn.Server(uvicorn.Config(build(settings), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def test_our_schemas_register_and_another_start_changes_nothing(settings: Settings) -> None:
    first, second = Registry(settings), Registry(settings)
    first.register_all(TOPICS)
    second.register_all(TOPICS)
    topic = kafka.topic(settings.kafka, kafka.CHANGES)
    schema_id = first.id_of(topic, "OrderStated")
    assert second.id_of(topic, "OrderStated") == schema_id
    fresh = Registry(settings)
    assert fresh.schema(schema_id) == schema_of("OrderStated").avro
    assert fresh.schema(2**31 - 1) is None
    for registry in (first, second, fresh):
        registry.close()


def test_a_topic_of_schemas_that_was_deleted_gets_back_what_was_read_of_it(settings: Settings, monkeypatch) -> None:
    monkeypatch.setattr(kafka, "SCHEMAS", f"{settings.kafka.topic_prefix}schemas")
    bare = settings.kafka.model_copy(update={"topic_prefix": ""})
    log = Log(settings.kafka)
    log.append([(b"a", b"1"), (b"b", b"2"), (b"c", b"4"), (b"a", b"3"), (b"c", None)])
    assert len([*log.read()]) == 5
    kafka.delete_topics(bare, [kafka.SCHEMAS])
    assert dict(log.read()) == {b"a": b"3", b"b": b"2"}
    log.append([(b"d", b"5")])
    assert [*log.read()] == [(b"d", b"5")]
    log.close()
    another = Log(settings.kafka)
    assert dict(another.read()) == {b"a": b"3", b"b": b"2", b"d": b"5"}
    another.close()


def test_confluents_client_reads_and_writes_what_we_do(settings: Settings) -> None:
    topic = kafka.topic(settings.kafka, kafka.SEGMENTS)
    row = {
        "customer_id": "c",
        "segment": "vip",
        "change": "entered",
        "version": 3,
        "rebuilt": False,
        "changed_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "cause": None,
        "omitted": None,
    }
    ours = Registry(settings)
    codec = Codec(ours)
    message = codec.encode(topic, "SegmentChanged", row)
    with confluent(settings) as theirs:
        context = SerializationContext(topic, MessageField.VALUE)
        assert AvroDeserializer(theirs)(message, context) == row
        serialize = AvroSerializer(
            theirs,
            json.dumps(schema_of("SegmentChanged").avro),
            conf={"auto.register.schemas": False, "subject.name.strategy": lambda c, name: f"{c.topic}-{name}"},
        )
        assert serialize(row, context) == message
    ours.close()


def test_confluents_client_works_against_it(settings: Settings) -> None:
    subject = f"{settings.kafka.topic_prefix}s"
    v1 = Schema('{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}', "AVRO")
    worse = Schema('{"type":"record","name":"R","fields":[{"name":"b","type":"long"}]}', "AVRO")
    with confluent(settings) as client:
        schema_id = client.register_schema(subject, v1)
        assert json.loads(client.get_schema(schema_id).schema_str or "") == json.loads(v1.schema_str or "")
        assert client.lookup_schema(subject, v1).version == 1
        assert client.get_latest_version(subject).schema_id == schema_id
        assert client.get_version(subject, 1).subject == subject
        assert client.get_versions(subject) == [1]
        assert subject in client.get_subjects()
        assert [v.subject for v in client.get_schema_versions(schema_id)] == [subject]
        assert client.get_subjects_by_schema_id(schema_id) == [subject]
        assert client.test_compatibility(subject, worse) is False
        with pytest.raises(SchemaRegistryError) as refused:
            client.register_schema(subject, worse)
        assert (refused.value.http_status_code, refused.value.error_code) == (409, 409)
        assert "can't read records of version 1" in str(refused.value)
        client.set_compatibility(subject, "NONE")
        assert client.get_compatibility(subject) == "NONE"
        assert client.register_schema(subject, worse) != schema_id
        assert client.delete_version(subject, 1) == 1
        assert client.delete_subject(subject) == [2]
        assert client.delete_subject(subject, permanent=True) == [1, 2]
        with pytest.raises(SchemaRegistryError) as gone:
            client.get_versions(subject)
        assert gone.value.error_code == 40401


def test_what_was_registered_survives_a_restart(settings: Settings) -> None:
    topic = kafka.topic(settings.kafka, kafka.PROFILES)
    with served(settings) as url:
        registry = Registry(at(settings, url))
        schema_id = registry.id_of(topic, "CustomerProfile")
        registry.close()
    with served(settings) as url:
        registry = Registry(at(settings, url))
        assert registry.schema(schema_id) == schema_of("CustomerProfile").avro
        assert registry.id_of(topic, "CustomerProfile") == schema_id
        registry.close()


def test_an_incompatible_contract_stops_the_start_with_the_reason(settings: Settings) -> None:
    subject = f"{kafka.topic(settings.kafka, kafka.CHANGES)}-caudal.events.OrderStated"
    other = '{"type":"record","name":"OrderStated","namespace":"caudal.events","fields":[{"name":"order_id","type":"long"}]}'
    with confluent(settings) as client:
        client.register_schema(subject, Schema(other, "AVRO"))
    registry = Registry(settings)
    with pytest.raises(IncompatibleSchema, match="type_mismatch"):
        registry.register_all([kafka.CHANGES])
    registry.close()


def confluent(settings: Settings) -> SchemaRegistryClient:
    registry = settings.registry
    assert registry.password is not None
    access = f"{registry.username}:{registry.password.get_secret_value()}"
    return SchemaRegistryClient({"url": registry.url, "basic.auth.user.info": access})


def at(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"registry": settings.registry.model_copy(update={"url": url})})
