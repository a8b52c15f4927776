"""How vendors sign requests. Every scheme works over the raw body, compares in constant time and takes several secrets at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from caudal.connectors._sdk import SignedRequest, Verdict

__all__ = ["Hmac", "fresh", "matches"]


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
        return Verdict(
            ok=matches(given, (self.prefix + self.sign(request.body, secret) for secret in secrets)),
            reason="the signature does not match",
        )

    def sign(self, message: bytes, secret: str) -> str:
        """The signature of `message`, without prefix."""
        return encode(hmac.new(secret.encode(), message, getattr(hashlib, self.digest)).digest(), self.encoding)


def encode(digest: bytes, encoding: Literal["base64", "hex"]) -> str:
    """A digest as text."""
    return digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
