"""How vendors sign requests. Every scheme works over the raw body, compares in constant time and takes several secrets at once.

The sender chooses nothing: header, digest and encoding are the connector's, and where a vendor has several versions of its signature the
source says which are taken. A signature is compared as a whole text, so another case, padding or alphabet is another signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import orjson
from caudal.connectors._sdk import Scheme, SignedRequest, Verdict

from caudal.errors import BadSettings

__all__ = ["Hmac", "HubSpotSignature", "TimestampedHmac", "accepting", "described", "fresh", "matches"]


def matches(given: str | bytes, expected: Iterable[str]) -> bool:
    """Constant-time comparison of a signature with each candidate; nothing matches an empty one."""
    raw = (given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")).strip()
    # every candidate is compared, so that the time taken tells nothing of which secret matched
    return any([hmac.compare_digest(raw, candidate.encode()) for candidate in expected]) and raw != b""


def accepting(scheme: Scheme, versions: Sequence[str]) -> Scheme:
    """The scheme, taking only these versions of the vendor's signature; its strongest one where none is named.

    Raises:
        BadSettings: the vendor has no such version.
    """
    known: tuple[str, ...] = getattr(scheme, "versions", ())
    if unknown := sorted(set(versions) - set(known)):
        there = f"there are {', '.join(known)}" if known else "this system signs in one way"
        raise BadSettings(f"signature_versions: {', '.join(unknown)} is none of this system's", hint=there)
    if not known:
        return scheme
    chosen = tuple(version for version in known if version in versions) or known[:1]
    return replace(scheme, versions=chosen)  # type: ignore[type-var]  # a scheme with versions is a dataclass


def described(scheme: Scheme) -> str:
    """How requests are signed, in words."""
    return str(getattr(scheme, "description", "") or type(scheme).__name__)


_DIGITS = re.compile(r"[0-9]{1,16}")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?")


def fresh(timestamp: str, *, unit: Literal["s", "ms", "iso"], now: datetime | None, window_s: int) -> Verdict:
    """Whether a signed timestamp lies within `window_s` of `now`; always, when `now` is None or the window is 0."""
    try:
        # Python reads more as a number or a time than any vendor writes: signs, blanks, underscores, other scripts' digits, bare dates
        if not (_ISO if unit == "iso" else _DIGITS).fullmatch(timestamp):
            raise ValueError
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

    @property
    def description(self) -> str:
        """See `described`."""
        prefix = f" after {self.prefix}" if self.prefix else ""
        return f"HMAC-{self.digest.upper()} of the body with the secret, in {self.encoding}{prefix}, in the header {self.header}"

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`; there is no signed timestamp, so `now` is not used."""
        given = request.headers.get(self.header)
        if not given:
            return Verdict(ok=False, reason=f"header {self.header} is missing")
        if matches(given, (self.prefix + self.sign(request.body, secret) for secret in _there(secrets))):
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

    @property
    def description(self) -> str:
        """See `described`."""
        return (
            f"HMAC-SHA256 of {self.timestamp_header} and the body with the secret, in base64, in the header {self.header}; "
            "the time may not be old"
        )

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`. The secret is used as the text that it is, also where it looks like base64."""
        given, timestamp = request.headers.get(self.header), request.headers.get(self.timestamp_header)
        if not given or not timestamp:
            return Verdict(ok=False, reason=f"header {self.timestamp_header if given else self.header} is missing")
        message = _raw(timestamp) + request.body
        if not matches(given, (_hmac_sha256(message, secret) for secret in _there(secrets))):
            return Verdict(ok=False, reason="the signature does not match")
        unit: Literal["s", "ms", "iso"] = "iso"
        if _DIGITS.fullmatch(timestamp):
            unit = "ms" if len(timestamp) >= 13 else "s"
        return fresh(timestamp, unit=unit, now=now, window_s=window_s)


_DECODED_BY_HUBSPOT = {
    f"%{ord(character):02X}": character for character in (":", "/", "?", "@", "!", "$", "'", "(", ")", "*", ",", ";")
}
"""https://developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests#validate-the-v3-request-signature"""


_HUBSPOT_TIME = "x-hubspot-request-timestamp"
_SIGNED_TIMES = ("occurredAt", "occurred_at")


@dataclass(frozen=True, slots=True)
class HubSpotSignature:
    """HubSpot's three signatures. v3 alone decides where it is present; v2 and v1 are for requests that carry no v3.

    v3 is base64(HMAC-SHA256(secret, method + URI + body + timestamp)) with the timestamp in milliseconds; v2 is
    hex(SHA-256(secret + method + URI + body)) and v1 hex(SHA-256(secret + body)), told apart by
    `x-hubspot-signature-version`. The URI is the address as HubSpot sees it, so `SignedRequest.url` must be the public one.

    v2 and v1 are plain digests: whoever saw one can make that of a longer body without the secret (length extension). And they sign no
    time of sending, so their age is that of the newest notice in the body, which they do sign.

    Attributes:
        versions: those that are taken, strongest first.
    """

    versions: tuple[str, ...] = ("v3", "v2", "v1")

    @property
    def description(self) -> str:
        """See `described`."""
        return (
            "v3: HMAC-SHA256 of method, address, body and time with the app's client secret, in base64, in the header "
            f"x-hubspot-signature-v3, the time in {_HUBSPOT_TIME}; the time may not be old. "
            "v2 and v1, weaker, only where the source's signature_versions names them"
        )

    def verify(
        self, request: SignedRequest, secrets: Sequence[str], *, now: datetime | None = None, window_s: int = 300
    ) -> Verdict:
        """See `Scheme.verify`."""
        headers = request.headers
        if (given := headers.get("x-hubspot-signature-v3")) is not None and "v3" in self.versions:
            return self._v3(given, request, _there(secrets), now, window_s)
        given = headers.get("x-hubspot-signature")
        if not given or self.versions == ("v3",):
            return Verdict(ok=False, reason="header x-hubspot-signature-v3 is missing")
        version = headers.get("x-hubspot-signature-version", "v1").strip().lower()
        if version not in self.versions or version == "v3":
            return Verdict(ok=False, reason="x-hubspot-signature-version is none that the source takes")
        if b"\0" in request.body:
            # no JSON holds one, and the filling of every length extension does
            return Verdict(ok=False, reason=f"a body with a zero byte can't be signed by {version}")
        signed = request.body if version == "v1" else _raw(request.method.upper()) + _raw(request.url) + request.body
        if not matches(given, (hashlib.sha256(secret.encode() + signed).hexdigest() for secret in _there(secrets))):
            return Verdict(ok=False, reason=f"the {version} signature does not match")
        return self._aged(request, now, window_s)

    def _v3(
        self, given: str, request: SignedRequest, secrets: Sequence[str], now: datetime | None, window_s: int
    ) -> Verdict:
        timestamp = request.headers.get(_HUBSPOT_TIME)
        if not timestamp:
            return Verdict(ok=False, reason=f"header {_HUBSPOT_TIME} is missing")
        # HubSpot signs the URI with these characters decoded; senders differ in whether they encode them at all
        decoded = re.sub(r"%[0-9A-Fa-f]{2}", lambda m: _DECODED_BY_HUBSPOT.get(m[0].upper(), m[0]), request.url)
        message = _raw(request.method.upper()) + _raw(decoded) + request.body + _raw(timestamp)
        if not matches(given, (_hmac_sha256(message, secret) for secret in secrets)):
            return Verdict(ok=False, reason="the v3 signature does not match")
        return fresh(timestamp, unit="ms", now=now, window_s=window_s)

    def _aged(self, request: SignedRequest, now: datetime | None, window_s: int) -> Verdict:
        """The age of a v2 or v1 request: by its notices, and by its header, which nobody signed and which can only refuse."""
        if now is None or not window_s:
            return Verdict(ok=True)
        at = _newest(request.body)
        if at is None:
            return Verdict(ok=False, reason="the body says no time, so its age can't be judged; v3 signs one")
        verdict = fresh(str(at), unit="ms", now=now, window_s=window_s)
        if verdict.ok and (told := request.headers.get(_HUBSPOT_TIME)) is not None:
            return fresh(told, unit="ms", now=now, window_s=window_s)
        return verdict


def _newest(body: bytes) -> int | None:
    """The time of the newest notice, milliseconds; None where no notice says one."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    notices = given if isinstance(given, list) else [given]
    times = [n.get(name) for n in notices if isinstance(n, dict) for name in _SIGNED_TIMES]
    return max((at for at in times if type(at) is int), default=None)


def _there(secrets: Sequence[str]) -> Sequence[str]:
    """The secrets that are some: anyone can sign with an empty one."""
    return [secret for secret in secrets if secret.strip()]


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hmac_sha256(message: bytes, secret: str) -> str:
    return encode(hmac.new(secret.encode(), message, hashlib.sha256).digest(), "base64")


def encode(digest: bytes, encoding: Literal["base64", "hex"]) -> str:
    """A digest as text."""
    return digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
