"""Writes single records: event values or dictionaries to Avro bytes, by functions compiled from the schema once.

fastavro writes the same bytes (a test holds them equal), but takes dictionaries only and tries the branches of every union by
validating the value against each: for a wide event of mostly nulls that costs several times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

from caudal.schemas._types import RANGES, Type
from caudal.schemas.events import EPOCH

from caudal.errors import UnusableEvent

__all__ = ["record_writer"]

Write = Callable[[Any, bytearray], None]

_SMALL = [bytes([n << 1]) for n in range(64)]
"""Varints of the lengths that most strings have."""
_MICROSECOND = timedelta(microseconds=1)
_EPOCH_DAY = EPOCH.date().toordinal()
_MISSING: Any = object()


def record_writer(tree: Type) -> Callable[[Any], bytes]:
    """A function from a record's value, an event or a dict, to its bytes; a dict's missing names take the defaults.

    The function raises UnusableEvent for values that the schema can't hold; its text names the field, never the value.
    """
    write = _record(tree)

    def encode(value: Any) -> bytes:
        out = bytearray()
        write(value, out)
        return bytes(out)

    return encode


def _record(tree: Type) -> Write:
    parts = [(f.name, _writer(f.type), f.default if f.has_default else _MISSING) for f in tree.fields]

    def write(value: Any, out: bytearray) -> None:
        name = ""
        try:
            if isinstance(value, dict):
                for name, part, default in parts:
                    part(value.get(name, default), out)
            else:
                for name, part, _ in parts:
                    part(getattr(value, name), out)
        except UnusableEvent as exc:
            raise UnusableEvent(f"{name}.{exc.message}") from None
        except (TypeError, ValueError, AttributeError, OverflowError, struct.error) as exc:
            raise UnusableEvent(f"{name}: not a value of the schema's type ({type(exc).__name__})") from None

    return write


def _writer(tree: Type) -> Write:
    write = _record(tree) if tree.kind == "record" else _blocks(tree) if tree.items is not None else _SCALARS[tree.kind]
    if not tree.nullable:
        return write
    null, some = (0, 2) if tree.null_first else (2, 0)

    def optional(value: Any, out: bytearray) -> None:
        if value is None:
            out.append(null)
        else:
            out.append(some)
            write(value, out)

    return optional


def _blocks(tree: Type) -> Write:
    assert tree.items is not None
    item = _writer(tree.items)

    def array(value: Any, out: bytearray) -> None:
        if not isinstance(value, (tuple, list)):
            raise TypeError
        if value:
            _long(len(value), out)
            for one in value:
                item(one, out)
        out.append(0)

    def mapping(value: Any, out: bytearray) -> None:
        pairs = value.items()
        if pairs:
            _long(len(pairs), out)
            for key, one in pairs:
                _string(key, out)
                item(one, out)
        out.append(0)

    return array if tree.kind == "array" else mapping


def _varint(value: int, out: bytearray) -> None:
    value = (value << 1) ^ (value >> 63)
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _string(value: str, out: bytearray) -> None:
    encoded = value.encode()
    size = len(encoded)
    if size < 64:
        out += _SMALL[size]
    else:
        _varint(size, out)
    out += encoded


def _bytes(value: bytes, out: bytearray) -> None:
    _varint(len(value), out)
    out += value


def _integer(kind: str) -> Write:
    low, high = RANGES[kind]

    def write(value: int, out: bytearray) -> None:
        if not low <= value <= high or value is True or value is False:
            raise OverflowError
        _varint(value, out)

    return write


_long = _integer("long")


def _timestamp(value: datetime, out: bytearray) -> None:
    # a datetime without a zone raises TypeError here
    _varint((value - EPOCH) // _MICROSECOND, out)


def _date(value: date, out: bytearray) -> None:
    if isinstance(value, datetime):
        raise TypeError
    _varint(value.toordinal() - _EPOCH_DAY, out)


def _boolean(value: bool, out: bytearray) -> None:
    if value is not True and value is not False:
        raise TypeError
    out.append(value)


_SCALARS: dict[str, Write] = {
    "string": _string,
    "bytes": _bytes,
    "int": _integer("int"),
    "long": _long,
    "float": lambda value, out: out.extend(struct.pack("<f", value)),
    "double": lambda value, out: out.extend(struct.pack("<d", value)),
    "boolean": _boolean,
    "date": _date,
    "timestamp": _timestamp,
}
