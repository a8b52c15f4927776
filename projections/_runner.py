"""The live runner: a batch of events into facts, views, outbox and offsets in one transaction; then the changed rows onto the topics.

Concurrency. A view row of a customer is recomputed from facts that several workers may write at the same time (a person's subjects
may lie in several partitions after a merge). Whoever refreshes it must see all that was committed before, so a batch first takes
the advisory locks of its customers' *stripes* (64, by CRC32 of the customer id, in ascending order) and holds them to the commit. A
partition's customers lie in few stripes of their own, so workers on different partitions don't wait for each other. The links
tell only later which further customers a batch touches; when it doesn't hold one of their stripes, it starts again with all of them,
so that all it reads is read under the locks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any
from zlib import crc32

import orjson
import psycopg
from caudal.projections import _places, _rollup, _sql
from caudal.projections._batch import ALL, LINKED, Batch, Message, bit
from caudal.projections._fact import Fact
from caudal.projections._few import prepare
from caudal.projections._publish import Change, Publisher, output_partition
from caudal.projections._schema import FACTS, LIVE, ROLLUPS, SWAP_LOCK, VIEWS, ensure_live, views
from caudal.projections._view import View
from caudal.projections.custom import bound
from caudal.projections.custom.metric import OVERDUE, Metric, defined
from caudal.projections.metrics import metrics
from caudal.projections.profiles import profiles
from caudal.schemas.codec import Codec
from caudal.schemas.dead_letters import dead_letter
from psycopg import sql
from psycopg.errors import FeatureNotSupported, QueryCanceled, UndefinedColumn, UndefinedFunction, UndefinedTable
from psycopg.types.json import set_json_loads

from caudal import generations, kafka, postgres, telemetry
from caudal.errors import BrokerUnavailable, DatabaseUnavailable, LostPartition, Poison, Retryable, UnusableEvent
from caudal.settings import Settings
from caudal.telemetry import Log, Seldom, logger

__all__ = ["SCRATCH", "STRIPE_LOCKS", "Runner", "mask_of", "partition_count", "statements"]

LOOK_EVERY_S = 0.25
"""How long what another worker left in the outbox may wait."""
SETTLE_S = 3.0
TRIES = 3
"""How often what wasn't acknowledged is published again at once; then the batch waits."""
CLEAR_AFTER = 5_000
"""Events after which the staging tables are truncated; before, their rows are deleted, which leaves them a little larger each time."""
FOLD_EVENTS, FOLD_BATCHES = 100_000, 2_000
"""So many events or batches make the new rows of the rollups many enough to be folded."""
STRIPE_LOCKS = 0x6361_7564
"""First key of the advisory locks, to keep clear of other users of the database; each schema but the live one has its own."""
SCRATCH = "pg_temp"
"""The schema of temporary tables, which have no triggers."""
_RESHAPED = (UndefinedTable, UndefinedColumn, UndefinedFunction, FeatureNotSupported)
"""What a statement on a schema of another definition ends with; the last one: "cached plan must not change result type"."""

_SESSION = (
    "plan_cache_mode = force_generic_plan",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_seqscan = off",
    "enable_material = off",
    "enable_bitmapscan = off",
    "work_mem = '64MB'",
    "temp_buffers = '64MB'",
)
"""Plans are kept and join by index: a batch is small beside the tables, and a plan that flips to scanning them would make the time of
a batch grow with the history. A lookup finds one row or a few, for which a bitmap is made in vain."""


@cache
def _copy_into(table: str, columns: tuple[str, ...]) -> bytes:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    return statement.as_bytes()


def _movable(fact: Fact) -> bool:
    """Whether a thing of it can go from one subject to another."""
    return "subject" not in fact.key


def mask_of(names: Iterable[str], views: Sequence[View] = VIEWS) -> int:
    """The facts among the names, and those that the views among them read."""
    reads = {view.name: view.reads for view in views}
    mask = 0
    for name in names:
        mask |= mask_of(reads[name], views) if name in reads else bit(name)
    return mask


class _Stripes(Exception):
    """The batch touches customers in stripes that it doesn't hold."""

    def __init__(self, missing: set[int]) -> None:
        super().__init__()
        self.missing = missing


class _Outrun(Exception):
    """Another worker has linked a subject of the batch meanwhile."""


class _Swapped(Exception):
    """Another schema has taken the name of the one that the batch was meant for."""


class Runner:
    """Applies batches to a schema; one thread at a time, except `decode`, which any thread may call."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        *,
        priorities: Mapping[str, int] | None = None,
        schema: str = LIVE,
        feed: bool = True,
    ) -> None:
        """Connect and make the schema if there is none. `hub` must have been migrated.

        Args:
            settings: resolved settings (servers known).
            codec: how records are encoded and decoded.
            priorities: source → priority in a profile; higher wins, 0 if not named.
            schema: what is written to.
            feed: publish what changes. Else nothing is published and nothing dead-lettered: the customers that the batches touched are
                collected in `touched`, the messages that can't be used counted in `unusable`.
        """
        self.touched: set[str] = set()
        self.unusable = 0
        self._schema = schema
        self._feed = feed
        self._stripe_locks = STRIPE_LOCKS if schema == LIVE else crc32(schema.encode()) >> 1
        self._settings = settings
        self._codec = codec
        self._priority = _sql.priority_sql(priorities or {})
        self._publisher = (
            Publisher(settings.kafka, codec, session_ms=settings.worker.session_timeout_ms) if feed else None
        )
        self._mine: set[int] = set()
        self._epochs: dict[int, int] = {}
        """Partition → the number that it has in hub.owners as long as it is ours."""
        self._looked = 0.0
        self._left = False
        """Whether the outbox holds what was published and not acknowledged."""
        self._told = Seldom()
        self._numbered = 0.0
        """When the changes of the last batch began to get their versions; see `Publisher.publish`."""
        self._staged = 0
        self._filled: set[str] = set()
        """Facts whose staging tables hold rows, dead or alive."""
        self._forgettable: list[int] = []
        """Outbox ids whose messages are acknowledged; they go with the next commit."""
        self._untidy = 1.0  # what an earlier worker left is put in order at once
        self._unfolded = 1.0
        self._conn: psycopg.Connection[Any] | None = None
        self._views: tuple[View, ...] = ()
        self._metrics: tuple[Metric, ...] = ()
        self._statements: dict[str, Any] = {}
        self._log = logger()
        try:
            with postgres.translated():
                self._oid = self._ensure()
                self.generation = generations.current(self._connection())
        except BaseException:
            self.close()
            raise
        self._partitions = partition_count(settings, generations.topic(settings.kafka, self.generation))

    # ---- what a worker calls

    def assigned(self, partitions: Sequence[int]) -> None:
        """The group has given us these partitions: whoever had them before publishes nothing of them any more (see `_recover`)."""
        with postgres.translated():
            given = self._connection().execute(
                """INSERT INTO hub.owners AS o (partition, epoch) SELECT p, 1 FROM unnest(%s::int[]) p ORDER BY p
                   ON CONFLICT (partition) DO UPDATE SET epoch = o.epoch + 1 RETURNING partition, epoch""",
                (list(partitions),),
            )
            self._epochs |= dict(given.fetchall())

    def positions(self, partitions: Sequence[int]) -> dict[int, int]:
        """The next offset of each partition; 0 where nothing was projected yet. They count in the log that is `generation` now."""
        with postgres.translated():
            found = self._connection().execute(
                f"""SELECT (SELECT number FROM hub.generation), partition, next_offset
                    FROM unnest(%s::int[]) partition LEFT JOIN {self._schema}.offsets USING (partition)""",
                (list(partitions),),
            )
            known = {partition: offset for self.generation, partition, offset in found if offset is not None}
        self._mine |= set(partitions)
        return {p: known.get(p, 0) for p in partitions}

    def revoked(self, partitions: Sequence[int]) -> None:
        """The partitions belong to someone else from now on: publish the last of them first."""
        self._mine -= set(partitions)
        if self._publisher:
            self._publisher.settle(SETTLE_S)
            with contextlib.suppress(Retryable):  # the next owner finds in the outbox what is missing
                self._finish_published()

    def decode(self, messages: Sequence[Message]) -> Batch:
        """Make messages ready for `apply`. Needs no database: run it beside the batch before."""
        started = time.perf_counter()
        batch = prepare(self._codec, messages)
        telemetry.BATCH_SECONDS.labels("decode").observe(time.perf_counter() - started)
        return batch

    def apply(self, batch: Batch) -> None:
        """Apply a batch and publish what changed.

        Raises:
            LostPartition: another worker has moved an offset; drop the batch.
            Fatal: the schema was swapped for one of another definition.
            DatabaseUnavailable: nothing was changed; apply the same batch again.
            BrokerUnavailable: the rows are stored and in the outbox; `recover` publishes them.
        """
        started = time.perf_counter()
        self._note_published()
        self._look_after()
        if batch.bad:  # before the offsets move on: a crash in between may repeat a dead letter, never lose one
            self._bury(batch.bad)
        stripes, limited = batch.stripes, True
        while True:
            try:
                with postgres.translated():
                    changes = self._transaction(batch, stripes, limited=limited)
                break
            except _Stripes as more:
                stripes |= more.missing
            except _Outrun:
                continue
            except _Swapped:
                self._look()
            except _RESHAPED:
                if not self._look():
                    raise
            except postgres.REFUSED as exc:
                self._apply_apart(batch, exc)
                return
            except psycopg.Error as exc:
                if not self._overdue(exc, alone=len(batch.messages) == 1):
                    self._halved(batch)
                    return
            except DatabaseUnavailable as exc:
                if not isinstance(exc.__cause__, QueryCanceled) or not self._metrics:
                    raise
                if len(batch.messages) > 1:
                    self._halved(batch)
                    return
                limited = False  # it isn't a metric that takes so long
        seconds = time.perf_counter() - started
        telemetry.BATCH_SECONDS.labels("apply").observe(seconds)
        self._log.debug(
            Log.BATCH_PROJECTED, events=len(batch.messages), seconds=round(seconds, 4), changed=len(changes)
        )
        telemetry.BATCH_EVENTS.labels("project").observe(len(batch.messages))
        for event, count in batch.counts.items():
            telemetry.PROJECTED.labels(event).inc(count)
        if changes and self._publisher:
            self._publisher.publish(changes, made=self._numbered)

    def recover(self, partitions: Sequence[int]) -> int:
        """Publish what the outbox still holds for these partitions, in order; returns the number of customers.

        Rows are published as they are now, under a version newer than any before: state topics need the newest state, not each step.

        Raises:
            LostPartition: one of them was given to another worker meanwhile.
        """
        try:
            with postgres.translated():
                done = self._recover(list(partitions))
        except _RESHAPED:
            if not self._look():
                raise
            return self.recover(partitions)
        if done:
            self._log.info(Log.OUTBOX_RECOVERED, customers=done, partitions=sorted(partitions))
        return done

    def idle(self) -> None:
        """Housekeeping while nothing arrives: forget what is acknowledged, publish what others left for our partitions."""
        self._finish_published()
        self._look_after()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything published is acknowledged, and forget it in the outbox.

        Raises:
            BrokerUnavailable: Kafka doesn't take it.
        """
        self._finish_published(timeout_s)
        if self._left:
            self._look_after()

    def close(self) -> None:
        """Let what is under way arrive, then disconnect."""
        if self._publisher:
            self._publisher.close()
        if self._conn is not None and not self._conn.closed:
            try:
                with postgres.translated():
                    self._finish_published()
            except Exception as exc:
                self._log.warning(Log.SERVER_UNREACHABLE, server="postgres", error=type(exc).__name__)
            self._conn.close()

    # ---- the transaction

    def _transaction(self, batch: Batch, stripes: set[int], *, limited: bool = True) -> list[Change]:
        conn = self._connection()
        run = self._statements
        with postgres.transaction(conn), conn.cursor(binary=True) as cur:
            if not batch.stages:
                self._pass_over(cur, batch)
                return []
            self._stage(cur, batch)
            moved, erased = self._link(conn, stripes, relinked=batch.relinked)
            if batch.gone:
                cur.execute(run["gone"])
                cur.execute(run["any_erased"])
                erased = (cur.fetchone() or (False,))[0]
            if erased:
                for fact in FACTS:
                    for statement in run[f"prune {fact.name}"]:
                        cur.execute(statement)
            lost = self._write(conn, batch, pruned=erased)
            facts = self._touch(cur, stripes)
            if not self._feed:
                cur.execute("SELECT customer_id::text FROM touched")
                touched = {customer for (customer,) in cur.fetchall()}
            self._numbered = time.monotonic()
            shrinking = moved or batch.gone or lost
            changes = self._refresh(
                conn,
                facts if not shrinking else ALL,
                shrinking=shrinking,
                limited=limited,
                last=partial(self._finish, cur, batch, pruned=erased),
            )
            self._check_advance(cur, batch)
            self._tidy_places(cur)
            self._fold(cur, len(batch.messages))
        self._forgettable.clear()
        if not self._feed:
            self.touched |= touched
        return changes

    def _clear(self, cur: psycopg.Cursor[Any], batch: Batch, *, pruned: bool) -> None:
        """Empty the staging tables: those of the batch's facts, or of all when it was pruned, and the few that every batch fills."""
        self._staged += len(batch.messages)
        used = [fact for fact in FACTS if fact.name in batch.stages or pruned]
        self._filled |= {fact.name for fact in used}
        if self._staged < CLEAR_AFTER:
            for name in ("", *(fact.name for fact in used)):
                cur.execute(self._statements[f"clear {name}"])
        else:  # the others are spared: each costs the file system three new files
            cur.execute("TRUNCATE " + ", ".join(_sql.staging([fact for fact in FACTS if fact.name in self._filled])))
            self._staged, self._filled = 0, set()

    def _stage(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        for name, (columns, data) in batch.stages.items():
            with cur.copy(_copy_into(f"stage_{name}", columns)) as copy:
                copy.write(data)

    def _lock(self, cur: psycopg.Cursor[Any], stripes: set[int]) -> None:
        """Take the stripes, after the lock that keeps a swap of the live schema out until the commit."""
        locks = "SELECT pg_advisory_xact_lock(%s::int, s) FROM (SELECT unnest(%s::int[]) AS s ORDER BY 1) stripes"
        if self._schema == LIVE:
            locks = f"SELECT pg_advisory_xact_lock_shared({SWAP_LOCK}) UNION ALL {locks}"
        cur.execute(locks, (self._stripe_locks, sorted(stripes)))

    def _link(self, conn: psycopg.Connection[Any], stripes: set[int], *, relinked: bool) -> tuple[bool, bool]:
        """Write the staged links under the locks; whether subjects moved, and whether some are erased."""
        cur = conn.cursor(binary=True)
        with conn.pipeline():
            self._lock(conn.cursor(binary=True), stripes)
            cur.execute(self._statements["links"], {"new": ALL if relinked else LINKED, "all": ALL})
        complete, moved, erased = cur.fetchone() or (True, False, False)
        if not complete:
            raise _Outrun
        return moved, erased

    def _write(self, conn: psycopg.Connection[Any], batch: Batch, *, pruned: bool) -> bool:
        """Write the facts' staged rows; whether a subject lost something to another by it.

        A thing may have statements with different sets of fields when some source was seen to state more than one set. The sets seen
        are kept in live.stated_sets. A row of the batch's things that was stated otherwise was committed with its set, by a worker
        that held the same stripe before us; so what is read here, after the lock, is all that matters.
        """
        facts = [fact for fact in FACTS if fact.name in batch.stages or pruned]
        sets = [(fact, source, stated) for fact, found in batch.masks.items() for source, stated in found]
        names, sources, stated = zip(*sets, strict=True) if sets else ((), (), ())
        seen, cursors = conn.cursor(binary=True), [conn.cursor(binary=True) for _ in facts]
        bits = {fact.name: {"bit": bit(fact.name)} for fact in facts if _movable(fact)}
        with conn.pipeline():
            seen.execute(self._statements["stated_sets"], {"facts": [*names], "sources": [*sources], "sets": [*stated]})
            for fact, cur in zip(facts, cursors, strict=True):
                cur.execute(self._statements[f"upsert {fact.name}"], bits.get(fact.name))
        # the statements count the subjects that they noted as moved
        lost = any(_movable(fact) and cur.rowcount > 0 for fact, cur in zip(facts, cursors, strict=True))
        mixed = (seen.fetchone() or (None,))[0] or ()
        for fact in facts:
            if not fact.partial or not (pruned or fact.name in mixed):
                continue
            cur = conn.cursor(binary=True)
            *steps, fold = self._statements[f"composites {fact.name}"]
            for step in steps:
                cur.execute(step)
            cur.execute(fold, bits.get(fact.name))
            lost |= _movable(fact) and cur.rowcount > 0
        return lost

    def _touch(self, cur: psycopg.Cursor[Any], held: set[int]) -> int:
        """Note the touched customers; the bits of all facts of theirs that were touched."""
        cur.execute(self._statements["touch"])
        stripes, facts = cur.fetchone() or (None, None)
        if missing := set(stripes or ()) - held:
            raise _Stripes(missing)
        return facts or 0

    def _refresh(
        self,
        conn: psycopg.Connection[Any],
        facts: int,
        *,
        shrinking: bool,
        limited: bool = True,
        last: Callable[[], None] = lambda: None,
    ) -> list[Change]:
        """Refresh each view that reads one of the `facts` and note in the outbox what changed; gives what this worker has to publish of
        it. `last` goes with them. Custom metrics have a limit, unless it isn't `limited`.
        """
        mine = sorted(self._mine) or list(range(self._partitions))
        values = {"mine": mine, "whole": len(mine) == self._partitions, "partitions": self._partitions}
        reading = [view for view in self._views if mask_of(view.reads, self._views) & facts]
        cursors: list[psycopg.Cursor[Any]] = [
            psycopg.RawCursor(conn) for _ in reading
        ]  # what is found is taken up when it is published
        gone: dict[str, list[str]] = {}
        with conn.pipeline():
            for view, cur in zip(reading, cursors, strict=True):
                if shrinking and len(view.key) == 1:
                    removed = conn.cursor(binary=True)
                    removed.execute(self._statements[f"remove {view.name}"])
                    gone[view.name] = [str(customer) for (customer,) in removed.fetchall()]
                statement, names = self._statements[f"refresh {view.name}"]
                given = {**values, "gone": gone.get(view.name, [])}
                ask = partial(cur.execute, statement, [given[name] for name in names], binary=True)
                if limited and self._metrics and view.name == metrics.name:
                    bound.limited(conn, ask)
                else:
                    ask()
            last()
        changes = []
        for view, cur in zip(reading, cursors, strict=True):
            lost = gone.get(view.name, [])
            if (first := cur.fetchone()) is not None:
                rows = partial(_rows, cur, first)
                changes.append(Change(view, first[-1], rows, [c for c in lost if self._owns(c)]))
                telemetry.VIEW_ROWS.labels(view.name).inc(cur.rowcount + len(lost))
        return changes

    def _owns(self, customer_id: str) -> bool:
        return not self._mine or output_partition(customer_id, self._partitions) in self._mine

    def _finish(self, cur: psycopg.Cursor[Any], batch: Batch, *, pruned: bool) -> None:
        self._clear(cur, batch, pruned=pruned)
        self._store_places(cur, batch)
        self._advance(cur, batch)

    def _store_places(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """Remember where the batch's events lie, and forget in the outbox what is acknowledged."""
        hashes, offsets = batch.places
        cur.execute(
            self._statements["places"], {"hashes": hashes, "offsets": offsets, "forgettable": self._forgettable}
        )
        self._untidy += 1 / _places.FOLD_ROWS + len(hashes) / 4 / _places.SORT_KEYS

    def _tidy_places(self, cur: psycopg.Cursor[Any]) -> None:
        """Now and then put the rows in order."""
        if self._untidy >= 1:
            _places.tidy(cur, self._schema)
            self._untidy = 0.0

    def _fold(self, cur: psycopg.Cursor[Any], events: int) -> None:
        """Now and then fold what is new in the rollups."""
        if self._unfolded >= 1:
            _rollup.fold(cur, self._schema, ROLLUPS)
            self._unfolded = 0.0
        self._unfolded += events / FOLD_EVENTS + 1 / FOLD_BATCHES

    def _advance(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """Move the offsets on, if they are where the batch starts; `_check_advance` says whether they were."""
        partitions = sorted(batch.next_offsets)
        cur.execute(
            f"""INSERT INTO {self._schema}.offsets AS o (partition, next_offset)
               SELECT p, n FROM unnest(%(partitions)s::int[], %(next)s::bigint[]) v(p, n) ORDER BY p
               ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset
               WHERE o.next_offset <= (
                   SELECT f FROM unnest(%(partitions)s::int[], %(first)s::bigint[]) w(p, f) WHERE w.p = o.partition)
               RETURNING tableoid::bigint""",
            {
                "partitions": partitions,
                "next": [batch.next_offsets[p] for p in partitions],
                "first": [batch.first_offsets[p] for p in partitions],
            },
        )

    def _pass_over(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """Move the offsets on past a batch of which nothing is stored."""
        self._lock(cur, set())
        self._advance(cur, batch)
        self._check_advance(cur, batch)

    def _check_advance(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        written = cur.fetchall()
        if any(oid != self._oid for (oid,) in written):
            raise _Swapped
        if len(written) != len(batch.next_offsets):
            raise LostPartition("another worker has projected this partition further")

    # ---- trouble

    def _apply_apart(self, batch: Batch, reason: psycopg.Error) -> None:
        """A value in the batch can't be stored: find the message by halving, put it aside, apply the rest."""
        if len(batch.messages) > 1:
            self._halved(batch)
            return
        refused = UnusableEvent(f"PostgreSQL refused a value ({type(reason).__name__})")
        self._bury([(batch.messages[0], refused)])
        try:
            with postgres.translated(), self._connection().transaction(), self._connection().cursor() as cur:
                self._pass_over(cur, batch)
        except _Swapped as exc:
            raise LostPartition("the schema was swapped while a message was put aside") from exc

    def _halved(self, batch: Batch) -> None:
        middle = len(batch.messages) // 2
        for half in (batch.messages[:middle], batch.messages[middle:]):
            self.apply(self.decode(half))

    def _overdue(self, exc: psycopg.Error, *, alone: bool) -> bool:
        """Give up on a custom metric of a customer that took too long; False when it wasn't one that did, but all of them together.

        Raises:
            psycopg.Error: it is another error.
        """
        if exc.sqlstate != OVERDUE:
            raise exc
        with postgres.translated():
            return bound.give_up(self._connection(), exc, self._metrics, alone=alone)

    def _look(self) -> bool:
        """See which schema bears the name now; whether it is another one than before.

        Raises:
            Fatal: it is, and of another definition.
            LostPartition: it is, and of another generation of the log: `positions` tells where to read that one.
        """
        with postgres.translated():
            found = self._ensure()
            generation = generations.current(self._connection())
        swapped, self._oid = found != self._oid, found
        if self._schema == LIVE and generation != self.generation:
            raise LostPartition("the views are of a new generation of the log")
        return swapped

    def _bury(self, bad: Sequence[tuple[Message, Poison]]) -> None:
        """Write dead letters and wait until they are stored.

        Raises:
            BrokerUnavailable: they are not.
        """
        if self._publisher is None:
            self.unusable += len(bad)
            return
        letters = []
        for message, reason in bad:
            letters.append(dead_letter("project", message, reason))
            telemetry.DEAD_LETTERS.labels("project", reason.code).inc()
            self._log.warning(
                Log.EVENT_DEAD_LETTERED,
                code=reason.code,
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
            )
        self._publisher.put_aside(letters)

    # ---- the outbox

    def _note_published(self, wait_s: float = 0.0) -> None:
        """Have what is acknowledged forgotten with the next commit. What isn't is in the outbox, and is looked after at once."""
        if self._publisher:
            try:
                self._forgettable += self._publisher.confirmed(wait_s=wait_s)
            except BrokerUnavailable as exc:
                self._told.warning(Log.BATCH_RETRIED, step="publish", code=exc.code)
                self._left = True

    def _look_after(self) -> None:
        """Every moment, also under load, publish what the outbox holds and is not under way: what other workers left for our
        partitions, and what Kafka refused before.
        """
        if self._publisher and (self._left or (self._mine and time.monotonic() - self._looked >= LOOK_EVERY_S)):
            self._looked = time.monotonic()
            # one that no group gives partitions to has all; one that has lost all it had, none
            mine = sorted(self._mine) or ([] if self._epochs else [*range(self._partitions)])
            for tries_left in reversed(range(TRIES if self._left else 1)):
                try:
                    if self._left:
                        self._publisher.rest()
                    self.recover(mine)
                    break
                except BrokerUnavailable:  # such as one that stood still again
                    if not tries_left:
                        raise
            self._left = False

    def _finish_published(self, wait_s: float = 0.0) -> None:
        self._note_published(wait_s)
        self._forget(self._forgettable)
        self._forgettable = []

    def _forget(self, ids: list[int]) -> None:
        if ids:
            with postgres.translated():
                self._connection().execute("DELETE FROM hub.outbox WHERE id = ANY(%s)", (ids,))

    def _recover(self, partitions: list[int]) -> int:
        conn, publisher = self._connection(), self._publisher
        if publisher is None:
            return 0
        found = conn.execute(
            "SELECT id, partitions, topic, customer_ids::text[], payload, rebuilt FROM hub.outbox "
            "WHERE partitions && %s::int[] AND id <> ALL(%s::bigint[]) ORDER BY id",
            (partitions, [*publisher.under_way, *self._forgettable]),
        ).fetchall()
        if found:
            self._check_owned(partitions)
        done = 0
        if any(rebuilt for *_, rebuilt in found):
            self._look()  # what a replay left is published by the code that the replay was of
        for id_, of, topic, customers, payload, rebuilt in found:
            view = next(v for v in self._views if v.topic == topic)
            ours = [c for c in customers if output_partition(c, self._partitions) in partitions]
            numbered = time.monotonic()
            with conn.cursor(binary=True) as cur:
                cur.execute("SELECT nextval(pg_get_serial_sequence('hub.outbox', 'id'))")
                version = (cur.fetchone() or (id_,))[0]
                rows, gone = [], []
                if payload is not None:
                    rows = [(*row, version) for row in payload if row[0] in set(ours)]
                elif ours:
                    cur.execute(self._statements[f"read {view.name}"], (version, ours))
                    rows = cur.fetchall()
                    gone = sorted(set(ours) - {row[0] for row in rows})
            if rows or gone:
                publisher.publish([Change(view, None, partial(list, rows), gone)], made=numbered, rebuilt=rebuilt)
                done += len(ours)
            rest = sorted(set(of) - set(partitions))
            confirmed = publisher.confirmed(wait_s=30.0)
            self._forget(confirmed)
            if rest:
                conn.execute("UPDATE hub.outbox SET partitions = %s WHERE id = %s", (rest, id_))
            else:
                conn.execute("DELETE FROM hub.outbox WHERE id = %s", (id_,))
        return done

    def _check_owned(self, partitions: Sequence[int]) -> None:
        """A worker that stood still may not know yet what the group took from it; its new owner may have published newer rows."""
        rows = self._connection().execute(
            "SELECT partition, epoch FROM hub.owners WHERE partition = ANY(%s)", (list(partitions),)
        )
        if lost := [partition for partition, epoch in rows if self._epochs.get(partition, epoch) != epoch]:
            raise LostPartition(f"{len(lost)} partitions were given to another worker")

    # ---- the connection

    def _ensure(self) -> int:
        """Make the schema if there is none; its oid (see `ensure_live`)."""
        oid = ensure_live(self._connection(), self._schema)
        self._define()  # after the oid: when they are swapped in between, the next batch sees it
        return oid

    def _define(self) -> bool:
        """Make the statements for the views as they are now, unless they are; whether they were others."""
        self._metrics = defined(self._connection())
        found = views(self._connection())
        if changed := found != self._views:
            self._views = found
            self._statements = statements(self._schema, self._priority, found, feed=self._feed)
        return changed

    def _connection(self) -> psycopg.Connection[Any]:
        """The connection, made anew after a loss. Plans are kept generic and joins by index: a batch is small beside the tables, and
        a plan that flips to scanning them would make the time of a batch grow with the history.
        """
        if self._conn is None or self._conn.closed or self._conn.broken:
            conn = postgres.connect(self._settings.postgres, role="project", prepare_threshold=0)
            for setting in _SESSION:
                conn.execute(sql.SQL("SET ") + sql.SQL(setting))
            if self._publisher:
                postgres.let_go_after(conn, self._settings.worker.session_timeout_ms)
            for statement in (*_sql.STAGES, *(ddl for fact in FACTS for ddl in _sql.stage_ddl(fact))):
                conn.execute(statement)
            conn.add_notice_handler(lambda diagnostic: bound.noticed(self._metrics, diagnostic))
            set_json_loads(orjson.loads, conn)
            conn.prepared_max = 500
            self._conn = conn
        return self._conn


def statements(schema: str, priority: str, views: Sequence[View], *, feed: bool) -> dict[str, Any]:
    """Every statement of a batch, made once: the same text each time lets PostgreSQL keep its plan."""
    made: dict[str, Any] = {
        "links": _sql.LINKS_UPSERT.format(schema=schema),
        "gone": _sql.GONE_UPSERT.format(schema=schema),
        "any_erased": _sql.ANY_ERASED.format(schema=schema),
        "touch": _sql.TOUCH.format(schema=schema, judged=_sql.TO_BE_JUDGED if feed else ""),
        "clear ": _sql.clear(_sql.STAGES),
        "stated_sets": _sql.STATED_SETS.format(schema=schema),
        "places": "WITH forgotten AS (DELETE FROM hub.outbox WHERE id = ANY(%(forgettable)s::bigint[])) "
        + _places.STORE.format(schema=schema),
    }
    for fact in FACTS:
        made[f"upsert {fact.name}"] = _sql.upsert(schema, fact)
        made[f"prune {fact.name}"] = _sql.prune(schema, fact)
        made[f"clear {fact.name}"] = _sql.clear(_sql.stage_ddl(fact))
        if fact.partial:
            made[f"composites {fact.name}"] = _sql.composites(schema, fact)
    for view in views:
        all_facts = ALL if feed and view.name == profiles.name else 0
        refresh = _sql.refresh(
            view, schema, priority, mask_of(view.reads, views), feed=feed, all_facts=all_facts,
            crowded=view.name == metrics.name and schema != SCRATCH,
        )  # fmt: skip
        made[f"refresh {view.name}"] = _sql.numbered(refresh)
        if len(view.key) == 1:
            made[f"remove {view.name}"] = _sql.remove(view, schema, priority)
            made[f"read {view.name}"] = _sql.read(view, schema)
    return made


def _rows(cur: psycopg.Cursor[Any], first: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """All rows of an answer whose first row was taken."""
    return [first, *cur.fetchall()]


def partition_count(settings: Settings, topic: str) -> int:
    """Partitions of a topic (its full name); those of a new one when it isn't there."""
    return kafka.topics(settings.kafka).get(topic) or settings.kafka.partitions
