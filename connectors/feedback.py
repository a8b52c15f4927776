"""Feedback of own forms: answers to links that Caudal signs, one link per customer and survey.

A link's token is `<claims>.<signature>`: the claims as base64url JSON, and their HMAC-SHA256 with the source's secret. It says who answers
what until when; nothing of that can be changed or guessed. The same link answered again states the same feedback anew, which corrects it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets as randomness
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

from caudal.connectors._sdk import (
    Connector,
    Delivery,
    Payload,
    SignedRequest,
    Verdict,
    identifiers,
    parse_json,
    subject,
)
from caudal.connectors._signatures import matches
from caudal.schemas import FeedbackStated
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from caudal.errors import InvalidPayload

__all__ = ["PATH", "SCALES", "SOURCE", "Claims", "Kind", "connector", "token"]

SOURCE = "feedback"
"""The name of the source that the links are of."""
PATH = "/feedback"
"""Where the edge shows the form and takes the answer."""

Kind = Literal["nps", "csat", "ces", "review"]
SCALES: Mapping[str, tuple[int, int]] = {"nps": (0, 10), "csat": (1, 5), "ces": (1, 7), "review": (1, 5)}
"""Kind → lowest and highest score."""
MAX_TEXT = 10_000

_Word = Annotated[StrictStr, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


class Claims(BaseModel):
    """What a link says.

    Attributes:
        id: of the link, and so of the feedback.
        customer: who answers.
        subject: one of the customer's subjects; whoever has it later has the feedback.
        expires: seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{32}$")] = Field(default_factory=lambda: randomness.token_hex(16))
    customer: Annotated[StrictStr, Field(pattern=r"^[0-9a-f-]{36}$")]
    subject: Annotated[StrictStr, Field(min_length=3, max_length=500, pattern=r"^[a-z0-9-]+:[a-z_]+:\S+$")]
    survey: _Word
    kind: Kind
    product: _Word | None = None
    expires: int = Field(strict=True)


def token(claims: Claims, secret: str) -> str:
    """The claims, signed."""
    payload = base64.urlsafe_b64encode(claims.model_dump_json(exclude_none=True).encode()).rstrip(b"=").decode()
    return f"{payload}.{_signature(payload, secret)}"


def read(given: str) -> Claims:
    """The claims of a token, whose signature others check.

    Raises:
        InvalidPayload: it is none.
    """
    payload = given.partition(".")[0]
    try:
        return Claims.model_validate_json(base64.b64decode(payload + "=" * (-len(payload) % 4), b"-_", validate=True))
    except (ValidationError, ValueError):
        raise InvalidPayload("the token is none of ours") from None


def _signature(payload: str, secret: str) -> str:
    digest = hmac.new(secret.encode(), f"feedback\n{payload}".encode("utf-8", "replace"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class _Signed:
    """The token in the body proves who answers."""

    description = "the token of the link, which Caudal signs itself and which the answer carries"

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`; a link has a time of its own to end, so the window is not used."""
        try:
            given = _Answer.model_validate(parse_json(request.body)).token
            payload, _, signature = given.partition(".")
            if not matches(signature, [_signature(payload, secret) for secret in secrets]):
                return Verdict(ok=False, reason="the link is not authentic")
            claims = read(given)
        except (InvalidPayload, ValidationError):
            return Verdict(ok=False, reason="the link is not authentic")
        if now is not None and now.timestamp() > claims.expires:
            return Verdict(ok=False, reason="the link has expired")
        return Verdict(ok=True)


class _Answer(Payload):
    token: Annotated[StrictStr, Field(max_length=4_000)]
    score: float
    text: str | None = Field(None, max_length=MAX_TEXT)


def _kind(_headers: Mapping[str, str], body: bytes) -> str | None:
    answer = parse_json(body)
    return read(answer["token"]).kind


connector = Connector(
    name="feedback", title="Own forms", kind=_kind, delivery_id=lambda _headers, _body: None, verify=_Signed()
)


@connector.on("nps", "csat", "ces", "review")
def feedback_stated(answer: _Answer, source: str, delivery: Delivery) -> Iterator[FeedbackStated]:
    """An answer; the customer's own subject says whose it is."""
    claims = read(answer.token)
    low, high = SCALES[claims.kind]
    if not low <= answer.score <= high:
        raise InvalidPayload(f"the score is not between {low} and {high}")
    yield FeedbackStated(
        subject=subject(source, "customer", claims.customer),
        identifiers=identifiers(subject=claims.subject),
        occurred_at=delivery.captured_at,
        answered_at=delivery.captured_at,
        feedback_id=claims.id,
        kind=claims.kind,
        score=answer.score,
        scale_min=float(low),
        scale_max=float(high),
        text=answer.text or None,
        survey=claims.survey,
        product=claims.product,
    )
