"""Customers as CSV, NDJSON or Parquet, in pieces: no more than a part of the answer is ever in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import date, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from caudal.projections.criteria.fields import FIELDS

__all__ = ["MEDIA_TYPES", "csv_cell", "csv_lines", "encoded"]

MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}
"""Format → media type."""

_ARROW = {
    "number": pa.float64(), "money": pa.float64(), "days": pa.int64(), "age": pa.int64(), "time": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(), "list": pa.list_(pa.string()), "codes": pa.list_(pa.string()),
}  # fmt: skip


async def encoded(
    format_: str, fields: Sequence[str], parts: AsyncIterator[list[dict[str, Any]]]
) -> AsyncGenerator[bytes, None]:
    """The customers of `parts` in a format of `MEDIA_TYPES`."""
    names = ["customer_id", *fields]
    match format_:
        case "csv":
            head = csv_lines(
                [names]
            )  # goes out with the first rows: until there are some, the search can still turn out wrong
            async for rows in parts:
                yield head + csv_lines([[csv_cell(row[name]) for name in names] for row in rows])
                head = b""
            yield head
        case "ndjson":
            async for rows in parts:
                yield b"".join(orjson.dumps(row, default=str) + b"\n" for row in rows)
        case _:
            schema = pa.schema([(name, _type(name)) for name in names])
            buffer = io.BytesIO()
            with pq.ParquetWriter(buffer, schema) as writer:
                async for rows in parts:
                    columns = [[_stored(row[name], schema.field(name).type) for row in rows] for name in names]
                    writer.write_table(
                        pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
                    )
                    # the writer only appends: what is written so far can go
                    yield buffer.getvalue()
                    buffer.seek(0)
                    buffer.truncate()
            yield buffer.getvalue()


def csv_lines(rows: list[list[Any]]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def csv_cell(value: Any) -> Any:
    """A value as it stands in CSV; text never begins like a formula."""
    match value:
        case None:
            return ""
        case dict() | list():
            return orjson.dumps(value).decode()
        case datetime() | date():
            return value.isoformat()
        case str() if value.startswith(("=", "+", "-", "@", "\t", "\r")) and not value[1:].isdigit():
            return f"'{value}"  # a spreadsheet would run it as a formula; a phone number is none
        case _:
            return value


def _type(name: str) -> pa.DataType:
    plain = name.partition(".")[0]
    if plain == "segments":
        return pa.list_(pa.string())
    field = FIELDS.get(plain)
    if field is None or (field.kind == "money" and plain == name):
        return pa.string()
    return _ARROW.get(field.kind, pa.string())


def _stored(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(type_) and not isinstance(value, str):
        return orjson.dumps(value, default=str).decode().strip('"')
    if pa.types.is_floating(type_):
        return float(value)
    return int(value) if pa.types.is_integer(type_) else value
