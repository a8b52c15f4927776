"""The definitions of segments: their criteria or list, and their versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from caudal.projections import criteria
from caudal.projections.criteria import Condition

__all__ = ["Segment", "defined"]

_COLUMNS = "id, name, version, state, description, criteria, filled, revision, created_at, changed_at"


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


def defined(conn: psycopg.Connection[Any], *, archived: bool = False) -> list[Segment]:
    """Every segment that is kept up, by name; also those that no longer are when `archived`."""
    only = "" if archived else "WHERE state <> 'archived'"
    return [_segment(row) for row in conn.execute(f"SELECT {_COLUMNS} FROM hub.segments {only} ORDER BY name")]


def _segment(row: tuple[Any, ...]) -> Segment:
    id_, name, version, state, description, tree, *rest = row
    condition = None if tree is None else criteria.load(tree)
    return Segment(id_, name, version, state, description, condition, *rest)
