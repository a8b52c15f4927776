"""Avro schemas as small trees, and what each tree is in Arrow.

Only what the contracts use is taken (string, int, long, float, double, boolean, bytes, date, timestamp-micros, records, arrays,
maps, unions of null and one of them). Beside the contract's own Arrow type each tree has a *raw* one, in which every integer is
an int64: the columnar decoder cuts an int that is out of range without a word, so it is asked for longs, and the range is
checked afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from caudal.errors import BadSchema

__all__ = ["RECORDS", "Field", "Type", "parse", "schema_of"]

SCALARS = {
    "string": pa.string(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "bytes": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
INTEGERS = frozenset({"int", "long", "date", "timestamp"})
RANGES = {
    "int": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
    "date": (-719_162, 2_932_896),  # years 1 to 9999, what Python's and most databases' dates hold
    "timestamp": (-62_135_596_800_000_000, 253_402_300_799_999_999),
}
"""The values that each integer type may have."""

_LOGICAL = {("int", "date"): "date", ("long", "timestamp-micros"): "timestamp"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record. `default` is Avro's, meaningful only where `has_default`."""

    name: str
    type: Type
    has_default: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True)
class Type:
    """One Avro type: `kind` is a key of SCALARS, "array", "map" or "record"."""

    kind: str
    nullable: bool = False
    null_first: bool = True
    items: Type | None = None
    fields: tuple[Field, ...] = ()
    name: str = ""
    avro: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def columnar(self) -> bool:
        """Whether the columnar decoder reads it."""
        inner = [f.type for f in self.fields] + ([self.items] if self.items else [])
        return self.kind != "bytes" and all(t.columnar for t in inner)

    def arrow(self, *, raw: bool = False) -> pa.DataType:
        """The Arrow type; with `raw` every integer is an int64 (module text)."""
        if self.kind in INTEGERS and raw:
            return pa.int64()
        if self.kind in SCALARS:
            return SCALARS[self.kind]
        if self.kind == "record":
            return pa.struct(self.arrow_fields(raw=raw))
        assert self.items is not None
        if self.kind == "array":
            return pa.list_(pa.field("item", self.items.arrow(raw=raw), self.items.nullable))
        return pa.map_(pa.string(), pa.field("value", self.items.arrow(raw=raw), self.items.nullable))

    def arrow_fields(self, *, raw: bool = False) -> list[pa.Field]:
        """A record's fields in Arrow."""
        return [pa.field(f.name, f.type.arrow(raw=raw), f.type.nullable) for f in self.fields]

    def raw_avro(self) -> Any:
        """The schema for the columnar decoder: the same bytes on the wire, integers as long, no logical types."""
        inner: Any
        if self.kind == "record":
            fields = [{"name": f.name, "type": f.type.raw_avro()} for f in self.fields]
            inner = {"type": "record", "name": self.name, "fields": fields}
        elif self.items is not None:
            key = "items" if self.kind == "array" else "values"
            inner = {"type": self.kind, key: self.items.raw_avro()}
        else:
            inner = "long" if self.kind in INTEGERS else self.kind
        if not self.nullable:
            return inner
        return ["null", inner] if self.null_first else [inner, "null"]


def parse(schema: Mapping[str, Any]) -> Type:
    """A record schema as a tree.

    Raises:
        BadSchema: not a record, or it uses something that Caudal doesn't read.
    """
    tree = _parse(schema, {}, "")
    if tree.kind != "record" or tree.nullable:
        raise BadSchema("the schema is not a record")
    return replace(tree, avro=schema)


def _parse(schema: Any, named: dict[str, Type | None], namespace: str) -> Type:
    if isinstance(schema, str):
        if schema in SCALARS and schema not in ("date", "timestamp"):
            return Type(schema)
        known = named.get(schema) or named.get(f"{namespace}.{schema}")
        if known is None:
            raise BadSchema(f"schemas can't use the type {schema!r}", hint="docs/contracts.md lists the types")
        return known
    if isinstance(schema, list):
        rest = [branch for branch in schema if branch != "null"]
        if len(schema) != 2 or len(rest) != 1:
            raise BadSchema("schemas can't use unions other than of null and one type")
        inner = _parse(rest[0], named, namespace)
        if inner.nullable:
            raise BadSchema("schemas can't use a union inside a union")
        return replace(inner, nullable=True, null_first=schema[0] == "null")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "record":
        return _record(schema, named, namespace)
    if kind in ("array", "map"):
        return Type(kind, items=_parse(schema["items" if kind == "array" else "values"], named, namespace))
    if not isinstance(kind, str) or "logicalType" not in schema:
        return _parse(kind, named, namespace)
    logical = _LOGICAL.get((kind, schema["logicalType"]))
    if logical is None:
        raise BadSchema(f"schemas can't use the logical type {schema['logicalType']!r}")
    return Type(logical)


def _record(schema: Mapping[str, Any], named: dict[str, Type | None], namespace: str) -> Type:
    namespace = schema.get("namespace", namespace)
    name = schema["name"] if "." in schema["name"] else f"{namespace}.{schema['name']}".lstrip(".")
    if not schema["fields"]:
        # an array of nothings could claim 2**62 of them in ten bytes
        raise BadSchema(f"schemas can't use a record without fields ({name})")
    fields = tuple(
        Field(f["name"], _parse(f["type"], named, namespace), "default" in f, f.get("default"))
        for f in schema["fields"]
    )
    named[name] = tree = Type("record", fields=fields, name=name.rpartition(".")[2], avro=schema)
    return tree


@cache
def schema_of(record: str) -> Type:
    """Today's schema of one of our records, by its short name.

    Raises:
        BadSchema: there is no such record.
    """
    if record not in RECORDS:
        raise BadSchema(f"there is no record {record!r}", hint="docs/reference/events.md lists them")
    return parse(json.loads((FOLDER / f"{record}.avsc").read_text()))


FOLDER = Path(__file__).parent / "avro"
RECORDS = tuple(sorted(path.stem for path in FOLDER.glob("*.avsc")))
"""The short names of all of our records."""
