"""Arrow columns to PostgreSQL's binary COPY format: `pgpq` where it is installed, else by rows. Both give equal bytes (a test compares).

The format: https://www.postgresql.org/docs/18/sql-copy.html#SQL-COPY-BINARY-FORMAT
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

try:
    from pgpq import ArrowToPostgresBinaryEncoder
    from pgpq.encoders import StringEncoderBuilder
    from pgpq.schema import Jsonb
except ImportError:  # pgpq has no wheel for Linux on ARM
    ArrowToPostgresBinaryEncoder = None  # type: ignore[assignment,misc]  # the slower twin takes over

__all__ = ["encode", "encode_by_rows"]

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
    writers = [_writer(field.type, jsonb=field.name in jsonb) for field in table.schema]
    columns = [_values(column) for column in table.columns]
    out = [b"PGCOPY\n\xff\r\n\x00", struct.pack("!ii", 0, 0)]
    count = struct.pack("!h", len(writers))
    for row in zip(*columns, strict=True):
        out.append(count)
        out += [_sized(write, value) for write, value in zip(writers, row, strict=True)]
    out.append(struct.pack("!h", -1))
    return b"".join(out)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values with times as plain numbers."""
    if pt.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pt.is_date(column.type):
        column = column.cast(pa.int32())
    return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


def _sized(write: Callable[[Any], bytes], value: Any) -> bytes:
    if value is None:
        return b"\xff\xff\xff\xff"
    data = write(value)
    return struct.pack("!i", len(data)) + data


_OIDS = {"string": 25, "int32": 23, "int64": 20}


def _writer(type_: pa.DataType, *, jsonb: bool = False) -> Callable[[Any], bytes]:
    if jsonb:
        return lambda v: b"\x01" + v.encode()
    if pt.is_list(type_):
        element = _writer(type_.value_type)
        oid = _OIDS[str(type_.value_type)]

        def write_list(values: list[Any]) -> bytes:
            dimensions = struct.pack("!iii", 1, None in values, oid) + struct.pack("!ii", len(values), 1)
            return dimensions + b"".join(_sized(element, v) for v in values)

        return write_list
    if pt.is_timestamp(type_):
        return lambda v: struct.pack("!q", v - _POSTGRES_EPOCH_US)
    if pt.is_date(type_):
        return lambda v: struct.pack("!i", v - _POSTGRES_EPOCH_DAYS)
    if pt.is_string(type_):
        return lambda v: str(v).encode()
    code = {"int32": "!i", "int64": "!q", "double": "!d", "bool": "!?"}[str(type_)]
    return lambda v: struct.pack(code, v)
