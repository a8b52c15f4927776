"""A replay from its start to the swap, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

import psycopg
from caudal.projections import _sql
from caudal.projections._schema import FACTS, LIVE, MAKING_LOCK, VIEWS, ensure_live, views
from caudal.projections.custom.apply import Plan, plan
from caudal.projections.custom.metric import Metric, store
from caudal.projections.membership.stage import refill
from caudal.projections.metrics import metrics
from caudal.projections.replay import _diff, _log
from caudal.projections.replay._beside import Beside, existing, offsets, still
from caudal.projections.replay._build import Build, Progress
from caudal.projections.replay._follow import Followed, SameLog
from caudal.projections.replay._one_view import OneView
from caudal.projections.replay._records import BUILDER, Job, Record, held, latest, one
from caudal.projections.segments import segment_members
from caudal.schemas.codec import Codec
from psycopg import sql
from psycopg.types.json import Jsonb

from caudal import generations, kafka, postgres
from caudal import offsets as stored_offsets
from caudal.errors import BadSettings, CaudalError, Fatal, LogTruncated, ReplayCancelled, ReplayRefused
from caudal.settings import Settings
from caudal.telemetry import Log, logger

__all__ = ["Replay", "announce", "cancel", "drop", "refuse"]

_KINDS = {"full", "captures"}
"""Replays that make a schema which can be swapped in."""
CHUNK = 10_000
"""Customers of one row of the outbox."""


class Replay:
    """Does what operators ask for; only one exists at a time. Every method leaves the live views right wherever it stops."""

    @classmethod
    @contextmanager
    def opened(
        cls,
        settings: Settings,
        codec: Codec,
        *,
        priorities: Mapping[str, int],
        tell: Callable[[Record], None] = lambda _: None,
    ) -> Iterator[Self]:
        """The right to replay, for as long as the context lasts.

        Args:
            settings: resolved settings; `hub` must have been migrated.
            codec: how records are decoded.
            priorities: source → priority, as the workers have it.
            tell: called every moment with how far it is.

        Raises:
            ReplayRunning: another process has it.
        """
        with held(settings) as conn, contextlib.closing(cls(settings, codec, conn, priorities, tell)) as replay:
            yield replay

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        conn: psycopg.Connection[Any],
        priorities: Mapping[str, int],
        tell: Callable[[Record], None],
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._conn = conn
        self._priorities = priorities
        self._tell = tell
        self._view: tuple[Job, OneView] | None = None

    def full(self, *, truncated: bool = False) -> Record:
        """Rebuild everything beside the live schema and compare; gives the replay, built. What was interrupted before is dropped.

        Raises:
            LogTruncated: the log no longer holds its first events, and `truncated` is not set.
            ReplayCancelled: someone cancelled it.
            Retryable: a server can't be reached; `resume` goes on.
        """
        with postgres.translated():
            generation = generations.current(self._conn)
        return self._begin("full", {"truncated": truncated, "generation": generation})

    def view(self, name: str, *, custom: Sequence[Metric] | None = None, by: str = "") -> Record:
        """Make one view again from the facts that are there, with the views that read it, and compare; `swap` puts it in place.

        It is not kept when this object is closed before. `custom` are the custom metrics that there shall be, if others than now,
        and `by` who wants them.

        Raises:
            ReplayRefused: there is no such view, or other tables are not of today's definitions either.
        """
        if (left := self.interrupted()) is not None:
            _discard(self._conn, left)
        job = Job.begin(self._conn, "view", {"view": name})
        logger().info(Log.REPLAY_STARTED, replay=job.id, kind="view")
        noting = self._noting(job)
        with self._ending(job), postgres.translated():
            schema = job.record().schema
            priority = _sql.priority_sql(self._priorities)
            one = OneView(self._settings, self._conn, name=name, schema=schema, priority=priority, custom=custom, by=by)
            self._view = (job, one)
            one.build(noting)
            diff = one.compare(noting)
        job.put(diff=Jsonb(diff))
        return job.record()

    def custom_metrics(self, save: Sequence[Metric], remove: Sequence[str], *, by: str) -> Plan:
        """Save and remove custom metrics; their values are computed for everyone, beside the live view, and put in its place.

        Raises:
            BadMetric: see `custom.apply.plan`.
            ReplayRefused: other tables are not of today's definitions.
        """
        with postgres.translated():
            planned = plan(self._conn, save=save, remove=remove)
            if not planned.rebuilt:
                with self._conn.transaction():
                    store(self._conn, planned.metrics, by)
        if planned.rebuilt:
            self.view(metrics.name, custom=planned.metrics, by=by)
            self.swap()
        return planned

    def close(self) -> None:
        """Drop a view that was made and not swapped in."""
        if self._view is not None and not self._conn.closed:
            (job, one), self._view = self._view, None
            with contextlib.suppress(CaudalError), postgres.translated():
                one.close()
                self._conn.execute(f"{_CANCEL} AND state = 'running'", (job.id,))

    def interrupted(self) -> Record | None:
        """The replay that stopped before its end, if there is one."""
        with postgres.translated():
            return latest(self._conn, "running")

    def resume(self) -> Record:
        """Go on with the replay that was interrupted.

        Raises:
            ReplayRefused: there is none.
        """
        left = self.interrupted()
        if left is None or left.kind not in _KINDS:
            raise ReplayRefused("no replay was interrupted", hint="`caudal replay` starts one")
        return self._build(Job(self._conn, left.id))

    def swap(self, id_: int | None = None, *, max_changed: float | None = None, force: bool = False) -> Record:
        """Put what was built in the place of what is live, in one transaction; publish the rows that change.

        Args:
            id_: the replay; the newest that is built unless given.
            max_changed: largest share of a view's rows that may change.
            force: swap all the same.

        Raises:
            ReplayRefused: there is nothing to swap in, or more would change than allowed.
        """
        if self._view is not None and id_ in {None, self._view[0].id}:
            return self._swap_view(*self._view, max_changed=max_changed, force=force)
        with postgres.translated():
            found = one(self._conn, id_) if id_ is not None else latest(self._conn, "built")
        if found is None or found.state != "built" or found.kind not in _KINDS:
            raise ReplayRefused("there is no built replay to swap in", hint="`caudal replay status` lists them")
        return self._exchange(found, f"old_{found.id}", "swapped", max_changed=max_changed, force=force)

    def rollback(self) -> Record:
        """Put back what the newest swap replaced, caught up with the log.

        Raises:
            ReplayRefused: nothing was swapped, what was live before is gone, or other definitions made it.
        """
        with postgres.translated():
            found = latest(self._conn, "swapped")
        if found is None or not existing(self._conn, found.schema):
            raise ReplayRefused("there is no schema to go back to", hint="it is kept until `caudal replay drop`")
        return self._exchange(found, f"undone_{found.id}", "rolled_back", max_changed=None, force=True)

    def keep(self) -> None:
        """Keep the views as they are though the log is another one or shorter, and have it projected on top of them from its beginning.
        What it doesn't hold any more stays in the views alone.

        Raises:
            ReplayRefused: the log fits what was projected of it.
        """
        with postgres.translated():
            topic = self._topic
            extent = kafka.extents(self._settings.kafka, [topic]).get(topic)
            with still(self._conn), self._conn.transaction():
                known = stored_offsets.noted(self._conn, [topic])[topic]
                if extent is None or not stored_offsets.misfit(known.id, offsets(self._conn, LIVE), extent):
                    raise ReplayRefused(
                        f"{topic} {'is not there' if extent is None else 'fits what was projected of it'}",
                        hint="`caudal status` shows where it stands",
                    )
                self._conn.execute(f"DELETE FROM {LIVE}.offsets")
                self._conn.execute(f"DELETE FROM {LIVE}.places")  # where the events lay in the log before
                stored_offsets.adopt(self._conn, topic, extent.id)

    # ---- what they are made of

    def _note_log(self, record: Record, topic: str) -> None:
        """Note which topic the schema is built from, or see that it is the same still.

        Raises:
            LogTruncated: another one has its name now.
        """
        now, then = kafka.ids(self._settings.kafka, [topic]).get(topic, ""), record.params.get("topic_id")
        if then and now and then != now:
            raise LogTruncated(
                f"{topic} was deleted and made again since replay {record.id} read it",
                hint="`caudal replay` begins anew",
            )
        if then is None:
            Job(self._conn, record.id).put(params=Jsonb({**record.params, "topic_id": now}))

    def _begin(self, kind: str, params: dict[str, Any]) -> Record:
        if (left := self.interrupted()) is not None:
            _discard(self._conn, left)
        return self._build(Job.begin(self._conn, kind, params))

    def _followed(self, record: Record) -> Followed:
        """What the replay follows.

        Raises:
            ReplayRefused: its events belong to another generation of the log than the live one.
        """
        current = generations.current(self._conn)
        if record.params.get("generation", 1) != current:
            raise ReplayRefused(
                f"replay {record.id} was built from another generation of the log than {current}, which is live",
                hint="build anew with `caudal replay`",
            )
        return SameLog(self._settings, self._conn, self._topic)

    def _swap_view(self, job: Job, one: OneView, *, max_changed: float | None, force: bool) -> Record:
        record = job.record()
        diff = record.diff or {}
        refuse(diff, max_changed, force=force)

        def finish() -> None:
            self._conn.execute(
                "UPDATE hub.replays SET state = 'swapped', schema = '', updated_at = now(), ended_at = now() WHERE id = %s",
                (job.id,),
            )

        with postgres.translated():
            one.swap(lambda: announce(self._conn, record.schema, self._partitions), finish)
        self._view = None
        logger().info(Log.REPLAY_SWAPPED, replay=job.id, state="swapped", differences=diff.get("differences"))
        return job.record()

    def _build(self, job: Job) -> Record:
        record = job.record()
        logger().info(Log.REPLAY_STARTED, replay=job.id, kind=record.kind)
        with self._ending(job), postgres.translated():
            if not existing(self._conn, LIVE):
                ensure_live(self._conn)
            followed = self._followed(record)
            with contextlib.closing(followed):
                followed.prepare(self._noting(job))
                self._note_log(record, followed.topic)
                return self._built(job, record, followed)

    def _built(self, job: Job, record: Record, followed: Followed) -> Record:
        self._make(job, record.schema, followed.topic, truncated=bool(record.params.get("truncated")))
        with contextlib.closing(self._beside(record.schema, followed.topic)) as beside:
            self._compare(job, record.schema, beside, followed)
        job.put(state="built")
        return job.record()

    def _make(
        self,
        job: Job,
        schema: str,
        topic: str,
        *,
        upto: datetime | None = None,
        ends: Mapping[int, int] | None = None,
        truncated: bool = False,
    ) -> None:
        """Build a schema from the log, see `Build`."""
        build = Build(
            self._settings,
            self._codec,
            schema=schema,
            topic=topic,
            upto=upto,
            ends=ends,
            priorities=self._priorities,
            truncated=truncated,
            name=BUILDER,
        )
        job.put(error=None, ends=Jsonb(ends or _log.ends(self._settings.kafka, topic)))
        build.run(self._noting(job))

    def _compare(self, job: Job, schema: str, beside: Beside, followed: Followed) -> dict[str, Any]:
        """Catch up, compare in a snapshot at which both stand at the same, store the difference."""
        noting = self._noting(job)
        followed.near(beside, noting)
        noting(Progress("compare", 0, 1))
        _diff.prepare(self._conn, schema)
        with postgres.connect(self._settings.postgres, role=BUILDER) as snapshot:
            snapshot.execute("SET work_mem = '256MB'")
            with contextlib.ExitStack() as standing:
                behind = standing.enter_context(followed.standing(beside, exactly=True))
                snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                at = offsets(snapshot, schema)  # the snapshot is taken here
                beside.touched()
            diff = _diff.compare(snapshot, schema, VIEWS)
            diff["rollups"] = _diff.rollups(snapshot, schema)
            snapshot.execute("COMMIT")
        diff |= {"offsets": {str(p): offset for p, offset in sorted(at.items())}, "live_behind_events": behind}
        diff |= followed.told()
        diff["definition_changed"] = not self._defined_today(LIVE)
        job.put(diff=Jsonb(diff))
        noting(Progress("compare", 1, 1))
        return diff

    def _exchange(self, found: Record, away: str, state: str, *, max_changed: float | None, force: bool) -> Record:
        job, schema = Job(self._conn, found.id), found.schema
        if not self._defined_today(schema):
            raise ReplayRefused(
                f"schema {schema} was made by other definitions than today's",
                hint="use the release that made it, or build anew with `caudal replay`",
            )
        with postgres.translated(), contextlib.ExitStack() as opened:
            followed = opened.enter_context(contextlib.closing(self._followed(found)))
            self._note_log(found, followed.topic)
            live = stored_offsets.noted(self._conn, [self._topic])[self._topic]
            beside = opened.enter_context(contextlib.closing(self._beside(schema, followed.topic)))
            diff = self._compare(job, schema, beside, followed)
            refuse(diff, max_changed, force=force)
            if not force:
                followed.refuse(diff)
            followed.near(beside, self._noting(job))
            with followed.standing(beside, exactly=False), self._conn.transaction():
                _diff.recheck(self._conn, schema, followed.touched(beside), VIEWS)
                announce(self._conn, schema, self._partitions)
                self._conn.execute(f"DROP TABLE {schema}.{_diff.DIFF}")
                self._conn.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
                _rename(self._conn, LIVE, away)
                _rename(self._conn, schema, LIVE)
                self._conn.execute("UPDATE hub.logs SET fault = NULL")
                followed.take_over()
                job.put(params=Jsonb({**job.record().params, "topic_id": live.id}))
                self._conn.execute(
                    """UPDATE hub.replays SET state = %s, schema = %s, error = NULL, updated_at = now(), ended_at = now()
                               WHERE id = %s""",
                    (state, away, job.id),
                )
        logger().info(Log.REPLAY_SWAPPED, replay=job.id, state=state, differences=diff["differences"])
        record = job.record()
        self._tell(record)
        return record

    @property
    def _topic(self) -> str:
        return generations.topic(self._settings.kafka, generations.current(self._conn))

    @property
    def _partitions(self) -> int:
        return len(_log.ends(self._settings.kafka, self._topic)) or self._settings.kafka.partitions

    def _beside(self, schema: str, topic: str | None = None) -> Beside:
        topic = topic or self._topic
        return Beside(self._settings, self._codec, schema=schema, topic=topic, priorities=self._priorities)

    def _defined_today(self, schema: str) -> bool:
        row = self._conn.execute("SELECT obj_description(to_regnamespace(%s), 'pg_namespace')", (schema,)).fetchone()
        return bool(row and row[0] == _sql.definition(FACTS, views(self._conn)))

    def _noting(self, job: Job) -> Callable[[Progress], None]:
        def note(progress: Progress) -> None:
            if job.note(progress):
                self._tell(job.record())

        return note

    @contextmanager
    def _ending(self, job: Job) -> Iterator[None]:
        """Note why a build stopped: for good, and what it made is dropped; or so that it can be gone on with."""
        try:
            yield
        except ReplayCancelled:
            _drop_schema(self._conn, job.record().schema)
            logger().info(Log.REPLAY_ENDED, replay=job.id, state="cancelled")
            raise
        except Fatal as exc:
            _drop_schema(self._conn, job.record().schema)
            job.put(state="failed", error=exc.code)
            logger().error(Log.REPLAY_ENDED, replay=job.id, state="failed", code=exc.code)
            raise
        except Exception as exc:
            code = exc.code if isinstance(exc, CaudalError) else type(exc).__name__
            with contextlib.suppress(CaudalError):  # then whoever looks next finds it interrupted all the same
                job.put(error=code)
            logger().warning(Log.REPLAY_ENDED, replay=job.id, state="interrupted", code=code)
            raise


def announce(conn: psycopg.Connection[Any], schema: str, partitions: int) -> None:
    """Leave the rows that differ to the workers to publish, by the partition that they go to, and have all segments judged again.
    What changes for the built-in segments is in their history too.

    Args:
        conn: in the transaction that swaps the schema in.
        schema: holds the table of differences, see _diff.py.
        partitions: how many the change topics have.
    """
    refill(conn)  # criteria may read facts of which no view tells a difference
    for view in VIEWS:
        if view.topic is None:
            continue
        payload = "NULL"
        if len(view.key) > 1:
            payload = """jsonb_agg(jsonb_build_array(customer_id::text, item, what = 'added', NULL) ORDER BY customer_id, item)"""
        conn.execute(
            f"""INSERT INTO hub.outbox (partitions, topic, customer_ids, payload, rebuilt)
                SELECT ARRAY[partition], %(topic)s, array_agg(DISTINCT customer_id), {payload}, true
                FROM (
                    SELECT *, (dense_rank() OVER (PARTITION BY partition ORDER BY customer_id) - 1) / {CHUNK} AS chunk
                    FROM (
                        SELECT *, (crc32(convert_to(customer_id::text, 'UTF8')) %% %(partitions)s)::int AS partition
                        FROM {schema}.{_diff.DIFF} WHERE view = %(view)s
                    ) placed
                ) chunks
                GROUP BY partition, chunk ORDER BY partition, chunk""",
            {"topic": view.topic, "view": view.name, "partitions": partitions},
        )
    conn.execute(
        f"""INSERT INTO hub.built_in_history (customer_id, at, cause, had, has)
            SELECT customer_id, statement_timestamp(), 'rebuild', coalesce(array_agg(item) FILTER (WHERE what = 'removed'), '{{}}'),
                   coalesce(array_agg(item) FILTER (WHERE what = 'added'), '{{}}')
            FROM {schema}.{_diff.DIFF} WHERE view = %s GROUP BY customer_id""",
        (segment_members.name,),
    )


def refuse(diff: dict[str, Any], max_changed: float | None, *, force: bool) -> None:
    """Refuse a swap that would change too much.

    Raises:
        ReplayRefused: more than the share `max_changed` of a view's rows differ, and `force` is not set.
    """
    if max_changed is not None and diff["changed_share"] > max_changed and not force:
        raise ReplayRefused(
            f"{diff['changed_share']:.2%} of a view's rows would change, more than {max_changed:.2%}",
            hint="`caudal replay diff` shows them; --force swaps all the same",
        )


def cancel(settings: Settings, id_: int | None = None) -> Record:
    """End a replay that runs, was interrupted or waits for its swap; what it had built is dropped. The live views stay as they are.

    Raises:
        ReplayRefused: there is none.
        ReplayRunning: it is being swapped in just now.
    """
    with postgres.connect(settings.postgres, role="replay") as conn, postgres.translated():
        found = one(conn, id_) if id_ is not None else latest(conn, "running", "built")
        if found is None or found.state not in {"running", "built"}:
            raise ReplayRefused("there is no replay to cancel", hint="`caudal replay status` lists them")
        if found.active:  # the process that works at it sees this, and drops what it made
            conn.execute(_CANCEL, (found.id,))
        else:
            with held(settings) as mine:
                _discard(mine, found)
        return one(conn, found.id) or found


_CANCEL = "UPDATE hub.replays SET state = 'cancelled', updated_at = now(), ended_at = now() WHERE id = %s"


def _discard(conn: psycopg.Connection[Any], record: Record) -> None:
    with postgres.translated():
        conn.execute(_CANCEL, (record.id,))
        _drop_schema(conn, record.schema)


def drop(conn: psycopg.Connection[Any], id_: int | None = None, *, schema: str | None = None) -> list[str]:
    """Drop schemas that replays left: what was live before a swap, what was built and never swapped in. Gives their names.

    Args:
        conn: holds the right to replay.
        id_: only what this replay left.
        schema: only this one. Unless one of both is given, schemas made for a point in time stay.
    """
    dropped = []
    with postgres.translated():
        rows = conn.execute(
            """SELECT id, schema FROM hub.replays WHERE to_regnamespace(schema) IS NOT NULL AND schema <> 'live'
                   AND (kind <> 'as_of' OR state <> 'dropped')
                   AND (id = %(id)s OR schema = %(schema)s
                        OR %(id)s::bigint IS NULL AND %(schema)s::text IS NULL AND state <> 'running' AND kind <> 'as_of')
               ORDER BY id""",
            {"id": id_, "schema": schema},
        ).fetchall()
        for number, name in rows:
            _drop_schema(conn, name)
            conn.execute(
                "UPDATE hub.replays SET state = 'dropped', updated_at = now() WHERE id = %s AND state <> 'cancelled'",
                (number,),
            )
            dropped.append(name)
    return dropped


def _drop_schema(conn: psycopg.Connection[Any], schema: str) -> None:
    if schema in {LIVE, "hub", "public", ""}:
        raise BadSettings(f"schema {schema} is none that a replay may drop")
    conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def _rename(conn: psycopg.Connection[Any], schema: str, to: str) -> None:
    conn.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(schema), sql.Identifier(to)))
