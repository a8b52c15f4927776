"""Where everything stands: what the topics hold, how far the workers are, what each source has sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from caudal import generations, kafka, postgres, sources
from caudal.settings import Settings

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["TOPICS", "SourceStanding", "Standing", "prepare", "standing"]

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


class Standing(TypedDict):
    """`topics`: next offset by topic and partition. `workers`: records that wait for a step."""

    topics: dict[str, dict[int, int]]
    workers: dict[str, int]
    sources: list[SourceStanding]


def prepare(settings: Settings) -> None:
    """Create the topics and bring schema `hub` up to date. Safe to call at every start and from several processes at once.

    Raises:
        CaudalError: a server can't be reached.
    """
    captures = [f"capture.{name}" for name in sources.load(settings)]
    kafka.ensure_topics(settings.kafka, [*TOPICS, *captures])
    postgres.migrate(settings.postgres)


def standing(settings: Settings) -> Standing:
    """Read where everything stands now.

    Raises:
        CaudalError: a server can't be reached.
    """
    prefix = settings.kafka.topic_prefix
    names = [name for name in kafka.topics(settings.kafka) if name.startswith(prefix) and _ours(name[len(prefix) :])]
    ends = {name[len(prefix) :]: partitions for name, partitions in kafka.end_offsets(settings.kafka, names).items()}
    with postgres.connect(settings.postgres, role="cli") as connection, postgres.translated():
        log = generations.name(generations.current(connection))
        projected = {(log, p): offset for p, offset in _rows(connection, "live.offsets")}
        translated = {(t.removeprefix(prefix), p): offset for t, p, offset, _ in _rows(connection, "hub.translated")}
    captures = {name: partitions for name, partitions in ends.items() if name.startswith("capture.")}
    changes = {log: ends.get(log, {})}
    return {
        "topics": ends,
        "workers": {"translate": _waiting(captures, translated), "project": _waiting(changes, projected)},
        "sources": [
            {
                "name": source.name,
                "connector": source.connector,
                "captures": sum(ends.get(f"capture.{source.name}", {}).values()),
            }
            for source in sources.load(settings).values()
        ],
    }


def _ours(name: str) -> bool:
    return name in TOPICS or name.startswith("capture.") or generations.number_of(name) is not None


def _waiting(ends: dict[str, dict[int, int]], done: dict[tuple[str, int], int]) -> int:
    return sum(
        max(end - done.get((topic, partition), 0), 0)
        for topic, partitions in ends.items()
        for partition, end in partitions.items()
    )


def _rows(connection: Connection[Any], table: str) -> list[tuple[Any, ...]]:
    if connection.execute("SELECT to_regclass(%s) IS NULL", (table,)).fetchone() == (True,):
        return []  # nothing has prepared it yet
    return connection.execute(f"SELECT * FROM {table}").fetchall()
