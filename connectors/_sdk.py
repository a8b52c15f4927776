"""What a connector is: one value and pure functions from payload to events. No network, clock or database.

A connector file declares a `Connector`, payload models (`Payload`, only the fields that are read) and one function per kind,
registered with `@connector.on(...)`. See shopify.py for the model to follow and docs/connectors.md for the guide.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar, get_type_hints

import orjson
from caudal.schemas import Event
from caudal.schemas.events import EPOCH
from pydantic import BaseModel, ConfigDict, ValidationError

from caudal.errors import InvalidPayload, Poison, UnknownKind

__all__ = ["Connector", "Delivery", "Payload", "Scheme", "SignedRequest", "Verdict", "empties", "header", "subject"]

EVENT_NAMESPACE = uuid.UUID("6f0f2a5e-3d0b-5c57-9f1e-0c6a1d7e6b11")
"""Namespace of every uuid5 that Caudal derives; changing it changes every id."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a signature is computed over. `headers` have lower-case names; `url` is the address as the vendor sees it."""

    body: bytes
    headers: Mapping[str, str]
    method: str = "POST"
    url: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is authentic; `reason` says why not, without secrets or personal data."""

    ok: bool
    reason: str = ""


class Scheme(Protocol):
    """One way of signing requests; see _signatures.py for those that vendors use."""

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """True when any of `secrets` holds. The age of a signed timestamp is judged only when `now` is given."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """An authentic delivery, as captured. `headers` have lower-case names."""

    source: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str | None = None
    delivery_id: str = ""
    captured_at: datetime = EPOCH


class Payload(BaseModel):
    """Base of payload models: unknown fields are ignored, numbers given as strings are taken."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


def subject(source: str, kind: str, id_: object) -> str:
    """The subject `<source>:<kind>:<id>`."""
    return f"{source}:{kind}:{id_}"


def empties(payload: BaseModel, **fields: str) -> tuple[str, ...]:
    """Names of event fields that the payload states to be empty: present and null (or an empty string), not absent.

    Args:
        payload: the parsed payload.
        fields: event field = payload field.
    """
    return tuple(
        event_field
        for event_field, payload_field in fields.items()
        if payload_field in payload.model_fields_set and getattr(payload, payload_field) in (None, "")
    )


Item = tuple[str, str, Any]
"""One thing in a delivery: its kind, an id that is stable under redelivery, and the parsed value."""

_P = TypeVar("_P")
Translator = Callable[[Any, str], Iterator[Event]]


def header(name: str) -> Callable[[Mapping[str, str], bytes], str | None]:
    """Read `kind` or `delivery_id` from a header (lower-case name)."""
    return lambda headers, _body: headers.get(name)


@dataclass(frozen=True)
class Connector:
    """How deliveries of one system are verified, keyed and translated.

    Attributes:
        name: short name, also the word in `caudal.toml`.
        title: the system's own name.
        kind: the vendor's topic of a delivery, from headers or body; None when only the items know.
        delivery_id: the vendor's id of a delivery; None falls back to a digest of the body.
        verify: the signature scheme.
        split: one delivery into its items; the default takes the body as one JSON value of the delivery's kind.
        ignored: kinds that the system sends and that say nothing about a customer; they translate to no events.
        example_signature: how to sign, in words, for the docs.
    """

    name: str
    title: str
    kind: Callable[[Mapping[str, str], bytes], str | None]
    delivery_id: Callable[[Mapping[str, str], bytes], str | None]
    verify: Scheme
    split: Callable[[Delivery], Iterable[Item]] | None = None
    ignored: frozenset[str] = frozenset()
    translators: dict[str, tuple[type[BaseModel] | None, Translator]] = field(default_factory=dict)

    def on(self, *kinds: str) -> Callable[[_P], _P]:
        """Register a function `(payload, source) -> Iterator[Event]` for `kinds`; its first annotation is the payload model."""

        def register(function: _P) -> _P:
            hints = get_type_hints(function)
            model = next(iter(hints.values()))
            for kind in kinds:
                if kind in self.translators:
                    raise ValueError(f"{self.name}: kind {kind} is registered twice")
                is_model = isinstance(model, type) and issubclass(model, BaseModel)
                self.translators[kind] = (model if is_model else None, function)  # type: ignore[assignment]
            return function

        return register

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that gives events, sorted."""
        return tuple(sorted(self.translators))

    def key(self, headers: Mapping[str, str], body: bytes) -> tuple[str, str | None]:
        """The delivery id and kind of what arrived; the id falls back to a digest of kind and body. Never raises."""
        try:
            kind = self.kind(headers, body)
            delivery_id = self.delivery_id(headers, body)
        except Exception:
            kind, delivery_id = None, None
        return delivery_id or hashlib.sha256((kind or "").encode() + b"\n" + body).hexdigest()[:32], kind

    def translate(self, delivery: Delivery) -> list[Event]:
        """The canonical events of one delivery, headers filled in. Pure: the same delivery gives equal events.

        Raises:
            InvalidPayload: the body isn't what the vendor's format says.
            MissingField: something that the event can't do without is absent.
            UnknownKind: neither a registered nor an ignored kind.
        """
        delivery_id, kind = delivery.delivery_id, delivery.kind
        if not delivery_id or kind is None:
            found_id, found_kind = self.key(delivery.headers, delivery.body)
            delivery_id, kind = delivery_id or found_id, kind if kind is not None else found_kind
        delivery = replace(delivery, delivery_id=delivery_id, kind=kind)
        events: list[Event] = []
        try:
            items = list((self.split or _whole)(delivery))
            for item_kind, item_id, value in items:
                events.extend(self._events(delivery, item_kind, item_id, value))
        except Poison:
            raise
        except ValidationError as exc:
            raise InvalidPayload(f"{self.name} {kind or 'delivery'}: {_faults(exc)}") from None
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            ArithmeticError,
            RecursionError,
        ) as exc:
            # Arithmetic holds decimal.InvalidOperation; the text of such errors may quote the payload, so only the type is told
            raise InvalidPayload(f"{self.name} {kind or 'delivery'}: not usable ({type(exc).__name__})") from exc
        return events

    def _events(self, delivery: Delivery, kind: str, item_id: str, value: Any) -> Iterator[Event]:
        if kind in self.ignored:
            return
        if kind not in self.translators:
            raise UnknownKind(
                f"{self.name}: unknown kind {kind[:80]!r}", hint=f"`caudal connectors` lists the kinds of {self.name}"
            )
        model, function = self.translators[kind]
        payload = model.model_validate(value) if model is not None else value
        for position, event in enumerate(function(payload, delivery.source)):
            event_id = uuid.uuid5(EVENT_NAMESPACE, f"{delivery.source}\n{item_id}\n{position}")
            yield replace(event, event_id=str(event_id), source=delivery.source, captured_at=delivery.captured_at)


def parse_json(body: bytes) -> Any:
    """The body as JSON, integers kept exact.

    Raises:
        InvalidPayload: not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidPayload("the body is not JSON") from None


def _whole(delivery: Delivery) -> Iterator[Item]:
    if delivery.kind is None:
        raise UnknownKind("the delivery names no kind", hint="the header with the vendor's topic is missing")
    yield delivery.kind, delivery.delivery_id, parse_json(delivery.body)


def _faults(exc: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
        for e in exc.errors(include_input=False, include_url=False, include_context=False)[:5]
    )
