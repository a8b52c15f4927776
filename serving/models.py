"""The shapes of the API's answers, for the OpenAPI document. Answers are written without them; a test holds the two equal."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Customer", "CustomerAnswer", "CustomersAnswer", "ProblemDocument", "SearchAnswer", "TimelineAnswer"]


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
    entered_at: datetime | None = Field(default=None, description="Since when; left out for built-in segments.")


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


class Identifier(_Shape):
    """A normalised value, and the subjects that stated it."""

    kind: str
    value: str
    subjects: list[str]


class Customer(_Shape):
    """A person."""

    customer_id: UUID
    sources: list[str] = Field(description="Sources that know this customer.")
    profile: dict[str, Stated | dict[str, Stated]] | None = Field(
        description="Every field that has a value; `attributes` holds the custom ones. Null when all subjects are deleted."
    )
    metrics: dict[str, Any] | None
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
    token: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str = Field(description="Stable across releases.")
    detail: str
