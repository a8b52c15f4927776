"""What stock clients need to connect to the servers: their own names for it, with the passwords."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from caudal import kafka, postgres
from caudal.settings import KafkaSettings, PostgresSettings, RegistrySettings

__all__ = ["kafka_properties", "postgres_dsn", "registry_properties"]

_LOGIN_MODULES = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_SPELT_ALIKE = ("bootstrap.servers", "client.id", "security.protocol", "sasl.mechanism")


def kafka_properties(settings: KafkaSettings, *, java: bool = False) -> dict[str, str]:
    """The properties of a client of librdkafka's (kcat, confluent-kafka), or of Kafka's own clients.

    Raises:
        Fatal: no brokers are known.
    """
    options = kafka.options(settings)
    options.pop("log_level", None)
    if not java:
        return {name: str(value) for name, value in options.items()}
    if "sasl.mechanisms" in options:  # librdkafka takes both names
        options["sasl.mechanism"] = options.pop("sasl.mechanisms")
    found = {name: str(options[name]) for name in _SPELT_ALIKE if name in options}
    module = _LOGIN_MODULES.get(found.get("sasl.mechanism", ""))
    if module is not None:
        user, password = (_quoted(str(options.get(name, ""))) for name in ("sasl.username", "sasl.password"))
        found["sasl.jaas.config"] = f"{module} required username={user} password={password};"
    return found


def postgres_dsn(settings: PostgresSettings) -> str:
    """The connection string; without what only newer clients of libpq know.

    Raises:
        Fatal: no server is known.
    """
    parts = conninfo_to_dict(postgres.dsn(settings))
    parts.pop("require_auth", None)
    return make_conninfo(**{name: str(value) for name, value in parts.items()})


def registry_properties(settings: RegistrySettings) -> dict[str, str]:
    """The properties of Confluent's registry clients."""
    found = {"url": settings.url or ""}
    if settings.username:
        password = settings.password.get_secret_value() if settings.password else ""
        found |= {
            "basic.auth.credentials.source": "USER_INFO",
            "basic.auth.user.info": f"{settings.username}:{password}",
        }
    return found


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
