"""Holds events to what Avro and PostgreSQL can store, so that one bad value can't stop a batch later.

Text carries no NUL (PostgreSQL has no place for it) and no lone surrogates; integers fit their Avro width; times are aware, in UTC
and inside the years that every part can hold; keys fit a B-tree page. An empty text is the same as none at all.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from caudal.schemas.events import KEY_MAX_BYTES

from caudal.errors import MissingField, UnusableEvent

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["within_bounds"]

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
Check = Callable[[Any], Any]


def within_bounds(record: _T, **changed: Any) -> _T:
    """The record with text cleaned and times in UTC.

    Args:
        record: an event or a part of one.
        changed: fields to set on the way, taken as they are (one copy instead of two).

    Raises:
        MissingField: a field that the event can't do without is empty.
        UnusableEvent: a value has the wrong type or can't be stored.
    """
    for name, check, optional in _checks(type(record)):
        value = changed[name] if name in changed else getattr(record, name)
        if value is None:
            if not optional:
                raise MissingField(f"{type(record).__name__}: {name} is missing")
            continue
        try:
            checked = check(value)
        except (ValueError, TypeError, OverflowError, AttributeError):
            raise UnusableEvent(f"{type(record).__name__}: {name} can't be stored") from None
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
def _checks(cls: type) -> tuple[tuple[str, Check, bool], ...]:
    hints = get_type_hints(cls)
    made = []
    for field in fields(cls):
        optional, hint = _without_none(hints[field.name])
        made.append((field.name, _check(field.name, hint), optional))
    return tuple(made)


def _without_none(hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) in {Union, types.UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        return len(rest) < len(get_args(hint)), rest[0]
    return False, hint


def _check(name: str, hint: Any) -> Check:
    origin = get_origin(hint)
    if origin is tuple:
        each = _check(name, get_args(hint)[0])
        return lambda values: _same_or(values, tuple(each(value) for value in values))
    if origin in {Mapping, dict}:
        return _mapping
    if is_dataclass(hint):
        return lambda value: within_bounds(value) if type(value) is hint else _wrong()
    if hint is int:
        # every *_minor, link_seq and version is a long in the contracts, other whole numbers are ints; a test holds this
        bits = 63 if name.endswith("_minor") or name == "link_seq" else 31
        return lambda value: value if type(value) is int and -(1 << bits) <= value < 1 << bits else _wrong()
    if hint is str:
        return _key if name in _KEYS else _text
    plain: dict[Any, Check] = {float: _number, datetime: _instant, date: _day}
    return plain[hint]


def _wrong() -> Any:
    raise ValueError


def _same_or(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    return old if isinstance(old, tuple) and all(a is b for a, b in zip(old, new, strict=True)) else new


def _text(value: str) -> str:
    if not value.isascii():
        value.encode()  # a lone surrogate can't be encoded
    return value.replace("\x00", "") if "\x00" in value else value


def _key(value: str) -> str:
    if "\x00" in value or len(value.encode()) > KEY_MAX_BYTES:
        raise ValueError
    return value


def _mapping(values: Mapping[str, str | None]) -> Mapping[str, str | None]:
    return {_key(_text(key)): None if value is None else _text(value) for key, value in values.items()}


def _number(value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _instant(value: datetime) -> datetime:
    if value.tzinfo is None or value.year not in _YEARS:
        raise ValueError
    return value if value.tzinfo is UTC else value.astimezone(UTC)


def _day(value: date) -> date:
    if type(value) is not date or value.year not in _YEARS:
        raise ValueError
    return value
