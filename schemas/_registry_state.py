"""What a schema registry knows, as a pure function of the records of its `_schemas` topic, and its rules for changing it.

Records have the format of Confluent's registry, which Karapace reads too: either can take over the topic later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from caudal.schemas._compatibility import DEFAULT_LEVEL, LEVELS, faults, validate

from caudal.errors import BadSchema

__all__ = ["Record", "Refused", "State", "Version"]


class Refused(Exception):
    """A request that can't be met, with Confluent's error code; the code's first three digits are the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a subject's schema."""

    subject: str
    version: int
    id: int
    schema: str
    deleted: bool = False
    kind: str = "AVRO"

    def answer(self) -> dict[str, Any]:
        """As the API tells it."""
        told: dict[str, Any] = {"subject": self.subject, "version": self.version, "id": self.id, "schema": self.schema}
        return told if self.kind == "AVRO" else {**told, "schemaType": self.kind}


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the `_schemas` topic; without a value it removes its key."""

    key: dict[str, Any]
    value: dict[str, Any] | None

    @classmethod
    def of(cls, version: Version) -> Record:
        """The record that states a version."""
        value = {**version.answer(), "deleted": version.deleted}
        return cls(_version_key(version), value)


def _version_key(version: Version) -> dict[str, Any]:
    return {"keytype": "SCHEMA", "subject": version.subject, "version": version.version, "magic": 1}


class State:
    """The registry's contents. `apply` changes them; the other methods answer, or say which records would make a change."""

    def __init__(self) -> None:
        self._subjects: dict[str, dict[int, Version]] = {}
        self._levels: dict[str | None, str] = {}
        self._last_id = 0

    def apply(self, record: Record) -> None:
        """Take one record of the topic. Kinds that we don't know are passed over, as the other registries do."""
        key, value = record.key, record.value
        subject = key.get("subject")
        match key.get("keytype"):
            case "SCHEMA" if isinstance(subject, str):
                versions = self._subjects.setdefault(subject, {})
                if value is None:
                    versions.pop(key["version"], None)
                    if not versions:
                        del self._subjects[subject]
                    return
                version = Version(
                    subject,
                    key["version"],
                    value["id"],
                    value["schema"],
                    bool(value.get("deleted")),
                    value.get("schemaType") or "AVRO",
                )
                versions[version.version] = version
                self._last_id = max(self._last_id, version.id)
            case "DELETE_SUBJECT" if isinstance(subject, str) and value is not None:
                for version in list(self._subjects.get(subject, {}).values()):
                    if version.version <= value["version"]:
                        self._subjects[subject][version.version] = replace(version, deleted=True)
            case "CONFIG" if value is not None:
                self._levels[subject] = value.get("compatibilityLevel") or DEFAULT_LEVEL
            case "CONFIG":
                self._levels.pop(subject, None)

    # --- answers -------------------------------------------------------------------------------------------------------------

    def subjects(self, *, deleted: bool = False) -> list[str]:
        """Names of the subjects, sorted; with `deleted` also those whose versions are all deleted softly."""
        return sorted(s for s, vs in self._subjects.items() if deleted or not all(v.deleted for v in vs.values()))

    def versions(self, subject: str, *, deleted: bool = False) -> list[Version]:
        """A subject's versions, oldest first."""
        known = self._subjects.get(subject, {})
        found = [known[number] for number in sorted(known) if deleted or not known[number].deleted]
        if not found:
            raise Refused(40401, f"Subject '{subject}' not found.")
        return found

    def version(self, subject: str, number: str, *, deleted: bool = False) -> Version:
        """One version, by its number or `latest`."""
        versions = self.versions(subject, deleted=deleted)
        if number in ("latest", "-1"):
            return versions[-1]
        try:
            wanted = int(number)
        except ValueError:
            wanted = 0
        if not 1 <= wanted < 2**31:
            raise Refused(
                42202,
                f"The specified version '{number}' is not a valid version id. Allowed values are between [1, 2^31-1] "
                'and the string "latest"',
            )
        for version in versions:
            if version.version == wanted:
                return version
        raise Refused(40402, f"Version {wanted} not found.")

    def uses(self, schema_id: int, *, deleted: bool = False) -> list[Version]:
        """Where a schema id is used; with `deleted` also in softly deleted versions."""
        everywhere = [v for vs in self._subjects.values() for v in vs.values() if v.id == schema_id]
        if not everywhere:
            raise Refused(40403, f"Schema {schema_id} not found")
        found = [v for v in everywhere if deleted or not v.deleted]
        return sorted(found, key=lambda v: (v.subject, v.version))

    def lookup(self, subject: str, schema: str, *, deleted: bool = False) -> Version:
        """The newest version of a subject with this schema."""
        wanted = canonical(compact(schema))
        for version in reversed(self.versions(subject, deleted=deleted)):
            if canonical(version.schema) == wanted:
                return version
        raise Refused(40403, "Schema not found")

    def level(self, subject: str | None, *, default: bool = False) -> str:
        """The compatibility level that was set; with `default` the one that applies."""
        if subject in self._levels:
            return self._levels[subject]
        if subject is None or default:
            return self._levels.get(None, DEFAULT_LEVEL)
        raise Refused(40408, f"Subject '{subject}' does not have subject-level compatibility configured")

    def incompatibilities(self, subject: str, schema: str, against: list[Version] | None = None) -> list[str]:
        """Why a schema may not follow `against`, by default the subject's versions by its level."""
        level = self.level(subject, default=True)
        if against is None:
            live = self._subjects.get(subject, {}).values()
            against = sorted((v for v in live if not v.deleted), key=lambda v: v.version)
        return faults(compact(schema), [(v.version, v.schema) for v in against if v.kind == "AVRO"], level)

    # --- changes -------------------------------------------------------------------------------------------------------------

    def register(self, subject: str, schema: str) -> tuple[Version, list[Record]]:
        """A new version of a subject; no record when the schema is one of its versions already.

        The same schema under another subject, or deleted before, keeps its id.
        """
        text = compact(schema)
        wanted = canonical(text)
        known = self._subjects.get(subject, {})
        for version in known.values():
            if not version.deleted and canonical(version.schema) == wanted:
                return version, []
        reasons = self.incompatibilities(subject, schema)
        if reasons:
            raise Refused(
                409,
                f'Schema being registered is incompatible with an earlier schema for subject "{subject}", '
                f"details: [{'; '.join(reasons)}], compatibility: {self.level(subject, default=True)}",
            )
        same = (v.id for vs in self._subjects.values() for v in vs.values() if canonical(v.schema) == wanted)
        version = Version(subject, max(known, default=0) + 1, next(same, self._last_id + 1), text)
        return version, [Record.of(version)]

    def delete_subject(self, subject: str, *, permanent: bool) -> tuple[list[int], list[Record]]:
        """Delete a subject softly, or for good after that; gives the versions."""
        if permanent:
            versions = self.versions(subject, deleted=True)
            if not all(v.deleted for v in versions):
                raise Refused(40405, f"Subject '{subject}' was not deleted first before being permanently deleted")
            return [v.version for v in versions], [Record(_version_key(v), None) for v in versions]
        if subject in self._subjects and subject not in self.subjects():
            raise Refused(40404, f"Subject '{subject}' was soft deleted. Set permanent=true to delete permanently")
        numbers = [v.version for v in self.versions(subject)]
        key = {"keytype": "DELETE_SUBJECT", "subject": subject, "magic": 0}
        return numbers, [Record(key, {"subject": subject, "version": numbers[-1]})]

    def delete_version(self, subject: str, number: str, *, permanent: bool) -> tuple[int, list[Record]]:
        """Delete a version softly, or for good after that; gives its number."""
        version = self.version(subject, number, deleted=True)
        if permanent:
            if not version.deleted:
                raise Refused(
                    40407,
                    f"Subject '{subject}' Version {version.version} was not deleted first before being permanently deleted",
                )
            return version.version, [Record(_version_key(version), None)]
        if version.deleted and number not in ("latest", "-1"):
            raise Refused(
                40406,
                f"Subject '{subject}' Version {version.version} was soft deleted. Set permanent=true to delete permanently",
            )
        version = self.version(subject, number)
        return version.version, [Record.of(replace(version, deleted=True))]

    def set_level(self, subject: str | None, level: str | None) -> list[Record]:
        """Set a compatibility level, for all subjects with None; without a level the subject's own is removed."""
        if level is not None and level not in LEVELS:
            raise Refused(42203, f"Invalid compatibility level. Valid values are {', '.join(LEVELS)}")
        key = {"keytype": "CONFIG", "subject": subject, "magic": 0}
        return [Record(key, None if level is None else {"compatibilityLevel": level})]


def compact(schema: str) -> str:
    """A schema's text without needless whitespace.

    Raises:
        Refused: not an Avro schema (42201).
    """
    try:
        validate(schema)
    except BadSchema as exc:
        raise Refused(42201, f"Invalid schema {exc.message}") from None
    return json.dumps(json.loads(schema), separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=10_000)
def canonical(schema: str) -> str:
    """What makes two schemas the same: all but the order of attributes, whitespace and the spelling of plain types."""
    try:
        return json.dumps(_plain(json.loads(schema)), sort_keys=True)
    except ValueError:
        return schema  # not JSON: another registry's Protobuf


def _plain(schema: Any) -> Any:
    if isinstance(schema, dict):
        if schema.keys() == {"type"} and isinstance(schema["type"], str):
            return schema["type"]
        return {name: _plain(value) for name, value in schema.items()}
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def records(pairs: Iterator[tuple[bytes | None, bytes | None]]) -> Iterator[Record]:
    """The records among a topic's messages; what isn't JSON of the known shape is passed over."""
    for key, value in pairs:
        try:
            parsed = Record(json.loads(key or b""), json.loads(value) if value else None)
        except ValueError:
            continue
        if isinstance(parsed.key, dict) and isinstance(parsed.value, dict | None):
            yield parsed
