"""Whether a delivery is authentic, and what of it must not be stored because it would let anyone send another."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime

from caudal.connectors import Scheme, SignedRequest, Verdict
from caudal.connectors._signatures import matches

from caudal.sources import Source

__all__ = ["authentic", "without_credentials"]

_CREDENTIALS = ("authorization", "cookie", "proxy-authorization")


def authentic(
    source: Source,
    scheme: Scheme,
    request: SignedRequest,
    secrets: Sequence[str],
    *,
    token: str = "",
    now: datetime,
    window_s: int,
) -> Verdict:
    """Judge a request by what the source is configured for.

    Args:
        source: the source that it came to.
        scheme: how the vendor signs.
        request: what arrived.
        secrets: the secrets that are valid now.
        token: the last part of the path, `/in/{source}/{token}`.
        now: the time to judge signed timestamps by.
        window_s: how old a signed timestamp may be.
    """
    if source.auth == "signature":
        return scheme.verify(request, secrets, now=now, window_s=window_s)
    if source.auth == "path_token":
        return Verdict(ok=matches(token, secrets), reason="the token in the path is wrong")
    if source.auth == "basic":
        return Verdict(ok=matches(_basic(request.headers), secrets), reason="user or password is wrong")
    given = request.headers.get((source.header or "").lower(), "")
    # the bytes as they came: a text of latin-1 would be other bytes in UTF-8
    return Verdict(
        ok=matches(given.encode("latin-1", "replace"), secrets), reason=f"header {source.header} is missing or wrong"
    )


def without_credentials(source: Source, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that may be stored. Signatures may: they prove one body and open nothing."""
    kept = dict(headers)
    for name in _CREDENTIALS:
        kept.pop(name, None)
    if source.header is not None:
        kept.pop(source.header.lower(), None)
    return kept


def _basic(headers: Mapping[str, str]) -> str:
    """`user:password`, or nothing."""
    word, _, encoded = headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(encoded, validate=True).decode() if word.lower() == "basic" else ""
    except (binascii.Error, ValueError):
        return ""
