"""Zendesk: event webhooks, webhooks of triggers and automations, and API records.

- An event webhook has a fixed body `{type, id, subject, time, detail, event}`. `detail` is the ticket or user after the change, so
  each event states what `detail` says and, on top, what `event` says has changed. In these bodies "" and the id "0" mean absent.
  Statuses, priorities and types are upper case here and lower case in the API.
- The body of a trigger or automation is whatever its author writes. `TICKET_TEMPLATE` and `USER_TEMPLATE` are ours to paste.
- `{"ticket": …}`, `{"user": …}` and pages of `tickets` or `users` are the API's own records, as the incremental exports give them.

Only end users stand for customers: agents and admins state nothing.

https://developer.zendesk.com/api-reference/webhooks/event-types/webhook-event-types/,
https://developer.zendesk.com/documentation/webhooks/verifying/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from caudal.connectors import _values
from caudal.connectors._mend import UNREADABLE, Essential, LeftOut, read
from caudal.connectors._sdk import (
    Connector,
    Delivery,
    Id,
    Instant,
    Item,
    Payload,
    Setup,
    SignedRequest,
    each,
    empties,
    identifiers,
    parse_json,
    subject,
)
from caudal.connectors._signatures import TimestampedHmac
from caudal.schemas import Event
from caudal.schemas.events import (
    FeedbackStated,
    Identifier,
    InteractionRecorded,
    ProfileStated,
    SubjectDeleted,
    TicketStated,
)
from pydantic import BeforeValidator, Field

from caudal.errors import InvalidPayload, MissingField, UnknownKind

__all__ = ["TICKET_TEMPLATE", "USER_TEMPLATE", "connector"]

TICKET_TEMPLATE = """\
{
  "type": "trigger.ticket",
  "ticket": {
    "id": "{{ticket.id}}",
    "title": "{{ticket.title}}",
    "status": "{{ticket.status}}",
    "priority": "{{ticket.priority}}",
    "ticket_type": "{{ticket.ticket_type}}",
    "via": "{{ticket.via}}",
    "tags": "{{ticket.tags}}",
    "group_id": "{{ticket.group.id}}",
    "assignee_id": "{{ticket.assignee.id}}",
    "brand": "{{ticket.brand.name}}",
    "created_at": "{{ticket.created_at_with_timestamp}}",
    "updated_at": "{{ticket.updated_at_with_timestamp}}",
    "satisfaction": {"rating": "{{satisfaction.current_rating}}", "comment": "{{satisfaction.current_comment}}"},
    "requester": {
      "id": "{{ticket.requester.id}}",
      "name": "{{ticket.requester.name}}",
      "email": "{{ticket.requester.email}}",
      "phone": "{{ticket.requester.phone}}",
      "external_id": "{{ticket.requester.external_id}}",
      "language": "{{ticket.requester.language}}",
      "role": "{{ticket.requester.role}}"
    }
  }
}
"""
"""JSON body for a ticket trigger or automation: kind `trigger.ticket`."""

USER_TEMPLATE = """\
{
  "type": "trigger.user",
  "user": {
    "id": "{{ticket.requester.id}}",
    "name": "{{ticket.requester.name}}",
    "email": "{{ticket.requester.email}}",
    "phone": "{{ticket.requester.phone}}",
    "external_id": "{{ticket.requester.external_id}}",
    "language": "{{ticket.requester.language}}",
    "time_zone": "{{ticket.requester.time_zone}}",
    "tags": "{{ticket.requester.tags}}",
    "details": "{{ticket.requester.details}}",
    "notes": "{{ticket.requester.notes}}",
    "role": "{{ticket.requester.role}}"
  }
}
"""
"""JSON body for a trigger that tells of the requester only: kind `trigger.user`."""

_IGNORED = frozenset(
    f"{family}.{verb}"
    for family, verbs in {
        "ticket": "attachment_linked_to_comment attachment_redacted_from_comment brand_changed comment_made_private comment_redacted"
        " custom_field_changed custom_status_changed description_changed email_ccs_changed external_id_changed followers_changed"
        " form_changed next_sla_breach_changed ola_policy_changed organization_changed problem_link_changed schedule_changed"
        " sla_policy_changed submitter_changed task_due_at_changed",
        "user": "custom_role_changed default_group_changed group_membership_created group_membership_deleted"
        " only_private_comments_changed organization_membership_created organization_membership_deleted password_changed photo_changed",
        "organization": "created custom_field_changed deleted external_id_changed name_changed tags_changed",
        "article": "author_changed comment_changed comment_created comment_published comment_unpublished published"
        " subscription_created unpublished vote_changed vote_created vote_removed",
        "community_post": "changed comment_changed comment_created comment_published comment_unpublished comment_vote_changed"
        " comment_vote_created created published subscription_created unpublished vote_changed vote_created vote_removed",
        "agent": "channel_created channel_deleted groups_updated max_capacity_changed state_changed unified_state_changed"
        " work_item_added work_item_removed work_item_updated",
        "messaging_ticket": "message_added",
        "omnichannel_config": "omnichannel_routing_feature_changed",
    }.items()
    for verb in verbs.split()
)


def _no_id(value: object) -> object:
    return None if value in ("", "0", 0) else value


def _word(value: object) -> Any:
    """What an event says a field to be: a text or number; UNREADABLE where it is something else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else UNREADABLE


def _emptied(value: object) -> bool:
    return value is None or value == ""


_SUSPENDED: Mapping[bool | None, str] = {True: "suspended", False: "enabled"}
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _flag(value: object) -> bool | None:
    """True or false, also as words and digits; None where it is neither."""
    return _FLAGS.get(str(value).lower())


def _part(value: object) -> Mapping[str, Any]:
    """An object of an event; without anything where it is something else."""
    return value if isinstance(value, dict) else {}


def _no_text(value: object) -> object:
    return None if value == "" else value


def _words(value: object) -> object:
    """Tags: a list, or the space-separated text that placeholders render."""
    return value.split() if isinstance(value, str) else value


def _when(value: object) -> object:
    return _values.moment(value) or (None if value == "" else value)


Text = Annotated[str | None, BeforeValidator(_no_text)]
OptionalId = Annotated[Id | None, BeforeValidator(_no_id)]
Words = Annotated[tuple[str, ...] | None, BeforeValidator(_words)]
When = Annotated[Instant, BeforeValidator(_when)]
OptionalWhen = Annotated[Instant | None, BeforeValidator(_when)]


class Sender(Payload):
    name: Text = None
    address: Text = None
    phone: Text = None


class ViaSource(Payload):
    sender: Sender | None = Field(default=None, alias="from")


class Via(Payload):
    """How a ticket came; `from` is who wrote or called (https://developer.zendesk.com/documentation/ticketing/reference-guides/via-object-reference/)."""

    channel: Text = None
    source: ViaSource | None = None


class Rating(Payload):
    score: Text = None
    comment: Text = None


class Ticket(Payload):
    """A ticket, as `detail` of an event and as the API gives it."""

    id: Id
    requester_id: OptionalId = None
    subject: Text = None
    status: Text = None
    priority: Text = None
    type: Text = None
    tags: Words = None
    assignee_id: OptionalId = None
    group_id: OptionalId = None
    via: Via | None = None
    satisfaction_rating: Rating | None = None
    created_at: OptionalWhen = None
    updated_at: OptionalWhen = None


class TicketEvent(Payload):
    type: str
    id: Id
    time: When
    detail: Ticket
    event: dict[str, Any] = Field(default_factory=dict)


class User(Payload):
    """A user, as `detail` of an event (a few of these fields), as the API gives it, and as our templates render it."""

    id: Id
    name: Text = None
    email: Text = None
    phone: Text = None
    external_id: Text = None
    role: Annotated[Text, Essential] = None
    tags: Words = None
    locale: Text = None
    language: Text = None
    time_zone: Text = None
    iana_time_zone: Text = None
    alias: Text = None
    details: Text = None
    notes: Text = None
    organization_id: OptionalId = None
    user_fields: dict[str, Any] = Field(default_factory=dict)
    active: Annotated[bool | None, Essential] = None
    suspended: bool | None = None
    permanently_deleted: Annotated[bool, Essential] = False
    created_at: OptionalWhen = None
    updated_at: OptionalWhen = None


class Requester(User):
    """The requester as a trigger's author renders them, perhaps without the id."""

    id: OptionalId = None  # type: ignore[assignment] # a user that may not be named


class UserEvent(Payload):
    type: str
    id: Id
    time: When
    detail: User
    event: dict[str, Any] = Field(default_factory=dict)


class Satisfaction(Payload):
    rating: Text = None
    comment: Text = None


class TriggerTicket(Payload):
    """What `TICKET_TEMPLATE` renders: words as people see them, in the account's language."""

    id: Id
    requester: Requester = Requester()
    title: Text = None
    status: Text = None
    priority: Text = None
    ticket_type: Text = None
    via: Text = None
    tags: Words = None
    group_id: OptionalId = None
    assignee_id: OptionalId = None
    brand: Text = None
    satisfaction: Satisfaction = Satisfaction()
    created_at: OptionalWhen = None
    updated_at: OptionalWhen = None


def _kind(_headers: Mapping[str, str], body: bytes) -> str | None:
    return _kind_of(parse_json(body))


def _kind_of(body: Any) -> str | None:
    if not isinstance(body, dict):
        return None
    kind = body.get("type")
    if isinstance(kind, str) and kind:
        # an author's own text in a trigger's body is no kind, and may be anything
        return _bare(kind) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", _bare(kind)) else None
    for name in ("ticket", "user"):
        if isinstance(body.get(f"{name}s"), list):
            return name
        if isinstance(body.get(name), dict):
            # only our template has the requester inside the ticket
            return f"trigger.{name}" if isinstance(body[name].get("requester"), dict) else name
    return None


def _bare(kind: str) -> str:
    """An event type without its prefix; the documentation writes some with a slash."""
    return re.sub(r"^zen:event-type[:/]", "", kind)


def _delivery_id(headers: Mapping[str, str], body: bytes) -> str | None:
    parsed = parse_json(body)
    if isinstance(parsed, dict) and str(parsed.get("type")).startswith("zen:") and isinstance(parsed.get("id"), str):
        return str(parsed["id"])
    return headers.get("x-zendesk-webhook-invocation-id")


def _record(delivery: Delivery, kind: str, record: Any) -> Item:
    if not isinstance(record, dict):
        raise InvalidPayload(f"zendesk: a {kind} is not a JSON object")
    return kind, f"{delivery.delivery_id}/{kind}/{record.get('id')}", record


def _split(delivery: Delivery) -> Iterator[Item | Exception]:
    body = parse_json(delivery.body)
    if not isinstance(body, dict):
        raise InvalidPayload("zendesk: the body is not a JSON object")
    kind = _bare(delivery.kind) if delivery.kind else _kind_of(body)
    if kind is None:
        raise UnknownKind(
            "zendesk: the body names no type", hint="use the JSON body that the zendesk connector documents"
        )
    if kind in {"ticket", "user"} and isinstance(body.get(f"{kind}s"), list):
        yield from each(body[f"{kind}s"], lambda record: _record(delivery, kind, record))
        if kind == "ticket" and isinstance(body.get("users"), list):  # an export that includes whose they are
            yield from each(body["users"], lambda record: _record(delivery, "user", record))
    elif kind in {"ticket", "user", "trigger.ticket", "trigger.user"}:
        yield kind, delivery.delivery_id, body.get(kind.removeprefix("trigger."), body)
    else:
        yield kind, str(body.get("id") or delivery.delivery_id), body


_SIGNATURE = TimestampedHmac(
    header="x-zendesk-webhook-signature", timestamp_header="x-zendesk-webhook-signature-timestamp"
)
_TRIAL_SECRET = "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ=="  # noqa: S105 - published, and the same for everyone
"""What Zendesk signs with as long as a webhook isn't made yet and is only tested."""


def _tried(request: SignedRequest) -> str | None:
    """https://developer.zendesk.com/documentation/webhooks/verifying/"""
    return "" if _SIGNATURE.verify(request, [_TRIAL_SECRET]).ok else None


connector = Connector(
    name="zendesk",
    title="Zendesk",
    kind=_kind,
    delivery_id=_delivery_id,
    verify=_SIGNATURE,
    split=_split,
    ignored=_IGNORED,
    setup=Setup(
        webhooks="Admin Center, Apps and integrations, Webhooks: a webhook with method POST and format JSON, subscribed to Zendesk events",
        key_at="the webhook's details, Reveal secret, once the webhook is made",
        elsewhere=frozenset({"ticket", "user", "trigger.ticket", "trigger.user"}),
        note="A webhook of a trigger or automation is signed in the same way; its body is TICKET_TEMPLATE or USER_TEMPLATE "
        "of the connector. A test before the webhook is made is answered and not stored.",
    ),
    handshake=_tried,
)


# Tickets

_STATUSES = {
    "on-hold": "hold",
    "on hold": "hold",
    "archived": "closed",
    "scrubbed": "deleted",
    **dict.fromkeys(("novo", "nuevo"), "new"),
    **dict.fromkeys(("aberto", "abierto"), "open"),
    **dict.fromkeys(("pendente", "pendiente"), "pending"),
    **dict.fromkeys(("em espera", "en espera"), "hold"),
    **dict.fromkeys(("resolvido", "resuelto"), "solved"),
    **dict.fromkeys(("fechado", "cerrado"), "closed"),
}
"""Where they are not the lower-cased word itself: older and internal words, and what placeholders render in pt and es."""
_PRIORITIES = {"baixa": "low", "baja": "low", "alta": "high", "urgente": "urgent"}
_CHANNELS = {
    "mail": "email",
    "web form": "web",
    "web_form": "web",
    "web service": "api",
    "web_service": "api",
    "web widget": "web",
    "web_widget": "web",
    "chat_transcript": "chat",
    "native_messaging": "chat",
    "sunshine_conversations_api": "api",
    **dict.fromkeys(
        ("phone call (inbound)", "phone call (incoming)", "phone_call_inbound", "voicemail", "voice"), "phone"
    ),
    **dict.fromkeys(
        ("phone call (outbound)", "phone call (outgoing)", "phone_call_outbound", "api_phone_call_inbound"), "phone"
    ),
}
_CHANGED = {
    "ticket.priority_changed": "priority",
    "ticket.type_changed": "type",
    "ticket.subject_changed": "title",
    "ticket.agent_assignment_changed": "assignee",
    "ticket.group_assignment_changed": "team",
}


@connector.on("ticket.created", "ticket.tags_changed", "ticket.undeleted", *_CHANGED)
def ticket_changed(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket was made or one of its fields changed."""
    changes: dict[str, Any] = {}
    if (field := _CHANGED.get(_bare(e.type))) and "current" in e.event:
        current = _no_id(e.event["current"])
        changes = {"cleared": (field,), field: None} if current is None else {field: _lower(field, _word(current))}
    yield _ticket(source, e.detail, e.time, **changes)


@connector.on("ticket.requester_changed")
def ticket_handed_over(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket is another person's now."""
    current = _no_id(e.event.get("current"))
    requester = str(current) if isinstance(current, str | int) else e.detail.requester_id
    yield _ticket(source, e.detail.model_copy(update={"requester_id": requester}), e.time)


@connector.on("ticket.status_changed")
def ticket_moved(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket has another status; when it was solved or closed is told by nothing else."""
    status = _lower("status", _word(e.event.get("current") or e.detail.status or "")) or None
    before = _lower("status", _word(e.event.get("previous") or ""))
    changes: dict[str, Any] = {"status": status}
    if status in {"solved", "closed"}:
        changes[f"{status}_at"] = e.time
    elif status and before == "solved":
        changes["cleared"] = ("solved_at",)
    yield _ticket(source, e.detail, e.time, **changes)


@connector.on("ticket.merged")
def ticket_merged(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket went into another one, which closes it."""
    yield _ticket(source, e.detail, e.time, status="closed", closed_at=e.time)


@connector.on("ticket.soft_deleted", "ticket.marked_as_spam")
def ticket_deleted(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket was deleted; it can be restored."""
    yield _ticket(source, e.detail, e.time, status="deleted")


@connector.on("ticket.permanently_deleted")
def ticket_scrubbed(e: TicketEvent, source: str) -> Iterator[Event]:
    """A ticket is gone for good, and so is what people wrote in it."""
    yield _ticket(source, e.detail, e.time, status="deleted", title=None, cleared=("title", "satisfaction_comment"))


@connector.on("ticket.comment_added")
def comment_added(e: TicketEvent, source: str) -> Iterator[Event]:
    """Someone wrote in a ticket. Public comments are interactions with the customer; what was written is not copied."""
    yield _ticket(source, e.detail, e.time)
    comment = _part(e.event.get("comment"))
    if not _flag(comment.get("is_public")):
        return
    author = _part(comment.get("author"))
    by_staff = bool(_flag(author.get("is_staff")))
    writer = None if by_staff else _no_id(author.get("id"))
    yield InteractionRecorded(
        # a customer who wrote is named; a reply of the staff is an interaction with the requester
        subject=subject(source, "user", writer) if writer else _person(source, e.detail),
        occurred_at=e.time,
        interaction_id=str(_no_id(comment.get("id")) or e.id),
        kind="ticket.replied" if by_staff else "ticket.commented",
        object_type="ticket",
        object=e.detail.id,
        channel=_channel(e.detail.via.channel if e.detail.via else None),
    )


@connector.on("ticket.csat_requested")
def csat_requested(e: TicketEvent, source: str) -> Iterator[Event]:
    """The customer was asked for a rating."""
    yield _ticket(source, e.detail, e.time, satisfaction="offered")


@connector.on("ticket.csat_received")
def csat_received(e: TicketEvent, source: str) -> Iterator[Event]:
    """The customer rated the ticket."""
    rating = next(
        (e.event[key] for key in ("satisfaction_score", "satisfaction_rating", "current") if key in e.event), None
    )
    told: list[LeftOut] = []
    found = read(Rating, rating if isinstance(rating, dict) else {"score": rating}, told)
    if found.score is None and told:
        yield _ticket(source, e.detail, e.time, satisfaction=UNREADABLE)
        return
    if found.score is None:
        raise MissingField("zendesk: a rating names no score")
    yield from _rated(_ticket(source, e.detail, e.time), found.score, found.comment)


@connector.on("ticket")
def ticket_stated(ticket: Ticket, source: str) -> Iterator[Event]:
    """A ticket of the API, whole: what is null is empty."""
    at = ticket.updated_at or ticket.created_at
    if at is None:
        raise MissingField("zendesk: a ticket has no updated_at")
    cleared = empties(
        ticket, title="subject", priority="priority", type="type", assignee="assignee_id", team="group_id"
    )
    stated = _ticket(source, ticket, at, cleared=cleared)
    rating = ticket.satisfaction_rating
    if rating and rating.score:
        yield from _rated(stated, rating.score, rating.comment)
    else:
        yield stated
    yield from _sender_stated(ticket, source, ticket.created_at or at)


@connector.on("trigger.ticket")
def ticket_told(ticket: TriggerTicket, source: str, delivery: Delivery) -> Iterator[Event]:
    """A ticket by our template. A placeholder without a value renders as nothing, so nothing is stated to be empty."""
    at = ticket.updated_at or _sent_at(delivery)
    own = None if ticket.requester.id else subject(source, "ticket", ticket.id)
    yield from _customer(ticket.requester, source, at, of=own)
    plain = Ticket(
        id=ticket.id,
        requester_id=_no_id(ticket.requester.id),
        subject=ticket.title,
        status=ticket.status,
        priority=ticket.priority,
        type=ticket.ticket_type,
        tags=ticket.tags,
        assignee_id=ticket.assignee_id,
        group_id=ticket.group_id,
        via=Via(channel=ticket.via),
        created_at=ticket.created_at,
    )
    stated = _ticket(source, plain, at, product=ticket.brand)
    if ticket.satisfaction.rating:
        yield from _rated(stated, ticket.satisfaction.rating, ticket.satisfaction.comment)
    else:
        yield stated


def _ticket(source: str, ticket: Ticket, at: datetime, **changes: Any) -> TicketStated:
    stated = {
        "title": ticket.subject,
        "status": _lower("status", ticket.status),
        "priority": _lower("priority", ticket.priority),
        "type": _lower("type", ticket.type),
        "channel": _channel(ticket.via.channel if ticket.via else None),
        "tags": ticket.tags,
        "assignee": ticket.assignee_id,
        "team": ticket.group_id,
        "opened_at": ticket.created_at,
    }
    return TicketStated(subject=_person(source, ticket), occurred_at=at, ticket_id=ticket.id, **{**stated, **changes})


def _sender_stated(ticket: Ticket, source: str, at: datetime) -> Iterator[Event]:
    """What a ticket says of who sent it, as the ticket's own subject: that yields to every record of a person. It is no evidence of who
    they are: agents forward what customers wrote.
    """
    sender = ticket.via.source.sender if ticket.via and ticket.via.source else None
    if sender is None or not (sender.name or sender.address or sender.phone):
        return
    own, person = subject(source, "ticket", ticket.id), _person(source, ticket)
    yield ProfileStated(
        subject=own,
        occurred_at=at,
        identifiers=() if person == own else (Identifier(kind="subject", value=person),),
        name=sender.name,
        email=sender.address,
        phone=sender.phone,
    )


def _person(source: str, ticket: Ticket) -> str:
    """The requester; a ticket without one stands for itself."""
    if ticket.requester_id:
        return subject(source, "user", ticket.requester_id)
    return subject(source, "ticket", ticket.id)


_RATINGS = {
    **dict.fromkeys(("bom", "boa", "bueno", "buena"), "good"),
    **dict.fromkeys(("ruim", "mau", "má", "malo", "mala"), "bad"),
}


def _rated(ticket: TicketStated, score: str, comment: str | None) -> Iterator[Event]:
    """The ticket with its rating and, once there is an answer, the answer. One ticket has one rating."""
    points = re.fullmatch(r"[1-5](\.0)?", score) is not None  # surveys with five points count the upper two as good
    if points:
        word, number, scale = "good" if score >= "4" else "bad", float(score), (1.0, 5.0)
    else:
        # placeholders render whole sentences: "Good, I'm satisfied"
        first = (re.findall(r"[^\W_]+", score.lower()) or [""])[0]
        word = _RATINGS.get(first, first)
        number, scale = float(word == "good"), (0.0, 1.0)
    answered = word in {"good", "bad"}
    yield replace(
        ticket,
        satisfaction=word if answered or word in {"offered", "unoffered"} else None,
        satisfaction_score=number if points else None,
        satisfaction_comment=comment if answered else None,
    )
    if answered:
        yield FeedbackStated(
            subject=ticket.subject,
            occurred_at=ticket.occurred_at,
            feedback_id=f"ticket:{ticket.ticket_id}",
            kind="csat",
            score=number,
            scale_min=scale[0],
            scale_max=scale[1],
            text=comment,
            ticket_id=ticket.ticket_id,
        )


def _lower(field: str, value: Any) -> Any:
    if not isinstance(value, str) or field in {"title", "assignee", "team"}:
        return value
    word = value.strip().lower()
    return {"status": _STATUSES, "priority": _PRIORITIES}.get(field, {}).get(word, word)


def _channel(value: str | None) -> str | None:
    return None if value is None else _CHANNELS.get(value.lower(), value.lower())


# Users


@connector.on(
    "user.created",
    "user.name_changed",
    "user.alias_changed",
    "user.details_changed",
    "user.notes_changed",
    "user.time_zone_changed",
    "user.external_id_changed",
    "user.suspended_changed",
)
def user_changed(e: UserEvent, source: str) -> Iterator[Event]:
    """A user was made or one of their fields changed."""
    if "current" not in e.event:
        yield from _customer(e.detail, source, e.time)
        return
    current = e.event["current"]
    field = _bare(e.type).removeprefix("user.").removesuffix("_changed")
    stated: dict[str, Any] = {}
    if field == "name":
        stated = {"cleared": ("name",)} if _emptied(current) else {"name": _word(current)}
    elif field == "suspended":
        stated = {"status": _SUSPENDED.get(_flag(current), UNREADABLE)}
    elif field in {"alias", "details", "notes"}:
        stated = {"attributes": {field: None if _emptied(current) else _word(current)}}
    elif field == "time_zone" and current:
        zone = _values.timezone(current)  # Zendesk has its own names for zones, too
        stated = {"timezone": zone} if zone else {"attributes": {"time_zone": _word(current)}}
    elif field == "external_id" and (_emptied(current) or isinstance(current, str | int)):
        given = None if _emptied(current) else str(current)
        stated = {"identifiers": identifiers(external_id=given), "attributes": {"external_id": given}}
    yield from _customer(e.detail, source, e.time, **stated)


@connector.on("user.custom_field_changed")
def user_field_changed(e: UserEvent, source: str) -> Iterator[Event]:
    """A custom field of a user changed; it is named by its title, as keys are made of titles."""
    field = _part(e.event.get("field") or e.event.get("custom_field"))
    name = _values.slug(field.get("title") or field.get("id") or "")
    if not name:
        raise MissingField("zendesk: a changed custom field has no title")
    current = e.event.get("current")
    yield from _customer(
        e.detail, source, e.time, **_custom({name: current.get("value") if isinstance(current, dict) else current})
    )


@connector.on("user.tags_changed")
def user_tags_changed(e: UserEvent, source: str) -> Iterator[Event]:
    """Tags came or went. The whole set is not told, so each is stated by itself, as the attribute `tag.<name>`."""
    tags: dict[str, str | None] = {}
    for key, value in (("removed", None), ("added", "true")):
        named = _part(e.event.get(key)).get("tags") or e.event.get(f"tags_{key}")
        tags |= {f"tag.{tag}": value for tag in (named if isinstance(named, list) else ()) if isinstance(tag, str)}
    yield from _customer(e.detail, source, e.time, attributes=tags)


@connector.on("user.identity_created", "user.identity_changed")
def user_identified(e: UserEvent, source: str) -> Iterator[Event]:
    """An address or number of a user came or changed. The main address is their e-mail; each is also the attribute `identity.<id>`, so
    that it is known when it goes.
    """
    identity = _identity(e)
    value, primary = identity.get("value"), _flag(identity.get("primary"))
    attributes = {name: value} if (name := _identity_name(identity)) and isinstance(value, str) and value else {}
    if not isinstance(value, str):
        yield from _customer(e.detail, source, e.time)
    elif identity.get("type") == "email" and value:
        main = {"email": value} if primary else {}
        yield from _customer(
            e.detail, source, e.time, identifiers=identifiers(email=value), attributes=attributes, **main
        )
    elif identity.get("type") in {"phone_number", "phone"} and value:
        yield from _customer(
            e.detail, source, e.time, identifiers=identifiers(phone=value), attributes=attributes, phone=value
        )
    else:
        yield from _customer(e.detail, source, e.time)


@connector.on("user.identity_deleted")
def user_identity_deleted(e: UserEvent, source: str) -> Iterator[Event]:
    """An address or number of a user is gone, and with it what it was evidence of."""
    identity = _identity(e)
    gone = (
        identity.get("type") == "email"
        and _flag(identity.get("primary"))
        and e.detail.email in (None, identity.get("value"))
    )
    changes: dict[str, Any] = {"email": None, "cleared": ("email",)} if gone else {}
    if name := _identity_name(identity):
        changes["attributes"] = {name: None}
    yield from _customer(e.detail, source, e.time, **changes)


@connector.on("user.last_login_changed")
def user_logged_in(e: UserEvent, source: str) -> Iterator[Event]:
    """A user signed in to the help centre."""
    if _is_customer(e.detail):
        yield InteractionRecorded(
            subject=subject(source, "user", e.detail.id),
            occurred_at=_values.moment(e.event.get("current")) or e.time,
            identifiers=_known(e.detail),
            interaction_id=e.id,
            kind="account.logged_in",
            channel="web",
        )


@connector.on("user.merged")
def users_merged(e: UserEvent, source: str) -> Iterator[Event]:
    """Two users are the same person. Which of them stays is told by the `user.deleted` or `user.active_changed` of the other."""
    other = _no_id(_part(e.event.get("user")).get("id"))
    if not isinstance(other, str | int):
        raise MissingField("zendesk: a merge names no other user")
    both = subject(source, "user", e.detail.id), subject(source, "user", other)
    yield from _customer(e.detail, source, e.time, identifiers=identifiers(subject=both[1]))
    if _is_customer(e.detail):
        for one, into in (both, both[::-1]):
            yield SubjectDeleted(
                subject=one, occurred_at=e.time, identifiers=identifiers(subject=into), kind="merged", reason="merged"
            )


@connector.on("user.role_changed")
def user_role_changed(e: UserEvent, source: str) -> Iterator[Event]:
    """Someone who becomes an agent is no customer any more."""
    role, before = e.event.get("current") or e.detail.role, e.event.get("previous")
    if not isinstance(role, str):
        raise InvalidPayload("zendesk: the role is not a text")
    if _is_end_user(role):
        yield from _customer(e.detail.model_copy(update={"role": role}), source, e.time)
    elif before and _is_end_user(before):
        yield _deleted(e.detail, source, e.time, reason="became_staff")


@connector.on("user.active_changed")
def user_active_changed(e: UserEvent, source: str) -> Iterator[Event]:
    """An inactive user is one that was deleted (and can be restored)."""
    active = _flag(e.event.get("current", True))
    if active is None:
        raise InvalidPayload("zendesk: whether the user is active is neither true nor false")
    if not active and _is_customer(e.detail):
        yield _deleted(e.detail, source, e.time)
    elif active:
        yield from _customer(e.detail, source, e.time, status="enabled")


@connector.on("user.deleted")
def user_deleted(e: UserEvent, source: str) -> Iterator[Event]:
    """A user was deleted. Zendesk tells nothing of a permanent deletion; an export shows it (`permanently_deleted`)."""
    if _is_customer(e.detail):
        yield _deleted(e.detail, source, e.time)


@connector.on("user")
def user_stated(user: User, source: str) -> Iterator[Event]:
    """A user of the API, whole: what is null is empty."""
    at = user.updated_at or user.created_at
    if at is None:
        raise MissingField("zendesk: a user has no updated_at")
    if user.permanently_deleted and _is_customer(user):
        yield _deleted(user, source, at, kind="erased", reason="privacy_request")
    elif user.active is False and _is_customer(user):
        yield _deleted(user, source, at)
    else:
        yield from _customer(user, source, at, cleared=empties(user, email="email", phone="phone"))


@connector.on("trigger.user")
def user_told(user: User, source: str, delivery: Delivery) -> Iterator[Event]:
    """A user by our template. A placeholder without a value renders as nothing, so nothing is stated to be empty."""
    yield from _customer(user, source, user.updated_at or _sent_at(delivery))


def _customer(user: User, source: str, at: datetime, *, of: str | None = None, **changes: Any) -> Iterator[Event]:
    """The profile that a user shows, with `changes` on top; nothing for agents and admins. `of` is whose it is, if not the user's own."""
    if not _is_customer(user):
        return
    custom = _custom(user.user_fields)
    attributes = {
        name: value
        for name in ("alias", "details", "notes", "organization_id", "external_id")
        if (value := getattr(user, name))
    }
    zone = _values.timezone(user.iana_time_zone or user.time_zone or "")
    stated: dict[str, Any] = {
        "name": user.name,
        "email": user.email,
        "phone": user.phone,
        "tags": user.tags,
        "language": _values.language(user.locale or user.language or ""),
        "timezone": zone,
        "signed_up_at": user.created_at,
    }
    if user.suspended is not None:
        stated["status"] = "suspended" if user.suspended else "enabled"
    found = (*_known(user), *custom.pop("identifiers", ()), *changes.pop("identifiers", ()))
    attributes |= custom.pop("attributes", {}) | changes.pop("attributes", {})
    if of is not None and not (found or any(stated.values())):
        return
    yield ProfileStated(
        subject=of or subject(source, "user", user.id),
        occurred_at=at,
        identifiers=found,
        attributes=attributes,
        **{**stated, **custom, **changes},
    )


def _custom(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What custom fields state: a tax number as such, all else as attributes."""
    stated: dict[str, Any] = {"attributes": {}, "identifiers": ()}
    for name, value in fields.items():
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        if number := _values.tax_number(name, text):
            stated[number[0]] = number[1]
            stated["identifiers"] += (Identifier(kind=number[0], value=number[1]),)
        else:
            stated["attributes"][name] = text or None
    return stated


def _known(user: User) -> tuple[Identifier, ...]:
    return identifiers(email=user.email, phone=user.phone, external_id=user.external_id)


def _deleted(
    user: User, source: str, at: datetime, *, kind: str = "deleted", reason: str = "vendor_deleted"
) -> SubjectDeleted:
    return SubjectDeleted(subject=subject(source, "user", user.id), occurred_at=at, kind=kind, reason=reason)


def _identity(e: UserEvent) -> dict[str, Any]:
    found = e.event.get("identity") or e.event.get("current") or {}
    if not isinstance(found, dict):
        raise InvalidPayload("zendesk: an identity is not a JSON object")
    return found


def _identity_name(identity: Mapping[str, Any]) -> str | None:
    """The attribute that holds an identity's value."""
    id_ = identity.get("id")
    return f"identity.{id_}" if id_ and isinstance(id_, str | int) else None


def _is_customer(user: User) -> bool:
    return user.role is None or _is_end_user(user.role)


def _is_end_user(role: object) -> bool:
    # placeholders render the role in the account's language, so staff is what can be told: agent, agente, admin, administrador
    return re.search(r"\b(agent|admin|owner)", str(role).lower()) is None


def _sent_at(delivery: Delivery) -> datetime:
    """When Zendesk signed the delivery, else when it came: the only times of a template that has none."""
    return _values.moment(delivery.headers.get("x-zendesk-webhook-signature-timestamp")) or delivery.captured_at
