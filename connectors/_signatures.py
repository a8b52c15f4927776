"""How vendors sign requests. Every scheme works over the raw body, compares in constant time and takes several secrets at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from caudal.connectors._sdk import SignedRequest, Verdict

__all__ = ["Hmac", "HubSpotSignature", "TimestampedHmac", "fresh", "matches"]


def matches(given: str, expected: Iterable[str]) -> bool:
    """Constant-time comparison of a signature with each candidate."""
    raw = given.strip().encode("utf-8", "surrogateescape")
    # every candidate is compared, so that the time taken tells nothing of which secret matched
    return any([hmac.compare_digest(raw, candidate.encode()) for candidate in expected])


def fresh(timestamp: str, *, unit: Literal["s", "ms", "iso"], now: datetime | None, window_s: int) -> Verdict:
    """Whether a signed timestamp lies within `window_s` of `now`; always, when `now` is None or the window is 0."""
    try:
        if unit == "iso":
            at = datetime.fromisoformat(timestamp)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
        else:
            at = datetime.fromtimestamp(int(timestamp) / (1000 if unit == "ms" else 1), UTC)
    except (ValueError, OverflowError, OSError):
        return Verdict(ok=False, reason="the signed timestamp is not a time")
    if now is not None and window_s and abs(now - at) > timedelta(seconds=window_s):
        return Verdict(ok=False, reason="the signed timestamp is outside the replay window")
    return Verdict(ok=True)


@dataclass(frozen=True, slots=True)
class Hmac:
    """HMAC of the raw body in one header (Shopify, WooCommerce, Intercom, Typeform, …).

    Attributes:
        header: lower-case header name.
        digest: sha256, sha1 or sha512.
        encoding: base64 or hex.
        prefix: text before the signature, such as `sha256=`.
    """

    header: str
    digest: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["base64", "hex"] = "base64"
    prefix: str = ""

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`; there is no signed timestamp, so `now` is not used."""
        given = request.headers.get(self.header)
        if not given:
            return Verdict(ok=False, reason=f"header {self.header} is missing")
        if matches(given, (self.prefix + self.sign(request.body, secret) for secret in secrets)):
            return Verdict(ok=True)
        return Verdict(ok=False, reason="the signature does not match")

    def sign(self, message: bytes, secret: str) -> str:
        """The signature of `message`, without prefix."""
        return encode(hmac.digest(secret.encode(), message, self.digest), self.encoding)


@dataclass(frozen=True, slots=True)
class TimestampedHmac:
    """HMAC-SHA256 of timestamp and raw body, in base64, both in headers (Zendesk).

    Attributes:
        header: lower-case header with the signature.
        timestamp_header: lower-case header with the signed timestamp: ISO 8601, or digits (seconds, or milliseconds from 13 digits on).
    """

    header: str
    timestamp_header: str

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`. The secret is used as the text that it is, also where it looks like base64."""
        given, timestamp = request.headers.get(self.header), request.headers.get(self.timestamp_header)
        if not given or not timestamp:
            return Verdict(ok=False, reason=f"header {self.timestamp_header if given else self.header} is missing")
        message = _raw(timestamp) + request.body
        if not matches(given, (_hmac_sha256(message, secret) for secret in secrets)):
            return Verdict(ok=False, reason="the signature does not match")
        unit: Literal["s", "ms", "iso"] = "iso"
        if timestamp.isdecimal():
            unit = "ms" if len(timestamp) >= 13 else "s"
        return fresh(timestamp, unit=unit, now=now, window_s=window_s)


_DECODED_BY_HUBSPOT = {
    f"%{ord(character):02X}": character for character in (":", "/", "?", "@", "!", "$", "'", "(", ")", "*", ",", ";")
}
"""https://developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests#validate-the-v3-request-signature"""


@dataclass(frozen=True, slots=True)
class HubSpotSignature:
    """HubSpot's three signatures. v3 alone decides where it is present; v2 and v1 are for requests that carry no v3.

    v3 is base64(HMAC-SHA256(secret, method + URI + body + timestamp)) with the timestamp in milliseconds; v2 is
    hex(SHA-256(secret + method + URI + body)) and v1 hex(SHA-256(secret + body)), told apart by
    `x-hubspot-signature-version`. The URI is the address as HubSpot sees it, so `SignedRequest.url` must be the public one.
    """

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`; v2 and v1 sign no timestamp, so `now` is used for v3 only."""
        headers = request.headers
        if (given := headers.get("x-hubspot-signature-v3")) is not None:
            timestamp = headers.get("x-hubspot-request-timestamp")
            if not timestamp:
                return Verdict(ok=False, reason="header x-hubspot-request-timestamp is missing")
            # HubSpot signs the URI with these characters decoded; senders differ in whether they encode them at all
            decoded = re.sub(r"%[0-9A-Fa-f]{2}", lambda m: _DECODED_BY_HUBSPOT.get(m[0].upper(), m[0]), request.url)
            message = _raw(request.method.upper()) + _raw(decoded) + request.body + _raw(timestamp)
            if not matches(given, (_hmac_sha256(message, secret) for secret in secrets)):
                return Verdict(ok=False, reason="the v3 signature does not match")
            return fresh(timestamp, unit="ms", now=now, window_s=window_s)
        given = headers.get("x-hubspot-signature")
        if not given:
            return Verdict(ok=False, reason="header x-hubspot-signature-v3 is missing")
        version = headers.get("x-hubspot-signature-version", "v1").strip().lower()
        if version not in {"v1", "v2"}:
            return Verdict(ok=False, reason="x-hubspot-signature-version is neither v1 nor v2")
        signed = request.body if version == "v1" else _raw(request.method.upper()) + _raw(request.url) + request.body
        if matches(given, (hashlib.sha256(secret.encode() + signed).hexdigest() for secret in secrets)):
            return Verdict(ok=True)
        return Verdict(ok=False, reason=f"the {version} signature does not match")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hmac_sha256(message: bytes, secret: str) -> str:
    return encode(hmac.new(secret.encode(), message, hashlib.sha256).digest(), "base64")


def encode(digest: bytes, encoding: Literal["base64", "hex"]) -> str:
    """A digest as text."""
    return digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
