"""Lists as segments: who was put on them.

A list holds ids as they were when they were put on it; one that was merged into another customer since then means that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from caudal.projections._batch import ALL
from caudal.projections.membership.definitions import Segment, SegmentConflict, named

__all__ = ["Listed", "ids", "put", "take"]

_PRESENT = """
    SELECT {id} AS customer_id WHERE EXISTS (SELECT FROM live.profiles WHERE customer_id = {id})
    UNION ALL
    SELECT (array_agg(DISTINCT s.customer_id))[1]
    FROM hub.former_customers f JOIN hub.subjects s USING (subject) JOIN live.profiles p ON p.customer_id = s.customer_id
    WHERE f.customer_id = {id} AND NOT EXISTS (SELECT FROM live.profiles WHERE customer_id = {id})
    HAVING count(DISTINCT s.customer_id) = 1
"""
"""The customer that an id means now: itself, or the one that it went into; no row when it is unknown, erased or was split."""

_MEANT = f"""
    CREATE TEMP TABLE meant ON COMMIT DROP AS
    SELECT g.id, m.customer_id FROM (SELECT DISTINCT id FROM given) g LEFT JOIN LATERAL ({_PRESENT.format(id="g.id")}) m ON true
"""
_PUT = """
    INSERT INTO hub.segment_listed SELECT DISTINCT %s::int, customer_id FROM meant WHERE customer_id IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING customer_id AS listed, customer_id
"""
# an id that was merged into another customer leaves with it
_TAKE = f"""
    DELETE FROM hub.segment_listed l USING (
        SELECT l.customer_id AS listed, coalesce(now.customer_id, l.customer_id) AS customer_id
        FROM hub.segment_listed l LEFT JOIN LATERAL ({_PRESENT.format(id="l.customer_id")}) now ON true
        WHERE l.segment_id = %(segment)s AND (l.customer_id IN (SELECT id FROM meant) OR now.customer_id IN (SELECT customer_id FROM meant))
    ) d
    WHERE l.segment_id = %(segment)s AND l.customer_id = d.listed RETURNING d.listed, d.customer_id
"""


@dataclass(frozen=True)
class Listed:
    """What became of the ids.

    Attributes:
        changed: so many were put on the list, or taken off it.
        unchanged: were on it already, or weren't on it.
        unknown: mean no customer, or several that one was split into.
        malformed: are no ids.
    """

    changed: int
    unchanged: int
    unknown: int
    malformed: int


def put(conn: psycopg.Connection[Any], name: str, given: Iterable[str], by: str) -> Listed:
    """Put customers on a list, all in one transaction; an id that was merged into another customer puts that one on it.

    Args:
        conn: a connection.
        name: the list.
        given: ids.
        by: who wants it.

    Raises:
        UnknownSegment: there is none.
        SegmentConflict: it is no list, or archived.
    """
    with _meant(conn, name, given) as (segment, malformed):
        changed = conn.execute(_PUT, (segment.id,)).fetchall()
        _record(conn, segment, "put", len(changed), by)
        return _noted(conn, changed, malformed)


def take(conn: psycopg.Connection[Any], name: str, given: Iterable[str], by: str) -> Listed:
    """Take customers off a list.

    Args:
        conn: a connection.
        name: the list.
        given: ids.
        by: who wants it.

    Raises:
        UnknownSegment: there is none.
        SegmentConflict: it is no list, or archived.
    """
    with _meant(conn, name, given) as (segment, malformed):
        changed = conn.execute(_TAKE, {"segment": segment.id}).fetchall()
        _record(conn, segment, "taken", len(changed), by)
        return _noted(conn, changed, malformed)


def ids(lines: Iterable[str]) -> Iterator[str]:
    """The ids of a text with one a line, or of the first column of a CSV file; a header is left out."""
    first = True
    for line in lines:
        word = re.split(r"[,;\t]", line.strip("\ufeff \t\r\n"), maxsplit=1)[0].strip("\" '")
        if word and not (first and re.fullmatch(r"[A-Za-z_. ]+", word)):
            yield word
        first = first and not word


@contextmanager
def _meant(conn: psycopg.Connection[Any], name: str, given: Iterable[str]) -> Iterator[tuple[Segment, int]]:
    """A transaction with the temporary table `meant`: each id given and the customer that it means; and how many are no ids."""
    with conn.transaction():
        segment = named(conn, name)
        if segment.condition is not None:
            raise SegmentConflict(f"{name} has criteria, it is no list", hint="edit its criteria instead")
        if segment.state in {"leaving", "archived"}:
            raise SegmentConflict(f"{name} is archived", hint="edit it to bring it back")
        conn.execute("CREATE TEMP TABLE given (id uuid) ON COMMIT DROP")
        malformed = 0
        with conn.cursor() as cursor, cursor.copy("COPY given FROM STDIN") as copy:
            for word in given:
                try:
                    copy.write_row((UUID(word),))
                except ValueError:
                    malformed += 1
        conn.execute(_MEANT)
        conn.execute("ANALYZE meant")
        yield segment, malformed


def _record(conn: psycopg.Connection[Any], segment: Segment, change: str, customers: int, by: str) -> None:
    """Keep who changed it and when; ids that change nothing are no change."""
    if not customers:
        return
    conn.execute(
        "INSERT INTO hub.segment_list_changes (segment_id, changed_by, change, customers) VALUES (%s, %s, %s, %s)",
        (segment.id, by, change, customers),
    )
    conn.execute("UPDATE hub.segments SET changed_at = now(), changed_by = %s WHERE id = %s", (by, segment.id))


def _noted(conn: psycopg.Connection[Any], changed: list[tuple[UUID, UUID]], malformed: int) -> Listed:
    """Ask for a new look at those who changed, and count."""
    touched = list({customer for _, customer in changed})
    conn.execute("INSERT INTO hub.segment_touched SELECT unnest(%s::uuid[]), %s, 'definition'", (touched, ALL))
    gone = [listed for listed, _ in changed]
    row = conn.execute(
        "SELECT count(*), count(*) FILTER (WHERE customer_id IS NULL AND id <> ALL (%s::uuid[])) FROM meant", (gone,)
    ).fetchone()
    assert row is not None
    return Listed(len(changed), max(0, row[0] - row[1] - len(changed)), row[1], malformed)
