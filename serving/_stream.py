"""The live stream as server-sent events: every change once, in its partition's order, resumable from any event's id."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from caudal.schemas import position
from caudal.schemas.codec import Codec
from caudal.serving._positions import MARKS
from caudal.serving._problems import Problem
from caudal.serving._tail import TOPICS, Place, Record, Tail
from starlette.responses import StreamingResponse
from starlette.types import Send

from caudal import kafka
from caudal.errors import CaudalError
from caudal.settings import KafkaSettings
from caudal.telemetry import STREAM_CLIENTS, Log, logger

__all__ = ["EventStream", "Selection", "Streams"]

HEARTBEAT_S = 15.0
STALL_S = 30.0
"""How long a client may leave a write waiting before its stream ends; it can resume."""

RECHECK_S = 1.0
"""How old the verdict on a token may be when data are sent."""

LINGER_S = 10.0
"""How long the tail is followed after the last client left, for those who come back."""

CHUNK_RECORDS = 256
CHUNK_BYTES = 64 * 1024

Verdict = Callable[[], Awaitable[str | None]]
"""Asks again whether the caller may listen; a reason when not."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events a client wants."""

    topics: frozenset[str] = frozenset(TOPICS)
    customer: str | None = None
    segment: str | None = None

    def wants(self, record: Record, codec: Codec) -> bool:
        """Whether the record is one of them; those that can't be decoded are nobody's."""
        if record.place[0] not in self.topics or (self.customer is not None and record.key != self.customer):
            return False
        record.decode(codec)
        if self.segment is not None and record.place[0] == kafka.SEGMENTS and record.segment != self.segment:
            return False
        return bool(record.json)


class _Reader:
    """One client's place. Inside the ring it is a sequence number, behind the ring a position that is fetched from."""

    def __init__(self, tail: Tail, selection: Selection, offsets: dict[Place, int]) -> None:
        self._tail = tail
        self._selection = selection
        self.offsets = offsets
        self._seq: int | None = None
        self._ahead: dict[Place, int] = {}
        """Where the position is further than the ring's at `_seq`: what a resuming client has had already."""

    async def chunk(self) -> tuple[list[bytes], bool]:
        """The next events, rendered; and whether there is more to read at once."""
        if self._seq is None or self._seq < self._tail.first:
            self._seq = None
            if not self._join():
                return await self._fetch()
        assert self._seq is not None
        parts: list[bytes] = []
        size, stop = 0, min(self._tail.next, self._seq + CHUNK_RECORDS)
        while self._seq < stop and size < CHUNK_BYTES:
            record = self._tail.records[self._seq - self._tail.first]
            self._seq += 1
            size += self._take(record, parts)
        return parts, self._seq < self._tail.next

    def seen(self) -> int:
        """The sequence number that the reader has come to."""
        return self._tail.next if self._seq is None else self._seq

    def _join(self) -> bool:
        """Step into the ring if all that comes before it was read."""
        for place, floor in self._tail.floor.items():
            if self.offsets[place] < floor:
                if place[0] in self._selection.topics:
                    return False
                self.offsets[place] = floor
        self._seq = self._tail.first
        self._ahead = {place: o for place, o in self.offsets.items() if o > self._tail.floor[place]}
        return True

    async def _fetch(self) -> tuple[list[bytes], bool]:
        records, after = await self._tail.fetch(self.offsets, self._selection.topics)
        parts: list[bytes] = []
        for record in records:
            self.offsets[record.place] = record.offset + 1
            if self._selection.wants(record, self._tail.codec):
                parts += self._event(record)
        self.offsets = after
        return parts, True

    def _take(self, record: Record, parts: list[bytes]) -> int:
        """Move past a record of the ring, adding its event if it is wanted; returns the event's size."""
        after = record.offset + 1
        if self._ahead:
            if after >= self._ahead.get(record.place, after + 1):
                del self._ahead[record.place]
            if record.offset < self.offsets[record.place]:
                return 0
        self.offsets[record.place] = after
        if not self._selection.wants(record, self._tail.codec):
            return 0
        if self._ahead:
            event = self._event(record)
        else:
            # nothing is ahead, so the position is the ring's own, and the same for every client that is here
            record.head = record.head or self._head(record)
            event = (record.head, record.json or b"", b"\n\n")
        parts += event
        return sum(map(len, event))

    def _event(self, record: Record) -> tuple[bytes, bytes, bytes]:
        return self._head(record), record.json or b"", b"\n\n"

    def _head(self, record: Record) -> bytes:
        return f"event: {record.place[0]}\nid: {token(self.offsets, self._tail.marks)}\ndata: ".encode()


def token(offsets: Mapping[Place, int], marks: Mapping[int, int]) -> str:
    """A position as callers see it, with marks of the topics that it counts in."""
    vector: dict[str, dict[int, int]] = {MARKS: dict(marks)}
    for (topic, partition), offset in offsets.items():
        vector.setdefault(topic, {})[partition] = offset
    return position.encode(vector)


def _closed(reason: str) -> bytes:
    return b"event: closed\ndata: " + orjson.dumps({"reason": reason}) + b"\n\n"


class Streams:
    """Opens live streams over one shared tail."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self._tail = Tail(settings, codec)
        self._clients = 0
        self._closing = False
        self._idle: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """End every stream, with the reason; callable from the event loop only."""
        self._closing = True
        self._tail.wake()

    async def stop(self) -> None:
        """Leave the brokers."""
        self.close()
        if self._idle is not None:
            self._idle.cancel()
        await self._tail.stop()

    async def open(
        self, selection: Selection, after: position.Position | None, *, beginning: bool, verdict: Verdict
    ) -> EventStream:
        """A stream from `after`, from the beginning, or from now.

        Raises:
            BrokerUnavailable: Kafka can't be reached.
            Problem: 422, `after` is no position of this stream.
        """
        await self._tail.ensure_running()
        offsets = dict.fromkeys(self._tail.head, 0) if beginning else dict(self._tail.head)
        if after is not None:
            offsets = await self._resumed(after)
        return EventStream(
            self._events(_Reader(self._tail, selection, offsets), verdict), token(offsets, self._tail.marks)
        )

    async def _resumed(self, after: position.Position) -> dict[Place, int]:
        """Positions as given; topics that it doesn't name start now, partitions added since at their beginning."""
        if not set(after) & set(TOPICS):
            raise Problem(422, "invalid_token_vector", "the id is none of this stream's: it names no change topic")
        for number, mark in after.get(MARKS, {}).items():
            if number < len(TOPICS) and TOPICS[number] in after and self._tail.marks.get(number, mark) != mark:
                raise Problem(
                    422,
                    "position_beyond_end",
                    f"{TOPICS[number]} was deleted and made again: the id is of the log before",
                )
        offsets = dict(self._tail.head)
        for topic in set(after) & set(TOPICS):
            offsets.update({place: after[topic].get(place[1], 0) for place in offsets if place[0] == topic})
        if any(offset > self._tail.head[place] for place, offset in offsets.items()):
            ends = await self._tail.ends()  # another process may have been quicker than our tail
            if any(offset > ends.get(place, 0) for place, offset in offsets.items()):
                raise Problem(422, "position_beyond_end", "the id lies beyond the end of the log: it is of another log")
        return offsets

    async def _events(self, reader: _Reader, verdict: Verdict) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        self._enter()
        reason = "shutting_down"
        try:
            await self._tail.ensure_running()  # the tail may have been paused between opening and the first read
            yield f"retry: 1000\nid: {token(reader.offsets, self._tail.marks)}\n\n".encode()
            sent_at = checked_at = clock()
            while not self._closing:
                parts, more = await reader.chunk()
                quiet = clock() - sent_at >= HEARTBEAT_S
                if (parts or quiet) and clock() - checked_at >= RECHECK_S:
                    refused = await verdict()
                    if refused:
                        reason = refused
                        break
                    checked_at = clock()
                if parts:
                    yield b"".join(parts)
                    sent_at = clock()
                elif quiet:
                    # the id without data moves the client's place past what its filter left out
                    yield f": still here\nid: {token(reader.offsets, self._tail.marks)}\n\n".encode()
                    sent_at = clock()
                if self._tail.failed:
                    reason = self._tail.failed.code
                    break
                if more:
                    await asyncio.sleep(0)
                else:
                    await self._tail.wait(reader.seen(), max(0.0, sent_at + HEARTBEAT_S - clock()))
        except CaudalError as exc:
            reason = exc.code
        finally:
            self._leave()
        logger().info(Log.STREAM_CLOSED, reason=reason)
        yield _closed(reason)

    def _enter(self) -> None:
        self._clients += 1
        STREAM_CLIENTS.inc()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _leave(self) -> None:
        self._clients -= 1
        STREAM_CLIENTS.dec()
        if not self._clients and not self._closing:
            self._idle = asyncio.get_running_loop().call_later(LINGER_S, self._tail.pause)


class EventStream(StreamingResponse):
    """The HTTP answer. A write that the client leaves waiting for STALL_S ends it: nothing is queued for those who don't read."""

    def __init__(self, events: AsyncIterator[bytes], token_: str) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "caudal-token": token_}
        super().__init__(events, headers=headers, media_type="text/event-stream")

    async def stream_response(self, send: Send) -> None:
        """Send the events as they come."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self.body_iterator:
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            logger().info(Log.STREAM_CLOSED, reason="not_reading")
            # a client that wakes up in time learns why; the connection of one that doesn't is cut by the kernel (see api.py)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": _closed("not_reading"), "more_body": True})
        finally:
            close: Any = getattr(self.body_iterator, "aclose", None)
            if close is not None:
                await close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
