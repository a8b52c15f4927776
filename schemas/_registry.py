"""The client of the schema registry: which id stands for which schema."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx
from caudal.schemas._types import RECORDS, schema_of
from caudal.schemas.events import EVENT_TYPES

from caudal import kafka
from caudal.errors import BadSchema, BadSettings, IncompatibleSchema, RegistryUnavailable
from caudal.settings import Settings
from caudal.telemetry import Log, logger

__all__ = ["Ids", "LocalRegistry", "Registry", "records_on", "subject_of"]

_UNKNOWN_FOR_S = 30.0
"""How long an id stays unknown before it is asked for again: damaged messages must not become requests, each one."""


class Ids(Protocol):
    """What the codec asks of a registry."""

    @property
    def changes(self) -> str:
        """The full name of the topic of canonical events."""
        ...

    def id_of(self, topic: str, record: str) -> int:
        """The id of today's schema of `record` on `topic` (full name), registered if it is new."""
        ...

    def schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema of an id, or None."""
        ...


def subject_of(topic: str, record: str) -> str:
    """The registry's subject for a record on a topic (full name): TopicRecordNameStrategy."""
    avro = schema_of(record).avro
    return f"{topic}-{avro['namespace']}.{avro['name']}"


def records_on(name: str) -> tuple[str, ...]:
    """The records that a topic carries, by the topic's name without prefix.

    Raises:
        BadSchema: not one of our topics.
    """
    if name.startswith("capture."):
        return ("Capture",)
    try:
        return _RECORDS_ON[name]
    except KeyError:
        raise BadSchema(f"the topic {name!r} carries no records of ours") from None


_RECORDS_ON = {
    kafka.CHANGES: tuple(EVENT_TYPES),
    kafka.PROFILES: ("CustomerProfile",),
    kafka.METRICS: ("CustomerMetrics",),
    kafka.SEGMENTS: ("SegmentChanged",),
    kafka.DEAD_LETTERS: ("DeadLetter",),
}


class Registry:
    """A Confluent-compatible registry over HTTP, with what it said remembered: ids never change. Safe to share by threads."""

    def __init__(self, settings: Settings) -> None:
        """Connects on first use.

        Raises:
            BadSettings: no address is set (the caller resolves the embedded registry first, see `caudal.embedded`).
        """
        if not settings.registry.url:
            raise BadSettings("no schema registry is set", hint="run `caudal up`, or set CAUDAL_REGISTRY__URL")
        password = settings.registry.password
        auth = (settings.registry.username, password.get_secret_value() if password else "")
        url = settings.registry.url.rstrip("/")
        self._http = httpx.Client(
            base_url=url,
            verify=url.lower().startswith("https:"),  # loading the authorities takes 60 ms, which plain HTTP needs not
            auth=auth if settings.registry.username else None,  # type: ignore[arg-type] # both are text here
            timeout=10.0,
            headers={"Accept": "application/vnd.schemaregistry.v1+json"},
        )
        self._kafka = settings.kafka
        self._ids: dict[tuple[str, str], int] = {}
        self._schemas: dict[int, Mapping[str, Any]] = {}
        self._unknown: dict[int, float] = {}
        self._lock = threading.Lock()

    @property
    def changes(self) -> str:
        """The full name of the topic of canonical events."""
        return kafka.topic(self._kafka, kafka.CHANGES)

    def register_all(self, topics: Iterable[str]) -> None:
        """Register today's schemas under the subjects of `topics` (names without the prefix). Done at start, so that a change
        that would break readers stops the process before it writes anything.

        Raises:
            IncompatibleSchema: the registry refuses one; the text names the reason.
            RegistryUnavailable: the registry can't be reached.
        """
        for name in topics:
            for record in records_on(name):
                self.id_of(kafka.topic(self._kafka, name), record)

    def id_of(self, topic: str, record: str) -> int:
        """The id of today's schema of `record` on `topic` (full name), registered if it is new.

        Raises:
            IncompatibleSchema: the registry refuses it; the text names the reason.
            RegistryUnavailable: the registry can't be reached.
        """
        known = self._ids.get((topic, record))
        if known is not None:
            return known
        subject, avro = subject_of(topic, record), schema_of(record).avro
        answer = self._call("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": json.dumps(avro)})
        assert answer is not None
        schema_id = int(answer["id"])
        with self._lock:
            self._ids[topic, record] = schema_id
            self._schemas[schema_id] = avro
        logger().info(Log.SCHEMA_REGISTERED, subject=subject, schema_id=schema_id)
        return schema_id

    def schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema of an id; None when the registry has none.

        Raises:
            RegistryUnavailable: the registry can't be reached.
        """
        found = self._schemas.get(schema_id)
        if found is not None or self._unknown.get(schema_id, 0.0) > time.monotonic():
            return found
        answer = self._call("GET", f"/schemas/ids/{schema_id}")
        try:
            found = json.loads(answer["schema"]) if answer is not None else None
        except ValueError:
            found = None  # not Avro
        with self._lock:
            if isinstance(found, dict):
                self._schemas[schema_id] = found
                return found
            if len(self._unknown) > 10_000:
                self._unknown.clear()
            self._unknown[schema_id] = time.monotonic() + _UNKNOWN_FOR_S
        return None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        try:
            response = self._http.request(method, path, json=body)
            answer = response.json()
        except httpx.HTTPError as exc:
            raise RegistryUnavailable(f"the schema registry can't be reached ({type(exc).__name__})") from exc
        except ValueError as exc:
            raise RegistryUnavailable(f"the schema registry answered {response.status_code} without JSON") from exc
        if response.is_success:
            return answer  # type: ignore[no-any-return] # JSON
        message = answer.get("message", "") if isinstance(answer, dict) else ""
        match response.status_code:
            case 404 if method == "GET":
                return None
            case 409:
                raise IncompatibleSchema(message or "the schema registry refused the schema")
            case 401 | 403:
                raise BadSettings(
                    "the schema registry refused the credentials", hint="CAUDAL_REGISTRY__USERNAME, __PASSWORD"
                )
            case 422:
                raise BadSchema(f"the schema registry refused the schema: {message}")
            case code:
                raise RegistryUnavailable(f"the schema registry answered {code}: {message}")


class LocalRegistry:
    """Ids without a server, the same in every process: for tests and benchmarks. Today's schemas get 1, 2, … by name."""

    def __init__(self, topic_prefix: str = "") -> None:
        """Knows today's schemas."""
        self.changes = topic_prefix + kafka.CHANGES
        self._schemas: dict[int, Mapping[str, Any]] = {
            i: schema_of(record).avro for i, record in enumerate(RECORDS, start=1)
        }

    def register_all(self, topics: Iterable[str]) -> None:
        """Check that the topics carry records of ours."""
        for name in topics:
            records_on(name)

    def id_of(self, topic: str, record: str) -> int:
        """The id of today's schema of `record`, whatever the topic."""
        schema_of(record)
        return RECORDS.index(record) + 1

    def schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema of an id, or None."""
        return self._schemas.get(schema_id)

    def add(self, schema: Mapping[str, Any]) -> int:
        """Take another schema, as an older writer's; gives its id."""
        schema_id = len(self._schemas) + 1
        self._schemas[schema_id] = schema
        return schema_id

    def close(self) -> None:
        """Nothing to close."""
