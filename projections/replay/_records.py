"""What replays there are, in hub.replays, and the lock by which one runs at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from caudal.projections.replay._build import Progress
from psycopg import sql
from psycopg.types.json import Jsonb

from caudal import postgres
from caudal.errors import ReplayCancelled, ReplayRefused, ReplayRunning
from caudal.settings import Settings

__all__ = ["Job", "Record", "held", "latest", "one", "records"]

_LOCK = (0x6361_7564, 0x7265_706C)
"""Advisory lock of the process that replays; it is free at once when that dies."""
NOTE_EVERY_S = 0.5
BUILDER = "replay build"
"""The role of connections that build; those of a process that was killed are ended by the next."""


@dataclass(frozen=True, slots=True)
class Record:
    """One replay.

    Attributes:
        id: its number.
        kind: full, view, captures, as_of or verify.
        state: running, built, swapped, rolled_back, cancelled, failed or dropped.
        schema: what it builds, and after a swap the schema that was live before.
        params: what was asked.
        progress: stage, done, total, rate and seconds by stage.
        diff: what would change, or did.
        error: why it failed or stopped.
        active: whether a process works at it now; a running one that isn't active was interrupted.
    """

    id: int
    kind: str
    state: str
    schema: str
    params: dict[str, Any]
    ends: dict[str, int]
    progress: dict[str, Any]
    diff: dict[str, Any] | None
    error: str | None
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    active: bool

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)

    @property
    def interrupted(self) -> bool:
        """Whether it stopped before its end and can be gone on with."""
        return self.state == "running" and not self.active


_READ = f"""
    SELECT id, kind, state, schema, params, ends, progress, diff, error, started_at, updated_at, ended_at,
           state = 'running' AND id = max(id) FILTER (WHERE state = 'running') OVER () AND EXISTS (
               SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND (classid, objid, objsubid) = ({_LOCK[0]}, {_LOCK[1]}, 2)
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS active
    FROM hub.replays
"""


def records(conn: psycopg.Connection[Any], *, limit: int = 20) -> list[Record]:
    """The newest replays, newest first."""
    return [Record(*row) for row in conn.execute(f"SELECT * FROM ({_READ}) r ORDER BY id DESC LIMIT %s", (limit,))]


def latest(conn: psycopg.Connection[Any], *states: str) -> Record | None:
    """The newest replay, or the newest in one of the states; what was built for a point in time waits for nothing."""
    found = conn.execute(
        f"""SELECT * FROM ({_READ}) r
            WHERE (%s = '{{}}' OR state = ANY(%s)) AND (kind <> 'as_of' OR state = 'running') ORDER BY id DESC LIMIT 1""",
        (list(states), list(states)),
    ).fetchone()
    return Record(*found) if found else None


def one(conn: psycopg.Connection[Any], id_: int) -> Record | None:
    """A replay by its number."""
    found = conn.execute(f"SELECT * FROM ({_READ}) r WHERE id = %s", (id_,)).fetchone()
    return Record(*found) if found else None


@contextmanager
def held(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """The right to replay, as the connection that holds it.

    Raises:
        ReplayRunning: another process has it.
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    with postgres.connect(settings.postgres, role="replay") as conn:
        with postgres.translated():
            # a process that was killed amid a statement keeps neither this right nor the live projection waiting
            conn.execute("SET client_connection_check_interval = '1s'")
            row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK).fetchone()
            if row != (True,):
                running = latest(conn, "running")
                raise ReplayRunning(
                    _told(running), hint="`caudal replay status` shows it, `caudal replay cancel` ends it"
                )
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
                (f"caudal {BUILDER}",),
            )
        yield conn


def _told(running: Record | None) -> str:
    if running is None:
        return "another replay is at work"
    at = running.progress
    where = f": {at['stage']}, {at['done']:,} of {at['total']:,}" if at else ""
    return f"replay {running.id} ({running.kind}) runs since {running.started_at:%H:%M:%S} UTC{where}"


class Job:
    """A replay that this process works at. Not for several threads."""

    def __init__(self, conn: psycopg.Connection[Any], id_: int) -> None:
        self._conn = conn
        self.id = id_
        self._noted = 0.0
        self._stage: tuple[str, float, int] = ("", 0.0, 0)
        self._seconds: dict[str, float] = self.record().progress.get("seconds", {})

    @classmethod
    def begin(
        cls,
        conn: psycopg.Connection[Any],
        kind: str,
        params: dict[str, Any],
        schema: str | None = None,
        *,
        prefix: str = "build",
    ) -> Job:
        """A new replay; it builds `schema`, or one named after `prefix` and its number."""
        with postgres.translated():
            row = conn.execute(
                "INSERT INTO hub.replays (kind, params) VALUES (%s, %s) RETURNING id", (kind, Jsonb(params))
            ).fetchone()
            assert row is not None
            conn.execute("UPDATE hub.replays SET schema = %s WHERE id = %s", (schema or f"{prefix}_{row[0]}", row[0]))
        return cls(conn, row[0])

    def record(self) -> Record:
        """As it is stored now."""
        with postgres.translated():
            found = one(self._conn, self.id)
        if found is None:
            raise ReplayRefused(f"replay {self.id} is gone from hub.replays")
        return found

    def note(self, progress: Progress) -> bool:
        """Store how far it is, now and then; call it often. Whether it was stored.

        Raises:
            ReplayCancelled: someone wants it to end.
        """
        now = time.monotonic()
        stage, began, first = self._stage
        if progress.stage != stage:
            self._stage = (stage, began, first) = (progress.stage, now, progress.done)
        elif now - self._noted < NOTE_EVERY_S and progress.done < progress.total:
            return False
        self._noted = now
        rate = (progress.done - first) / (now - began) if now > began else 0.0
        self._seconds[stage] = round(now - began, 3)
        told = {
            "stage": stage,
            "done": progress.done,
            "total": progress.total,
            "rate": round(rate, 1),
            "seconds": self._seconds,
        }
        if rate and progress.total > progress.done:
            told["eta_s"] = round((progress.total - progress.done) / rate, 1)
        self.put(progress=Jsonb(told))
        with postgres.translated():
            row = self._conn.execute("SELECT state FROM hub.replays WHERE id = %s", (self.id,)).fetchone()
        if row is None or row[0] == "cancelled":
            raise ReplayCancelled(f"replay {self.id} was cancelled")
        return True

    def put(self, **values: Any) -> None:
        """Store columns."""
        sets = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in values)
        statement = sql.SQL("UPDATE hub.replays SET {}, updated_at = now() WHERE id = {}").format(
            sets, sql.Placeholder("id")
        )
        with postgres.translated():
            self._conn.execute(statement, {**values, "id": self.id})
