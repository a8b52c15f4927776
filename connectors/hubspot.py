"""HubSpot: webhooks of the Webhooks API (both grammars), workflow deliveries and CRM API records.

A webhook is thin: an array of up to 100 notices, each of one record and mostly one property. `subscriptionType` names the kind,
as `contact.propertyChange` or, for generic subscriptions, as `object.propertyChange` with an `objectTypeId`; both become the former
here (older documentation calls the field `eventType`). A workflow and the CRM API send whole records: these are the kinds
`contact.object`, `deal.object` and `ticket.object`. Order and uniqueness are not promised, and `eventId` is not unique.

https://developers.hubspot.com/docs/api/webhooks,
https://developers.hubspot.com/docs/apps/legacy-apps/public-apps/create-generic-webhook-subscriptions
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from caudal.connectors import _values
from caudal.connectors._mend import UNREADABLE, Essential
from caudal.connectors._money import Amount, minor
from caudal.connectors._sdk import (
    Connector,
    Delivery,
    Id,
    Instant,
    Item,
    Payload,
    Setup,
    each,
    identifiers,
    parse_json,
    subject,
)
from caudal.connectors._signatures import HubSpotSignature
from caudal.schemas import Event
from caudal.schemas.events import (
    ConsentStated,
    Identifier,
    OrderStated,
    ProfileStated,
    SubjectDeleted,
    TicketStated,
)
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from caudal.errors import InvalidPayload, MissingField, UnknownKind

__all__ = ["connector"]

_OBJECTS = {
    "0-1": "contact",
    "0-2": "company",
    "0-3": "deal",
    "0-5": "ticket",
    "0-7": "product",
    "0-8": "line_item",
}
"""https://developers.hubspot.com/docs/api/crm/understanding-the-crm#object-type-ids; every other id counts as `custom`."""

_VERBS = ("creation", "deletion", "propertyChange", "merge", "restore", "associationChange")

_IGNORED = frozenset(
    {f"{name}.{verb}" for name in ("product", "line_item", "custom") for verb in (*_VERBS, "object")}
    # A company is no person; what it says about one (its name at the contact) comes with the contact
    | {f"company.{verb}" for verb in (*_VERBS, "object") if verb != "associationChange"}
    # A conversation names a thread and no person: nothing to tie it to
    | {f"conversation.{verb}" for verb in ("creation", "deletion", "privacyDeletion", "propertyChange", "newMessage")}
)


def _when(value: object) -> object:
    return _values.moment(value) or value


def _text(value: object) -> object:
    """A property's value as text: null is empty, and numbers and booleans are written as HubSpot writes them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, int | float | str) else value


def _list(value: object) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(value).split(";") if part.strip())


When = Annotated[Instant, BeforeValidator(_when)]
Text = Annotated[str, BeforeValidator(_text)]


class _Camel(Payload):
    model_config = ConfigDict(alias_generator=to_camel)

    occurred_at: When


class Notice(_Camel):
    """What every notice about one record says."""

    object_id: Id


class PropertyChange(Notice):
    """The new value of one property; an empty one says that the property was emptied."""

    property_name: str
    property_value: Annotated[Text, Essential] = ""


class Merge(_Camel):
    """Several records became one: `new_object_id` where a new record was made of them, else `primary_object_id`."""

    primary_object_id: Id
    merged_object_ids: tuple[Id, ...]
    new_object_id: Id | None = None


class AssociationChange(_Camel):
    """Two records were tied together or taken apart; the types are named (older grammar) or given as type ids."""

    from_object_id: Id
    to_object_id: Id
    association_type: str | None = None
    from_object_type_id: str | None = None
    to_object_type_id: str | None = None
    association_removed: Annotated[bool, Essential] = False
    is_primary_association: bool | None = None


class Record(Payload):
    """A whole record, brought into one shape from the three that HubSpot has (see `_record`)."""

    id: Id
    at: When
    properties: dict[str, Text]
    deleted: bool = False
    merged: tuple[Id, ...] = ()
    contacts: tuple[Id, ...] = ()


def _split(delivery: Delivery) -> Iterator[Item | Exception]:
    body = parse_json(delivery.body)
    if isinstance(body, dict) and isinstance(body.get("results"), list):
        body = body["results"]
    return each(body if isinstance(body, list) else [body], lambda item: _item(delivery, item))


def _item(delivery: Delivery, item: Any) -> Item:
    if not isinstance(item, dict):
        raise InvalidPayload("hubspot: a notice is not a JSON object")
    if "properties" in item and "subscriptionType" not in item:
        name = _record_type(item, delivery.kind)
        record = _record(item)
        return f"{name}.object", f"{delivery.delivery_id}/{name}/{record['id']}", record
    kind = item.get("subscriptionType") or item.get("eventType") or delivery.kind
    return _kind(kind, item), _notice_id(item), item


def _kind(kind: object, item: Mapping[str, Any]) -> str:
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z_]+\.[A-Za-z_]+", kind):
        raise UnknownKind("hubspot: a notice names no subscriptionType")
    name, _, verb = kind.partition(".")
    if name != "object":
        return kind
    type_id = item.get("objectTypeId") or item.get("fromObjectTypeId")
    if not type_id:
        raise MissingField("hubspot: a generic notice names no objectTypeId")
    return f"{_OBJECTS.get(str(type_id), 'custom')}.{verb}"


def _notice_id(item: Mapping[str, Any]) -> str:
    # attemptNumber is left out, so that a redelivery gives the same id
    fields = ["portalId", "subscriptionId", "eventId", "objectId", "occurredAt", "propertyName"]
    if "fromObjectId" in item:
        fields += ["fromObjectId", "toObjectId", "associationType", "associationTypeId", "associationRemoved"]
    return "/".join(str(item.get(name, "")) for name in fields)


def _record_type(item: Mapping[str, Any], kind: str | None) -> str:
    if type_id := item.get("objectTypeId"):
        return _OBJECTS.get(str(type_id), "custom")
    if "vid" in item:
        return "contact"
    named = (kind or str(item.get("objectType", ""))).partition(".")[0].lower()
    if named in _OBJECTS.values():
        return named
    # Records of the CRM API don't name their type: tell them by the properties that each always has
    properties = item["properties"] if isinstance(item["properties"], dict) else {}
    for name, marks in (
        ("deal", {"dealname", "dealstage"}),
        ("ticket", {"hs_pipeline_stage", "hs_ticket_priority", "hs_ticket_category"}),
        ("contact", {"email", "firstname", "lastname", "phone", "mobilephone", "lifecyclestage"}),
        ("company", {"domain", "name"}),
    ):
        if marks & properties.keys():
            return name
    raise UnknownKind("hubspot: the record does not tell its type", hint="name the kind, such as contact.object")


def _record(item: Mapping[str, Any]) -> dict[str, Any]:
    found = item["properties"] or {}  # some programs write an empty object as an empty list
    if not isinstance(found, dict):
        raise InvalidPayload("hubspot: properties is not a JSON object")
    # Workflows and the old API wrap each value with its history
    properties = {name: value.get("value") if isinstance(value, dict) else value for name, value in found.items()}
    times = (
        item.get("archivedAt"),
        properties.get("lastmodifieddate"),
        properties.get("hs_lastmodifieddate"),
        item.get("updatedAt"),
        item.get("createdAt"),
    )
    return {
        "id": item.get("canonical-vid") or item.get("vid") or item.get("objectId") or item.get("id"),
        "at": next((at for at in map(_values.moment, times) if at), None),
        "properties": properties,
        "deleted": bool(item.get("archived") or item.get("isDeleted")),
        "merged": [*_listed(item.get("merged-vids")), *_list(_text(properties.get("hs_merged_object_ids")))],
        "contacts": _contacts(item),
    }


def _contacts(item: Mapping[str, Any]) -> list[Any]:
    """Ids of the contacts, each once; none where one can't be read, as the others would not be all of them."""
    found = [_in(contact, "id") for contact in _listed(_in(_in(item.get("associations"), "contacts"), "results"))]
    return list(dict.fromkeys(map(str, found))) if all(isinstance(id_, str | int) and id_ for id_ in found) else []


def _in(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


connector = Connector(
    name="hubspot",
    title="HubSpot",
    kind=lambda _headers, _body: None,  # a delivery may hold many kinds; the notices name them
    delivery_id=lambda _headers, _body: None,  # no header identifies a delivery over its retries
    verify=HubSpotSignature(),
    split=_split,
    ignored=_IGNORED,
    setup=Setup(
        webhooks="the app's settings, Webhooks: the target URL, and a subscription for each topic (propertyChange: for each property)",
        key_at="the app's settings, Auth, Client secret",
        elsewhere=frozenset({"contact.object", "deal.object", "ticket.object"}),
        note="HubSpot signs the address that it calls: behind a proxy set public_url. A workflow's webhook action brings whole "
        "records; have it signed with the app's id.",
    ),
)


# Contacts


@connector.on("contact.creation", "contact.restore")
def contact_there(notice: Notice, source: str) -> Iterator[Event]:
    """A contact exists (again). Nothing else is said; a restored contact shows what is stated from now on."""
    yield ProfileStated(subject=subject(source, "contact", notice.object_id), occurred_at=notice.occurred_at)


@connector.on("contact.propertyChange")
def contact_changed(notice: PropertyChange, source: str) -> Iterator[Event]:
    """One property of a contact has a new value."""
    yield from _contact(
        subject(source, "contact", notice.object_id),
        notice.occurred_at,
        {notice.property_name: notice.property_value},
        source,
    )


@connector.on("contact.object")
def contact_stated(record: Record, source: str) -> Iterator[Event]:
    """A whole contact. HubSpot's own bookkeeping properties are left out."""
    of = subject(source, "contact", record.id)
    if record.deleted:
        yield SubjectDeleted(subject=of, occurred_at=record.at, kind="deleted", reason="vendor_deleted")
        return
    kept = {name: value for name, value in record.properties.items() if not _is_bookkeeping(name)}
    yield from _contact(of, record.at, kept, source, merged=record.merged)


@connector.on("contact.deletion")
def contact_deleted(notice: Notice, source: str) -> Iterator[Event]:
    """A contact was deleted; it can be restored for 90 days."""
    yield SubjectDeleted(
        subject=subject(source, "contact", notice.object_id),
        occurred_at=notice.occurred_at,
        kind="deleted",
        reason="vendor_deleted",
    )


@connector.on("contact.privacyDeletion")
def contact_erased(notice: Notice, source: str) -> Iterator[Event]:
    """A person asked to be forgotten. A `contact.deletion` comes as well, before or after."""
    yield SubjectDeleted(
        subject=subject(source, "contact", notice.object_id),
        occurred_at=notice.occurred_at,
        kind="erased",
        reason="privacy_request",
    )


@connector.on("contact.merge")
def contacts_merged(merge: Merge, source: str) -> Iterator[Event]:
    """Contacts became one: all of them are the same person, and only the survivor is still there."""
    survivor, gone = _merged(merge)
    winner = subject(source, "contact", survivor)
    losers = [subject(source, "contact", id_) for id_ in gone]
    yield ProfileStated(
        subject=winner, occurred_at=merge.occurred_at, identifiers=tuple(_same(loser) for loser in losers)
    )
    for loser in losers:
        yield SubjectDeleted(
            subject=loser,
            occurred_at=merge.occurred_at,
            identifiers=(_same(winner),),
            kind="deleted",
            reason="merged",
        )


@connector.on(
    "contact.associationChange", "company.associationChange", "deal.associationChange", "ticket.associationChange"
)
def association_changed(change: AssociationChange, source: str) -> Iterator[Event]:
    """A contact was tied to a deal, ticket or company.

    Only a tie says whose a deal or ticket is. That one is removed doesn't say whose it is instead, so nothing is stated.
    """
    ends = _ends(change)
    if "contact" not in ends or len(ends) != 2:
        return
    contact = subject(source, "contact", ends.pop("contact"))
    ((other, id_),) = ends.items()
    if other == "company" and change.is_primary_association is not False:
        company = None if change.association_removed else id_
        yield ProfileStated(
            subject=contact, occurred_at=change.occurred_at, attributes={"associatedcompanyid": company}
        )
    if change.association_removed:
        return
    if other == "deal":
        yield OrderStated(
            subject=subject(source, "deal", id_),
            occurred_at=change.occurred_at,
            identifiers=(_same(contact),),
            order_id=id_,
            kind="deal",
        )
    if other == "ticket":
        yield TicketStated(
            subject=subject(source, "ticket", id_),
            occurred_at=change.occurred_at,
            identifiers=(_same(contact),),
            ticket_id=id_,
        )


_PROFILE: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "email": ("email", str),
    "firstname": ("given_name", str),
    "lastname": ("family_name", str),
    "phone": ("phone", str),
    "mobilephone": ("other_phones", lambda value: (value,)),
    "hs_additional_emails": ("other_emails", _list),
    "gender": ("gender", _values.gender),
    "company": ("company", str),
    "jobtitle": ("job_title", str),
    "address": ("address_line1", str),
    "city": ("city", str),
    "state": ("region", str),
    "zip": ("postal_code", str),
    "country": ("country", _values.country),
    "hs_language": ("language", _values.language),
    "hs_timezone": ("timezone", _values.timezone),
    "createdate": ("signed_up_at", _values.moment),
    "date_of_birth": ("birth_date", _values.day),
}
"""Property = profile field and reader. What the reader can't read is kept as an attribute of the property's name."""

_EMAILS = frozenset({"email", "hs_additional_emails"})
_PHONES = frozenset({"phone", "mobilephone", "hs_whatsapp_phone_number"})

_KEPT = frozenset(
    {*_PROFILE, "hs_lead_status", "hs_persona", "hs_whatsapp_phone_number", "hs_legal_basis", "hs_marketable_status"}
)
_BOOKKEEPING = re.compile(
    r"hs_(?!email_optout)|hubspot_|num_|notes_|recent_|first_(conversion|deal)|total_revenue|currentlyinworkflow|lastmodifieddate"
    r"|ip_|days_to_close|engagements_|webinareventlastupdated|surveymonkeyeventlastupdated|followercount|kloutscoregeneral"
    r"|linkedinconnections|owneremail|ownername|hubspotscore|closedate"
)

_LEGAL_BASES = (
    ("freely given consent", "consent"),
    ("performance of a contract", "contract"),
    ("legitimate interest", "legitimate_interest"),
)
"""https://knowledge.hubspot.com/contacts/legal-basis-to-process-data; the strongest one that applies is stated."""


def _is_bookkeeping(name: str) -> bool:
    return name not in _KEPT and _BOOKKEEPING.match(name) is not None


def _contact(
    of: str, at: datetime, properties: Mapping[str, str], source: str, merged: Sequence[str] = ()
) -> Iterator[Event]:
    fields: dict[str, Any] = {}
    cleared: list[str] = []
    attributes: dict[str, str | None] = {}
    merged = (*merged, *_list(properties.get("hs_merged_object_ids", "")))
    gone = [id_ for id_ in dict.fromkeys(subject(source, "contact", id_) for id_ in merged) if id_ != of]
    found = [_same(record) for record in gone]
    consents: list[ConsentStated] = []
    for name, value in properties.items():
        if consent := _consent(of, at, name, value):
            consents.append(consent)
        elif name == "hs_merged_object_ids":
            continue
        elif document := _values.tax_number(name, value):
            fields[document[0]] = document[1]
            found.append(Identifier(kind=document[0], value=document[1]))
        elif name in _PROFILE and not value:
            cleared.append(_PROFILE[name][0])
        elif name in _PROFILE and (read := _read(name, value, at)):
            fields[_PROFILE[name][0]] = read
        else:
            attributes[name] = value or None
        if value and name in _EMAILS:
            found += identifiers(email=_list(value))
        if value and name in _PHONES:
            found += identifiers(phone=value)
        if value and name == "external_id":
            found += identifiers(external_id=value)
    if fields or cleared or attributes or found:
        yield ProfileStated(
            subject=of,
            occurred_at=at,
            identifiers=tuple(found),
            cleared=tuple(cleared),
            attributes=attributes,
            **fields,
        )
    for record in gone:
        yield SubjectDeleted(subject=record, occurred_at=at, identifiers=(_same(of),), kind="merged", reason="merged")
    yield from consents


def _read(name: str, value: str, at: datetime) -> object:
    reader = _PROFILE[name][1]
    return _values.day(value, at) if reader is _values.day else reader(value)


def _consent(of: str, at: datetime, name: str, value: str) -> ConsentStated | None:
    if found := re.fullmatch(r"hs_email_optout(?:_(\d+))?", name):
        # Empty is "never opted out". HubSpot writes false only when someone who had opted out subscribes again
        state = {"true": "withdrawn", "false": "granted"}.get(value.lower(), "unknown")
        purpose = f"marketing_email.{found[1]}" if found[1] else "marketing_email"
        return ConsentStated(subject=of, occurred_at=at, purpose=purpose, state=state, evidence=f"{name}={value}")
    if name == "hs_legal_basis":
        basis = next((word for mark, word in _LEGAL_BASES if mark in value.lower()), None)
        return ConsentStated(
            subject=of,
            occurred_at=at,
            purpose="processing",
            state="granted" if basis else "unknown",
            legal_basis=basis,
            evidence=value or None,
        )
    if name == "hs_marketable_status":
        # Whether the account's owner chose to market to the contact; never mixed with what the contact said
        state = {"true": "granted", "false": "withdrawn"}.get(value.lower(), "unknown")
        return ConsentStated(subject=of, occurred_at=at, purpose="marketing_contact", state=state)
    return None


# Deals


@connector.on("deal.creation")
def deal_created(notice: Notice, source: str) -> Iterator[Event]:
    """A deal was made."""
    yield _deal(source, notice.object_id, notice.occurred_at, status="open", placed_at=notice.occurred_at)


@connector.on("deal.propertyChange")
def deal_changed(notice: PropertyChange, source: str) -> Iterator[Event]:
    """One property of a deal has a new value."""
    if stated := _deal_fields({notice.property_name: notice.property_value}):
        yield _deal(source, notice.object_id, notice.occurred_at, **stated)


@connector.on("deal.object")
def deal_stated(record: Record, source: str) -> Iterator[Event]:
    """A whole deal. It is tied to its contact where it has exactly one: two contacts of a deal are not one person."""
    if record.deleted:
        yield _deal(source, record.id, record.at, status="deleted")
        return
    stated = _deal_fields(record.properties)
    if closed_at := _values.moment(record.properties.get("closedate")):
        # While a deal is open this is only the date hoped for
        stated |= {"won": {"paid_at": closed_at}, "lost": {"cancelled_at": closed_at}}.get(stated.get("status", ""), {})
    yield _deal(source, record.id, record.at, identifiers=_only_contact(source, record), **stated)


@connector.on("deal.deletion")
def deal_deleted(notice: Notice, source: str) -> Iterator[Event]:
    """A deal was deleted."""
    yield _deal(source, notice.object_id, notice.occurred_at, status="deleted")


@connector.on("deal.restore")
def deal_restored(notice: Notice, source: str) -> Iterator[Event]:
    """A deal is back; which stage it is in is not said, so its status is stated to be unknown."""
    yield _deal(source, notice.object_id, notice.occurred_at, cleared=("status",))


@connector.on("deal.merge")
def deals_merged(merge: Merge, source: str) -> Iterator[Event]:
    """Deals became one; the others are gone."""
    for id_ in _merged(merge)[1]:
        yield _deal(source, id_, merge.occurred_at, status="deleted")


_AMOUNT: TypeAdapter[Any] = TypeAdapter(Amount)


def _deal(source: str, id_: str, at: datetime, **stated: Any) -> OrderStated:
    return OrderStated(subject=subject(source, "deal", id_), occurred_at=at, order_id=id_, kind="deal", **stated)


def _deal_fields(properties: Mapping[str, str]) -> dict[str, Any]:
    texts = {"dealname": "number", "description": "note", "closed_lost_reason": "cancel_reason"}
    stated, cleared = _texts(properties, {**texts, "deal_currency_code": "currency"})
    if amount := properties.get("amount", ""):
        # A notice holds one property only, so it gives the amount without its currency: two decimals are taken, as nearly all
        # currencies have. The record itself (deal.object) has both and is exact
        try:
            stated["total_minor"] = minor(_AMOUNT.validate_python(amount), stated.get("currency", "XXX").upper())
        except ValidationError:
            stated["total_minor"] = UNREADABLE
    elif "amount" in properties:
        cleared.append("total_minor")
    if created := properties.get("createdate"):
        stated["placed_at"] = _values.moment(created) or UNREADABLE
    if status := _deal_status(properties):
        stated["status"] = status
    return stated | ({"cleared": tuple(cleared)} if cleared else {})


def _deal_status(properties: Mapping[str, str]) -> str | None:
    won, closed = properties.get("hs_is_closed_won", ""), properties.get("hs_is_closed", "")
    if won.lower() == "true":
        return "won"
    if properties.get("hs_is_closed_lost", "").lower() == "true" or (closed.lower() == "true" and won):
        return "lost"
    stage = properties.get("dealstage", "")
    if named := {"closedwon": "won", "closedlost": "lost"}.get(stage.lower()):
        return named
    # Stages of an account's own pipelines are numbers, which don't tell a won deal from an open one: hs_is_closed… does
    return "open" if closed.lower() == "false" or (stage and not stage.isdecimal()) else None


# Tickets


@connector.on("ticket.creation")
def ticket_created(notice: Notice, source: str) -> Iterator[Event]:
    """A ticket was opened."""
    yield _ticket(source, notice.object_id, notice.occurred_at, status="new", opened_at=notice.occurred_at)


@connector.on("ticket.propertyChange")
def ticket_changed(notice: PropertyChange, source: str) -> Iterator[Event]:
    """One property of a ticket has a new value."""
    if stated := _ticket_fields({notice.property_name: notice.property_value}):
        yield _ticket(source, notice.object_id, notice.occurred_at, **stated)


@connector.on("ticket.object")
def ticket_stated(record: Record, source: str) -> Iterator[Event]:
    """A whole ticket, tied to its contact where it has exactly one."""
    if record.deleted:
        yield _ticket(source, record.id, record.at, status="deleted")
        return
    yield _ticket(
        source, record.id, record.at, identifiers=_only_contact(source, record), **_ticket_fields(record.properties)
    )


@connector.on("ticket.deletion")
def ticket_deleted(notice: Notice, source: str) -> Iterator[Event]:
    """A ticket was deleted."""
    yield _ticket(source, notice.object_id, notice.occurred_at, status="deleted")


@connector.on("ticket.restore")
def ticket_restored(notice: Notice, source: str) -> Iterator[Event]:
    """A ticket is back; its stage is not said, so its status is stated to be unknown."""
    yield _ticket(source, notice.object_id, notice.occurred_at, cleared=("status",))


@connector.on("ticket.merge")
def tickets_merged(merge: Merge, source: str) -> Iterator[Event]:
    """Tickets became one; the others are gone."""
    for id_ in _merged(merge)[1]:
        yield _ticket(source, id_, merge.occurred_at, status="deleted")


_STAGES = {"1": "new", "2": "pending", "3": "open", "4": "closed"}
"""Stages of the default pipeline: new, waiting on contact, waiting on us, closed. Other pipelines have ids of their own."""
_PRIORITIES = {"low": "low", "medium": "normal", "high": "high", "urgent": "urgent"}
_CHANNELS = {"form": "web"}


def _ticket(source: str, id_: str, at: datetime, **stated: Any) -> TicketStated:
    return TicketStated(subject=subject(source, "ticket", id_), occurred_at=at, ticket_id=id_, **stated)


def _ticket_fields(properties: Mapping[str, str]) -> dict[str, Any]:
    texts = {
        "subject": "title",
        "hs_ticket_priority": "priority",
        "hs_ticket_category": "type",
        "source_type": "channel",
        "hubspot_owner_id": "assignee",
        "hubspot_team_id": "team",
    }
    stated, cleared = _texts(properties, texts)
    for field, words in (("priority", _PRIORITIES), ("type", {}), ("channel", _CHANNELS)):
        if word := stated.get(field, "").lower():
            stated[field] = words.get(word, word)
    times = {"createdate": "opened_at", "closed_date": "closed_at", "first_agent_reply_date": "first_replied_at"}
    for name, field in times.items():
        if written := properties.get(name):
            stated[field] = _values.moment(written) or UNREADABLE
        elif written == "":
            cleared.append(field)
    if status := _STAGES.get(properties.get("hs_pipeline_stage", "")):
        stated["status"] = status
    elif stated.get("closed_at", UNREADABLE) is not UNREADABLE:
        stated["status"] = "closed"
    return stated | ({"cleared": tuple(cleared)} if cleared else {})


# Shared


def _texts(properties: Mapping[str, str], names: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    present = {field: properties[name] for name, field in names.items() if name in properties}
    return {field: value for field, value in present.items() if value}, [
        field for field, value in present.items() if not value
    ]


def _same(as_: str) -> Identifier:
    return Identifier(kind="subject", value=as_)


def _merged(merge: Merge) -> tuple[str, list[str]]:
    """The survivor's id and those of the records that are gone."""
    survivor = merge.new_object_id or merge.primary_object_id
    gone = dict.fromkeys((merge.primary_object_id, *merge.merged_object_ids))
    return survivor, [id_ for id_ in gone if id_ != survivor]


def _ends(change: AssociationChange) -> dict[str, str]:
    """Record type = id of both ends."""
    from_, _, to = (change.association_type or "").lower().partition("_to_")
    if not to:
        from_ = _OBJECTS.get(change.from_object_type_id or "", "custom")
        to = _OBJECTS.get(change.to_object_type_id or "", "custom")
    return {from_: change.from_object_id, to: change.to_object_id}


def _only_contact(source: str, record: Record) -> tuple[Identifier, ...]:
    if len(record.contacts) != 1:
        return ()
    return (_same(subject(source, "contact", record.contacts[0])),)
