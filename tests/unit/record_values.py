"""Random values, bytes and damage of records, by schema.

They are drawn from a `random.Random` that hypothesis seeds: drawing each of forty fields by hypothesis itself takes a hundred
times as long, and wide records are what the codecs are for.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any, get_args, get_origin, get_type_hints

from caudal.schemas import EVENT_TYPES
from caudal.schemas._types import RANGES, Type, schema_of
from hypothesis import strategies as st

RANDOMS = st.randoms(use_true_random=True)
"""A generator of its own for each example, not slowed down by shrinking."""

TEXTS = ("", "a", "São Paulo", "a" * 63, "a" * 64, "\0", "🙂")
NUMBERS = (0, 1, -1, 63, 64, -64, -65, 8191, 8192, 2**31 - 1, -(2**31), 2**62)
DOUBLES = (0.0, -0.0, 1.5, -34.9, 5e-324, 1.7e308, float("inf"), float("-inf"))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def varint(value: int) -> bytes:
    """A number as Avro writes it."""
    value = value << 1 ^ value >> 63
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def text(rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(TEXTS) if rng.random() < 0.99 else "ç" * 5000
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD800)))) for _ in range(rng.randrange(12)))


def number(rng: Random, kind: str) -> int:
    low, high = RANGES[kind]
    edges = [edge for edge in (*NUMBERS, low, high) if low <= edge <= high]
    return rng.choice(edges) if rng.random() < 0.3 else rng.randint(low, high) >> rng.randrange(64) if low < -1 else 0


def instant(rng: Random) -> datetime:
    return EPOCH + timedelta(microseconds=number(rng, "timestamp"))


def day(rng: Random) -> date:
    return EPOCH.date() + timedelta(days=number(rng, "date"))


SCALARS = {
    "string": text,
    "bytes": lambda rng: rng.randbytes(rng.randrange(100)),
    "int": lambda rng: number(rng, "int"),
    "long": lambda rng: number(rng, "long"),
    "double": lambda rng: rng.choice(DOUBLES) if rng.random() < 0.5 else rng.uniform(-1e6, 1e6),
    "boolean": lambda rng: rng.random() < 0.5,
    "timestamp": instant,
    "date": day,
}


def value(rng: Random, tree: Type) -> Any:
    """A value of a type, as `Codec.decode` gives it."""
    if tree.nullable and rng.random() < 0.4:
        return None
    if tree.kind == "record":
        return {f.name: value(rng, f.type) for f in tree.fields}
    if tree.items is None:
        return SCALARS[tree.kind](rng)
    if tree.kind == "array":
        return [value(rng, tree.items) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, tree.items) for _ in range(rng.randrange(4))}


def record(rng: Random, name: str) -> dict[str, Any]:
    return value(rng, schema_of(name))  # type: ignore[no-any-return] # a record is a dictionary


def event(rng: Random, name: str) -> Any:
    """An event value."""
    return _of_hint(rng, EVENT_TYPES[name], name)


def _of_hint(rng: Random, hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{f.name: _of_hint(rng, hints[f.name], f.name) for f in dataclasses.fields(hint)})  # type: ignore[operator] # a class
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return tuple(_of_hint(rng, args[0], name) for _ in range(rng.randrange(3)))
    if origin is not None and type(None) not in args:
        return {text(rng): _of_hint(rng, args[1], name) for _ in range(rng.randrange(3))}
    if type(None) in args:
        return None if rng.random() < 0.4 else _of_hint(rng, args[0], name)
    if hint is int:
        return number(rng, "int" if name in {"quantity", "interval_count"} else "long")
    return SCALARS[{str: "string", float: "double", datetime: "timestamp", date: "date"}[hint]](rng)


def plain(value: Any) -> Any:
    """A decoded value with its times and dates as plain numbers, as `Codec.decode_few` gives it."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(microseconds=1)
    return (value - EPOCH.date()).days if isinstance(value, date) else value


def damaged(rng: Random, message: bytes) -> bytes:
    """A message with its record's bytes changed, cut, grown or replaced."""
    header, body = message[:5], bytearray(message[5:])
    at = rng.randrange(len(body))
    match rng.randrange(5):
        case 0:
            body[at] ^= 1 << rng.randrange(8)
        case 1:
            del body[at:]
        case 2:
            body += rng.randbytes(rng.randint(1, 9))
        case 3:
            body[at:at] = rng.randbytes(rng.randint(1, 9))
        case _:
            body = bytearray(rng.randbytes(rng.randrange(60)))
    return header + bytes(body)
