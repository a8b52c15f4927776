"""Writes single records: event values or dictionaries to Avro bytes, by functions compiled from the schema once.

fastavro writes the same bytes (a test holds them equal), but takes dictionaries only and tries the branches of every union by
validating the value against each: for a wide event of mostly nulls that costs several times as much. A call for each value cost
three times as much as the straight code that is made here, field after field.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

from caudal.schemas._types import INTEGERS, RANGES, Type
from caudal.schemas.events import EPOCH

from caudal.errors import UnusableEvent

__all__ = ["record_writer"]

Put = Callable[[bytes], None]
Write = Callable[[Any, Put], None]

_MICROSECOND = timedelta(microseconds=1)
_EPOCH_DAY = EPOCH.date().toordinal()


def record_writer(tree: Type) -> Callable[[Any], bytes]:
    """A function from a record's value, an event or a dict, to its bytes; a dict's missing names take the defaults.

    The function raises UnusableEvent for values that the schema can't hold; its text names the field, never the value.
    """
    write = _record(tree)

    def encode(value: Any) -> bytes:
        out: list[bytes] = []
        write(value, out.append)
        return b"".join(out)

    return encode


def _record(tree: Type) -> Write:
    of_object, of_dict = _compiled(tree, of_dict=False), _compiled(tree, of_dict=True)
    return lambda value, put: of_dict(value, put) if isinstance(value, dict) else of_object(value, put)


def _compiled(tree: Type, *, of_dict: bool) -> Write:
    scope: dict[str, Any] = {**_SCOPE}
    lines = ["def write(record, put):", "  try:"]
    names = ["", ""]
    for index, field in enumerate(tree.fields):
        scope[f"default_{index}"] = field.default if field.has_default else object()  # which no type takes
        got = f"record.get({field.name!r}, default_{index})" if of_dict else f"record.{field.name}"
        code = [f"    v = {got}", *(f"    {line}" for line in _put("v", field.type, scope))]
        lines += code
        names += [field.name] * len(code)
    lines += ["  except errors as exc:", "    raise fault(exc) from None"]

    def fault(exc: Exception) -> UnusableEvent:
        # the line that failed says which field it was, so that nothing has to note it where all goes well
        assert exc.__traceback__ is not None
        name = names[exc.__traceback__.tb_lineno - 1]
        if isinstance(exc, UnusableEvent):
            return UnusableEvent(f"{name}.{exc.message}")
        return UnusableEvent(f"{name}: not a value of the schema's type ({type(exc).__name__})")

    scope |= {"fault": fault, "errors": _ERRORS}
    exec("\n".join(lines), scope)  # noqa: S102 - the text is made of our own contracts
    write: Write = scope["write"]
    return write


_ERRORS = (UnusableEvent, TypeError, ValueError, AttributeError, OverflowError, struct.error)


def _put(v: str, tree: Type, scope: dict[str, Any]) -> Iterator[str]:
    """The statements that write the variable `v`."""
    if not tree.nullable:
        yield from _put_present(v, tree, scope, b"")
        return
    null, some = (b"\0", b"\2") if tree.null_first else (b"\2", b"\0")
    yield f"if {v} is None: put({null!r})"
    yield "else:"
    yield from (f"  {line}" for line in _put_present(v, tree, scope, some))


def _put_present(v: str, tree: Type, scope: dict[str, Any], first: bytes) -> Iterator[str]:
    if tree.kind == "string":
        sizes = "sizes" if not first else f"sizes_{first[0]}"
        yield f"b = {v}.encode()"
        yield "n = len(b)"
        yield f"put({sizes}[n] if n < 64 else {first!r} + varint(n))"
        yield "put(b)"
        return
    if first:
        yield f"put({first!r})"
    if tree.kind == "record":
        yield f"{_named(_record(tree), tree.name, scope)}({v}, put)"
    elif tree.kind in ("int", "long"):
        whole = f"{_named(_SCALARS[tree.kind], tree.kind, scope)}({v})"
        yield f"put(numbers[{v}] if {v}.__class__ is int and 0 <= {v} < {len(_NUMBERS)} else {whole})"
    elif tree.items is None:
        yield f"put({_named(_SCALARS[tree.kind], tree.kind, scope)}({v}))"
    else:
        item = f"{v}_"
        if tree.kind == "array":
            yield f"if not isinstance({v}, (tuple, list)): raise TypeError"
            pair, pairs = item, v
        else:
            yield f"{v} = {v}.items()"
            pair, pairs = f"k, {item}", v
        yield f"if {v}:"
        yield f"  put(varint(len({v})))"
        yield f"  for {pair} in {pairs}:"
        if tree.kind == "map":
            yield from (f"    {line}" for line in _put_present("k", Type("string"), scope, b""))
        yield from (f"    {line}" for line in _put(item, tree.items, scope))
        yield "put(b'\\0')"


def _named(function: Any, name: str, scope: dict[str, Any]) -> str:
    scope[f"put_{name}"] = function
    return f"put_{name}"


_SHIFTS = range(0, 49, 7)


def _varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if 1 << 49 <= value < 1 << 56:  # the microseconds of 1979 to 3111
        return bytes([*[value >> shift & 0x7F | 0x80 for shift in _SHIFTS], value >> 49])
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(value: bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError
    return _varint(len(value)) + value


def _integer(kind: str) -> Callable[[int], bytes]:
    low, high = RANGES[kind]

    def write(value: int) -> bytes:
        if not low <= value <= high or value is True or value is False:
            raise OverflowError
        return _varint(value)

    return write


def _timestamp(value: datetime) -> bytes:
    # a datetime without a zone raises TypeError here
    return _varint((value - EPOCH) // _MICROSECOND)


def _date(value: date) -> bytes:
    if isinstance(value, datetime):
        raise TypeError
    return _varint(value.toordinal() - _EPOCH_DAY)


def _boolean(value: bool) -> bytes:
    if value is not True and value is not False:
        raise TypeError
    return b"\1" if value else b"\0"


_SCALARS: dict[str, Callable[[Any], bytes]] = {
    **{kind: _integer(kind) for kind in INTEGERS},
    "bytes": _bytes,
    "float": struct.Struct("<f").pack,
    "double": struct.Struct("<d").pack,
    "boolean": _boolean,
    "date": _date,
    "timestamp": _timestamp,
}
_NUMBERS = [_varint(n) for n in range(8192)]  # those of up to two bytes
_SIZES = _NUMBERS[:64]
_SCOPE: dict[str, Any] = {
    "varint": _varint,
    "numbers": _NUMBERS,
    "sizes": _SIZES,  # of the lengths that most strings have, and the same after the mark of a union's branch
    "sizes_0": [b"\0" + size for size in _SIZES],
    "sizes_2": [b"\2" + size for size in _SIZES],
}
