"""Where everything stands: what the topics hold, how far the workers are, what each source has sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from caudal import generations, kafka, offsets, postgres, sources
from caudal.kafka import Extent
from caudal.settings import Settings

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["TOPICS", "LogStanding", "SourceStanding", "Standing", "prepare", "standing"]

TOPICS = (
    kafka.CHANGES,
    kafka.PROFILES,
    kafka.METRICS,
    kafka.SEGMENTS,
    kafka.DEAD_LETTERS,
    kafka.COMMANDS,
)
"""The topics that are always there, without the prefix; each source adds its own."""


class SourceStanding(TypedDict):
    """One source, with the number of captures in its topic."""

    name: str
    connector: str
    captures: int


class LogStanding(TypedDict):
    """A log that didn't fit what was read of it. `fault` says why it doesn't now (see `offsets.Misfit`), `unread` how many of its records
    were deleted before they were read.
    """

    topic: str
    fault: str | None
    unread: int


class Standing(TypedDict):
    """`topics`: next offset by topic and partition. `workers`: records that wait for a step. `logs`: those there is something to say of."""

    topics: dict[str, dict[int, int]]
    workers: dict[str, int]
    sources: list[SourceStanding]
    logs: list[LogStanding]


def prepare(settings: Settings) -> None:
    """Create the topics and bring schema `hub` up to date. Safe to call at every start and from several processes at once.

    Raises:
        CaudalError: a server can't be reached.
    """
    captures = [f"capture.{name}" for name in sources.load(settings)]
    kafka.reach(settings.kafka)
    kafka.ensure_topics(settings.kafka, [*TOPICS, *captures])
    postgres.migrate(settings.postgres)


def standing(settings: Settings) -> Standing:
    """Read where everything stands now.

    Raises:
        CaudalError: a server can't be reached.
    """
    prefix = settings.kafka.topic_prefix
    with postgres.connect(settings.postgres, role="cli") as connection, postgres.translated():
        log = generations.name(generations.current(connection))
        done = {(t.removeprefix(prefix), p): offset for t, p, offset in _rows(connection, "hub.offsets")}
        done |= {(log, p): offset for p, offset in _rows(connection, "live.offsets")}
        known = {row[0].removeprefix(prefix): offsets.Noted(*row[1:4]) for row in _rows(connection, "hub.logs")}
    names = [name for name in kafka.topics(settings.kafka) if name.startswith(prefix) and _ours(name[len(prefix) :])]
    # after what was done: no log is shorter than what was done of it before
    found = {name[len(prefix) :]: extent for name, extent in kafka.extents(settings.kafka, names).items()}
    ends = {name: dict(extent.ends) for name, extent in found.items()}
    read = {name: extent for name, extent in found.items() if name == log or name.startswith("capture.")}
    stored = {name: {p: offset for (topic, p), offset in done.items() if topic == name} for name in read}
    faults = {
        name: offsets.misfit(known[name].id if name in known else "", stored[name], extent)
        for name, extent in read.items()
    }
    waiting = {
        name: extent.records if faults[name] else _waiting(stored[name], extent) for name, extent in read.items()
    }
    return {
        "topics": ends,
        "workers": {
            "translate": sum(count for name, count in waiting.items() if name != log),
            "project": waiting.get(log, 0),
        },
        "sources": [
            {
                "name": source.name,
                "connector": source.connector,
                "captures": sum(ends.get(f"capture.{source.name}", {}).values()),
            }
            for source in sources.load(settings).values()
        ],
        "logs": [
            {"topic": name, "fault": faults.get(name), "unread": known.get(name, offsets.Noted()).unread}
            for name in sorted({*read, *known})
            if faults.get(name) or known.get(name, offsets.Noted()).unread
        ],
    }


def _ours(name: str) -> bool:
    return name in TOPICS or name.startswith("capture.") or generations.number_of(name) is not None


def _waiting(stored: Mapping[int, int], extent: Extent) -> int:
    return sum(end - max(stored.get(p, 0), extent.starts.get(p, 0)) for p, end in extent.ends.items())


def _rows(connection: Connection[Any], table: str) -> list[tuple[Any, ...]]:
    if connection.execute("SELECT to_regclass(%s) IS NULL", (table,)).fetchone() == (True,):
        return []  # nothing has prepared it yet
    return connection.execute(f"SELECT * FROM {table}").fetchall()
