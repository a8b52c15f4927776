"""Which identifiers a subject states now.

What an account says of itself is replaced by what it says of the same field later: by the version of the statement, not by the order of
arrival. An identifier that no field of the account ever stated (of an order, a ticket, a second address) stays for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

import orjson
from caudal.processors.identity import Key
from caudal.processors.rules import Rules
from caudal.schemas import Event, Identifier, OrderStated, ProfileStated, TicketStated

__all__ = ["Field", "Fields", "Said", "dump", "load", "said", "values"]

CONTACTS = {
    "email": "email",
    "other_emails": "email",
    "phone": "phone",
    "other_phones": "phone",
    "cpf": "cpf",
    "cnpj": "cnpj",
}
"""Profile field → kind of the identifiers that it states."""
ATTRIBUTE = "attributes."
OWNER = "of"
"""The field of a thing that says whose it is."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Version = tuple[int, int, str]


class Field(NamedTuple):
    """The newest statement of a field: its version, and the identifiers that it states."""

    version: Version
    keys: tuple[Key, ...]


Fields = Mapping[str, Field]


class Said(NamedTuple):
    """What an event says of identifiers.

    Attributes:
        lasting: those that no field states.
        fields: field → those that it states, none where it is stated to be empty.
        attributes: the custom attributes stated; some may have stated an identifier before.
    """

    lasting: tuple[Key, ...]
    fields: Mapping[str, tuple[Key, ...]] = MappingProxyType({})
    attributes: Mapping[str, str | None] = MappingProxyType({})


def said(event: Event, rules: Rules) -> Said:
    """Sort the event's identifiers, which are normalised, by what states them."""
    keys = tuple(Key(identifier.kind, identifier.value) for identifier in event.identifiers)
    if isinstance(event, ProfileStated):
        return _of_profile(event, keys, rules)
    if keys and _is_thing(event):
        owners = tuple(key for key in keys if key.kind == "subject")
        if owners:
            return Said(tuple(key for key in keys if key.kind != "subject"), {OWNER: owners})
    return Said(keys)


def _of_profile(event: ProfileStated, keys: tuple[Key, ...], rules: Rules) -> Said:
    fields: dict[str, tuple[Key, ...]] = {}
    left = dict.fromkeys(keys)
    for name, kind in CONTACTS.items():
        value = getattr(event, name)
        if value is None:
            if name in event.cleared:
                fields[name] = ()
            continue
        given = (value,) if isinstance(value, str) else value
        found = {Key(one.kind, one.value) for one in rules.usable(Identifier(kind=kind, value=one) for one in given)}
        fields[name] = tuple(key for key in keys if key in found)
        for key in fields[name]:
            left.pop(key, None)
    if event.attributes:
        for key in keys:
            if key.kind == "subject":
                continue
            for name, value in event.attributes.items():
                if value and _may_be(key.kind, value) and _is(key, rules.evidence(key.kind, value)):
                    fields[ATTRIBUTE + name] = (*fields.get(ATTRIBUTE + name, ()), key)
                    left.pop(key, None)
    return Said(tuple(left), fields, event.attributes)


def _may_be(kind: str, value: str) -> bool:
    """A quick look, for most attributes are no identifier."""
    return kind == "external_id" or ("@" in value) == (kind == "email")


def _is(key: Key, identifier: Identifier | None) -> bool:
    return identifier is not None and identifier.value == key.value


def _is_thing(event: Event) -> bool:
    """Whether the event's subject is the order or ticket itself, and no person."""
    match event:
        case OrderStated():
            return event.subject == f"{event.source}:{event.kind or 'order'}:{event.order_id}"
        case TicketStated():
            return event.subject == f"{event.source}:ticket:{event.ticket_id}"
        case _:
            return False


def version(occurred_at: datetime, captured_at: datetime, event_id: str) -> Version:
    """The version of a statement, which JSON can hold."""
    return (occurred_at - _EPOCH) // _MICROSECOND, (captured_at - _EPOCH) // _MICROSECOND, event_id


def values(fields: Fields) -> set[Key]:
    """All that the fields state now."""
    return {key for field in fields.values() for key in field.keys}


def newest(known: Fields, statements: Iterable[tuple[Version, Said]]) -> dict[str, Field]:
    """The newest statement of each field, of those known and these."""
    found = dict(known)
    for at, one in statements:
        stated = dict(one.fields)
        for name in found:
            # an attribute that states another value, or none, states its identifier no more
            if name.startswith(ATTRIBUTE) and name not in stated and name.removeprefix(ATTRIBUTE) in one.attributes:
                stated[name] = ()
        for name, keys in stated.items():
            if name not in found or found[name].version < at:
                found[name] = Field(at, keys)
    return found


def dump(fields: Fields) -> str:
    """The fields as text: equal ones give equal texts."""
    by_version: dict[Version, dict[str, list[str]]] = {}
    for name in sorted(fields):
        at, keys = fields[name]
        by_version.setdefault(at, {})[name] = [f"{key.kind} {key.value}" for key in sorted(keys)]
    return orjson.dumps([(at, by_version[at]) for at in sorted(by_version)]).decode() if by_version else ""


def load(text: str) -> dict[str, Field]:
    """The fields of such a text."""
    return {
        name: Field((at[0], at[1], at[2]), tuple(_key(key) for key in keys))
        for at, found in (orjson.loads(text) if text else ())
        for name, keys in found.items()
    }


def _key(text: str) -> Key:
    kind, _, value = text.partition(" ")
    return Key(kind, value)
