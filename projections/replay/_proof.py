"""Proof from a whole rebuild: whether the live tables are what the log says, and the tables as they stood at a point in time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from caudal.projections import _rollup
from caudal.projections._prove import compared, difference
from caudal.projections._schema import LIVE, ROLLUPS, ensure_live
from caudal.projections._verify import TOLD, Findings
from caudal.projections.replay._beside import existing, offsets, still
from caudal.projections.replay._build import Progress
from caudal.projections.replay._records import BUILDER, Job, Record
from caudal.projections.replay._replay import Replay
from psycopg import sql
from psycopg.types.json import Jsonb

from caudal import offsets as stored_offsets
from caudal import postgres
from caudal.errors import BadSettings, ReplayRefused
from caudal.telemetry import Log, logger

__all__ = ["Proof", "moment", "schema_name"]


def moment(text: str) -> datetime:
    """A point in time: with its zone (`2026-03-01T12:00-03:00`), or a date, which means its end, UTC.

    Raises:
        BadSettings: it is neither, or lies in the future.
    """
    try:
        at = datetime.fromisoformat(text)
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            at = datetime.combine(date.fromisoformat(text) + timedelta(days=1), datetime.min.time(), UTC)
            at = min(at - timedelta(microseconds=1), max(datetime.now(UTC), at - timedelta(days=1)))
    except ValueError:
        raise BadSettings(f"{text!r} is no time; write 2026-03-01 or 2026-03-01T12:00-03:00") from None
    if at.tzinfo is None:
        raise BadSettings(f"{text!r} has no time zone", hint="write 2026-03-01T12:00Z")
    if at > datetime.now(UTC):
        raise BadSettings(f"{text!r} lies in the future")
    return at.astimezone(UTC)


_TAKEN = ("pg_", "build_", "old_", "undone_", "verify_", "identity_")
"""Prefixes of schemas that something else makes and drops."""


def schema_name(text: str) -> str:
    """A name that a schema for a point in time may have.

    Raises:
        BadSettings: it is not plain, or belongs to something else.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", text):
        raise BadSettings(f"{text!r} is no schema name: a-z, 0-9 and _, beginning with a letter")
    if text in {LIVE, "hub", "public", "information_schema"} or text.startswith(_TAKEN):
        raise BadSettings(f"the schema name {text} is taken")
    return text


class Proof(Replay):
    """Rebuilds for looking at, never for swapping in."""

    def verify(self) -> tuple[Findings, dict[str, Any]]:
        """Rebuild everything, compare at the same offsets, drop it again; what differs, and of each table rows and digest on both sides.

        Raises:
            LogTruncated: the log no longer holds its first events.
            ReplayCancelled: someone cancelled it.
            ReplayRefused: the live tables were made by other definitions.
        """
        with postgres.translated():
            if not existing(self._conn, LIVE):
                ensure_live(self._conn)
        if not self._defined_today(LIVE):
            raise ReplayRefused(
                "the live views were made by other definitions than today's", hint="`caudal replay` makes them anew"
            )
        stored_offsets.check(self._settings, self._conn, self._topic)
        job = Job.begin(self._conn, "verify", {}, prefix="verify")
        schema = job.record().schema
        try:
            # as far as the live tables are: what they haven't applied yet is no difference
            self._rebuild(job, schema, ends=offsets(self._conn, LIVE))
            with self._ending(job), postgres.translated():
                beside = self._beside(schema)
                try:
                    beside.near(lambda: offsets(self._conn, LIVE), self._noting(job))
                    with postgres.connect(self._settings.postgres, role=BUILDER) as snapshot:
                        snapshot.execute("SET work_mem = '256MB'")
                        snapshot.execute(_DIFFERING)
                        with still(self._conn):
                            beside.level(self._conn)
                            snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                            at = offsets(snapshot, schema)  # the snapshot is taken here
                        findings, tables = self._compare_all(job, snapshot, schema)
                        snapshot.execute("ROLLBACK")
                finally:
                    beside.close()
        finally:
            with contextlib.suppress(psycopg.Error):
                self._drop(schema)
        told = {"offsets": {str(p): n for p, n in sorted(at.items())}, "tables": tables}
        job.put(state="dropped", diff=Jsonb({**told, "differences": findings.rows}), ended_at=datetime.now(UTC))
        logger().info(
            Log.VIEWS_VERIFIED, customers=findings.customers, differing=findings.differing, rows=findings.rows,
            tables=dict(findings.tables),
        )  # fmt: skip
        return findings, told

    def as_of(self, at: datetime, into: str, *, replace: bool = False) -> Record:
        """Build facts and views of what had been captured until `at` into the schema `into`, where they stay.

        Raises:
            LogTruncated: the log no longer holds its first events.
            ReplayRefused: the schema is there, and isn't to be replaced or was made by something else.
        """
        schema = schema_name(into)
        with postgres.translated():
            if existing(self._conn, schema):
                made = self._conn.execute(
                    "SELECT EXISTS (SELECT FROM hub.replays WHERE kind = 'as_of' AND schema = %s)", (schema,)
                ).fetchone()
                if made != (True,):
                    raise ReplayRefused(f"schema {schema} was not made by a replay", hint="take another name")
                if not replace:
                    raise ReplayRefused(f"schema {schema} is there", hint="--replace makes it anew")
                self._drop(schema)
                self._conn.execute(
                    "UPDATE hub.replays SET state = 'dropped' WHERE kind = 'as_of' AND schema = %s", (schema,)
                )
        job = Job.begin(self._conn, "as_of", {"at": at.isoformat()}, schema)
        try:
            self._rebuild(job, schema, upto=at)
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                self._drop(schema)
            raise
        comment = f"Facts and views as they followed from what was captured until {at.isoformat()}; replay {job.id}"
        self._conn.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(schema), sql.Literal(comment)))
        job.put(state="built", ended_at=datetime.now(UTC))
        return job.record()

    def _rebuild(
        self, job: Job, schema: str, *, upto: datetime | None = None, ends: Mapping[int, int] | None = None
    ) -> None:
        logger().info(Log.REPLAY_STARTED, replay=job.id, kind=job.record().kind)
        with self._ending(job), postgres.translated():
            self._make(job, schema, self._topic, upto=upto, ends=ends)

    def _compare_all(self, job: Job, snapshot: psycopg.Connection[Any], schema: str) -> tuple[Findings, dict[str, Any]]:
        """Digest each table on both sides; where they differ, find the rows."""
        findings = Findings()
        told: dict[str, Any] = {}
        noting = self._noting(job)
        for number, (table, key) in enumerate(compared().items()):
            noting(Progress("compare", number, len(compared())))
            live, log = (_digest(snapshot, f"{each}.{table}") for each in (LIVE, schema))
            told[table] = {"equal": live == log, "live": live, "log": log}
            if live != log:
                snapshot.execute(_differing(schema, table, key), {"told": TOLD})
        for rollup in ROLLUPS:
            live, log = (_digest(snapshot, f"({_rollup.stored(each, rollup)})") for each in (LIVE, schema))
            told[rollup.table] = {"equal": live == log, "live": live, "log": log}
        noting(Progress("compare", len(compared()), len(compared())))
        row = snapshot.execute(
            f"SELECT (SELECT count(DISTINCT customer_id) FROM {LIVE}.links), (SELECT count(DISTINCT customer_id) FROM differing)"
        ).fetchone()
        findings.customers, findings.differing = row or (0, 0)
        counts = snapshot.execute("SELECT name, count(*) FROM differing GROUP BY name")
        findings.tables.update(dict(counts.fetchall()))
        findings.rows = findings.tables.total()
        shown = snapshot.execute(
            """SELECT customer_id, name, live, log FROM differing WHERE live IS NOT NULL OR log IS NOT NULL
               ORDER BY customer_id, name LIMIT %s""",
            (TOLD,),
        )
        findings.differences = [difference(*each) for each in shown.fetchall()]
        for rollup in ROLLUPS:
            if not told[rollup.table]["equal"]:
                findings.add_rollup(snapshot, rollup, _rollup.stored(schema, rollup))
        return findings, told

    def _drop(self, schema: str) -> None:
        self._conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


_DIFFERING = "CREATE TEMP TABLE differing (name text, customer_id text, live jsonb, log jsonb)"


def _digest(conn: psycopg.Connection[Any], rows: str) -> dict[str, Any]:
    """Rows of a table or SELECT, and a digest of what they hold, whatever their order."""
    row = conn.execute(f"SELECT count(*), coalesce(bit_xor(hash_record_extended(t, 0)), 0) FROM {rows} t").fetchone()
    assert row is not None
    return {"rows": row[0], "digest": f"{row[1] & 0xFFFF_FFFF_FFFF_FFFF:016x}"}


def _differing(schema: str, table: str, key: tuple[str, ...]) -> str:
    """Note every row that isn't the same on both sides, with its customer; the first ones with what they hold."""
    columns = ", ".join(key)
    if "customer_id" in key or table == "links":
        customer, joins = "coalesce((l.whole).customer_id, (r.whole).customer_id)", ""
    else:
        customer = "coalesce(a.customer_id, b.customer_id)"
        joins = " ".join(
            f"LEFT JOIN {side}.links {alias} ON {alias}.subject = coalesce((l.whole).subject, (r.whole).subject)"
            for side, alias in ((LIVE, "a"), (schema, "b"))
        )
    return f"""
        INSERT INTO differing
        SELECT '{table}', {customer}::text, CASE WHEN row_number() OVER () <= %(told)s THEN to_jsonb(l.whole) END,
               CASE WHEN row_number() OVER () <= %(told)s THEN to_jsonb(r.whole) END
        FROM (SELECT {columns}, x_l AS whole FROM {LIVE}.{table} x_l) l
        FULL JOIN (SELECT {columns}, x_r AS whole FROM {schema}.{table} x_r) r USING ({columns})
        {joins}
        WHERE l.whole IS DISTINCT FROM r.whole"""
