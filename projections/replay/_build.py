"""Building a schema from the log: load what it says, then make each table whole, with its keys, by one statement.

Every step is one transaction, which also notes that the step is done. So a build that was killed goes on where it was. Only while
the log is loaded and facts are made do unlogged tables hold what nothing else does; when PostgreSQL itself dies then, they are empty
afterwards, and the build begins again.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from caudal.projections import _rollup, _sql
from caudal.projections._schema import FACTS, FIRST, MAKING_LOCK, ROLLUPS, describe, triggers, views
from caudal.projections.custom import bound
from caudal.projections.custom.metric import Metric, defined
from caudal.projections.metrics import metrics
from caudal.projections.replay import _build_sql, _log
from caudal.projections.replay._load import Part, load
from caudal.schemas.codec import Codec
from psycopg import sql

from caudal import generations, postgres
from caudal.settings import Settings

__all__ = ["Build", "Progress"]

SIDE_BY_SIDE = 2
"""Statements that run at the same time."""
_SESSION = (
    "work_mem = '128MB'",
    "maintenance_work_mem = '256MB'",
    "max_parallel_workers_per_gather = 1",  # with those side by side it keeps two processors busy; more only make the live path wait
    "max_parallel_maintenance_workers = 1",
    "synchronous_commit = off",
    "default_statistics_target = 20",  # the usual 100 took longer than making the tables
    "client_connection_check_interval = '1s'",  # a statement of a process that was killed ends soon after it
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: events while loading and catching up, steps otherwise."""

    stage: str
    done: int
    total: int


LOADED = "facts"
"""The step after which nothing is left of what was loaded: all facts are made."""


@dataclass(frozen=True, slots=True)
class Step:
    """Statements that make a table, for the stage that it is shown under; `needs` names the steps whose tables it reads.

    Custom metrics that the statements compute are in `probes`.
    """

    statements: Sequence[str]
    stage: str
    needs: frozenset[str] = frozenset()
    probes: Sequence[Metric] = ()


class Build:
    """Makes a schema of facts and views from the log, beside whatever else there is. Reads nothing but the log."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        *,
        schema: str,
        topic: str | None = None,
        upto: datetime | None = None,
        ends: Mapping[int, int] | None = None,
        priorities: Mapping[str, int] | None = None,
        truncated: bool = False,
        processes: int | None = None,
        name: str = "replay",
    ) -> None:
        """A build of `schema`; what an earlier one of the same name left unfinished is gone on with.

        Args:
            settings: resolved settings (servers known); `hub` must have been migrated.
            codec: how records are decoded.
            schema: its name; made here.
            topic: full name of the log; the generation that is live unless given.
            upto: only what was captured until then.
            ends: where to stop in each partition; where the log ends when it begins unless given.
            priorities: source → priority in a profile, as the live projection has it.
            truncated: whether the log may begin after its first event.
            processes: loaders side by side; one for each processor unless given.
            name: shown for its connections.
        """
        self._settings = settings
        self._codec = codec
        self._schema = schema
        self._topic = topic or generations.current_topic(settings)
        self._upto = upto
        self._ends = ends
        self._priority = _sql.priority_sql(priorities or {})
        self._truncated = truncated
        self._processes = processes or os.cpu_count() or 2
        self._name = name
        self._active: set[psycopg.Connection[Any]] = set()
        self._lock = threading.Lock()

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> dict[int, int]:
        """Build, or go on building; gives the offsets that the schema stands at.

        Args:
            progress: called every moment; when it raises, the build stops and can be gone on with.

        Raises:
            LogTruncated: the log no longer holds its first events.
            BrokerUnavailable: Kafka can't be reached.
            DatabaseUnavailable: PostgreSQL can't be reached.
        """
        with postgres.connect(self._settings.postgres, role=self._name) as conn, postgres.translated():
            if self._finished(conn):
                return self._offsets(conn)
            self._prepare(conn)
            steps = self._views(conn)
            if LOADED not in self._done(conn):
                self._load(conn, progress)
                steps = self._facts(conn) | steps
            self._run(steps, progress)
            self._finish(conn)
            return self._offsets(conn)

    # ---- beginning and end

    def _finished(self, conn: psycopg.Connection[Any]) -> bool:
        row = conn.execute("SELECT obj_description(to_regnamespace(%s), 'pg_namespace')", (self._schema,)).fetchone()
        return bool(row and row[0] == _sql.definition(FACTS, views(conn)))

    def _prepare(self, conn: psycopg.Connection[Any]) -> None:
        """Make the schema with its load tables, unless it is there and can be gone on with."""
        row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{self._schema}.build_steps",)).fetchone()
        if row and row[0]:
            if "facts" in self._done(conn):
                return
            # emptied by PostgreSQL after it died
            intact = conn.execute(f"SELECT EXISTS (SELECT FROM {self._schema}.load_offsets)").fetchone()
            if intact and intact[0]:
                return
        starts = _log.starts(self._settings.kafka, self._topic, truncated=self._truncated)
        ends = _log.ends(self._settings.kafka, self._topic)
        if self._ends is not None:
            ends = {partition: self._ends.get(partition, 0) for partition in ends}
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
            conn.execute(FIRST)
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self._schema)))
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
            conn.execute(f"CREATE TABLE {self._schema}.build_steps (step text PRIMARY KEY)")
            books = [statement for made in _sql.books(self._schema).values() for statement in made]
            rollups = [statement for rollup in ROLLUPS for statement in _rollup.tables(self._schema, rollup)]
            for statement in (*books, *rollups, *_build_sql.load_tables(self._schema, FACTS)):
                conn.execute(statement)
            for table, values in (("load_offsets", (starts, ends)), ("offsets", (ends,))):
                conn.execute(
                    f"INSERT INTO {self._schema}.{table} SELECT * FROM unnest(%s::int[]{', %s::bigint[]' * len(values)})",
                    [list(ends), *([each[p] for p in ends] for each in values)],
                )

    def _done(self, conn: psycopg.Connection[Any]) -> set[str]:
        return {step for (step,) in conn.execute(f"SELECT step FROM {self._schema}.build_steps").fetchall()}

    def _offsets(self, conn: psycopg.Connection[Any]) -> dict[int, int]:
        return dict(conn.execute(f"SELECT partition, next_offset FROM {self._schema}.offsets").fetchall())

    def _finish(self, conn: psycopg.Connection[Any]) -> None:
        with conn.transaction():
            conn.execute(f"DROP TABLE {self._schema}.build_steps")
            for statement in triggers(self._schema):
                conn.execute(statement)
            describe(conn, self._schema)

    # ---- stages

    def _load(self, conn: psycopg.Connection[Any], progress: Callable[[Progress], None]) -> None:
        read = f"SELECT partition, next_offset, end_offset FROM {self._schema}.load_offsets ORDER BY 1"
        rows = conn.execute(read).fetchall()
        starts = _log.starts(self._settings.kafka, self._topic, truncated=True)
        # what retention took away since the build began can't be read any more: that is no reason to wait for it for ever
        missing = {p: n for p, n, end in rows if starts.get(p, 0) > n and n < end}
        if missing and not self._truncated:
            _log.starts(self._settings.kafka, self._topic)  # says what is missing
        left = {p: (max(n, starts.get(p, 0)), end) for p, n, end in rows if n < end}
        total = sum(end - begin for begin, end in left.values())
        parts = [
            Part(
                self._settings,
                self._topic,
                self._schema,
                self._name,
                {p: left[p][0] for p in mine},
                {p: left[p][1] for p in mine},
                self._upto,
            )
            for mine in (list(left)[n :: self._processes] for n in range(self._processes))
            if mine
        ]

        def watch() -> None:
            now = {p: n for p, n, _ in conn.execute(read).fetchall()}
            progress(Progress("load", sum(max(now[p] - begin, 0) for p, (begin, _) in left.items()), total))

        if parts:
            load(parts, self._codec, watch=watch)
        watch()

    def _facts(self, conn: psycopg.Connection[Any]) -> dict[str, Step]:
        """The steps that make links and facts of what was loaded, and in the end drop that."""
        gone = f"SELECT EXISTS (SELECT FROM {self._schema}.load_gone WHERE erased_at IS NOT NULL)"
        erased = conn.execute(gone).fetchone() == (True,)
        mixed = {
            fact
            for (fact,) in conn.execute(
                f"SELECT fact FROM {self._schema}.stated_sets GROUP BY fact, source HAVING count(*) > 1"
            ).fetchall()
        }
        needs = frozenset({"links"} if erased else ())
        steps = {
            fact.name: Step(
                _build_sql.fact_steps(self._schema, fact, erased=erased, mixed=fact.name in mixed), "facts", needs
            )
            for fact in sorted(FACTS, key=lambda fact: -len(fact.columns))  # the widest first: they take longest
        }
        steps = {"links": Step(_build_sql.links_steps(self._schema), "facts")} | steps
        loaded = ", ".join(f"{self._schema}.{name}" for name in ("load_subjects", "load_gone", "load_offsets"))
        return steps | {LOADED: Step([f"DROP TABLE {loaded}"], "facts", frozenset(steps))}

    def _views(self, conn: psycopg.Connection[Any]) -> dict[str, Step]:
        return {
            view.name: Step(
                _build_sql.view_steps(self._schema, view, self._priority),
                "views",
                frozenset({"links", *view.reads, *re.findall(r"\{schema\}\.(\w+)", view.select)}),
                defined(conn) if view.name == metrics.name else (),
            )
            for view in views(conn)
        } | {
            rollup.table: Step(
                _rollup.fill(self._schema, rollup), "views", frozenset(part.fact for part in rollup.parts)
            )
            for rollup in ROLLUPS
        }

    # ---- statements

    def _run(self, steps: Mapping[str, Step], progress: Callable[[Progress], None]) -> None:
        """Run the steps, some side by side, each as soon as those that it needs are done."""
        pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="build")
        left = dict(steps)
        running: dict[Future[None], str] = {}
        try:
            while left or running:
                unmade = left.keys() | set(running.values())
                ready = [name for name, step in left.items() if not step.needs & unmade]
                for name in ready[: SIDE_BY_SIDE - len(running)]:
                    running[pool.submit(self._step, name, left.pop(name))] = name
                done, _ = wait(running, 0.2, FIRST_COMPLETED)
                for future in done:
                    future.result()
                    del running[future]
                unmade = left.keys() | set(running.values())
                stage = next((step.stage for name, step in steps.items() if name in unmade), "views")
                of_stage = [name for name, step in steps.items() if step.stage == stage]
                progress(Progress(stage, len([name for name in of_stage if name not in unmade]), len(of_stage)))
        except BaseException:
            with self._lock:
                for conn in self._active:
                    conn.cancel_safe()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _step(self, name: str, step: Step) -> None:
        with postgres.translated(), postgres.connect(self._settings.postgres, role=self._name) as conn:
            for setting in _SESSION:
                conn.execute(sql.SQL("SET ") + sql.SQL(setting))
            with self._lock:
                self._active.add(conn)
            try:
                with conn.transaction():
                    new = conn.execute(
                        f"INSERT INTO {self._schema}.build_steps VALUES (%s) ON CONFLICT DO NOTHING", (name,)
                    ).rowcount
                    if new:
                        bound.probe(conn, step.probes, self._schema)
                    for statement in step.statements if new else ():
                        conn.execute(statement)
            finally:
                with self._lock:
                    self._active.discard(conn)
