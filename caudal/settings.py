"""Settings: one frozen object, built only at the entry points and passed down.

Every setting is an environment variable `CAUDAL_<GROUP>__<NAME>`. Unknown `CAUDAL_*` names are an error.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from caudal.errors import BadSettings

__all__ = [
    "EdgeSettings",
    "EmbeddedSettings",
    "KafkaSettings",
    "PostgresSettings",
    "RegistrySettings",
    "ServingSettings",
    "Settings",
    "WorkerSettings",
    "environment",
    "load",
    "suspect",
]

PREFIX = "CAUDAL_"


LONGEST_S = 86_400
"""No wait is longer than a day: PostgreSQL's and Kafka's numbers end at 24 of them, and what is beyond they refuse late."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KafkaSettings(_Group):
    """Apache Kafka. With no `bootstrap_servers` the embedded broker is used."""

    bootstrap_servers: str | None = Field(
        None, description="Brokers, `host:port,host:port`. Unset: the embedded broker."
    )
    options: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="librdkafka options passed through, as JSON: SASL, TLS, client.id."
    )
    password: SecretStr | None = Field(None, description="`sasl.password`, kept apart so that it is never printed.")
    topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=150,  # a topic's name has 249 characters, a source's 64
        description="Put before every topic and consumer group name.",
    )
    partitions: int = Field(
        8, ge=1, le=64, description="Partitions of new topics. A power of two keeps workers apart best."
    )
    replication_factor: int = Field(1, ge=1, le=32_767, description="Replicas of new topics.")

    @field_validator("options", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:  # its text may quote what is no JSON, which may hold a password
            raise ValueError("is no JSON") from None


class PostgresSettings(_Group):
    """PostgreSQL 18 or newer. With no `dsn` the embedded server is used."""

    dsn: SecretStr | None = Field(None, description="libpq connection string. Unset: the embedded server.")
    statement_timeout_s: float = Field(
        60.0, ge=0.001, le=LONGEST_S, description="Longest statement of the API, seconds."
    )
    pool_size: int = Field(8, ge=1, le=10_000, description="Connections of the API's pool.")

    @field_validator("dsn")
    @classmethod
    def _readable(cls, dsn: SecretStr | None) -> SecretStr | None:
        if dsn is not None:
            from psycopg import ProgrammingError
            from psycopg.conninfo import conninfo_to_dict

            try:
                conninfo_to_dict(dsn.get_secret_value())
            except ProgrammingError:  # its text quotes the string, which holds the password
                raise ValueError(
                    "is no connection string of PostgreSQL's (postgresql://user:password@host/db)"
                ) from None
        return dsn


class RegistrySettings(_Group):
    """Confluent-compatible schema registry. With no `url` Caudal's own is used."""

    url: str | None = Field(None, description="Registry address. Unset: the embedded registry.")
    username: str | None = Field(None, description="Basic authentication user.")
    password: SecretStr | None = Field(None, description="Basic authentication password.")
    host: str = Field("127.0.0.1", description="Address that `caudal run --role registry` listens on.")
    port: int = Field(0, ge=0, le=65535, description="Port of the embedded registry; 0 takes a free one.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        try:
            parts = urlsplit(url or "http://none")
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text may quote the address, which may hold a password
            usable = False
        if not usable:
            raise ValueError("is no http:// or https:// address")
        return url


class EmbeddedSettings(_Group):
    """The servers that Caudal runs itself."""

    kafka_port: int = Field(0, ge=0, le=65535, description="Port of the embedded broker; 0 takes a free one.")
    postgres_port: int = Field(0, ge=0, le=65535, description="Port of the embedded PostgreSQL; 0 takes a free one.")
    kafka_heap_mb: int = Field(512, ge=128, le=1_048_576, description="Heap of the embedded broker, MB.")
    jars_dir: Path | None = Field(None, description="Where the broker's jars are kept. Unset: the user's cache folder.")
    java: str | None = Field(None, description="A java command to use instead of the bundled one.")


class EdgeSettings(_Group):
    """The capture edge, `POST /in/{source}`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8470, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(
        5 * 1024 * 1024, ge=1024, le=15 * 1024 * 1024, description="Largest delivery taken, bytes."
    )
    produce_timeout_s: float = Field(
        4.0,
        ge=0.1,
        le=LONGEST_S,
        description="How long to wait for Kafka before answering 503. Shopify gives up at 5 s.",
    )
    receive_timeout_s: float = Field(
        10.0, gt=0, le=LONGEST_S, description="How long a sender may take to send its body, seconds."
    )
    public_url: str | None = Field(None, description="The edge's address as the vendors see it (HubSpot signs it).")
    metrics_host: str = Field(
        "127.0.0.1", description="Address of the edge's metrics page, apart from what vendors reach."
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the edge's metrics page; 0 takes a free one.")
    replay_window_s: int = Field(
        300, ge=0, le=10 * 365 * LONGEST_S, description="Oldest signed timestamp accepted, seconds; 0 takes any."
    )


class WorkerSettings(_Group):
    """Translate and project workers."""

    batch_max_events: int = Field(20_000, ge=1, le=1_000_000, description="Most records taken into one batch.")
    web_port: int = Field(
        0, ge=0, le=65535, description="Port of the worker's health and metrics page; 0 takes a free one."
    )
    session_timeout_ms: int = Field(
        10_000,
        ge=1000,
        le=1_800_000,
        description="Kafka consumer session timeout, ms; within the brokers' bounds, which are 6,000 and 1,800,000 unless they are set.",
    )
    verify_hour: int = Field(
        3,
        ge=0,
        le=23,
        description="Hour (UTC) after which one worker proves a sample of customers against the log, daily.",
    )
    verify_sample: int = Field(200, ge=0, le=10_000_000, description="Customers of the daily proof; 0 leaves it out.")
    scores_every_h: int = Field(
        24,
        ge=0,
        le=87_600,
        description="Hours after which one worker computes everybody's scores again; 0 leaves it out.",
    )


class ServingSettings(_Group):
    """The HTTP API and the live stream."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8471, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    min_token_wait_s: float = Field(
        5.0, gt=0, le=LONGEST_S, description="Longest wait for a read with `min-token`, seconds."
    )


class Settings(BaseSettings):
    """All settings. Build it with `load()` at an entry point and pass it down."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", allow_inf_nan=False
    )

    home: Path = Field(Path(".caudal"), description="Folder for embedded servers' data, logs and run files.")
    config_file: Path = Field(
        Path("caudal.toml"),
        description="Sources and scheduled reports are read from this file, sources are written to it.",
    )
    secrets_file: Path | None = Field(
        None,
        description="TOML file with secrets by name; the environment wins. Unset: `secrets.toml` in the home folder.",
    )
    default_region: str = Field(
        "BR", pattern="^[A-Z]{2}$", description="ISO 3166 country for phone numbers without a country code."
    )
    base_currency: str = Field(
        "BRL",
        pattern="^[A-Z]{3}$",
        description="ISO 4217 code of the currency that `caudal rates load` takes rates to.",
    )
    log_level: str = Field(
        "info", pattern="(?i)^(debug|info|warning|error|critical)$", description="debug, info, warning or error."
    )
    log_json: bool | None = Field(None, description="JSON log lines. Unset: JSON unless standard error is a terminal.")
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    postgres: PostgresSettings = Field(default_factory=PostgresSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    embedded: EmbeddedSettings = Field(default_factory=EmbeddedSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)


def load(**overrides: Any) -> Settings:
    """Read the environment; `overrides` win (used by tests and the command line).

    Raises:
        BadSettings: a value doesn't fit, or a `CAUDAL_*` variable names no setting.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and not name.startswith(SECRET_PREFIX) and name not in names()
    )
    if unknown:
        raise BadSettings(f"unknown setting {', '.join(unknown)}", hint="docs/reference/settings.md lists all names")
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        faults = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}"
            for e in exc.errors(include_input=False, include_url=False)
        )
        raise BadSettings(f"bad settings: {faults}", hint="docs/reference/settings.md lists all names") from None


def suspect(settings: Settings) -> list[str]:
    """The passwords that begin or end with something that can't be seen. They may be meant so: they are told, and never altered."""
    given = {
        "CAUDAL_KAFKA__PASSWORD": settings.kafka.password,
        "CAUDAL_POSTGRES__DSN": settings.postgres.dsn,
        "CAUDAL_REGISTRY__PASSWORD": settings.registry.password,
    }
    return [name for name, value in given.items() if value and not _seen(value.get_secret_value())]


def _seen(text: str) -> bool:
    return all(c.isprintable() and not c.isspace() for c in (text[:1], text[-1:]) if c)


SECRET_PREFIX = "CAUDAL_SECRET_"  # noqa: S105 - the prefix of variables, not a secret
"""`CAUDAL_SECRET_<NAME>` holds a source's secret; the names are the operator's own."""


def names() -> dict[str, str]:
    """Every environment variable that is a setting, with its description."""
    found: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            for sub, subfield in group.model_fields.items():
                found[f"{PREFIX}{name}__{sub}".upper()] = subfield.description or ""
        else:
            found[f"{PREFIX}{name}".upper()] = field.description or ""
    return found


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child has these settings: our own, but no setting from it."""
    known = names()
    made = {name: value for name, value in os.environ.items() if name not in known}
    for name, value in settings:
        if isinstance(value, _Group):
            made |= {f"{PREFIX}{name}__{sub}".upper(): _text(each) for sub, each in value if each is not None}
        elif value is not None:
            made[f"{PREFIX}{name}".upper()] = _text(value)
    return made


def _text(value: Any) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case dict():
            return json.dumps(value)
        case _:
            return str(value)
