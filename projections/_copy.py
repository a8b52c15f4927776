"""Arrow columns to PostgreSQL's binary COPY format: `pgpq` where it is installed, else by rows. Both give equal bytes (a test compares).

The format: https://www.postgresql.org/docs/18/sql-copy.html#SQL-COPY-BINARY-FORMAT
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

try:
    from pgpq import ArrowToPostgresBinaryEncoder
    from pgpq.encoders import StringEncoderBuilder
    from pgpq.schema import Jsonb
except ImportError:  # pgpq has no wheel for Linux on ARM
    ArrowToPostgresBinaryEncoder = None  # type: ignore[assignment,misc]  # the slower twin takes over

__all__ = ["encode", "encode_by_rows", "packer", "stream"]

_POSTGRES_EPOCH_US = 946_684_800_000_000
_POSTGRES_EPOCH_DAYS = 10_957


def encode(table: pa.Table, jsonb: frozenset[str] = frozenset()) -> bytes:
    """The table as one binary COPY stream; columns named in `jsonb` hold JSON text."""
    if ArrowToPostgresBinaryEncoder is None:
        return encode_by_rows(table, jsonb)
    if jsonb:
        builders = {
            field.name: StringEncoderBuilder.new_with_output(field, Jsonb())
            if field.name in jsonb
            else ArrowToPostgresBinaryEncoder.infer_encoder(field)
            for field in table.schema
        }
        encoder = ArrowToPostgresBinaryEncoder.new_with_encoders(table.schema, builders)
    else:
        encoder = ArrowToPostgresBinaryEncoder(table.schema)
    return b"".join([encoder.write_header(), *map(encoder.write_batch, table.to_batches()), encoder.finish()])


def encode_by_rows(table: pa.Table, jsonb: frozenset[str] = frozenset()) -> bytes:
    """The same without pgpq, some ten times slower."""
    row = packer(["jsonb" if field.name in jsonb else _sql_type(field.type) for field in table.schema])
    return stream(map(row, zip(*map(_values, table.columns), strict=True)))


def stream(rows: Iterable[bytes]) -> bytes:
    """Packed rows as one binary COPY stream."""
    return b"".join([b"PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00", *rows, b"\xff\xff"])


def packer(types: Sequence[str]) -> Callable[[Iterable[Any]], bytes]:
    """A function that packs a row of values of these SQL types; times are microseconds since 1970, dates are days."""
    count, writers = _SHORT(len(types)), [_WRITERS[type_] for type_ in types]

    def pack(row: Iterable[Any]) -> bytes:
        return count + b"".join(
            [_NULL if value is None else write(value) for write, value in zip(writers, row, strict=True)]
        )

    return pack


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values with times as plain numbers."""
    if pt.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pt.is_date(column.type):
        column = column.cast(pa.int32())
    return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


def _sql_type(type_: pa.DataType) -> str:
    if pt.is_list(type_):
        return _sql_type(type_.value_type) + "[]"
    if pt.is_timestamp(type_):
        return "timestamptz"
    return _SQL_TYPES[str(type_)]


_SQL_TYPES = {
    "string": "text",
    "int32": "integer",
    "int64": "bigint",
    "double": "double precision",
    "bool": "boolean",
    "date32[day]": "date",
}
_NULL = b"\xff\xff\xff\xff"
_SHORT, _INT = struct.Struct("!h").pack, struct.Struct("!i").pack
# each after the size of what follows
_SIZED_INT, _SIZED_LONG = struct.Struct("!ii").pack, struct.Struct("!iq").pack
_SIZED_DOUBLE, _SIZED_BOOL = struct.Struct("!id").pack, struct.Struct("!i?").pack
_ARRAY = struct.Struct("!iiiiii").pack


def _text(value: str) -> bytes:
    data = value.encode()
    return _INT(len(data)) + data


def _jsonb(value: str) -> bytes:
    data = value.encode()
    return _INT(len(data) + 1) + b"\x01" + data


def _array(oid: int, element: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    def write(values: Sequence[Any]) -> bytes:
        data = b"".join([_NULL if value is None else element(value) for value in values])
        # one dimension, whether it holds nulls, its length, the first index
        return _ARRAY(20 + len(data), 1, None in values, oid, len(values), 1) + data

    return write


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "text": _text,
    "integer": partial(_SIZED_INT, 4),
    "bigint": partial(_SIZED_LONG, 8),
    "double precision": partial(_SIZED_DOUBLE, 8),
    "boolean": partial(_SIZED_BOOL, 1),
    "timestamptz": lambda value: _SIZED_LONG(8, value - _POSTGRES_EPOCH_US),
    "date": lambda value: _SIZED_INT(4, value - _POSTGRES_EPOCH_DAYS),
    "jsonb": _jsonb,
}
_WRITERS |= {f"{name}[]": _array(oid, _WRITERS[name]) for name, oid in (("text", 25), ("integer", 23), ("bigint", 20))}
"""SQL type → what writes a value with its size before it."""
