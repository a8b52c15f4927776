"""One view made again from the facts that are there, and put in the place of the live one. The log is not read.

The live projection notes the customers that it touches meanwhile, in hub.touched, for as long as hub.control says `replay.noting`. What it
touched is computed again while it stands still, just before the comparison and before the swap; so nothing is missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from caudal.projections import _sql
from caudal.projections._batch import ALL
from caudal.projections._schema import FACTS, LIVE, MAKING_LOCK, VIEWS, describe
from caudal.projections._view import View
from caudal.projections.custom import bound
from caudal.projections.custom.metric import EVERYBODY, Metric, defined, install, store, with_custom
from caudal.projections.custom.source import BadMetric
from caudal.projections.metrics import metrics
from caudal.projections.replay import _build_sql, _diff
from caudal.projections.replay._beside import still
from caudal.projections.replay._build import Progress
from psycopg.errors import LockNotAvailable

from caudal import postgres
from caudal.errors import DatabaseUnavailable, ReplayRefused
from caudal.settings import Settings

__all__ = ["OneView", "concerned"]

NOTED = "interval '15 minutes'"
"""So long after the last sign of a rebuild the live projection stops noting for it."""
TRIES = 10


def concerned(name: str, views: Sequence[View]) -> list[View]:
    """The view and those that read it, in the order in which they are refreshed.

    Raises:
        ReplayRefused: there is no such view.
    """
    names = {name}
    found = []
    for view in views:
        if view.name == name or names & set(view.reads):
            names.add(view.name)
            found.append(view)
    if not found or found[0].name != name:
        raise ReplayRefused(f"there is no view {name}", hint=", ".join(view.name for view in views))
    return found


class OneView:
    """The rebuild of one view, with those that read it, into tables beside the live ones."""

    def __init__(
        self,
        settings: Settings,
        conn: psycopg.Connection[Any],
        *,
        name: str,
        schema: str,
        priority: str,
        custom: Sequence[Metric] | None = None,
        by: str = "",
    ) -> None:
        """Begin: the live projection notes what it touches from now on. See `Replay.view`.

        Raises:
            ReplayRefused: there is no such view, or the live schema's other tables are not of today's definitions.
        """
        self._settings = settings
        self._conn = conn
        self._schema = schema
        self._priority = priority
        self._custom = custom
        self._by = by
        self._metrics = tuple(defined(conn) if custom is None else custom)
        self._all = with_custom(VIEWS, self._metrics)
        self.views = concerned(name, self._all)
        self._check()
        install(conn, custom or ())
        for statement in _sql.STAGES:
            if "touched" in statement:
                conn.execute(statement)
        conn.execute("TRUNCATE hub.touched")
        conn.execute(
            """INSERT INTO hub.control (key, value) VALUES ('replay.noting', 'true')
               ON CONFLICT (key) DO UPDATE SET value = 'true', changed_at = now()"""
        )
        with still(conn):
            pass  # the batches that began before are committed; all that follow note

    def build(self, progress: Callable[[Progress], None]) -> None:
        """Make the tables."""
        rebuilt = {view.name for view in self.views}
        self._conn.execute(f"CREATE SCHEMA {self._schema}")
        for table in (
            "links",
            "order_sums",
            "order_times",
            *(fact.name for fact in FACTS),
            *(view.name for view in self._all),
        ):
            if table not in rebuilt:  # what a view reads is where its SELECT looks for it
                self._conn.execute(f"CREATE VIEW {self._schema}.{table} AS SELECT * FROM {LIVE}.{table}")
        for done, view in enumerate(self.views):
            progress(Progress("views", done, len(self.views)))
            if view.name == metrics.name:
                self._probe()
            for statement in _build_sql.view_steps(self._schema, view, self._priority):
                self._conn.execute(statement)
            self._sign()
        progress(Progress("views", len(self.views), len(self.views)))

    def _probe(self) -> None:
        """Give the metrics another try, of which the rebuild is one.

        Raises:
            BadMetric: one of those that shall be takes too long of many customers.
        """
        functions = {metric.function.removeprefix("hub."): metric.name for metric in self._metrics}
        self._conn.execute("DELETE FROM hub.metric_unknown WHERE function = ANY (%s)", ([*functions],))
        bound.probe(self._conn, self._metrics, self._schema)
        rows = self._conn.execute("SELECT function FROM hub.metric_unknown WHERE customer_id = %s", (EVERYBODY,))
        slow = sorted(functions[function] for (function,) in rows.fetchall() if function in functions)
        if slow and self._custom is not None:
            raise BadMetric(
                f"{', '.join(slow)}: {bound.MOST_CUSTOMERS} customers took longer than {bound.CUSTOMER_MS / 1000:g} s each",
                hint="its time must not grow with what a customer's data say, nor much faster than their number",
            )

    def compare(self, progress: Callable[[Progress], None]) -> dict[str, Any]:
        """What would change, see `_diff.compare`; the live projection goes on meanwhile."""
        progress(Progress("compare", 0, 1))
        _diff.prepare(self._conn, self._schema)
        with postgres.connect(self._settings.postgres, role="replay build") as snapshot:
            with still(self._conn):
                self._refresh()
                snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                snapshot.execute(f"SELECT FROM {LIVE}.offsets")  # the snapshot is taken here
            diff = _diff.compare(snapshot, self._schema, self.views)
            snapshot.execute("COMMIT")
        progress(Progress("compare", 1, 1))
        return diff

    def swap(self, announce: Callable[[], None], finish: Callable[[], None]) -> None:
        """Put the tables in the place of the live ones, in one transaction, in which `announce` and `finish` are called too.

        Raises:
            ReplayRefused: the live projection has stopped noting what it touches.
            DatabaseUnavailable: a reader holds a table.
        """
        for turn in range(TRIES):
            try:
                with still(self._conn), self._conn.transaction():
                    self._conn.execute("SET LOCAL lock_timeout = '1s'")  # readers that come later wait for us
                    _diff.recheck(self._conn, self._schema, self._refresh(), self.views)
                    announce()
                    self._conn.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
                    self._exchange()
                    finish()
                break
            except LockNotAvailable:
                if turn + 1 == TRIES:
                    raise DatabaseUnavailable("a long read holds the view", hint="try again") from None
                time.sleep(0.2)
        self.close()

    def close(self) -> None:
        """Stop the noting and drop what is left."""
        self._conn.execute("DELETE FROM hub.control WHERE key = 'replay.noting'")
        self._conn.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")
        self._conn.execute("TRUNCATE hub.touched")

    def _check(self) -> None:
        rebuilt = {view.name for view in self.views}
        for table, digest in _sql.definitions(FACTS, self._all).items():
            row = self._conn.execute(
                "SELECT obj_description(to_regclass(%s), 'pg_class')", (f"{LIVE}.{table}",)
            ).fetchone()
            if table not in rebuilt and (row is None or row[0] != digest):
                raise ReplayRefused(
                    f"{table} was made by another definition than today's", hint="rebuild all of it: `caudal replay`"
                )

    def _sign(self) -> None:
        self._conn.execute("UPDATE hub.control SET changed_at = now() WHERE key = 'replay.noting'")

    def _refresh(self) -> set[str]:
        """With the live schema still: compute again whom it touched since the last time; gives their ids."""
        with self._conn.transaction():
            row = self._conn.execute(
                f"SELECT EXISTS (SELECT FROM hub.control WHERE key = 'replay.noting' AND changed_at > now() - {NOTED})"
            ).fetchone()
            if row != (True,):
                raise ReplayRefused("the rebuild took too long to be swapped in", hint="start it again")
            found = self._conn.execute("DELETE FROM hub.touched RETURNING customer_id::text").fetchall()
            customers = {customer for (customer,) in found}
            self._conn.execute("TRUNCATE pg_temp.touched, pg_temp.touched_subjects")
            self._conn.execute(
                "INSERT INTO touched SELECT unnest(%s::text[])::uuid, %s, NULL", (sorted(customers), ALL)
            )
            self._conn.execute(_sql.TOUCH_SUBJECTS.format(schema=LIVE))
            if any(view.name == metrics.name for view in self.views):
                bound.probe(self._conn, self._metrics, LIVE, sorted(customers))
            for view in self.views if customers else ():
                if len(view.key) == 1:
                    self._conn.execute(_sql.remove(view, self._schema, self._priority))
                self._conn.execute(_sql.refresh(view, self._schema, self._priority, ALL, feed=False))
            self._sign()
        return customers

    def _exchange(self) -> None:
        away = f"{self._schema}_away"
        self._conn.execute(f"CREATE SCHEMA {away}")
        for view in self.views:
            self._conn.execute(f"ALTER TABLE IF EXISTS {LIVE}.{view.name} SET SCHEMA {away}")
            self._conn.execute(f"ALTER TABLE {self._schema}.{view.name} SET SCHEMA {LIVE}")
        row = self._conn.execute("SELECT obj_description(to_regnamespace(%s), 'pg_namespace')", (LIVE,)).fetchone()
        if row is None or row[0] != _sql.definition(FACTS, self._all):
            # another table of offsets tells workers of the release before that the definition is another
            self._conn.execute(f"ALTER TABLE {LIVE}.offsets SET SCHEMA {away}")
            for statement in _sql.books(LIVE)["offsets"]:
                self._conn.execute(statement)
            self._conn.execute(f"INSERT INTO {LIVE}.offsets SELECT * FROM {away}.offsets")
        if self._custom is not None:
            store(self._conn, self._custom, self._by)
        describe(self._conn, LIVE)
        self._conn.execute(f"DROP SCHEMA {away} CASCADE")
