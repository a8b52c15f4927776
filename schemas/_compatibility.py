"""Whether data of one schema version can be read with another, by the rules of the official `avro` package.

The package takes names and defaults that the specification doesn't, and knows an alias only by its full name: both are mended here.
https://avro.apache.org/docs/1.12.0/specification/
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import avro.errors
import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from caudal.errors import BadSchema

__all__ = ["DEFAULT_LEVEL", "LEVELS", "faults", "validate"]

DEFAULT_LEVEL = "BACKWARD"
LEVELS = ("NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE")
"""Confluent's levels: BACKWARD, the new schema reads what was written; FORWARD, the former reads what will be; TRANSITIVE, with
every former version instead of the last."""


def validate(text: str) -> avro.schema.Schema:
    """The schema, parsed.

    Raises:
        BadSchema: not an Avro schema.
    """
    parsed = _parsed(text)
    if _HALF.search(text) or _HALF.search(json.dumps(json.loads(text), ensure_ascii=False)):
        raise BadSchema("not an Avro schema: a text in it holds half of a surrogate pair")
    try:
        _Rules().check(json.loads(text), "", "schema")
    except (RecursionError, TypeError, AttributeError, KeyError) as exc:
        raise BadSchema(f"not an Avro schema: nested too deep, or of another shape ({type(exc).__name__})") from None
    return parsed


def _parsed(text: str) -> avro.schema.Schema:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about logical types that the package doesn't know: they are allowed
        try:
            return avro.schema.parse(json.dumps(_aliased(json.loads(text), "")))
        except (avro.errors.AvroException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise BadSchema(f"not an Avro schema: {exc}") from None


_HALF = re.compile("[\ud800-\udfff]")
_NAMED = ("record", "error", "enum", "fixed")


def _namespace(schema: Mapping[str, Any], outer: str) -> str:
    """The namespace that the names within a named type are of."""
    name = schema.get("name")
    if isinstance(name, str) and "." in name:
        return name.rpartition(".")[0]
    given = schema.get("namespace", outer)
    return given if isinstance(given, str) else outer


def _aliased(schema: Any, outer: str) -> Any:
    """The schema with the aliases of its types as full names: without a dot they are of the type's own namespace."""
    if isinstance(schema, list):
        return [_aliased(each, outer) for each in schema]
    if not isinstance(schema, dict):
        return schema
    own = _namespace(schema, outer) if schema.get("type") in _NAMED else outer
    made = {name: _aliased(value, own) if name in _TYPES_WITHIN else value for name, value in schema.items()}
    aliases = schema.get("aliases")
    if schema.get("type") in _NAMED and own and isinstance(aliases, list):
        made["aliases"] = [f"{own}.{each}" if isinstance(each, str) and "." not in each else each for each in aliases]
    return made


_TYPES_WITHIN = ("type", "fields", "items", "values")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PRIMITIVE = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_WHOLE = {"int": 2**31, "long": 2**63}


def _listed(schema: Mapping[str, Any], part: str, name: str) -> list[Any]:
    """A part that is a list, if it is there.

    Raises:
        BadSchema: it is something else.
    """
    found = schema.get(part, [])
    if not isinstance(found, list):
        raise BadSchema(f"the {part} of {name} are no list")
    return found


class _Rules:
    """What the specification asks of a schema that the package has parsed, and what the package passes over."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._within: dict[str, str] = {}

    def check(self, schema: Any, namespace: str, where: str) -> None:
        """Pass when names and defaults are as they must be.

        Raises:
            BadSchema: they aren't; says which.
        """
        if isinstance(schema, list):
            for branch in schema:
                self.check(branch, namespace, where)
        elif isinstance(schema, dict):
            kind = schema.get("type")
            if kind in _NAMED:
                self._named(schema, namespace, where)
            elif kind == "array":
                self.check(schema.get("items"), namespace, where)
            elif kind == "map":
                self.check(schema.get("values"), namespace, where)
            else:
                self.check(kind, namespace, where)

    def _named(self, schema: dict[str, Any], outer: str, where: str) -> None:
        own = _namespace(schema, outer)
        name = str(schema.get("name"))
        self._names(name.split("."), f"the name of {where}")
        if own:
            self._names(own.split("."), f"the namespace of {name}")
        for alias in _listed(schema, "aliases", name):
            self._names(str(alias).split("."), f"an alias of {name}")
        full = name if "." in name or not own else f"{own}.{name}"
        self._known[full], self._within[full] = schema, own
        if schema["type"] == "enum":
            symbols = _listed(schema, "symbols", name)
            self._names(symbols, f"a symbol of {name}")
            self._once(symbols, f"the symbols of {name}")
            if "default" in schema and schema["default"] not in symbols:
                raise BadSchema(f"the default of the enum {name} is none of its symbols")
        fields = _listed(schema, "fields", name)
        self._once([field.get("name") for field in fields], f"the fields of {name}")
        for field in fields:
            shown = f"{name}.{field.get('name')}"
            self._names([field.get("name"), *_listed(field, "aliases", shown)], f"the name of the field {shown}")
            self.check(field.get("type"), own, shown)
        for field in fields:  # a default may be of a record that contains this one
            if "default" in field and not self._fits(field["default"], field.get("type"), own):
                raise BadSchema(f"the default of {name}.{field.get('name')} is not of its type")

    def _names(self, names: Iterable[Any], what: str) -> None:
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise BadSchema(f"{what}, {str(name)[:80]!r}, is not a letter or _ followed by letters, digits and _")

    def _once(self, names: Sequence[Any], what: str) -> None:
        if len(set(map(str, names))) != len(names):
            raise BadSchema(f"{what} aren't all different")

    def _fits(self, value: Any, schema: Any, namespace: str) -> bool:
        """Whether a default is one: of a union's first branch."""
        if isinstance(schema, list):
            return bool(schema) and self._fits(value, schema[0], namespace)
        if isinstance(schema, str) and schema not in _PRIMITIVE:
            full = schema if "." in schema or not namespace else f"{namespace}.{schema}"
            full = full if full in self._known else schema
            if full not in self._known:
                return True  # of a type that comes later, which the package has found
            return self._fits(value, self._known[full], self._within[full])
        kind = schema["type"] if isinstance(schema, dict) else schema
        inner = schema if isinstance(schema, dict) else {}
        match kind:
            case "null":
                return value is None
            case "boolean":
                return isinstance(value, bool)
            case "int" | "long":
                whole = isinstance(value, int) and not isinstance(value, bool)
                return whole and -_WHOLE[kind] <= value < _WHOLE[kind]
            case "float" | "double":
                return isinstance(value, int | float) and not isinstance(value, bool)
            case "string":
                return isinstance(value, str)
            case "bytes" | "fixed":
                latin = isinstance(value, str) and all(ord(letter) < 256 for letter in value)
                return latin and (kind == "bytes" or len(value) == inner.get("size"))
            case "enum":
                return value in inner.get("symbols", ())
            case "array":
                return isinstance(value, list) and all(self._fits(v, inner.get("items"), namespace) for v in value)
            case "map":
                return isinstance(value, dict) and all(
                    self._fits(v, inner.get("values"), namespace) for v in value.values()
                )
            case "record" | "error":
                own = _namespace(inner, namespace)
                return isinstance(value, dict) and all(
                    self._fits(value[f["name"]], f["type"], own) if f["name"] in value else "default" in f
                    for f in inner.get("fields", ())
                )
        return self._fits(value, kind, namespace)


def faults(new: str, former: Sequence[tuple[int, str]], level: str) -> list[str]:
    """Why `new` may not follow the `former` versions (number and text, oldest first); nothing when it may."""
    if level == "NONE" or not former:
        return []
    schema = _parsed(new)
    found = []
    for version, text in former if level.endswith("_TRANSITIVE") else former[-1:]:
        other = _parsed(text)
        if not level.startswith("FORWARD") and (why := _unreadable(reader=schema, writer=other)):
            found.append(f"the new schema can't read records of version {version}: {why}")
        if not level.startswith("BACKWARD") and (why := _unreadable(reader=other, writer=schema)):
            found.append(f"version {version} can't read records of the new schema: {why}")
    return found


def _unreadable(reader: avro.schema.Schema, writer: avro.schema.Schema) -> str:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call] # the package's own gap
    result = checker.get_compatibility(reader, writer)
    if result.compatibility is SchemaCompatibilityType.compatible:
        return ""
    kinds = ", ".join(sorted({kind.name for kind in result.incompatibilities}))
    return f"{kinds} ({', '.join(sorted(result.messages))}) at {', '.join(sorted(result.locations))}"
