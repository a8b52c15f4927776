"""What a fact is: one row per thing stated, kept by one generic versioned upsert. This module declares and reshapes; _sql.py writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Column", "Fact", "Record", "avro_fields", "personal_fields", "sql_type"]

HEADER = ("subject", "source", "occurred_at", "captured_at", "event_id")
"""Columns of every fact: whom it is about, and its statement version."""

_SQL_TYPES = {
    "string": "text",
    "int": "integer",
    "long": "bigint",
    "double": "double precision",
    "boolean": "boolean",
    "timestamp-micros": "timestamptz",
    "date": "date",
}


def avro_fields(event: str) -> dict[str, Any]:
    """Field name → Avro type of an event's own fields, without the header; nullable unions are unwrapped."""
    schema = json.loads(resources.files("caudal.schemas").joinpath("avro", f"{event}.avsc").read_text("utf-8"))
    names = [f["name"] for f in schema["fields"]]
    own = schema["fields"][names.index("identifiers") + 1 :] if "identifiers" in names else schema["fields"]
    return {f["name"]: _unwrapped(f["type"]) for f in own}


@cache
def personal_fields(event: str) -> frozenset[str]:
    """Names of an event's fields that are tagged as personal data, those of its records within too."""
    schema = json.loads(resources.files("caudal.schemas").joinpath("avro", f"{event}.avsc").read_text("utf-8"))
    return frozenset(_tagged(schema))


def _tagged(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "pii" in node:
            yield node["name"]
        for each in node.values():
            yield from _tagged(each)
    elif isinstance(node, list):
        for each in node:
            yield from _tagged(each)


def _unwrapped(avro: Any) -> Any:
    return next(t for t in avro if t != "null") if isinstance(avro, list) else avro


def sql_type(avro: Any) -> str:
    """The PostgreSQL type of an Avro type; records and maps are no columns."""
    if isinstance(avro, dict):
        if "logicalType" in avro:
            return _SQL_TYPES[avro["logicalType"]]
        if avro["type"] == "array":
            return sql_type(avro["items"]) + "[]"
        return sql_type(avro["type"])
    return _SQL_TYPES[avro]


Record = Mapping[str, Any]
"""The fields of one event, as `Codec.decode_few` gives them."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a fact. `states` is the event field whose being stated covers it (lines cover every line_* column)."""

    name: str
    type: str
    states: str


@dataclass(frozen=True)
class Fact:
    """Things of one kind that events state.

    Attributes:
        name: the table.
        event: the record it is read from.
        key: columns that name the thing; `subject` and `source` are of the header.
        columns: its columns besides header and key.
        reshape: rows out of the event's columns, where they are not one to one; must keep the header and add the key and columns.
        reshape_one: its twin, rows out of one event's fields.
        partial: whether a statement may leave fields out; then the newest statement of each field wins.
        indexes: further indexed column lists.
    """

    name: str
    event: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    reshape: Callable[[pa.RecordBatch], pa.RecordBatch | None] | None = None
    reshape_one: Callable[[Record], Iterable[Record]] | None = None
    partial: bool = False
    indexes: tuple[str, ...] = ()
    bits: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, name: str, event: str, key: tuple[str, ...], **options: Any) -> Fact:
        """A fact whose columns are the event's plain fields (no records, no maps)."""
        without = set(options.pop("without", ())) | {"cleared"} | set(key)
        more = options.pop("more", ())
        columns = [
            Column(field_name, sql_type(avro), field_name)
            for field_name, avro in avro_fields(event).items()
            if field_name not in without and _plain(avro)
        ]
        return cls(name=name, event=event, key=key, columns=(*columns, *more), **options)

    @cached_property
    def stated_bits(self) -> dict[str, int]:
        """Event field → bit in the `stated` mask, in the order of the columns."""
        return {name: 1 << i for i, name in enumerate(dict.fromkeys(c.states for c in self.columns))}

    @cached_property
    def extra_key(self) -> tuple[str, ...]:
        """Key columns that the header doesn't hold."""
        return tuple(k for k in self.key if k not in HEADER)

    @cached_property
    def all_columns(self) -> tuple[str, ...]:
        """The table's columns in order."""
        return (*self.extra_key, *HEADER, "stated", *(c.name for c in self.columns))

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The SQL types of `all_columns`."""
        own = {c.name: c.type for c in self.columns}
        own |= {"occurred_at": "timestamptz", "captured_at": "timestamptz", "stated": "bigint"}
        return tuple(own.get(name, "text") for name in self.all_columns)

    def rows(self, batch: pa.RecordBatch) -> pa.Table | None:
        """The fact's rows in a batch of its event: every column of the table, in order; None when there are none."""
        source = self.reshape(batch) if self.reshape else batch
        if source is None or source.num_rows == 0:
            return None
        stated = self._stated(source) if self.partial else pa.array(np.zeros(source.num_rows, np.int64))
        arrays = [stated if name == "stated" else source.column(name) for name in self.all_columns]
        return pa.table(arrays, names=list(self.all_columns))

    def rows_of(self, record: Record) -> tuple[list[tuple[Any, ...]], int]:
        """The same for one event: its rows, and the mask of the fields that it states."""
        stated = self._stated_of(record) if self.partial else 0
        rows = self.reshape_one(record) if self.reshape_one else (record,)
        return [self._values({**row, "stated": stated}) for row in rows], stated

    @cached_property
    def _values(self) -> Callable[[Record], tuple[Any, ...]]:
        return itemgetter(*self.all_columns)

    def _stated_of(self, record: Record) -> int:
        bits = self.stated_bits
        mask = 0
        for name, bit in bits.items():
            if record[name] is not None:
                mask |= bit
        for name in record["cleared"]:
            mask |= bits.get(name, 0)
        return mask

    def _stated(self, batch: pa.RecordBatch) -> pa.Array:
        """The mask of stated fields: those that are not null, and those named in `cleared`."""
        mask = np.zeros(batch.num_rows, np.int64)
        for name, bit in self.stated_bits.items():
            column = batch.column(name)
            if column.null_count == 0:
                mask |= bit
            elif column.null_count < len(column):
                mask |= np.where(column.is_valid().to_numpy(zero_copy_only=False), bit, 0)
        cleared = batch.column("cleared")
        names = pc.list_flatten(cleared)
        if len(names):
            encoded = names.dictionary_encode()
            bits = np.array([self.stated_bits.get(n, 0) for n in encoded.dictionary.to_pylist()], np.int64)
            np.bitwise_or.at(mask, pc.list_parent_indices(cleared).to_numpy(), bits[encoded.indices.to_numpy()])
        return pa.array(mask)


def _plain(avro: Any) -> bool:
    if not isinstance(avro, dict):
        return True
    if avro["type"] == "array":
        return isinstance(avro["items"], str)
    return "logicalType" in avro
