"""The shapes of the API's answers, for the OpenAPI document. Answers are written without them; a test holds the two equal."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Customer",
    "CustomerAnswer",
    "CustomersAnswer",
    "DecisionAnswer",
    "DecisionsAnswer",
    "ExplainAnswer",
    "HistoryAnswer",
    "ListedAnswer",
    "MembersAnswer",
    "OverlapAnswer",
    "PreviewAnswer",
    "ProblemDocument",
    "SearchAnswer",
    "SegmentAnswer",
    "SegmentsAnswer",
    "TimelineAnswer",
    "VersionsAnswer",
]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stated(_Shape):
    """A value and where it came from."""

    value: Any
    source: str | None = Field(description="The source that stated it; `correction` when a steward did.")
    subject: str | None = Field(description="The subject it was stated about.")
    since: datetime | None = Field(description="When the statement that holds it was made.")


class Segment(_Shape):
    """Membership of one segment."""

    segment: str
    entered_at: datetime | None = Field(default=None, description="Left out where it isn't known since when.")


class Consent(_Shape):
    """What one subject stated about one purpose. Of several for a purpose the newest comes first."""

    purpose: str
    state: str = Field(description="granted, withdrawn, pending or unknown.")
    source: str
    subject: str
    occurred_at: datetime
    legal_basis: str | None
    evidence: str | None
    collected_via: str | None
    expires_at: datetime | None


class Subject(_Shape):
    """One thing in one source that stands for the person."""

    subject: str
    source: str
    link_seq: int
    deleted: bool
    deleted_at: datetime | None
    erased: bool
    erased_at: datetime | None
    merged_into: list[str]


class Move(_Shape):
    """A subject that went from one customer to another."""

    subject: str
    from_: UUID | None = Field(alias="from")
    to: UUID


class DecisionAnswer(_Shape):
    """What a person decided of a subject, and whom it moved."""

    decision_id: UUID
    kind: Literal["split", "move", "undo"]
    subject: str
    decided_at: datetime
    actor: str = Field(description="The token's name, or `cli` and the user.")
    reason: str | None
    undoes: UUID | None
    undone_by: UUID | None
    moves: list[Move]
    done: bool


class DecisionsAnswer(_Shape):
    """Decisions, the newest first."""

    decisions: list[DecisionAnswer]


class Identifier(_Shape):
    """A normalised value, and the subjects that stated it."""

    kind: str
    value: str
    subjects: list[str]


class Scores(_Shape):
    """What depends on all customers and on the time, as of `computed_at`."""

    rfm_recency: int = Field(description="1 to 5; 5 is the fifth that ordered last.")
    rfm_frequency: int = Field(description="1 to 5; 5 is the fifth with most orders.")
    rfm_monetary: int | None = Field(description="1 to 5; 5 is the fifth that spent most.")
    probability_alive: float | None = Field(description="Probability that more orders come; null while no model fits.")
    expected_orders_90d: float | None
    predicted_value_minor: int | None = Field(description="Spend expected in the next 12 months.")
    currency: str = Field(description="Of the predicted value: the base currency.")
    expected_next_order_at: datetime | None = Field(
        description="When half of customers like this one have ordered again."
    )
    computed_at: datetime


class Customer(_Shape):
    """A person."""

    customer_id: UUID
    sources: list[str] = Field(description="Sources that know this customer.")
    profile: dict[str, Stated | dict[str, Stated]] | None = Field(
        description="Every field that has a value; `attributes` holds the custom ones. Null when all subjects are deleted."
    )
    metrics: dict[str, Any] | None = Field(
        description="Every figure; `spend_base` is all spend in the base currency at the newest rates, null while a rate is `missing`."
    )
    scores: Scores | None = Field(description="Null until scores are computed, and without orders.")
    segments: list[Segment]
    consents: list[Consent]
    subjects: list[Subject]
    identifiers: list[Identifier]


class CustomerAnswer(Customer):
    """A person, and the token that the answer reflects."""

    token: str


class CustomersAnswer(_Shape):
    """The people with an identifier: none, one, or several where identifiers are shared."""

    customers: list[Customer]
    token: str


class TimelineItem(_Shape):
    """One thing that happened."""

    kind: str
    id: str
    at: datetime
    source: str
    subject: str
    data: dict[str, Any] = Field(description="What was stated; fields without a value are left out.")


class TimelineAnswer(_Shape):
    """A page of what happened, newest first."""

    customer_id: UUID
    items: list[TimelineItem]
    next: str | None = Field(description="Give it as `before` for the following page; null at the end.")
    token: str


class Found(BaseModel):
    """A customer that was found, with the fields asked for."""

    model_config = ConfigDict(extra="allow")

    customer_id: UUID


class Count(_Shape):
    """How many there are."""

    value: int
    exact: bool = Field(description="False: estimated, for there are many.")


class Value(_Shape):
    """A value of a facet."""

    value: str
    count: int


class SearchAnswer(_Shape):
    """A page of the customers found."""

    customers: list[Found]
    next: str | None = Field(description="Give it as `after` for the following page; null at the end.")
    count: Count | None = None
    facets: dict[str, list[Value]] | None = None
    hints: list[str] | None = Field(
        default=None,
        description="Where nobody was found: values in the criteria that no data have, and what may be meant.",
    )
    token: str


class SegmentAnswer(_Shape):
    """A segment."""

    name: str
    kind: str = Field(description="criteria, list or built-in.")
    description: str
    state: str = Field(
        description="filling: its newest version is applied to everyone; live; leaving: its members are leaving; archived."
    )
    progress: float | None = Field(description="While filling or leaving: the part of the customers that is done.")
    version: int | None
    criteria: dict[str, Any] | None = Field(description="The condition tree; null for a list or a built-in segment.")
    text: str | None = Field(description="The same in the text form.")
    created_at: datetime | None
    changed_at: datetime | None
    changed_by: str | None = Field(description="A token's name, or `cli` and the user.")
    size: int | None = Field(default=None, description="Members; left out in the answer to a change.")
    exact: bool | None = Field(default=None, description="False: `size` is estimated, for counting takes long.")
    change: str | None = Field(
        default=None, description="After a change: created, edited, restored, described, unchanged or archived."
    )


class SegmentsAnswer(_Shape):
    """All segments by name."""

    segments: list[SegmentAnswer]


class Version(_Shape):
    """What a segment was from a time on."""

    version: int
    criteria: dict[str, Any] | None
    description: str
    changed_at: datetime
    changed_by: str = Field(description="The token's name, or `cli`.")


class ListChange(_Shape):
    """Customers were put on a list or taken off."""

    change: Literal["put", "taken"]
    customers: int = Field(description="How many.")
    changed_at: datetime
    changed_by: str = Field(description="The token's name, or `cli`.")


class VersionsAnswer(_Shape):
    """A segment's versions and, of a list, who changed it, newest first."""

    versions: list[Version]
    list_changes: list[ListChange] = Field(description="The newest 100.")


class Member(_Shape):
    """A member of a segment."""

    customer_id: UUID
    entered_at: datetime | None = Field(description="Null where it isn't known since when.")


class MembersAnswer(_Shape):
    """A page of members by id."""

    members: list[Member]
    next: UUID | None = Field(description="Give it as `after` for the following page; null at the end.")


class InCommon(_Shape):
    """What two segments have in common."""

    segment: str
    count: int
    share: float = Field(description="Of the segment asked about, 0 to 1.")


class OverlapAnswer(_Shape):
    """How many are in other segments too, most first."""

    size: int
    exact: bool = Field(description="False: estimated from a sample.")
    segments: list[InCommon]


class PreviewAnswer(_Shape):
    """How many customers criteria hold of, and some of them."""

    count: Count
    sample: list[Found]
    overlap: OverlapAnswer | None = None
    hints: list[str] | None = Field(
        default=None,
        description="Where nobody was found: values in the criteria that no data have, and what may be meant.",
    )
    token: str


class MembershipChange(_Shape):
    """A customer entered or left."""

    change: str = Field(description="entered or left.")
    at: datetime
    version: int | None = Field(description="Of the segment's criteria; null for a built-in segment.")
    cause: str = Field(
        description="The event's id; `time`; `definition`: criteria or list changed; `links`: accounts went from one customer"
        " to another; `rebuild`."
    )


class HistoryItem(MembershipChange):
    """A customer entered or left a segment."""

    segment: str


class HistoryAnswer(_Shape):
    """A page of what a customer entered and left, newest first."""

    customer_id: UUID
    items: list[HistoryItem]
    next: str | None = Field(description="Give it as `before` for the following page; null at the end.")


class Because(_Shape):
    """The event with which a condition came to hold."""

    event_id: str = Field(description="Of membership of another segment its cause, which may be `time` and the like.")
    at: datetime


class Explained(_Shape):
    """A condition of the criteria and whether it holds."""

    path: str = Field(description="Where it stands in the tree; empty for the whole.")
    condition: str
    holds: bool
    next_look_at: datetime | None = Field(description="It doesn't change before this time without an event.")
    because: Because | None = Field(description="Since which event it holds, where one event tells it.")


class ExplainAnswer(_Shape):
    """Why a customer is in a segment or not."""

    segment: str
    customer_id: UUID
    state: str = Field(description="Of the segment. Nobody is in one that is `archived`, whatever holds.")
    member: bool
    since: datetime | None
    last_change: MembershipChange | None
    holds: bool = Field(description="What is so this moment; the membership follows a moment later.")
    next_look_at: datetime | None = Field(description="Nothing changes before this time without an event.")
    would_change: str | None = Field(description="What would make the customer enter or leave.")
    conditions: list[Explained]


class ListedAnswer(_Shape):
    """What became of the ids."""

    changed: int = Field(description="Put on the list, or taken off it.")
    unchanged: int = Field(description="Were on it already, or weren't on it.")
    unknown: int = Field(description="Mean no customer, or several that one was split into.")
    malformed: int = Field(description="Are no ids.")


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str = Field(description="Stable across releases.")
    detail: str


class ReportColumn(_Shape):
    """A column of a report."""

    name: str
    type: str = Field(
        description="date, text, integer, number, money (minor units of the row's currency), share (0 to 1) or hours."
    )
    title: str


class ReportListed(_Shape):
    """What a report tells."""

    report: str
    title: str
    about: str
    by: list[str] = Field(description="Lengths of a period that it can be asked by, the usual one first.")
    takes: list[str] = Field(description="Further parameters.")
    columns: list[ReportColumn]


class ReportsAnswer(_Shape):
    """The reports that there are."""

    reports: list[ReportListed]


class ReportAnswer(_Shape):
    """A report."""

    report: str
    title: str
    about: str
    parameters: dict[str, Any] = Field(description="What was asked, in full.")
    columns: list[ReportColumn]
    rows: list[dict[str, Any]] = Field(
        description="By column. `marks` of a column: `low` and `high`, what was to be expected, and `anomaly`. `partial`: not over yet."
    )
    totals: list[dict[str, Any]] = Field(description="Sums and rates, one for each currency where there is one.")
    trends: list[dict[str, Any]] = Field(
        description="Of each series: `slope` by period, `direction` rising, falling or steady."
    )
    truncated: bool = Field(description="Rows were left out.")
    token: str
