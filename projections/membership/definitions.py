"""The definitions of segments: their criteria or list, and their versions.

Whoever changes one holds a lock that others who change one wait for, so what is checked (names, circles) still holds when it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Literal
from uuid import UUID

import psycopg
from caudal.projections import criteria
from caudal.projections.criteria import BadCriteria, Condition, tree
from caudal.projections.segments import SEGMENTS
from psycopg.types.json import Jsonb

from caudal.errors import Poison

__all__ = [
    "COLUMNS",
    "KNOWN",
    "NAME",
    "VALUES",
    "BadSegment",
    "Draft",
    "Saved",
    "Segment",
    "SegmentConflict",
    "UnknownSegment",
    "archive",
    "check_names",
    "check_values",
    "create",
    "defined",
    "edit",
    "locked",
    "named",
    "of_row",
    "save",
    "unknown",
]

COLUMNS = "id, name, version, state, description, criteria, filled, revision, created_at, changed_at, changed_by"
KNOWN = "SELECT name FROM hub.segments WHERE state NOT IN ('leaving', 'archived')"
"""The names of the segments that criteria may speak of, beside the built-in ones."""
VALUES = "SELECT jsonb_object_keys(columns) FROM hub.custom_metrics"
"""The values of custom metrics that criteria may speak of."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MAX_DESCRIPTION = 1_000
_GONE = {"leaving", "archived"}


class BadSegment(Poison):
    """A segment can't be changed as asked."""

    code = "bad_segment"


class SegmentConflict(BadSegment):
    """What was asked doesn't go with what there is."""

    code = "segment_conflict"


class UnknownSegment(Poison):
    """No segment that someone defined has this name."""

    code = "unknown_segment"


@dataclass(frozen=True)
class Segment:
    """A segment that someone defined.

    Attributes:
        id: stays, whatever it is called.
        name: lower-case letters, digits and hyphens.
        version: rises with each edit of the criteria.
        state: `filling` while its newest version is applied to everyone, then `live`; `leaving`, then `archived`.
        description: for people.
        condition: who belongs to it; None for a list.
        filled: while filling or leaving: customers up to this id are done.
        revision: rises with every change of any definition.
        created_at: when it was first made.
        changed_at: when it was last changed.
        changed_by: who did: a token's name, or `cli` and the user.
    """

    id: int
    name: str
    version: int
    state: str
    description: str
    condition: Condition | None
    filled: UUID
    revision: int
    created_at: datetime
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True)
class Draft:
    """What a segment shall be.

    Attributes:
        name: see `Segment`.
        condition: who shall belong to it; None for a list.
        description: for people; None keeps what there is.
    """

    name: str
    condition: Condition | None
    description: str | None = None


@dataclass(frozen=True)
class Saved:
    """A segment, and what became of it: `edited` makes a new version that is applied to everyone, `described` doesn't."""

    segment: Segment
    change: Literal["created", "edited", "restored", "described", "unchanged", "archived"]


def defined(conn: psycopg.Connection[Any], *, archived: bool = False) -> list[Segment]:
    """Every segment that is kept up, by name; also those that no longer are when `archived`."""
    only = "" if archived else "WHERE state <> 'archived'"
    return [of_row(row) for row in conn.execute(f"SELECT {COLUMNS} FROM hub.segments {only} ORDER BY name")]


def named(conn: psycopg.Connection[Any], name: str) -> Segment:
    """The segment of this name, also when it is archived.

    Raises:
        UnknownSegment: there is none.
    """
    row = None
    if NAME.fullmatch(name):
        row = conn.execute(f"SELECT {COLUMNS} FROM hub.segments WHERE name = %s", (name,)).fetchone()
    if row is None:
        raise unknown(name, [n for (n,) in conn.execute("SELECT name FROM hub.segments WHERE state <> 'archived'")])
    return of_row(row)


def unknown(name: str, known: Sequence[str]) -> BadSegment | UnknownSegment:
    """The error for a name that no segment has, or a built-in one that can't be changed."""
    if name in SEGMENTS:
        return BadSegment(f"{name} is built in", hint="it can't be changed; give yours another name")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "`caudal segments list` shows what there is"
    return UnknownSegment("no segment has this name", hint=hint)


def create(conn: psycopg.Connection[Any], draft: Draft, by: str) -> Saved:
    """Make a segment; one of this name that was archived comes back.

    Raises:
        SegmentConflict: there is one already, or see `save`.
        BadSegment: see `save`.
        BadCriteria: see `save`.
    """
    _check(draft)
    with locked(conn):
        row = conn.execute("SELECT state FROM hub.segments WHERE name = %s", (draft.name,)).fetchone()
        if row is not None and row[0] not in _GONE:
            raise SegmentConflict(f"there is a segment {draft.name} already", hint="edit it, or choose another name")
        return save(conn, [draft], by)[0]


def edit(
    conn: psycopg.Connection[Any],
    name: str,
    by: str,
    *,
    condition: Condition | None = None,
    description: str | None = None,
) -> Saved:
    """Change the criteria, the description or both; None keeps what there is.

    Raises:
        UnknownSegment: there is none.
        BadSegment: see `save`.
        BadCriteria: see `save`.
    """
    with locked(conn):
        draft = Draft(name, condition or named(conn, name).condition, description)
        return save(conn, [draft], by)[0]


def save(conn: psycopg.Connection[Any], drafts: Sequence[Draft], by: str) -> list[Saved]:
    """Make segments be what the drafts say, all or none; those that are so already stay untouched.

    Gives them so that each comes after those that its criteria name.

    Args:
        conn: a connection.
        drafts: with names that differ; they may name each other.
        by: who wants it, for the versions.

    Raises:
        BadSegment: a name or a description that can't be.
        SegmentConflict: a list can't get criteria, nor criteria become a list.
        BadCriteria: criteria name a segment or a custom metric that isn't there, or contain each other.
    """
    for draft in drafts:
        _check(draft)
    wanted = {draft.name: draft for draft in drafts}
    if len(wanted) < len(drafts):
        twice = sorted(n for n in wanted if sum(d.name == n for d in drafts) > 1)
        raise BadSegment(f"{', '.join(twice)}: defined twice")
    with locked(conn):
        there = {segment.name: segment for segment in defined(conn, archived=True)}
        trees = {name: s.condition for name, s in there.items() if s.state not in _GONE}
        trees |= {name: draft.condition for name, draft in wanted.items()}
        for draft in drafts:
            check_names(draft.condition, trees)
            if draft.condition is not None and criteria.metrics_named(draft.condition):
                check_values(draft.condition, [name for (name,) in conn.execute(VALUES)])
        criteria.order({name: condition for name, condition in trees.items() if condition is not None})
        ordered = criteria.order({name: d.condition for name, d in wanted.items() if d.condition is not None})
        lists = [name for name in wanted if name not in ordered]
        return [_save(conn, wanted[name], there.get(name), by) for name in (*lists, *ordered)]


def archive(conn: psycopg.Connection[Any], name: str, by: str) -> Saved:
    """Let its members leave; the definition, its versions and the history stay, and editing it brings it back.

    Raises:
        UnknownSegment: there is none.
        SegmentConflict: other segments' criteria name it.
    """
    with locked(conn):
        segment = named(conn, name)
        if segment.state in _GONE:
            return Saved(segment, "unchanged")
        readers = [
            s.name
            for s in defined(conn)
            if s.state not in _GONE and s.condition and name in criteria.segments_named(s.condition)
        ]
        if readers:
            raise SegmentConflict(f"{name} is read by {', '.join(readers)}", hint="archive or edit those first")
        conn.execute(
            "UPDATE hub.segments SET state = 'leaving', filled = DEFAULT, changed_at = now(), changed_by = %s, revision = %s WHERE id = %s",
            (by, _next_revision(conn), segment.id),
        )
        return Saved(named(conn, name), "archived")


@contextmanager
def locked(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction in which nobody else changes a definition; readers and those who keep memberships aren't held up."""
    with conn.transaction():
        conn.execute("LOCK TABLE hub.segments IN SHARE ROW EXCLUSIVE MODE")
        yield


def _check(draft: Draft) -> None:
    if not NAME.fullmatch(draft.name):
        raise BadSegment("bad segment name", hint="up to 64 lower-case letters, digits and -, a letter or digit first")
    if draft.name in SEGMENTS:
        raise BadSegment(f"{draft.name} is built in", hint="choose another name")
    text = draft.description or ""
    if len(text) > _MAX_DESCRIPTION or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadSegment(
            f"{draft.name}: the description is longer than {_MAX_DESCRIPTION} characters or can't be stored"
        )


def check_names(condition: Condition | None, known: Collection[str]) -> None:
    """That the criteria name no other segments than these and the built-in ones.

    Raises:
        BadCriteria: they do; `path` leads there.
    """
    for path, node in tree.walk(condition) if condition else ():
        if isinstance(node, tree.Segment) and node.segment not in known and node.segment not in SEGMENTS:
            what = tree.unknown("segment", node.segment, [*known, *SEGMENTS])
            raise BadCriteria(what, path=f"{path}.segment" if path else "segment")


def check_values(condition: Condition, known: Collection[str]) -> None:
    """That the criteria name no other values of custom metrics than these.

    Raises:
        BadCriteria: they do; `path` leads there.
    """
    for name, path in criteria.metrics_named(condition).items():
        if name not in known:
            what = tree.unknown("field", f"custom.{name}", [f"custom.{each}" for each in known])
            raise BadCriteria(what, path=path)


def _save(conn: psycopg.Connection[Any], draft: Draft, before: Segment | None, by: str) -> Saved:
    criteria_ = None if draft.condition is None else Jsonb(criteria.dump(draft.condition))
    if before is None:
        row = conn.execute(
            "INSERT INTO hub.segments (name, description, criteria, revision, changed_by) VALUES (%s, %s, %s, %s, %s)"
            " RETURNING id, version",
            (draft.name, draft.description or "", criteria_, _next_revision(conn), by),
        ).fetchone()
        assert row is not None
        _note(conn, row[0], by)
        return Saved(named(conn, draft.name), "created")
    if (before.condition is None) != (draft.condition is None):
        kinds = ("a list", "criteria") if before.condition is None else ("criteria", "a list")
        raise SegmentConflict(f"{draft.name} has {kinds[0]} and can't get {kinds[1]}", hint="choose another name")
    description = before.description if draft.description is None else draft.description
    restored = before.state in _GONE
    # jsonb knows that 1.0 is 1, and that true isn't
    row = conn.execute(
        "SELECT criteria IS DISTINCT FROM %s FROM hub.segments WHERE id = %s", (criteria_, before.id)
    ).fetchone()
    assert row is not None
    if row[0] or restored:
        conn.execute(
            "UPDATE hub.segments SET criteria = %s, description = %s, version = version + 1, state = 'filling', filled = DEFAULT,"
            " revision = %s, changed_at = now(), changed_by = %s WHERE id = %s",
            (criteria_, description, _next_revision(conn), by, before.id),
        )
        _note(conn, before.id, by)
        return Saved(named(conn, draft.name), "restored" if restored else "edited")
    if description == before.description:
        return Saved(before, "unchanged")
    conn.execute(
        "UPDATE hub.segments SET description = %s, revision = %s, changed_at = now(), changed_by = %s WHERE id = %s",
        (description, _next_revision(conn), by, before.id),
    )
    return Saved(named(conn, draft.name), "described")


def _note(conn: psycopg.Connection[Any], segment_id: int, by: str) -> None:
    """Keep the version that the segment has now."""
    conn.execute(
        "INSERT INTO hub.segment_versions (segment_id, version, criteria, description, changed_by)"
        " SELECT id, version, criteria, description, %s FROM hub.segments WHERE id = %s",
        (by, segment_id),
    )


def _next_revision(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT coalesce(max(revision), 0) + 1 FROM hub.segments").fetchone()
    assert row is not None
    revision: int = row[0]
    return revision


def of_row(row: tuple[Any, ...]) -> Segment:
    """The segment of a row of `COLUMNS`."""
    id_, name, version, state, description, tree_, *rest = row
    condition = None if tree_ is None else criteria.load(tree_)
    return Segment(id_, name, version, state, description, condition, *rest)
