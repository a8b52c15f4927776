"""The little of HTTP that the edge needs: answers, refusals and bodies with limits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

from caudal.connections import SAFE_HEADERS

__all__ = ["RETRY", "App", "Body", "Intake", "Receive", "Refusal", "Scope", "Send", "answer", "refuse"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Memory for bodies on their way in, of all connections together."""

_SAFE = tuple((name.encode(), value.encode()) for name, value in SAFE_HEADERS.items())
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
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

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
        task = asyncio.current_task()
        assert task is not None
        self._limit(task)
        chunks: list[bytes] = []
        size = 0
        taken = False
        try:
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
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise
            return Refusal(408, "slow", "the body did not arrive in time", ((b"connection", b"close"),))
        finally:
            self._deadlines.pop(task, None)
            self._late.discard(task)
            if not taken:
                self._held -= size

    def release(self, body: Body) -> None:
        """Give back the memory of a body."""
        self._held -= len(body.data)

    def _limit(self, task: asyncio.Task[Any]) -> None:
        """Cancel the task when its time is up. One timer serves all: a timer for each costs more than reading the body."""
        loop = task.get_loop()
        self._deadlines[task] = loop.time() + self._timeout_s
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._timeout_s / 10, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        # the oldest stand in front
        for task in [
            task for task, deadline in itertools.takewhile(lambda item: item[1] <= now, self._deadlines.items())
        ]:
            del self._deadlines[task]
            self._late.add(task)
            task.cancel()
        self._sweeper = loop.call_later(self._timeout_s / 10, self._sweep, loop) if self._deadlines else None


async def answer(
    send: Send, status: int, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
) -> None:
    """Send a whole answer."""
    own = {name for name, _ in headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                *headers,
                *(each for each in _SAFE if each[0] not in own),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refusal: Refusal) -> None:
    """Send a refusal as JSON."""
    body = orjson.dumps({"code": refusal.outcome, "message": refusal.reason})
    await answer(send, refusal.status, body, (_JSON, *refusal.headers))
