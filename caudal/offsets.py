"""Whether the offsets that are stored still fit the logs that they count in.

An offset means nothing by itself: it counts in one topic. That one may be deleted and another made under its name, Kafka's folder may be
restored from a time before, records may be deleted before they were read. Then an offset of PostgreSQL points at other records than it
was stored for, or at none, and whoever went on there would pass over what lies before it without a word. So Kafka's own id of each
topic stands in hub.logs, and whoever takes partitions over compares it, and both ends of the log, with what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg

from caudal import kafka, postgres
from caudal.errors import LogTruncated, LostPartition
from caudal.kafka import Extent
from caudal.settings import Settings
from caudal.telemetry import LAG, LOG_FAULT, LOG_TRUNCATIONS, UNREAD, Log, Seldom, logger

__all__ = ["Misfit", "Noted", "adopt", "goes_on", "hold", "misfit", "noted", "tell", "unread"]

Connection = psycopg.Connection[Any]


class Misfit(StrEnum):
    """Why offsets don't fit."""

    MADE_AGAIN = "made_again"
    """Another topic has the name now."""
    SHORTER = "shorter"
    """It is the same topic, and ends before what was read of it."""
    UNREAD = "unread"
    """Records were deleted before they were read; those that are left are."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What hub.logs says of a topic: its id when offsets were stored, why nobody goes on, how many records were gone before they were
    read.
    """

    id: str = ""
    fault: str | None = None
    unread: int = 0


def misfit(id_: str, stored: Mapping[int, int], extent: Extent) -> Misfit | None:
    """Whether offsets (partition → next offset) that were stored for the topic `id_` fit the topic as it is. Empty ids are unknown."""
    if id_ and extent.id and id_ != extent.id:
        return Misfit.MADE_AGAIN
    if any(offset > extent.ends.get(partition, 0) for partition, offset in stored.items()):
        return Misfit.SHORTER
    return None


def unread(stored: Mapping[int, int], extent: Extent) -> dict[int, int]:
    """Of each partition how many records are gone that lie at or after its offset (0 where none is stored), where there are some."""
    behind = {partition: start - stored.get(partition, 0) for partition, start in extent.starts.items()}
    return {partition: count for partition, count in behind.items() if count > 0}


def noted(db: Connection, topics: Iterable[str]) -> dict[str, Noted]:
    """What is known of each of these topics (full names)."""
    wanted = [*topics]
    rows = db.execute("SELECT topic, topic_id, fault, unread FROM hub.logs WHERE topic = ANY(%s)", (wanted,))
    return {**dict.fromkeys(wanted, Noted()), **{topic: Noted(*rest) for topic, *rest in rows}}


def check(settings: Settings, db: Connection, topic: str) -> None:
    """See that the log is the one that was projected.

    Raises:
        LogTruncated: it isn't.
        BrokerUnavailable: Kafka can't be reached.
    """
    known, now = noted(db, [topic])[topic], kafka.ids(settings.kafka, [topic]).get(topic, "")
    if known.fault or (known.id and now and known.id != now):
        raise LogTruncated(f"{topic} {_WORDS[Misfit(known.fault or Misfit.MADE_AGAIN)]}", hint=WAYS_OUT)


def adopt(db: Connection, topic: str, id_: str, *, unread: int = 0) -> None:
    """Note that the offsets which are stored count in the topic of this id, and that so many more of its records were gone unread."""
    db.execute(
        """INSERT INTO hub.logs AS l (topic, topic_id, unread) VALUES (%s, %s, %s)
           ON CONFLICT (topic) DO UPDATE SET topic_id = excluded.topic_id, unread = l.unread + excluded.unread, fault = NULL,
                                             changed_at = now()
           WHERE (l.topic_id, l.fault, excluded.unread) IS DISTINCT FROM (excluded.topic_id, NULL, 0)""",
        (topic, id_, unread),
    )


def hold(db: Connection, topic: str, reason: Misfit) -> None:
    """Note that nobody goes on with the topic."""
    db.execute(
        """INSERT INTO hub.logs AS l (topic, topic_id, fault) VALUES (%s, '', %s)
           ON CONFLICT (topic) DO UPDATE SET fault = excluded.fault, changed_at = now() WHERE l.fault IS DISTINCT FROM excluded.fault""",
        (topic, reason),
    )


def tell(topic: str, reason: Misfit, **more: object) -> None:
    """Say that offsets of a topic didn't fit, in log and metrics; `records` are those that were gone unread."""
    logger().warning(Log.LOG_TRUNCATED, topic=topic, reason=str(reason), **more)
    LOG_TRUNCATIONS.labels(topic, str(reason)).inc()
    if isinstance(records := more.get("records"), int):
        UNREAD.labels(topic).inc(records)


_held = Seldom(60.0)


def goes_on(
    settings: Settings, topic: str, stored: Mapping[int, int], *, generation: int
) -> tuple[str, dict[int, int]]:
    """Where the projection goes on in the log that `topic` names, and Kafka's id of it. What was deleted before it was read is told and
    passed over: there is nothing else to do.

    Args:
        settings: resolved settings.
        topic: full name.
        stored: partition → next offset of the live schema, 0 where nothing was projected.
        generation: of the log, which the offsets are of.

    Raises:
        LogTruncated: the log is another one, or shorter than what was projected of it. What the views hold can't be made of it any more,
            and whether they or the log are to be kept is for a human to say.
        LostPartition: another generation is live meanwhile.
        BrokerUnavailable, DatabaseUnavailable: try again.
    """
    extent = kafka.extents(settings.kafka, [topic]).get(topic)
    if extent is None:
        raise LostPartition(f"there is no topic {topic} just now")
    with postgres.translated(), postgres.connect(settings.postgres, role="project") as db, db.transaction():
        db.execute("SELECT pg_advisory_xact_lock_shared(%s)", (postgres.Lock.SWAP,))
        if db.execute("SELECT number FROM hub.generation").fetchone() != (generation,):
            raise LostPartition("the log has a new generation")
        known = noted(db, [topic])[topic]
        reason = misfit(known.id, stored, extent)
        if reason is None:
            gone = {partition: count for partition, count in unread(stored, extent).items() if partition in stored}
            db.execute(
                """INSERT INTO live.offsets AS o (partition, next_offset) SELECT * FROM unnest(%s::int[], %s::bigint[])
                   ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset WHERE o.next_offset < excluded.next_offset""",
                ([*gone], [extent.starts[partition] for partition in gone]),
            )
            adopt(db, topic, extent.id, unread=sum(gone.values()))
        else:
            hold(db, topic, reason)
    LOG_FAULT.labels(topic).set(reason is not None)
    if reason is not None:
        for partition, end in extent.ends.items():
            LAG.labels(topic, partition).set(end - extent.starts.get(partition, 0))
        if known.fault is None:
            LOG_TRUNCATIONS.labels(topic, str(reason)).inc()
        _held.warning(Log.LOG_TRUNCATED, topic=topic, reason=str(reason), hint=WAYS_OUT)
        raise LogTruncated(f"{topic} {_WORDS[reason]}", hint=WAYS_OUT)
    if known.fault is not None:
        logger().info(Log.LOG_ACCEPTED, topic=topic)
    if gone:
        tell(topic, Misfit.UNREAD, records=sum(gone.values()), partitions=sorted(gone))
    return extent.id, {partition: max(offset, extent.starts.get(partition, 0)) for partition, offset in stored.items()}


WAYS_OUT = (
    "`caudal replay --from captures` makes the log and the views anew from what was captured, `caudal replay` makes the views of what the "
    "log holds, `caudal replay keep` keeps the views and goes on with the log as it is"
)
_WORDS = {
    Misfit.MADE_AGAIN: "was deleted and made again since it was projected",
    Misfit.SHORTER: "ends before what was projected of it",
}
