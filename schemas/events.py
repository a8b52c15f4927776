"""The canonical events as Python values. `avro/*.avsc` is the contract; a test holds the two equal, field by field.

An event is a statement of state with a version `(occurred_at, captured_at, event_id)`: the newest statement about a thing wins,
whatever the order of arrival. Absent is not null: a field left at None is not stated, one named in `cleared` is stated to be empty.
Connectors set `subject`, `occurred_at`, `identifiers` and the event's own fields; the rest of the header is filled in for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from caudal.schemas._quick import quick

__all__ = [
    "EPOCH",
    "EVENT_TYPES",
    "KEY_MAX_BYTES",
    "Answer",
    "ConsentStated",
    "CustomerErased",
    "Event",
    "Evidence",
    "FeedbackStated",
    "FieldCorrected",
    "Identifier",
    "InteractionRecorded",
    "OrderLine",
    "OrderStated",
    "ProfileStated",
    "Refund",
    "RefundLine",
    "SubjectDeleted",
    "SubjectLinked",
    "SubscriptionStated",
    "TicketStated",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEY_MAX_BYTES = 512
"""Longest text that stands in an index: a B-tree entry of PostgreSQL holds about 2,700 bytes, and keys are combined."""


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Identifier:
    """A value that links subjects, normalised."""

    kind: str
    value: str


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class RefundLine:
    """One refunded line."""

    line_id: str
    quantity: int
    amount_minor: int


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLine:
    """One line of an order."""

    line_id: str
    quantity: int
    unit_price_minor: int
    sku: str | None = None
    product_id: str | None = None
    product: str | None = None
    variant: str | None = None
    category: str | None = None
    brand: str | None = None
    discount_minor: int = 0
    tax_minor: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money given back on an order."""

    refund_id: str
    refunded_at: datetime
    amount_minor: int
    currency: str
    reason: str | None = None
    lines: tuple[RefundLine, ...] = ()


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answered question."""

    question: str
    answer: str


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One reason for a link."""

    kind: str
    value: str
    subject: str | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The header that every canonical event starts with."""

    subject: str
    occurred_at: datetime
    event_id: str = ""
    source: str = ""
    customer_id: str = ""
    link_seq: int = 0
    captured_at: datetime = EPOCH
    identifiers: tuple[Identifier, ...] = ()


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileStated(Event):
    """What a source says about a person. Partial: only fields that are set or named in `cleared` are stated."""

    cleared: tuple[str, ...] = ()
    name: str | None = None
    given_name: str | None = None
    family_name: str | None = None
    email: str | None = None
    phone: str | None = None
    other_emails: tuple[str, ...] | None = None
    other_phones: tuple[str, ...] | None = None
    cpf: str | None = None
    cnpj: str | None = None
    birth_date: date | None = None
    gender: str | None = None
    company: str | None = None
    job_title: str | None = None
    address_line1: str | None = None
    address_line2: str | None = None
    district: str | None = None
    city: str | None = None
    region: str | None = None
    postal_code: str | None = None
    country: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    language: str | None = None
    timezone: str | None = None
    tags: tuple[str, ...] | None = None
    interests: tuple[str, ...] | None = None
    status: str | None = None
    signed_up_at: datetime | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStated(Event):
    """The state of an order (also checkout, draft or deal). Partial like ProfileStated."""

    order_id: str
    cleared: tuple[str, ...] = ()
    kind: str | None = None
    number: str | None = None
    status: str | None = None
    fulfillment_status: str | None = None
    currency: str | None = None
    total_minor: int | None = None
    subtotal_minor: int | None = None
    discount_minor: int | None = None
    shipping_minor: int | None = None
    tax_minor: int | None = None
    placed_at: datetime | None = None
    paid_at: datetime | None = None
    cancelled_at: datetime | None = None
    cancel_reason: str | None = None
    channel: str | None = None
    coupons: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    note: str | None = None
    shipping_city: str | None = None
    shipping_region: str | None = None
    shipping_postal_code: str | None = None
    shipping_country: str | None = None
    lines: tuple[OrderLine, ...] | None = None
    refunds: tuple[Refund, ...] = ()


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class TicketStated(Event):
    """The state of a support ticket. Partial like ProfileStated."""

    ticket_id: str
    cleared: tuple[str, ...] = ()
    title: str | None = None
    status: str | None = None
    priority: str | None = None
    type: str | None = None
    channel: str | None = None
    tags: tuple[str, ...] | None = None
    team: str | None = None
    assignee: str | None = None
    product: str | None = None
    satisfaction: str | None = None
    satisfaction_score: float | None = None
    satisfaction_comment: str | None = None
    opened_at: datetime | None = None
    first_replied_at: datetime | None = None
    solved_at: datetime | None = None
    closed_at: datetime | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStated(Event):
    """The state of a subscription. Partial like ProfileStated."""

    subscription_id: str
    cleared: tuple[str, ...] = ()
    plan: str | None = None
    status: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    interval: str | None = None
    interval_count: int | None = None
    quantity: int | None = None
    started_at: datetime | None = None
    current_period_end_at: datetime | None = None
    cancelled_at: datetime | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentStated(Event):
    """Whether a person consents to one purpose."""

    purpose: str
    state: str
    legal_basis: str | None = None
    evidence: str | None = None
    collected_via: str | None = None
    expires_at: datetime | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackStated(Event):
    """A survey answer or a review."""

    feedback_id: str
    kind: str
    cleared: tuple[str, ...] = ()
    score: float | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    title: str | None = None
    text: str | None = None
    status: str | None = None
    language: str | None = None
    product: str | None = None
    order_id: str | None = None
    ticket_id: str | None = None
    survey: str | None = None
    answered_at: datetime | None = None
    answers: tuple[Answer, ...] | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionRecorded(Event):
    """Something a person did or that was done to them, once."""

    interaction_id: str
    kind: str
    object_type: str | None = None
    object: str | None = None
    campaign: str | None = None
    channel: str | None = None
    value_minor: int | None = None
    currency: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectLinked(Event):
    """Which customer a subject belongs to. `customer_id` and `link_seq` of the header are the link: the newest seq of a subject wins."""

    reason: str
    previous_customer_id: str | None = None
    evidence: tuple[Evidence, ...] = ()
    actor: str | None = None
    comment: str | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectDeleted(Event):
    """The subject is gone from its source."""

    kind: str
    reason: str | None = None
    scope: str = "subject"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerErased(Event):
    """A person asked to be forgotten: everything stated up to `occurred_at` about the named subjects is removed."""

    subjects: tuple[str, ...]
    reason: str | None = None
    requested_by: str | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class FieldCorrected(Event):
    """A steward's correction of one profile field; wins over every source until withdrawn."""

    field: str
    actor: str
    value: str | None = None
    reason: str | None = None


EVENT_TYPES: Mapping[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        ProfileStated,
        OrderStated,
        TicketStated,
        SubscriptionStated,
        ConsentStated,
        FeedbackStated,
        InteractionRecorded,
        SubjectLinked,
        SubjectDeleted,
        CustomerErased,
        FieldCorrected,
    )
}
"""Every event type by its record name."""
