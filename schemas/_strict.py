"""The judge of single records: walks the bytes of one record by its schema and says what is wrong with them.

It is slow and used only where a batch looks wrong, to find the culprits. What it accepts is a valid record to its last byte:
the decoders let pass trailing bytes, invalid UTF-8, out-of-range ints and repeated map keys.
"""

from __future__ import annotations

from collections.abc import Callable

from caudal.schemas._types import INTEGERS, RANGES, Type

__all__ = ["Walk", "check", "walker"]

Walk = Callable[[bytes, int], int]
"""From the position where a value starts to the one after it; raises ValueError or IndexError."""


def check(walk: Walk, payload: bytes) -> str | None:
    """What is wrong with a record's bytes, or None. The text never quotes them."""
    try:
        end = walk(payload, 0)
    except IndexError:
        return "it ends too early"
    except UnicodeDecodeError:
        return "a string is not UTF-8"
    except ValueError as exc:
        return str(exc)
    if end != len(payload):
        return f"{len(payload) - end} bytes follow the record"
    return None


def walker(tree: Type) -> Walk:
    """The walk over values of `tree`."""
    walk = _present(tree)
    if not tree.nullable:
        return walk
    null_index = 0 if tree.null_first else 1

    def optional(data: bytes, at: int) -> int:
        index, at = _long(data, at)
        if index not in (0, 1):
            raise ValueError("a union has no such branch")
        return at if index == null_index else walk(data, at)

    return optional


def _present(tree: Type) -> Walk:
    kind = tree.kind
    if kind in INTEGERS:
        low, high = RANGES[kind]

        def integer(data: bytes, at: int) -> int:
            value, at = _long(data, at)
            if not low <= value <= high:
                raise ValueError(f"a value is out of the range of {kind}")
            return at

        return integer
    if kind in ("string", "bytes"):
        return _string if kind == "string" else lambda data, at: _bytes(data, at)[1]
    if kind in ("float", "double"):
        width = 4 if kind == "float" else 8
        return lambda data, at: _within(data, at + width)
    if kind == "boolean":
        return _boolean
    if kind == "record":
        return _record(tree)
    return _blocks(tree)


def _record(tree: Type) -> Walk:
    walks = [walker(f.type) for f in tree.fields]

    def record(data: bytes, at: int) -> int:
        for walk in walks:
            at = walk(data, at)
        return at

    return record


def _blocks(tree: Type) -> Walk:
    assert tree.items is not None
    item, keyed = walker(tree.items), tree.kind == "map"

    def blocks(data: bytes, at: int) -> int:
        keys: set[bytes] = set()
        while True:
            count, at = _long(data, at)
            if count == 0:
                return at
            if count < 0:  # the block's size in bytes follows, for readers that skip
                _, at = _long(data, at)
            for _ in range(abs(count)):
                if keyed:
                    key, end = _bytes(data, at)
                    key.decode()
                    if key in keys:
                        raise ValueError("a map names a key twice")
                    keys.add(key)
                    at = end
                at = item(data, at)

    return blocks


def _long(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
    if value >= 2**64:
        raise ValueError("a number is too long")
    return (value >> 1) ^ -(value & 1), at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    if size < 0:
        raise ValueError("a length is negative")
    end = _within(data, at + size)
    return data[at:end], end


def _string(data: bytes, at: int) -> int:
    value, end = _bytes(data, at)
    value.decode()
    return end


def _boolean(data: bytes, at: int) -> int:
    if data[at] > 1:
        raise ValueError("a boolean is neither 0 nor 1")
    return at + 1


def _within(data: bytes, end: int) -> int:
    if end > len(data):
        raise IndexError
    return end
