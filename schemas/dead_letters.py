"""The dead letter of an input that can't be used: one record, whatever the stage."""

from __future__ import annotations

import uuid
import zlib
from datetime import UTC, datetime
from typing import Any, Protocol

from caudal.errors import Poison

__all__ = ["KIND_MAX", "REASON_MAX", "Message", "bare", "dead_letter"]

KIND_MAX, REASON_MAX = 256, 2_000
"""Characters of a kind and of a reason that are kept: what a sender calls a kind may be as long as its delivery."""
_NAMESPACE = uuid.UUID("2f3d6f0e-52c1-5e0a-8d53-8a2f1a0d9c77")


class Message(Protocol):
    """What is read of a Kafka message."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...


def dead_letter(
    stage: str, message: Message, reason: Poison, *, source: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    """The `caudal.DeadLetter` record of `message`. The same message gives the same id, so that a repeated batch repeats it; another one at
    the same place, of a topic that was made again, has another.
    """
    place = f"{message.topic()}\n{message.partition()}\n{message.offset()}\n{zlib.crc32(message.value() or b'')}"
    return {
        "dead_letter_id": str(uuid.uuid5(_NAMESPACE, place)),
        "stage": stage,
        "code": reason.code,
        "message": str(reason)[:REASON_MAX],
        "source": source,
        "kind": None if kind is None else kind[:KIND_MAX],
        "topic": message.topic() or "",
        "partition": message.partition() or 0,
        "offset": message.offset() or 0,
        "key": message.key(),
        "payload": message.value() or b"",
        "failed_at": datetime.now(UTC),
        "attempts": 1,
        "payload_left_out": False,
    }


def bare(letter: dict[str, Any]) -> dict[str, Any]:
    """The letter without its payload, for a topic that doesn't take it as it is. It says where the input stands."""
    return {**letter, "payload": b"", "payload_left_out": True}
