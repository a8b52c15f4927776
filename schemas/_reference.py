"""Writes docs/reference/events.md from the contracts: `python -m caudal.schemas._reference > docs/reference/events.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from caudal.schemas._types import RECORDS, schema_of
from caudal.schemas.events import EVENT_TYPES

__all__ = ["page"]

_INTRO = """\
# Event types and records

Every record on Caudal's topics, field by field. Written from `schemas/avro/*.avsc` by
`python -m caudal.schemas._reference > docs/reference/events.md`; a test compares this page with them.
How the contracts may change, and how messages are encoded: [contracts](../contracts.md).

Times are UTC. A field marked `?` may be null. *Personal* names the kind of personal data a field holds.
"""


_HEADER = """\
The first fields of every event. `(occurred_at, captured_at, event_id)` is its version: the newest statement wins.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRO, "## The header of every event\n", _HEADER, *_fields(_header())]
    parts.append("\n## Events on `customer.changes`")
    for record in EVENT_TYPES:
        parts += _section(record, skip=len(_header()))
    parts.append("\n## Other records")
    for record in RECORDS:
        if record not in EVENT_TYPES:
            parts += _section(record)
    return "\n".join(parts) + "\n"


def _header() -> list[dict[str, Any]]:
    """The fields that all events start with."""
    first, *rest = (schema_of(record).avro["fields"] for record in EVENT_TYPES)
    shared = 0
    while all(shared < len(fields) and fields[shared] == first[shared] for fields in rest):
        shared += 1
    return list(first[:shared])


def _section(record: str, skip: int = 0) -> Iterator[str]:
    avro = schema_of(record).avro
    yield f"\n### {record}\n\n{avro['doc']}\n"
    yield from _fields(avro["fields"][skip:])


def _fields(fields: list[dict[str, Any]]) -> Iterator[str]:
    """A table of the fields, and one for each record inside them."""
    yield from _table(fields)
    for field in fields:
        yield from _nested(field["type"])


def _nested(avro: Any) -> Iterator[str]:
    """The tables of the records inside a field's type."""
    for part in avro if isinstance(avro, list) else [avro]:
        if not isinstance(part, dict):
            continue
        if part["type"] == "record":
            yield f"\n`{part['name']}`: {part['doc']}\n"
            yield from _fields(part["fields"])
        else:
            yield from _nested(part.get("items", part.get("values")))


def _table(fields: list[dict[str, Any]]) -> Iterator[str]:
    yield "| field | type | default | personal | meaning |\n|---|---|---|---|---|"
    for field in fields:
        default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        meaning = field["doc"].replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{field['name']}` | {_type(field['type'])} | {default} | {field.get('pii', '')} | {meaning} |"


def _type(avro: Any) -> str:
    if isinstance(avro, list):
        (inner,) = (part for part in avro if part != "null")
        kind, of, items = _type(inner).partition(" of ")
        return f"{kind}?{of}{items}"
    if not isinstance(avro, dict):
        return str(avro)
    match avro["type"]:
        case "array":
            return f"list of {_type(avro['items'])}"
        case "map":
            return f"map of {_type(avro['values'])}"
        case "record":
            return f"`{avro['name']}`"
        case plain:
            return str(avro.get("logicalType", plain))


if __name__ == "__main__":
    sys.stdout.write(page())
