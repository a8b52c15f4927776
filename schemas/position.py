"""Positions in the log: offset vectors, and the opaque tokens that callers hold of them.

A vector is `{topic: {partition: next offset}}`, topics without the prefix. A token is its compact JSON in base64url.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

import orjson

__all__ = ["BadToken", "Position", "covers", "decode", "encode", "merge"]

Position = Mapping[str, Mapping[int, int]]
"""For each topic and partition the offset after the last record that is meant."""

_LONGEST = 64_000
"""Characters of the longest token that is looked at; a thousand partitions take about 16,000."""


class BadToken(ValueError):
    """The text is not a token; the message can be shown to the caller."""


def encode(position: Position) -> str:
    """The token of a position. Equal positions give equal tokens."""
    ordered = {
        topic: {str(partition): position[topic][partition] for partition in sorted(position[topic])}
        for topic in sorted(position)
        if position[topic]
    }
    return base64.urlsafe_b64encode(orjson.dumps(ordered)).rstrip(b"=").decode()


def decode(token: str) -> dict[str, dict[int, int]]:
    """The position of a token.

    Raises:
        BadToken: it is none.
    """
    if len(token) > _LONGEST:
        raise BadToken("the token is too long")
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        parsed = json.loads(raw)
    except (UnicodeError, binascii.Error, ValueError, RecursionError):
        raise BadToken("the token is damaged") from None
    if not isinstance(parsed, dict):
        raise BadToken("the token is not a position")
    return {topic: _offsets(offsets) for topic, offsets in parsed.items()}


def _offsets(value: object) -> dict[int, int]:
    if not isinstance(value, dict):
        raise BadToken("the token is not a position")
    offsets = {}
    for partition, offset in value.items():
        if not (partition.isascii() and partition.isdigit() and len(partition) <= 9):
            raise BadToken("the token names a partition that is not a number")
        if type(offset) is not int or not 0 <= offset < 2**63:
            raise BadToken("the token holds an offset that is not one")
        offsets[int(partition)] = offset
    return offsets


def covers(reached: Position, wanted: Position) -> bool:
    """Whether everything below `wanted` lies below `reached`; what `wanted` doesn't name it doesn't ask for."""
    return all(
        reached.get(topic, {}).get(partition, 0) >= offset
        for topic, offsets in wanted.items()
        for partition, offset in offsets.items()
    )


def merge(*positions: Position) -> dict[str, dict[int, int]]:
    """The least position that covers all of `positions`."""
    merged: dict[str, dict[int, int]] = {}
    for position in positions:
        for topic, offsets in position.items():
            known = merged.setdefault(topic, {})
            for partition, offset in offsets.items():
                known[partition] = max(offset, known.get(partition, 0))
    return merged
