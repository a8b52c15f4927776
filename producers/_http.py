"""The little of HTTP that the edge needs: answers, refusals and bodies with limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["RETRY", "App", "Body", "Intake", "Receive", "Refusal", "Scope", "Send", "answer", "refuse"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Memory for bodies on their way in, of all connections together."""

RETRY = ((b"retry-after", b"1"),)
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a delivery is not taken.

    Attributes:
        status: HTTP status.
        outcome: one of a closed set; the label of the metric and the code in the answer.
        reason: for the sender; without secrets or personal data.
        headers: more headers of the answer.
    """

    status: int
    outcome: str
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """A whole body."""

    data: bytes


class Intake:
    """Reads bodies, bounded in size, time and in the memory that all of them hold."""

    def __init__(self, timeout_s: float, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._timeout_s = timeout_s
        self._max_held_bytes = max_held_bytes
        self._held = 0

    async def read(self, receive: Receive, declared: str | None, limit: int) -> Body | Refusal | None:
        """The body, or why it isn't taken; None when the sender went away. `release` the body when it is stored.

        Args:
            receive: the ASGI callable.
            declared: the content-length header.
            limit: largest body, bytes.
        """
        too_large = Refusal(413, "too_large", f"a delivery has at most {limit} bytes")
        if declared is not None:
            if not (declared.isascii() and declared.isdigit()):
                return Refusal(400, "malformed", "content-length is not a number")
            if int(declared[:20]) > limit:
                return too_large
        chunks: list[bytes] = []
        size = 0
        taken = False
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > limit:
                        return too_large
                    if self._held > self._max_held_bytes:
                        return Refusal(503, "busy", "too much is on its way in", RETRY)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        taken = True
                        return Body(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        except TimeoutError:
            return Refusal(408, "slow", "the body did not arrive in time", ((b"connection", b"close"),))
        finally:
            if not taken:
                self._held -= size

    def release(self, body: Body) -> None:
        """Give back the memory of a body."""
        self._held -= len(body.data)


async def answer(
    send: Send, status: int, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refusal: Refusal) -> None:
    """Send a refusal as JSON."""
    body = orjson.dumps({"code": refusal.outcome, "message": refusal.reason})
    await answer(send, refusal.status, body, (_JSON, *refusal.headers))
