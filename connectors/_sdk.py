"""What a connector is: one value and pure functions from payload to events. No network, clock or database.

A connector file declares a `Connector`, payload models (`Payload`, only the fields that are read) and one function per kind,
registered with `@connector.on(...)`. See shopify.py for the model to follow and docs/connectors.md for the guide.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_type_hints

import orjson
from caudal.connectors._bounds import TEXT_MAX, within_bounds
from caudal.connectors._mend import LeftOut, fields_of, mended_json, read, shown
from caudal.schemas import Event, Identifier, derived_id
from caudal.schemas.events import EPOCH
from pydantic import AfterValidator, BaseModel, ConfigDict, GetPydanticSchema, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

from caudal.errors import InvalidPayload, MissingField, Poison, UnknownKind

__all__ = [
    "Connector",
    "Delivery",
    "Id",
    "Instant",
    "Payload",
    "Salvaged",
    "Scheme",
    "Setup",
    "SignedRequest",
    "Verdict",
    "each",
    "empties",
    "header",
    "identifiers",
    "parse_json",
    "subject",
]

EVENT_NAMESPACE = uuid.UUID("6f0f2a5e-3d0b-5c57-9f1e-0c6a1d7e6b11")
"""Namespace of every uuid5 that Caudal derives; changing it changes every id."""
_NAMESPACE = EVENT_NAMESPACE.bytes
_set = object.__setattr__
UNPACKED_MAX_BYTES = 16 * 1024 * 1024
"""Most bytes that a gzip body may unpack to; more is a bomb, not a webhook. As JSON it may take twenty times as much memory."""


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
class Setup:
    """What is done at the vendor's side, for people.

    Attributes:
        webhooks: where the address and the topics are entered.
        key_at: where the vendor shows the secret that it makes; empty where whoever sets it up makes one.
        elsewhere: kinds that give events and that no webhook brings.
        note: what else is to be known.
    """

    webhooks: str
    key_at: str = ""
    elsewhere: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An authentic delivery, as captured. `headers` have lower-case names."""

    source: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str | None = None
    delivery_id: str = ""
    captured_at: datetime = EPOCH


@dataclass(slots=True)
class Salvaged:
    """What can be used of a delivery: the events of every usable item, and what could not be used.

    Attributes:
        poison: why the first of the items or events that can't be used can't.
        left_out: parts of usable items that were left out.
    """

    events: list[Event] = field(default_factory=list)
    poison: Poison | None = None
    left_out: list[LeftOut] = field(default_factory=list)


class Payload(BaseModel):
    """Base of payload models: unknown fields are ignored, texts are trimmed, a number is taken where a text is expected."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, str_strip_whitespace=True)


def _in_utc(value: datetime) -> datetime:
    # what programs write for "no date", from 0001-01-01 by way of 1899-12-30 to 1970-01-01, and for "never"; no delivery is of these years
    if value.year not in _YEARS:
        raise PydanticCustomError("date_of_nothing", "not a time that a delivery can be of")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_YEARS = range(1971, 9000)


# vendors' ids pass 2**53 and 2**63; the JSON parser makes floats of whole numbers beyond 64 bits, which are no longer the id
_EXACT_ID = core_schema.union_schema(
    [
        core_schema.chain_schema(
            [
                # U+FFFD stands for what was lost on the way
                core_schema.str_schema(strict=True, min_length=1, strip_whitespace=False, pattern="^[^\ufffd]+$"),
                core_schema.str_schema(),
            ]
        ),
        core_schema.chain_schema(
            [core_schema.int_schema(strict=True), core_schema.str_schema(coerce_numbers_to_str=True)]
        ),
    ],
    mode="left_to_right",
    custom_error_type="inexact_id",
    custom_error_message="not an exact id",
)
Id = Annotated[str, GetPydanticSchema(lambda _source, _handler: _EXACT_ID), WithJsonSchema({"type": "string"})]
"""A payload field with a vendor's id, as text, exact: whole numbers of any size and texts, never a float."""

Instant = Annotated[datetime, AfterValidator(_in_utc)]
"""A payload field with a time from 1971 on, brought to UTC; one without an offset is UTC already."""


def subject(source: str, kind: str, id_: object) -> str:
    """The subject `<source>:<kind>:<id>`.

    Raises:
        MissingField: there is no id.
    """
    if id_ is None or id_ == "":
        raise MissingField(f"the id of the {kind} is missing")
    return f"{source}:{kind}:{id_}"


def identifiers(**values: str | Iterable[str | None] | None) -> tuple[Identifier, ...]:
    """Identifiers by kind, as the vendor gives them: `identifiers(email=c.email, phone=(c.phone, a.phone))`. Empty ones are left out."""
    return tuple(
        Identifier(kind=kind, value=value)
        for kind, given in values.items()
        for value in ((given,) if isinstance(given, str) else given or ())
        if value
    )


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


def each(values: Iterable[Any], item: Callable[[Any], Item]) -> Iterator[Item | Exception]:
    """The items of a delivery's parts; a part of which no item can be made costs only itself."""
    for value in values:
        try:
            yield item(value)
        except Exception as exc:
            yield exc


_P = TypeVar("_P", bound=Callable[..., Iterator[Event]])
Translator = Callable[[Any, str, Delivery], Iterator[Event]]


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
        split: one delivery into its items; the default takes the body as one JSON value of the delivery's kind. An exception in place of
            an item says why that one can't be used; see `each`.
        ignored: kinds that the system sends and that say nothing about a customer; they translate to no events.
        setup: what is done at the vendor's side.
        handshake: the answer to a request by which the vendor tries the address while it is set up and that it doesn't sign as it signs
            deliveries; None for everything else. Anyone may send such a request: nothing of it is stored.
    """

    name: str
    title: str
    kind: Callable[[Mapping[str, str], bytes], str | None]
    delivery_id: Callable[[Mapping[str, str], bytes], str | None]
    verify: Scheme
    split: Callable[[Delivery], Iterable[Item | Exception]] | None = None
    ignored: frozenset[str] = frozenset()
    setup: Setup | None = None
    handshake: Callable[[SignedRequest], str | None] | None = None
    translators: dict[str, tuple[type[BaseModel] | None, Translator]] = field(default_factory=dict)

    def on(self, *kinds: str) -> Callable[[_P], _P]:
        """Register a function `(payload, source)` or `(payload, source, delivery)` that yields events for `kinds`.

        Its first annotation is the payload model; any other annotation passes the parsed value as it is.
        """

        def register(function: _P) -> _P:
            model = next(iter(get_type_hints(function).values()))
            takes_delivery = len(inspect.signature(function).parameters) > 2
            translator: Translator = (
                function if takes_delivery else lambda payload, source, _delivery: function(payload, source)
            )
            for kind in kinds:
                if kind in self.translators or kind in self.ignored:
                    raise ValueError(f"{self.name}: kind {kind} is registered twice")
                is_model = isinstance(model, type) and issubclass(model, BaseModel)
                self.translators[kind] = (model if is_model else None, translator)
            return function

        return register

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that gives events, sorted."""
        return tuple(sorted(self.translators))

    @property
    def topics(self) -> tuple[str, ...]:
        """What to subscribe to at the vendor's side, sorted."""
        return tuple(kind for kind in self.kinds if self.setup is None or kind not in self.setup.elsewhere)

    def key(self, headers: Mapping[str, str], body: bytes) -> tuple[str, str | None]:
        """The delivery id and kind of what arrived; the id falls back to a digest of kind and body. Never raises."""
        try:
            kind = self.kind(headers, body)
            delivery_id = self.delivery_id(headers, body)
        except Exception:
            kind, delivery_id = None, None
        return delivery_id or hashlib.sha256((kind or "").encode("utf-8", "surrogatepass") + b"\n" + body).hexdigest()[
            :32
        ], kind

    def translate(self, delivery: Delivery) -> list[Event]:
        """The canonical events of one delivery, headers filled in. Pure: the same delivery gives equal events.

        Raises:
            InvalidPayload: the body isn't what the vendor's format says.
            MissingField: something that the event can't do without is absent.
            UnknownKind: neither a registered nor an ignored kind.
            UnusableEvent: a value of an event can't be stored.
        """
        found = self.salvage(delivery)
        if found.poison is not None:
            raise found.poison from None
        return found.events

    def salvage(self, delivery: Delivery) -> Salvaged:
        """What can be used of a delivery.

        One bad notice in a batch of a hundred must not hold back the other ninety-nine, nor one bad value the rest of its notice. The
        delivery can be redriven as a whole later: the events that are repeated then have the same ids.
        """
        found = Salvaged()
        try:
            if delivery.headers.get("content-encoding", "").strip().lower() == "gzip":
                delivery = replace(delivery, body=_unpacked(delivery.body))
        except InvalidPayload as exc:
            found.poison = exc
            return found
        self._salvage(delivery, found)
        if isinstance(found.poison, _NotJson) and not found.events:
            content_type = delivery.headers.get("content-type", "")
            body = mended_json(delivery.body, content_type, self._known_fields(), found.left_out)
            if body is not None:
                found.poison = None
                self._salvage(replace(delivery, body=body), found)
        return found

    def _salvage(self, delivery: Delivery, found: Salvaged) -> None:
        items: Iterator[Item | Exception] = iter(())
        try:
            delivery = self._completed(delivery)
            items = iter((self.split or _whole)(delivery))
        except Exception as exc:
            found.poison = self._poison(exc, delivery.kind)
        while True:
            try:
                item = next(items, None)
            except Exception as exc:  # a generator that raised is at its end
                item = exc
            if item is None:
                return
            try:
                if isinstance(item, Exception):
                    raise item
                self._translate(delivery, item, found)
            except Exception as exc:
                found.poison = found.poison or self._poison(exc, delivery.kind)

    def _completed(self, delivery: Delivery) -> Delivery:
        """The delivery with its id and kind."""
        if delivery.delivery_id and delivery.kind is not None:
            return delivery
        found_id, found_kind = self.key(delivery.headers, delivery.body)
        kind = found_kind if delivery.kind is None else delivery.kind
        return replace(delivery, delivery_id=delivery.delivery_id or found_id, kind=kind)

    def _poison(self, exc: Exception, kind: str | None) -> Poison:
        """The error as a reason to put the delivery aside.

        Whatever a connector stumbles over is kept as a dead letter and redriven once the connector is mended. The texts of such errors
        may quote the payload, so only their type and place are told.

        Raises:
            MemoryError: nothing that the delivery can help.
        """
        if isinstance(exc, MemoryError):
            raise exc
        if isinstance(exc, Poison):
            return exc
        if isinstance(exc, ValidationError):
            return InvalidPayload(f"{self.name} {_shown(kind)}: {_faults(exc, self._model_of(exc))}")
        return InvalidPayload(f"{self.name} {_shown(kind)}: not usable ({type(exc).__name__} at {_place(exc)})")

    def _translate(self, delivery: Delivery, item: Item, found: Salvaged) -> None:
        """Add the events of one item. One that can't be stored costs only itself."""
        kind, item_id, value = item
        if kind in self.ignored:
            return
        if kind not in self.translators:
            raise UnknownKind(
                f"{self.name}: unknown kind {_shown(kind)}", hint=f"`caudal connectors` lists the kinds of {self.name}"
            )
        model, function = self.translators[kind]
        payload = read(model, value, found.left_out) if model is not None else value
        long = len(delivery.body) > TEXT_MAX
        for position, event in enumerate(function(payload, delivery.source, delivery)):
            if event.event_id:
                event = replace(event)  # noqa: PLW2901 - one that was told before is told again
            # frozen for everyone else; it was made a moment ago, and copying forty fields takes longer than making them
            _set(event, "event_id", derived_id(_NAMESPACE, f"{delivery.source}\n{item_id}\n{position}"))
            _set(event, "source", delivery.source)
            _set(event, "captured_at", delivery.captured_at)
            if event.identifiers:
                _set(event, "identifiers", tuple({(i.kind, i.value): i for i in event.identifiers if i.value}.values()))
            try:
                found.events.append(within_bounds(event, found.left_out, long=long))
            except Poison as exc:
                found.poison = found.poison or exc

    def _known_fields(self) -> frozenset[str]:
        models = [model for model, _ in self.translators.values() if model is not None]
        return frozenset().union(*map(fields_of, models))

    def _model_of(self, exc: ValidationError) -> type[BaseModel] | None:
        return next(
            (model for model, _ in self.translators.values() if model is not None and model.__name__ == exc.title), None
        )


def _unpacked(body: bytes) -> bytes:
    """A gzip body, unpacked. The edge keeps it packed, since that is what the vendor signed."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, UNPACKED_MAX_BYTES)
    except zlib.error:
        raise InvalidPayload("the body is not the gzip that its header says") from None
    if not unpacker.eof:
        raise InvalidPayload(f"the gzip body is cut off or unpacks to more than {UNPACKED_MAX_BYTES} bytes")
    return plain


class _NotJson(InvalidPayload):
    """Perhaps it can be mended."""


def parse_json(body: bytes) -> Any:
    """The body as JSON; whole numbers are exact up to 64 bits (see `Id` for what lies beyond).

    A `split` that lets the error go is called again with a body that was mended, where that is possible.

    Raises:
        InvalidPayload: not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _NotJson("the body is not JSON") from None


def _whole(delivery: Delivery) -> Iterator[Item]:
    value = parse_json(delivery.body)
    if delivery.kind is None:
        raise UnknownKind("the delivery names no kind", hint="the header with the vendor's topic is missing")
    yield delivery.kind, delivery.delivery_id, value


def _shown(kind: str | None) -> str:
    """A kind for messages, unless it is something else than a topic's name."""
    if kind is None:
        return "delivery"
    return kind if re.fullmatch(r"[A-Za-z0-9_.:/-]{1,80}", kind) else "of an odd name"


def _faults(exc: ValidationError, model: type[BaseModel] | None) -> str:
    """What pydantic found, without any value: keys of the payload are told only where they are fields of the model."""
    known = fields_of(model) if model is not None else frozenset()
    return "; ".join(
        f"{shown(e['loc'], known)}: {e['msg']}"
        for e in exc.errors(include_input=False, include_url=False, include_context=False)[:5]
    )


def _place(exc: BaseException) -> str:
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
