"""What stands behind `caudal connectors`, `caudal translate` and `caudal connectors verify`: pure functions without files or exits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from typing import Any

from caudal.connectors import registry
from caudal.connectors._sdk import Connector, Delivery, Salvaged, SignedRequest, Verdict
from caudal.schemas import Event
from caudal.schemas.events import EPOCH

from caudal.errors import InvalidPayload, Poison

__all__ = ["as_json", "delivery", "listing", "parse_headers", "parse_time", "translate", "translate_lines", "verify"]


def listing() -> list[dict[str, Any]]:
    """Every connector: name, title, the kinds that give events and those that are known to say nothing about customers."""
    return [
        {"name": c.name, "title": c.title, "kinds": list(c.kinds), "ignored": sorted(c.ignored)}
        for c in registry().values()
    ]


def parse_headers(text: str) -> dict[str, str]:
    """Headers from a JSON object.

    Raises:
        ValueError: it is something else.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError('headers are a JSON object such as {"x-shopify-topic": "orders/create"}')  # noqa: TRY004 - usage, not type
    return _lowered(given)


def parse_time(text: str) -> datetime:
    """A time from ISO 8601 (UTC without an offset) or seconds since 1970.

    Raises:
        ValueError: it is neither.
    """
    try:
        at = datetime.fromtimestamp(float(text), UTC) if _is_number(text) else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise ValueError("a time is written as 2026-01-31T12:00:00Z or in seconds since 1970") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def delivery(
    body: bytes, *, source: str, kind: str | None = None, headers: Mapping[str, Any] | None = None, at: datetime = EPOCH
) -> Delivery:
    """A delivery as if it had been captured from `source`; header names may have any case."""
    return Delivery(source=source, body=body, headers=_lowered(headers or {}), kind=kind, captured_at=at)


def translate(connector: Connector, given: Delivery) -> Salvaged:
    """What can be used of one delivery, what was left out of it, and why the rest can't be used. Never raises."""
    return connector.salvage(given)


def translate_lines(connector: Connector, source: str, lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """One answer for each line `{kind?, headers?, body}`. Never raises.

    `{"events": […]}`, with `left_out`, a list of `{path, reason}`, where parts could not be read, and with `poison` (a code) and
    `message` where items or events could not be used; without `events` when none could. `body` is a text as received, or the parsed value.
    """
    for line in lines:
        try:
            found = translate(connector, _from_line(source, line))
        except Poison as exc:
            found = Salvaged(poison=exc)
        answer: dict[str, Any] = {}
        if found.events or found.poison is None:
            answer["events"] = [as_json(event) for event in found.events]
        if found.left_out:
            answer["left_out"] = [{"path": part.path, "reason": part.reason} for part in found.left_out]
        if found.poison is not None:
            answer |= {"poison": found.poison.code, "message": str(found.poison)}
        yield answer


def verify(
    connector: Connector,
    body: bytes,
    *,
    secrets: Sequence[str],
    headers: Mapping[str, Any],
    method: str = "POST",
    url: str = "",
    at: datetime | None = None,
) -> Verdict:
    """Whether the request is signed with one of `secrets`. The age of a signed timestamp is judged only with `at`."""
    request = SignedRequest(body=body, headers=_lowered(headers), method=method, url=url)
    verdict = connector.verify.verify(request, secrets, now=at)
    return Verdict(ok=True) if verdict.ok else verdict


def as_json(record: Any) -> dict[str, Any]:
    """An event as JSON values: `type` first, then every field that is stated. Times are ISO 8601 in UTC."""
    shown: dict[str, Any] = {"type": type(record).__name__} if isinstance(record, Event) else {}
    for field in fields(record):
        value = getattr(record, field.name)
        # what is empty because nobody set it is not stated; an empty set of tags is (its default is None)
        unset = value is None or (value in ("", (), {}) and value is not None and _default(field) == value)
        if (
            not unset
            and not (field.name == "link_seq" and value == 0)
            and not (field.name == "captured_at" and value == EPOCH)
        ):
            # a ticket has a type of its own (question, incident, …)
            shown["ticket_type" if "type" in shown and field.name == "type" else field.name] = _plain(value)
    return shown


def _default(field: Any) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return as_json(value) if is_dataclass(value) else value


def _from_line(source: str, line: str | bytes) -> Delivery:
    try:
        given = json.loads(
            line
        )  # not orjson: it takes whole numbers of any size, and their digits must arrive as they were sent
    except (ValueError, RecursionError):
        raise InvalidPayload("the line is not JSON") from None
    if not isinstance(given, dict) or "body" not in given:
        raise InvalidPayload("a line is an object {kind?, headers?, body}")
    kind, headers, body = given.get("kind"), given.get("headers") or {}, given["body"]
    if not isinstance(kind, str | None) or not isinstance(headers, dict):
        raise InvalidPayload("kind is a text and headers are an object")
    try:
        raw = (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise InvalidPayload("the body is nested too deep") from None
    return delivery(raw, source=source, kind=kind, headers=headers)


def _lowered(headers: Mapping[str, Any]) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items() if value is not None}


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
