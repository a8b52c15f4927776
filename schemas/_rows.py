"""Single records: from Avro bytes to dictionaries (fastavro) and on to event values."""

from __future__ import annotations

import io
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import fastavro
from caudal.schemas._types import Type
from caudal.schemas.events import EVENT_TYPES, Event

from caudal.errors import BadSchema

__all__ = ["reader", "to_event"]


def reader(writer: Type, today: Type) -> Callable[[bytes], dict[str, Any]]:
    """A function from one record's bytes, of the writer's schema, to a dictionary of today's fields.

    Times come as aware UTC datetimes. The function raises ValueError for bytes that are no record; its text never quotes them.
    """
    written = fastavro.parse_schema(dict(writer.avro))
    wanted = None if writer.avro == today.avro else fastavro.parse_schema(dict(today.avro))

    def read(payload: bytes) -> dict[str, Any]:
        data = io.BytesIO(payload)
        try:
            row = fastavro.schemaless_reader(data, written, wanted)
        except (ValueError, EOFError, IndexError, OverflowError, KeyError, fastavro.read.SchemaResolutionError) as exc:
            raise ValueError(f"it is damaged or cut short ({type(exc).__name__})") from None
        if data.tell() != len(payload):
            raise ValueError(f"{len(payload) - data.tell()} bytes follow the record")
        return row  # type: ignore[return-value] # a record schema reads as a dictionary

    return read


def to_event(record: str, values: Mapping[str, Any]) -> Event:
    """The event value of a decoded record.

    Raises:
        BadSchema: the record is not an event.
    """
    if record not in EVENT_TYPES:
        raise BadSchema(f"{record} is not an event", hint="docs/reference/events.md lists them")
    cls: Any = EVENT_TYPES[record]
    event: Event = _builder(cls)(values)
    return event


@cache
def _builder(cls: Any) -> Callable[[Mapping[str, Any]], Any]:
    hints = get_type_hints(cls)
    parts = [(f.name, _value(hints[f.name])) for f in fields(cls)]

    def build(values: Mapping[str, Any]) -> Any:
        return cls(
            **{
                name: values[name] if convert is None or values[name] is None else convert(values[name])
                for name, convert in parts
                if name in values
            }
        )

    return build


@cache
def _value(hint: Any) -> Callable[[Any], Any] | None:
    """How a decoded value becomes the one that `hint` says; None where it is it already."""
    if get_origin(hint) in (Union, types.UnionType):
        return _value(next(arg for arg in get_args(hint) if arg is not type(None)))
    if get_origin(hint) is tuple:
        item = _value(get_args(hint)[0])
        return tuple if item is None else lambda values: tuple(map(item, values))
    return _builder(hint) if isinstance(hint, type) and is_dataclass(hint) else None
