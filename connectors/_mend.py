"""What can't be read is left out and told, and the rest is used: of a body, of a payload, of an event.

A value that isn't what its field takes becomes absent, never null or empty: what was known stays known. An item of a list that can't be
read is left out of the list. What can't do without the value goes with it: a line without its quantity, an event without its subject.
Only reading fails; nothing here is reached by a payload that is as it should be.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

__all__ = [
    "REASONS",
    "UNREADABLE",
    "Essential",
    "LeftOut",
    "Path",
    "fields_of",
    "mended_json",
    "mended_text",
    "read",
    "shown",
    "tell",
]

REASONS: Final = frozenset(
    {
        "bad_amount",
        "bad_character",
        "bad_date",
        "bad_flag",
        "bad_id",
        "bad_list",
        "bad_number",
        "bad_object",
        "bad_text",
        "bad_value",
        "incomplete",
        "out_of_range",
        "too_deep",
        "too_long",
        "too_many",
    }
)
"""Why something was left out. `incomplete`: a part lacks what it can't do without; `bad_character`: only that character was."""

Path = tuple[str | int, ...]

_TOLD_MAX = 100
"""Parts of a delivery that are named; a list of a million wrong things must not be told item by item."""
_ROUNDS = 12
"""Each round goes up one level where it has to; models are not as deep as that."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a delivery that was not used: where it stands, and why. Neither holds anything of what stood there."""

    path: str
    reason: str


class Essential:
    """Marks a field of a payload: the vendor may leave it out, but where it can't be read, what holds it can't be used either.

    For what would otherwise be wrong rather than unknown, such as the parts of a sum: `Annotated[tuple[Tax, ...] | None, Essential]`.
    """


class _Unreadable:
    """Stands in an event for a value that is there and can't be read: `within_bounds` leaves it out and tells it."""

    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final[Any] = _Unreadable()


def tell(told: list[LeftOut] | None, path: str, reason: str) -> None:
    """Note that something was left out."""
    if told is not None and len(told) < _TOLD_MAX and (out := LeftOut(path, reason)) not in told:
        told.append(out)


def shown(path: Iterable[str | int], known: Collection[str]) -> str:
    """A path for people; keys are told only where they are fields of a model: others may hold anything, names of people too."""
    return ".".join(str(step) if isinstance(step, int) or step in known else "*" for step in path)


# --- payloads ------------------------------------------------------------------------------------------------------------------

_M = TypeVar("_M", bound=BaseModel)


def read(model: type[_M], value: Any, told: list[LeftOut]) -> _M:
    """The value as the model; what of it can't be read, and need not be there, is left out.

    Raises:
        ValidationError: what the model can't do without is missing or can't be read.
    """
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        return _read_less(model, value, exc, told)


def _read_less(model: type[_M], value: Any, first: ValidationError, told: list[LeftOut]) -> _M:
    found, out = first, dict[Path, str]()
    for _ in range(_ROUNDS):
        gone: dict[Path, str] = {}
        for error in found.errors(include_url=False, include_context=False, include_input=False):
            path = _up_to_essential(model, _place(value, error["loc"]))
            if not path:
                raise first
            gone.setdefault(path, _reason(error["type"]))
        # where both branches of a union fail, one names the whole and the other what is wrong in it
        holders = {path[:depth] for path in gone for depth in range(1, len(path))}
        gone = {path: reason for path, reason in gone.items() if path not in holders}
        value = _without(value, gone)
        out |= gone
        try:
            payload = model.model_validate(value)
        except ValidationError as exc:
            found = exc
            continue
        known = fields_of(model)
        for path, reason in out.items():
            tell(told, shown(path, known), reason)
        return payload
    raise first


def _place(value: Any, loc: tuple[int | str, ...]) -> Path:
    """Where in the value an error lies: a location also names branches of unions, and fields that are missing."""
    path: list[str | int] = []
    for step in loc:
        if isinstance(value, dict):
            if step not in value:
                continue
        elif not isinstance(value, list) or not isinstance(step, int) or not 0 <= step < len(value):
            continue
        value = value[step]
        path.append(step)
    return tuple(path)


def _up_to_essential(model: type[BaseModel], path: Path) -> Path:
    current: type[BaseModel] | None = model
    for depth, step in enumerate(path):
        if isinstance(step, int):
            continue
        field = _fields(current).get(step) if current is not None else None
        if field is None:
            break
        essential, current = field
        if essential:
            return path[:depth]
    return path


@cache
def _fields(model: type[BaseModel]) -> Mapping[str, tuple[bool, type[BaseModel] | None]]:
    """Name in the payload → whether it is essential, and the model of its value or items."""
    return {
        field.alias or name: (Essential in field.metadata, _model_in(field.annotation))
        for name, field in model.model_fields.items()
    }


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)


def _without(value: Any, paths: Iterable[Path]) -> Any:
    """The value less what lies at the paths. A list of which nothing is left is left out too: empty would say that there is none."""
    gone: set[str | int] = set()
    below: dict[str | int, list[Path]] = defaultdict(list)
    for step, *rest in paths:
        if rest:
            below[step].append(tuple(rest))
        else:
            gone.add(step)
    kept = {}
    for step, part in value.items() if isinstance(value, dict) else enumerate(value):
        if step in below:
            left = _without(part, below[step])
            if left or not isinstance(left, list):
                kept[step] = left
        elif step not in gone:
            kept[step] = part
    return kept if isinstance(value, dict) else list(kept.values())


_KINDS = {
    "inexact_amount": "bad_amount",
    "inexact_id": "bad_id",
    "missing": "incomplete",
    "model_type": "bad_object",
    "model_attributes_type": "bad_object",
    "dict_type": "bad_object",
    "mapping_type": "bad_object",
    "tuple_type": "bad_list",
    "list_type": "bad_list",
    "set_type": "bad_list",
    "iterable_type": "bad_list",
    "string_too_long": "too_long",
    "string_unicode": "bad_character",
}
_FAMILIES = {
    "string": "bad_text",
    "bool": "bad_flag",
    "int": "bad_number",
    "float": "bad_number",
    "decimal": "bad_number",
    "finite": "bad_number",
    "date": "bad_date",
    "datetime": "bad_date",
    "time": "bad_date",
    "timezone": "bad_date",
}


def _reason(error: str) -> str:
    return _KINDS.get(error) or _FAMILIES.get(error.partition("_")[0], "bad_value")


@cache
def fields_of(model: type[BaseModel]) -> frozenset[str]:
    """Every name that the model and the models in it read."""
    return _properties(model.model_json_schema())


def _properties(schema: Any) -> frozenset[str]:
    if isinstance(schema, list):
        return frozenset().union(*map(_properties, schema))
    if not isinstance(schema, dict):
        return frozenset()
    return frozenset(schema.get("properties", ())).union(*map(_properties, schema.values()))


# --- bodies --------------------------------------------------------------------------------------------------------------------

_DEEPEST = 100
_DEEP = "\x00too deep\x00"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]+")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_CHARSETS = re.compile(r"(iso8859|cp125|cp85|utf-16|utf-32|koi8|mac|gb|big5|shift_jis|euc_)[\w-]*")
"""Names of codecs for texts; Python has others, some of which take very long."""
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def mended_json(body: bytes, content_type: str, known: Collection[str], told: list[LeftOut]) -> bytes | None:
    """A body that is JSON but for some of its characters, numbers and depth, as JSON; None when it isn't.

    Read by its byte order mark, else as UTF-8, else as the charset that the content type names. Half a surrogate pair and bytes that are
    no text become U+FFFD. What is no number (NaN, an infinity, one beyond what a double holds) and what is nested too deep is left out.
    Wrong syntax stays wrong: what stood there can't be told.
    """
    try:
        value = json.loads(
            _shallow(_decoded(body, content_type).strip("\ufeff\x00 \t\r\n")),
            strict=False,
            parse_constant=lambda _: UNREADABLE,
            parse_float=_finite,
            parse_int=lambda digits: int(digits) if len(digits) < 400 else UNREADABLE,
        )
    except (ValueError, RecursionError):
        return None
    cleaned = _cleaned(value, (), lambda path, reason: tell(told, shown(path, known), reason))
    return None if cleaned is UNREADABLE else json.dumps(cleaned, ensure_ascii=False).encode()


def mended_text(text: str) -> str:
    """The text with U+FFFD for every run of lone surrogates."""
    return _SURROGATES.sub("\ufffd", text)


def _decoded(body: bytes, content_type: str) -> str:
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            return body.removeprefix(codecs.BOM_UTF8).decode(
                encoding, "surrogateescape" if encoding == "utf-8" else "replace"
            )
    if body[:1] == b"\0" or body[1:2] == b"\0":  # JSON begins with an ASCII character, mostly with two
        return body.decode("utf-16-be" if body[:1] == b"\0" else "utf-16-le", "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        named = _CHARSET.search(content_type)
        charset = _charset(named[1]) if named else None
        return body.decode(charset, "replace") if charset else body.decode("utf-8", "surrogateescape")


def _charset(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name
    except LookupError:
        return None
    return found if _CHARSETS.fullmatch(found) else None


def _shallow(text: str) -> str:
    """The text with a mark for what is nested too deep for parsers."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return text
    depth, begun, done = 0, 0, 0
    pieces: list[str] = []
    for found in _TOKEN.finditer(text):
        if found[0] in ("[", "{"):
            depth += 1
            if depth == _DEEPEST + 1:
                begun = found.start()
        elif found[0] in ("]", "}"):
            if depth == _DEEPEST + 1:
                pieces += (text[done:begun], f'"{_DEEP}"')
                done = found.end()
            depth -= 1
    return "".join([*pieces, text[done:]])


def _finite(digits: str) -> Any:
    number = float(digits)
    return number if abs(number) != float("inf") else UNREADABLE


def _cleaned(value: Any, path: Path, lose: Any) -> Any:
    """The parsed value as all parsers take it; UNREADABLE for what must be left out."""
    if value is UNREADABLE:
        lose(path, "bad_number")
    elif value == _DEEP:
        lose(path, "too_deep")
        return UNREADABLE
    elif isinstance(value, str):
        if not value.isascii() and (mended := mended_text(value)) != value:
            lose(path, "bad_character")
            return mended
    elif isinstance(value, dict):
        kept = {}
        for key, part in value.items():
            if not key.isascii() and _SURROGATES.search(key):
                lose((*path, "*"), "bad_character")
            elif (left := _cleaned(part, (*path, key), lose)) is not UNREADABLE:
                kept[key] = left
        return kept
    elif isinstance(value, list):
        items = [left for n, part in enumerate(value) if (left := _cleaned(part, (*path, n), lose)) is not UNREADABLE]
        return UNREADABLE if value and not items else items
    return value
