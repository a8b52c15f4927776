"""Holds events to what Avro and PostgreSQL can store, so that one bad value can't stop a batch later.

Text carries no NUL (PostgreSQL has no place for it), no lone surrogates and at most `TEXT_MAX` characters; integers fit their Avro width;
times are aware, in UTC and inside the years that every part can hold; keys fit a B-tree page; currencies have three letters. An empty text
is the same as none at all. What can't be held so is left out and told; an event or a part of one that can't do without it goes with it.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from caudal.connectors._mend import UNREADABLE, LeftOut, mended_text, tell
from caudal.schemas.events import KEY_MAX_BYTES

from caudal.errors import MissingField, Poison, UnusableEvent

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["TEXT_MAX", "within_bounds"]

TEXT_MAX = 32_768
"""Characters of a text; what is longer is cut. All of an event must fit a message of Kafka's, and so must its profile."""
_ENTRIES_MAX, _ENTRIES_MAX_BYTES = 1_000, 400_000
"""How many entries a map may have, and how much they may take; the rest is left out."""

_YEARS = range(2, 9999)  # one year of room at both ends: a time zone must not push a time out of what Python can hold
_KEYS = frozenset(
    {
        "subject",
        "order_id",
        "ticket_id",
        "subscription_id",
        "feedback_id",
        "interaction_id",
        "refund_id",
        "line_id",
        "purpose",
        "city",  # its folded form is indexed for search
    }
)

_T = TypeVar("_T", bound="DataclassInstance")


class _Losses:
    """Where the checks of one record tell what is left out of it."""

    __slots__ = ("path", "told")

    def __init__(self, told: list[LeftOut] | None, path: str) -> None:
        self.told, self.path = told, path

    def __call__(self, reason: str) -> None:
        tell(self.told, self.path, reason)

    def at(self, step: str | int) -> _Losses:
        return _Losses(self.told, f"{self.path}.{step}" if self.path else str(step))


Check = Callable[[Any, _Losses], Any]


def within_bounds(record: _T, told: list[LeftOut] | None = None, *, long: bool = False) -> _T:
    """The record, an event or a part of one, with text cleaned and times in UTC; itself when there is nothing to change.

    Args:
        record: what a connector made.
        told: gets what was left out of it.
        long: whether texts may be longer than `TEXT_MAX` or maps too large; asked only of large deliveries.

    Raises:
        MissingField: a field that the event can't do without is empty.
        UnusableEvent: a value that the event can't do without has the wrong type or can't be stored.
    """
    return (
        record if not long and _fits(type(record))(record) else _bounded(record, _Losses(told, type(record).__name__))
    )


def _bounded(record: _T, losses: _Losses | None = None) -> _T:
    losses = losses or _Losses(None, type(record).__name__)
    changed: dict[str, Any] = {}
    for name, check, optional, absent in _checks(type(record)):
        value = getattr(record, name)
        if value is None:
            if not optional:
                raise MissingField(f"{type(record).__name__}: {name} is missing")
            continue
        here = losses.at(name)
        try:
            checked = check(value, here)
        except (ValueError, TypeError, OverflowError, AttributeError, Poison):
            if absent is MISSING:
                raise UnusableEvent(f"{type(record).__name__}: {name} can't be stored") from None
            here("bad_value" if value is UNREADABLE else "out_of_range")
            checked = absent
        if checked == "" and name not in _SET_LATER:
            if not optional:
                raise MissingField(f"{type(record).__name__}: {name} is empty")
            checked = None
        if checked is not value:
            changed[name] = checked
    return replace(record, **changed) if changed else record


_SET_LATER = frozenset(
    {"event_id", "source", "customer_id", "value", "answer", "question"}
)  # may be "" when a connector makes them


@cache
def _checks(cls: type) -> tuple[tuple[str, Check, bool, Any], ...]:
    """Of each field: name, check, whether it may be None, and what stands for it when it is left out (MISSING: nothing may)."""
    hints = get_type_hints(cls)
    made = []
    for field in fields(cls):
        optional, hint = _without_none(hints[field.name])
        # a number that counts, such as a line's discount, is not nought because it can't be read
        absent = None if optional else () if get_origin(hint) is tuple and field.default == () else MISSING
        made.append((field.name, _check(field.name, hint), optional, absent))
    return tuple(made)


def _without_none(hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) in {Union, types.UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        return len(rest) < len(get_args(hint)), rest[0]
    return False, hint


def _check(name: str, hint: Any) -> Check:
    origin = get_origin(hint)
    if origin is tuple:
        return _each(_check(name, get_args(hint)[0]))
    if origin in {Mapping, dict}:
        return _mapping
    if is_dataclass(hint):
        return lambda value, losses: _bounded(value, losses) if type(value) is hint else _wrong()
    if hint is int:
        bits = _bits(name)
        return lambda value, _: value if type(value) is int and -(1 << bits) <= value < 1 << bits else _wrong()
    if hint is str:
        return _key if name in _KEYS else _currency if name == "currency" else _text
    plain: dict[Any, Check] = {float: _number, datetime: _instant, date: _day}
    return plain[hint]


def _bits(name: str) -> int:
    # every *_minor, link_seq and version is a long in the contracts, other whole numbers are ints; a test holds this
    return 63 if name.endswith("_minor") or name == "link_seq" else 31


def _wrong() -> Any:
    raise ValueError


def _each(check: Check) -> Check:
    def checked(values: Any, losses: _Losses) -> tuple[Any, ...]:
        """The items that hold; a list of which none holds can't be read, as empty would say that there is none."""
        kept = []
        for n, value in enumerate(values):
            try:
                kept.append(check(value, losses.at(n)))
            except Poison:
                losses.at(n)("incomplete")
            except (ValueError, TypeError, OverflowError, AttributeError):
                losses.at(n)("out_of_range")
        if values and not kept:
            raise ValueError
        same = (
            isinstance(values, tuple)
            and len(kept) == len(values)
            and all(a is b for a, b in zip(values, kept, strict=True))
        )
        return values if same else tuple(kept)

    return checked


def _text(value: str, losses: _Losses) -> str:
    text = value if value.isascii() else mended_text(value)
    if "\x00" in text:
        text = text.replace("\x00", "")
    if text is not value and text != value:
        losses("bad_character")
    if len(text) > TEXT_MAX:
        losses("too_long")
        text = text[:TEXT_MAX]
    return text


def _key(value: str, _losses: _Losses) -> str:
    if "\x00" in value or len(value.encode()) > KEY_MAX_BYTES:
        raise ValueError
    return value


def _currency(value: str, _losses: _Losses) -> str:
    code = value.strip().upper()
    return code if re.fullmatch("[A-Z]{3}", code) else _wrong()


def _mapping(values: Mapping[str, str | None], losses: _Losses) -> Mapping[str, str | None]:
    kept: dict[str, str | None] = {}
    size = 0
    for key, value in values.items():
        try:
            name = _key(_text(key, losses), losses)
            text = None if value is None else _text(value, losses)
        except (ValueError, TypeError, AttributeError):
            losses.at("*")("out_of_range")
            continue
        size += len(name.encode()) + len((text or "").encode())
        if len(kept) >= _ENTRIES_MAX or size > _ENTRIES_MAX_BYTES:
            losses("too_many")
            break
        kept[name] = text
    return kept


def _number(value: float, _losses: _Losses) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _instant(value: datetime, _losses: _Losses) -> datetime:
    if value.tzinfo is None or value.year not in _YEARS:
        raise ValueError
    return value if value.tzinfo is UTC else value.astimezone(UTC)


def _day(value: date, _losses: _Losses) -> date:
    if type(value) is not date or value.year not in _YEARS:
        raise ValueError
    return value


# --- the same, asked only: nearly every record needs no change, and calls for each of a hundred values took a third of translating ---


@cache
def _fits(cls: type) -> Callable[[Any], bool]:
    """A function that says whether a record of the class is within bounds already; it may say no where it is. Compiled once."""
    scope: dict[str, Any] = {"cls": cls, "UTC": UTC, "date": date, "datetime": datetime, "isfinite": math.isfinite}
    scope |= {"encodes": _encodes}
    lines = ["def fits(record):", "    if type(record) is not cls: return False"]
    for name, (optional, hint) in {f.name: _without_none(get_type_hints(cls)[f.name]) for f in fields(cls)}.items():
        test = _test(name, hint, scope)
        if hint is str and name not in _SET_LATER:
            test = f"v != '' and {test}"
        if optional:
            test = f"v is None or ({test})"
        lines += [f"    v = record.{name}", f"    if not ({test}): return False"]
    exec("\n".join([*lines, "    return True"]), scope)  # noqa: S102 - the text is made of our own declarations
    fits: Callable[[Any], bool] = scope["fits"]
    return fits


def _test(name: str, hint: Any, scope: dict[str, Any], v: str = "v") -> str:
    """An expression over the variable `v` that is true for values that `_check` would give back as they are."""
    origin = get_origin(hint)
    if origin is tuple:
        return f"type(v) is tuple and (not v or all([{_test(name, get_args(hint)[0], scope)} for v in v]))"
    if origin in {Mapping, dict}:
        key, value = _test("subject", str, scope, "k"), _test(name, str, scope)
        return f"type(v) is dict and (not v or all([{key} and (v is None or {value}) for k, v in v.items()]))"
    if isinstance(hint, type) and is_dataclass(hint):
        part = f"fits_{hint.__name__}"
        scope[part] = _fits(hint)
        return f"{part}(v)"
    if hint is str:
        size = f" and len({v}) <= {KEY_MAX_BYTES // 4}" if name in _KEYS else ""  # a character takes at most four bytes
        if name == "currency":
            return f"type({v}) is str and len({v}) == 3 and {v}.isascii() and {v}.isalpha() and {v}.isupper()"
        return f"type({v}) is str and '\\0' not in {v} and ({v}.isascii() or encodes({v})){size}"
    if hint is int:
        return f"type(v) is int and {-(1 << _bits(name))} <= v < {1 << _bits(name)}"
    years = f"{_YEARS.start} <= v.year < {_YEARS.stop}"
    plain = {
        float: "type(v) is float and isfinite(v)",
        datetime: f"type(v) is datetime and v.tzinfo is UTC and {years}",
        date: f"type(v) is date and {years}",
    }
    return plain[hint]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
