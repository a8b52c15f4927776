"""Whether data of one schema version can be read with another, by the rules of the official `avro` package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import avro.errors
import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from caudal.errors import BadSchema

__all__ = ["DEFAULT_LEVEL", "LEVELS", "faults", "validate"]

DEFAULT_LEVEL = "BACKWARD"
LEVELS = ("NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE")
"""Confluent's levels: BACKWARD, the new schema reads what was written; FORWARD, the former reads what will be; TRANSITIVE, with
every former version instead of the last."""


def validate(text: str) -> avro.schema.Schema:
    """The schema, parsed.

    Raises:
        BadSchema: not an Avro schema.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about logical types that the package doesn't know: they are allowed
        try:
            return avro.schema.parse(text)
        except (avro.errors.AvroException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise BadSchema(f"not an Avro schema: {exc}") from None


def faults(new: str, former: Sequence[tuple[int, str]], level: str) -> list[str]:
    """Why `new` may not follow the `former` versions (number and text, oldest first); nothing when it may."""
    if level == "NONE" or not former:
        return []
    schema = validate(new)
    found = []
    for version, text in former if level.endswith("_TRANSITIVE") else former[-1:]:
        other = validate(text)
        if not level.startswith("FORWARD") and (why := _unreadable(reader=schema, writer=other)):
            found.append(f"the new schema can't read records of version {version}: {why}")
        if not level.startswith("BACKWARD") and (why := _unreadable(reader=other, writer=schema)):
            found.append(f"version {version} can't read records of the new schema: {why}")
    return found


def _unreadable(reader: avro.schema.Schema, writer: avro.schema.Schema) -> str:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call] # the package's own gap
    result = checker.get_compatibility(reader, writer)
    if result.compatibility is SchemaCompatibilityType.compatible:
        return ""
    kinds = ", ".join(sorted({kind.name for kind in result.incompatibilities}))
    return f"{kinds} ({', '.join(sorted(result.messages))}) at {', '.join(sorted(result.locations))}"
