"""Records written in the usual way, read one by one at little cost: by functions whose source is made from the schema once.

`fastavro` fetches each byte by a call, and accepts more than a record (see _strict.py): reading with it and judging what it read takes
several times as long as what is made here. A function made here takes what every writer of ours writes, such as arrays in one block, and
refuses what is damaged or merely unusual: who is refused asks the strict twin.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from caudal.schemas._types import INTEGERS, RANGES, Type

__all__ = ["plain_reader"]

Read = Callable[[bytes, int], tuple[Any, int]]
"""From the position where a value starts to the value and the position after it."""


def plain_reader(writer: Type, today: Type) -> Callable[[bytes, int], dict[str, Any]]:
    """A function from a message, and where in it a record of the writer's schema starts, to the record in today's fields.

    Times are microseconds since 1970 and dates are days. The function raises ValueError for what it doesn't take.
    """
    read = _record(writer, today)

    def whole(data: bytes, start: int) -> dict[str, Any]:
        try:
            values, end = read(data, start)
        except (IndexError, struct.error):
            raise ValueError("it ends too early") from None
        if end != len(data):  # a text that was cut short ends beyond it
            raise ValueError("bytes follow the record")
        return values  # type: ignore[no-any-return] # made by `exec`

    return whole


# A function never reads twice from the same place, and what lies beyond the end raises IndexError or gives an empty text and a position
# beyond the end: so neither a length nor a count that lies makes it take long, or much memory.


def _record(writer: Type, today: Type) -> Read:
    names: dict[str, Any] = {}
    wanted = {f.name: f.type for f in today.fields}
    lines = []
    for number, field in enumerate(writer.fields):
        lines += _lines(f"v{number}", field.type, wanted.get(field.name, field.type), names)
    written = {f.name: f"v{number}" for number, f in enumerate(writer.fields)}
    for number, field in enumerate(today.fields):
        if field.name not in written:
            written[field.name] = f"default{number}"
            names[f"default{number}"] = field.default
    values = ", ".join(f"{f.name!r}: {written[f.name]}" for f in today.fields)
    return _made(lines, f"{{{values}}}", names)


def _made(lines: list[str], value: str, names: dict[str, Any]) -> Read:
    """The function; its source holds names of the schema only as literals."""
    source = "\n    ".join(["def read(d, p):", *lines, f"return {value}, p"])
    names |= {"more": _more, "length": _length, "double": _DOUBLE, "single": _SINGLE}
    exec(source, names)  # noqa: S102 - made of our own pieces, as dataclasses are
    read: Read = names["read"]
    return read


_DOUBLE, _SINGLE = struct.Struct("<d").unpack_from, struct.Struct("<f").unpack_from
_NUMBER = ["n = d[p]; p += 1", "if n > 127: n, p = more(d, p, n)"]
_LENGTH = ["n = d[p]; p += 1", "if n & 129: n, p = length(d, p, n)", "q = p + (n >> 1)"]
_REFUSE = "raise ValueError('unusual')"


def _lines(name: str, writer: Type, today: Type, names: dict[str, Any]) -> list[str]:
    """Statements that read a value of the type into the variable `name`; `names` gets what they need."""
    lines = _present(name, writer, today, names)
    if not writer.nullable:
        return lines
    null, some = (0, 2) if writer.null_first else (2, 0)
    return [
        "n = d[p]; p += 1",
        f"if n == {null}: {name} = None",
        f"elif n == {some}:",
        *("    " + line for line in lines),
        f"else: {_REFUSE}",
    ]


def _present(name: str, writer: Type, today: Type, names: dict[str, Any]) -> list[str]:
    kind = writer.kind
    if kind in INTEGERS:
        lines = [*_NUMBER, f"{name} = n >> 1 ^ -(n & 1)"]
        if kind != "long":
            low, high = RANGES[kind]
            lines.append(f"if not {low} <= {name} <= {high}: {_REFUSE}")
        return [*lines, f"{name} = float({name})"] if today.kind == "double" else lines
    if kind == "string":
        return [*_LENGTH, f"{name} = d[p:q].decode(); p = q"]
    if kind == "bytes":
        return [*_LENGTH, f"{name} = d[p:q]; p = q"]
    if kind == "double":
        return [f"{name} = double(d, p)[0]; p += 8"]
    if kind == "float":
        return [f"{name} = single(d, p)[0]; p += 4"]
    if kind == "boolean":
        return ["n = d[p]; p += 1", f"if n > 1: {_REFUSE}", f"{name} = n == 1"]
    names[f"read_{name}"] = _record(writer, today) if kind == "record" else _blocks(writer, today)
    return [f"{name}, p = read_{name}(d, p)"]


def _blocks(writer: Type, today: Type) -> Read:
    assert writer.items is not None
    assert today.items is not None
    names: dict[str, Any] = {}
    item = _made(_lines("v", writer.items, today.items, names), "v", names)

    def array(data: bytes, at: int) -> tuple[list[Any], int]:
        count, at = _count(data, at)
        found = []
        for _ in range(count):
            value, at = item(data, at)
            found.append(value)
        return found, _end(data, at, count)

    def mapping(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        count, at = _count(data, at)
        found: dict[str, Any] = {}
        for _ in range(count):
            size, at = _count(data, at)
            key = data[at : at + size].decode()
            found[key], at = item(data, at + size)
        if len(found) != count:
            raise ValueError("a map names a key twice")
        return found, _end(data, at, count)

    return array if writer.kind == "array" else mapping


def _count(data: bytes, at: int) -> tuple[int, int]:
    count = data[at]
    at += 1
    if count & 129:
        count, at = _length(data, at, count)
    return count >> 1, at


def _end(data: bytes, at: int, count: int) -> int:
    """The position after the zero that ends the blocks; for no items it was read as their count."""
    if not count:
        return at
    if data[at]:
        raise ValueError("more than one block")
    return at + 1


def _length(data: bytes, at: int, first: int) -> tuple[int, int]:
    """The rest of a length or count that has more than one byte, or is negative."""
    number, at = _more(data, at, first) if first > 127 else (first, at)
    if number & 1:
        raise ValueError("a length is negative")
    return number, at


def _more(data: bytes, at: int, number: int) -> tuple[int, int]:
    """The rest of a number that has more than one byte."""
    number &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        if byte < 128:
            number |= byte << shift
            break
        number |= (byte & 127) << shift
    else:
        raise ValueError("a number is too long")
    if number >= 1 << 64:
        raise ValueError("a number is too long")
    return number, at
