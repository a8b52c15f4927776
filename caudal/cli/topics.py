"""`caudal tail`: watch the topics."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from caudal.cli._output import Json, compact, emit_line, examples, note, resolved, say

if TYPE_CHECKING:
    from caudal.tail import Record

__all__ = ["register"]

_HEADER = {"event_id", "source", "customer_id", "link_seq", "subject", "captured_at", "occurred_at", "identifiers"}
"""Fields that every event starts with; the pretty form shows the event's own."""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command(
        epilog=examples(
            "caudal tail",
            "caudal tail changes profiles --from-beginning",
            "caudal tail segments --json | jq .value",
            "caudal tail captures --max 1 --json",
        )
    )(tail)


def tail(
    feeds: Annotated[
        list[str] | None,
        typer.Argument(help="changes, profiles, metrics, segments, dead-letters, captures, or a topic's name."),
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start with the first record kept.")] = False,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Stop after so many records.")] = None,
    as_json: Json = False,
) -> None:
    """Follow topics and print each record, decoded, until Ctrl-C. Shows personal data as it is on the topic."""
    from caudal.tail import feed_topics
    from caudal.tail import tail as follow

    settings = resolved()
    topics = feed_topics(settings, feeds or ["changes"])
    if not topics:
        note("caudal: no source has sent anything yet")
    for seen, record in enumerate(follow(settings, topics, from_beginning=from_beginning), start=1):
        if as_json:
            emit_line(asdict(record))
        else:
            say(_pretty(record))
        if seen == most:
            break


def _pretty(record: Record) -> str:
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    parts = [f"{record.at:%H:%M:%S}.{record.at.microsecond // 1000:03d}", place]
    if record.undecodable:
        parts.append(f"undecodable: {record.undecodable}")
    elif record.value is None:
        parts += [record.key or "", "deleted"]
    else:
        own = {name: value for name, value in record.value.items() if name not in _HEADER and not _empty(value)}
        subject = record.value.get("subject")
        parts += [record.type or "", record.key or "", *([subject] if subject else []), compact(own)]
    if sys.stdout.isatty():
        parts[0], parts[1] = f"\033[2m{parts[0]}\033[0m", f"\033[36m{parts[1]}\033[0m"
    return " ".join(parts)


def _empty(value: object) -> bool:
    return value is None or value in ([], {})
