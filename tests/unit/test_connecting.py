"""What stock clients are told to connect with."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from caudal import connecting
from caudal.settings import KafkaSettings, PostgresSettings, RegistrySettings

SASL = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "SCRAM-SHA-256",
    "sasl.username": "caudal",
    "log_level": "0",
}
KAFKA = KafkaSettings.model_validate({"bootstrap_servers": "127.0.0.1:9", "options": SASL, "password": 'a"b\\c'})


def test_librdkafkas_clients_get_its_own_names() -> None:
    assert connecting.kafka_properties(KAFKA) == {
        "bootstrap.servers": "127.0.0.1:9",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "caudal",
        "sasl.password": 'a"b\\c',
    }


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_kafkas_own_clients_get_theirs(name: str) -> None:
    options = {**{key: value for key, value in SASL.items() if key != "sasl.mechanism"}, name: "SCRAM-SHA-256"}
    found = connecting.kafka_properties(KAFKA.model_copy(update={"options": options}), java=True)
    assert found == {
        "bootstrap.servers": "127.0.0.1:9",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required"
        ' username="caudal" password="a\\"b\\\\c";',
    }


def test_brokers_without_passwords_need_their_address_alone() -> None:
    plain = KafkaSettings(bootstrap_servers="kafka:9092")
    assert (
        connecting.kafka_properties(plain)
        == connecting.kafka_properties(plain, java=True)
        == {"bootstrap.servers": "kafka:9092"}
    )


def test_an_older_psql_can_read_the_connection_string() -> None:
    dsn = "postgresql://caudal:word@127.0.0.1:5/caudal?require_auth=scram-sha-256"
    told = connecting.postgres_dsn(PostgresSettings.model_validate({"dsn": dsn}))
    assert conninfo_to_dict(told) == {
        "user": "caudal",
        "password": "word",
        "host": "127.0.0.1",
        "port": "5",
        "dbname": "caudal",
    }


def test_confluents_registry_clients_get_their_names() -> None:
    registry = RegistrySettings.model_validate({"url": "http://127.0.0.1:8", "username": "caudal", "password": "word"})
    assert connecting.registry_properties(registry) == {
        "url": "http://127.0.0.1:8",
        "basic.auth.credentials.source": "USER_INFO",
        "basic.auth.user.info": "caudal:word",
    }
    assert connecting.registry_properties(RegistrySettings(url="http://r")) == {"url": "http://r"}
