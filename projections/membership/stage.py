"""Keeps who is in which defined segment: after batches, when the time comes, and for new definitions.

A batch leaves a note of the customers that it touched and of which facts (hub.segment_touched), in its own transaction, so that none
is forgotten. One worker, the holder of an advisory lock, takes the notes and judges these customers again, but only by segments whose
criteria read what was touched. Each judgement also gives the moment at which it could change with no event; what is due is judged like
what was touched. A new definition is applied to everyone in chunks between that. Memberships, their history, the due moments and the
outbox are written in the transaction that takes the notes, so a crash repeats it whole.

Segments are judged in bundles, one statement each, which PostgreSQL plans once: those that read the same facts go together, and the
facts are read once for all of them. A segment that names another is judged after it, for those who entered or left it. The next due
moment is kept by customer and bundle; so a segment that comes into another bundle is applied to everyone again.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from caudal.projections import _sql, criteria
from caudal.projections._batch import LINKED
from caudal.projections._publish import output_partition
from caudal.projections._runner import mask_of, partition_count
from caudal.projections._schema import LIVE, SWAP_LOCK, VIEWS, views
from caudal.projections._view import View
from caudal.projections.criteria.fields import HUB_TABLES
from caudal.projections.membership.definitions import Segment, defined
from caudal.projections.segments import SEGMENTS, segment_members
from psycopg.types.json import Jsonb

from caudal import kafka, postgres, telemetry
from caudal.errors import CaudalError
from caudal.settings import Settings
from caudal.telemetry import Log, Seldom, logger

__all__ = ["Memberships", "refill"]

_LOCK = postgres.Lock.MEMBERSHIPS
PAUSE_S = 0.05
"""Between two looks when nothing is to be done."""
LEADER_S = 1.0
"""Between two attempts to become the one who does it; also how long a lost database is left alone."""
GONE_AFTER = "30s"
"""A holder that stands still so long loses its connection, and with it the lock: it would look many times a second."""
JUDGEMENTS = 500_000
"""About so many judgements, of one customer by one segment, are one transaction."""
MOST_CUSTOMERS = 2_000
NOTES = 20_000
"""So many notes are looked through for customers to judge."""
BUNDLE_BITS = 8
"""Segments whose ids differ in these last bits only may be judged by one statement: its columns have to stay within PostgreSQL's 1,664."""
NOBODY = UUID(int=0)
BY_TIME, BY_DEFINITION, BY_LINKS = "time", "definition", "links"


@dataclass(frozen=True)
class _Move:
    """Somebody entered or left a segment."""

    customer: str
    segment: int
    entered: bool
    cause: str


@dataclass
class _Bundle:
    """Segments that are judged together.

    Attributes:
        name: stays as long as the segments' criteria do.
        segments: which.
        level: 0 when none of them names a defined segment; else above those that they name.
        mask: the facts that they read, as bits.
        statement: `_JUDGE` with numbered parameters. psycopg reads named ones anew each time, which takes longer than the judging.
        names: of the parameters, in their order.
        parameters: those that the criteria state.
        named: the defined segments that their criteria name, by id.
    """

    name: str
    segments: Sequence[Segment]
    level: int
    mask: int
    statement: str
    names: Sequence[str]
    parameters: Mapping[str, Any]
    named: set[int] = field(default_factory=set)

    @property
    def ids(self) -> list[int]:
        return [segment.id for segment in self.segments]


class Memberships:
    """The stage, in a thread of its own; of several workers one does the work, the others stand by."""

    def __init__(self, settings: Settings, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Nothing is connected before `start` or `step`. `clock` says what time it is."""
        self._settings = settings
        self._clock = clock
        self._conn: psycopg.Connection[Any] | None = None
        self._revision = -1
        self._segments: dict[int, Segment] = {}
        self._bundles: list[_Bundle] = []
        self._partitions = 0
        self._told = Seldom()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memberships", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(60)
        self.close()

    def close(self) -> None:
        """Disconnect, which frees the lock."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def step(self) -> bool | None:
        """Do a part of what is to be done; False when nothing was, None when another worker does it.

        Raises:
            DatabaseUnavailable: nothing was changed.
            BrokerUnavailable: Kafka doesn't say how many partitions there are.
        """
        with postgres.translated():
            conn = self._connection()
            if conn is None:
                return None
            now = self._clock()
            row = conn.execute(_WAITING, {"now": now}).fetchone()
            touched, due, unfinished, revision, there = row or (False, False, False, 0, False)
            if not there:
                return False
            if revision != self._revision:
                self._load(conn, revision)
            done = False
            try:
                if touched or due:
                    self._in_transaction(conn, now, self._follow)
                    done = True
                if unfinished:
                    done = self._in_transaction(conn, now, self._apply_definitions) or done
            except BaseException:
                self._revision = -1  # what was noted of them here may not be true
                raise
            return done

    # ---- what is to be judged

    def _follow(self, conn: psycopg.Connection[Any], now: datetime) -> bool:
        """Judge who was touched, and whose time has come."""
        most = self._most(len(self._segments))
        notes = conn.execute(_TAKE, {"most": most}).fetchall()
        dues = conn.execute(_DUE, {"now": now, "most": most, "bundles": [b.name for b in self._bundles]}).fetchall()
        work: dict[int, dict[str, str]] = defaultdict(dict)
        for number, bundle in enumerate(self._bundles):
            work[number] = {customer: BY_TIME for customer, name, _ in dues if name == bundle.name}
            work[number] |= {customer: cause for customer, facts, cause in notes if facts & bundle.mask}
        for _, _, at in dues:
            telemetry.SEGMENT_LATENESS.observe(max((now - at).total_seconds(), 0.0))
        self._publish(conn, self._judge(conn, now, work), rebuilt=False)
        if gone := conn.execute(_ERASED, {"customers": [customer for customer, _, _ in notes]}).fetchall():
            conn.execute(_FORGET, {"gone": [customer for (customer,) in gone]})
        return True

    def _apply_definitions(self, conn: psycopg.Connection[Any], now: datetime) -> bool:
        """Apply new versions to the next customers, and let the next members of archived segments leave."""
        waiting = [s for s in self._segments.values() if s.state == "filling"]
        if waiting:
            begin = min(segment.filled for segment in waiting)
            waiting = [segment for segment in waiting if segment.filled == begin]
            ids = {segment.id for segment in waiting}
            bundles = [number for number, bundle in enumerate(self._bundles) if ids & set(bundle.ids)]
            most = self._most(sum(len(self._bundles[number].segments) for number in bundles))
            next_ = conn.execute(_NEXT, {"after": begin, "ids": [*ids], "most": most}).fetchall()
            work = {number: dict.fromkeys((c for (c,) in next_), BY_DEFINITION) for number in bundles}
            self._publish(conn, self._judge(conn, now, work), rebuilt=True)
            self._advance(conn, waiting, next_[-1][0] if len(next_) == most else None, "live")
            return True
        leaving = next((s for s in self._segments.values() if s.state == "leaving"), None)
        if leaving is None:
            return False
        found = conn.execute(
            _LEAVE,
            {
                "segment": leaving.id,
                "version": leaving.version,
                "most": MOST_CUSTOMERS,
                "now": now,
                "cause": BY_DEFINITION,
            },
        ).fetchall()
        moves = [_Move(customer, leaving.id, entered=False, cause=BY_DEFINITION) for (customer,) in found]
        self._publish(conn, moves, rebuilt=True)  # no other segment names it, or it would not have been archived
        self._advance(conn, [leaving], str(NOBODY) if len(found) == MOST_CUSTOMERS else None, "archived")
        return True

    def _advance(
        self, conn: psycopg.Connection[Any], segments: Sequence[Segment], filled: str | None, then: str
    ) -> None:
        """Note how far definitions are applied; None: to everyone. One that was changed meanwhile begins anew."""
        conn.execute(
            """UPDATE hub.segments s SET filled = coalesce(%(filled)s::uuid, s.filled),
                   state = CASE WHEN %(filled)s::uuid IS NULL THEN %(then)s ELSE s.state END
               FROM unnest(%(ids)s::int[], %(revisions)s::bigint[]) AS known(id, revision)
               WHERE s.id = known.id AND s.revision = known.revision""",
            {
                "filled": filled,
                "then": then,
                "ids": [segment.id for segment in segments],
                "revisions": [segment.revision for segment in segments],
            },
        )
        for segment in segments:
            reached = UUID(filled) if filled is not None else segment.filled
            self._segments[segment.id] = replace(
                segment, filled=reached, state=then if filled is None else segment.state
            )
            if filled is None:
                logger().info(Log.SEGMENT_APPLIED, segment=segment.name, version=segment.version, state=then)

    # ---- judging

    def _judge(
        self, conn: psycopg.Connection[Any], now: datetime, work: Mapping[int, Mapping[str, str]]
    ) -> list[_Move]:
        """Judge customers (id → cause) by bundles (number → customers), and by those that name what they enter or leave."""
        moves: list[_Move] = []
        more: dict[int, dict[str, str]] = defaultdict(dict)
        for number, bundle in enumerate(self._bundles):  # in the order of their levels
            customers = {**more[number], **work.get(number, {})}
            if not customers:
                continue
            given = {
                **bundle.parameters,
                "now": now,
                "bundle": bundle.name,
                "ids": bundle.ids,
                "versions": [segment.version for segment in bundle.segments],
                "customers": [*customers],
                "causes": [*customers.values()],
            }
            found = psycopg.RawCursor(conn).execute(bundle.statement, [given[name] for name in bundle.names])
            here = [_Move(*row) for row in found]
            moves += here
            for then, followers in self._following(here).items():
                more[then] |= followers
        return moves

    def _following(self, moves: Iterable[_Move]) -> dict[int, dict[str, str]]:
        """Whom to judge by which bundles because of moves."""
        found: dict[int, dict[str, str]] = {}
        moved: dict[int, dict[str, str]] = defaultdict(dict)
        for move in moves:
            moved[move.segment][move.customer] = move.cause
        for number, bundle in enumerate(self._bundles):
            for segment in bundle.named & moved.keys():
                found.setdefault(number, {}).update(moved[segment])
        return found

    def _publish(self, conn: psycopg.Connection[Any], moves: Iterable[_Move], *, rebuilt: bool) -> None:
        """Leave moves in the outbox, to whoever has the customer's partition."""
        if not self._partitions:
            topic = kafka.topic(self._settings.kafka, kafka.CHANGES)
            self._partitions = partition_count(self._settings, topic)
        placed: dict[int, list[_Move]] = defaultdict(list)
        for move in moves:
            placed[output_partition(move.customer, self._partitions)].append(move)
            telemetry.SEGMENT_CHANGES.labels("entered" if move.entered else "left").inc()
        for partition, here in sorted(placed.items()):
            payload = [[m.customer, self._segments[m.segment].name, m.entered, m.cause] for m in here]
            conn.execute(
                "INSERT INTO hub.outbox (partitions, topic, customer_ids, payload, rebuilt) VALUES (%s, %s, %s::uuid[], %s, %s)",
                ([partition], kafka.SEGMENTS, sorted({m.customer for m in here}), Jsonb(payload), rebuilt),
            )

    # ---- definitions

    def _load(self, conn: psycopg.Connection[Any], revision: int) -> None:
        self._segments = {segment.id: segment for segment in defined(conn)}
        self._bundles = bundles([s for s in self._segments.values() if s.state != "leaving"], views(conn))
        self._revision = revision
        names = {segment.id: bundle.name for bundle in self._bundles for segment in bundle.segments}
        moved = conn.execute(
            """UPDATE hub.segments s SET bundle = b.name, state = 'filling', filled = %s
               FROM unnest(%s::int[], %s::text[]) b(id, name) WHERE s.id = b.id AND s.bundle <> b.name
               RETURNING s.id""",
            (NOBODY, [*names], [*names.values()]),
        )
        for (id_,) in moved:
            self._segments[id_] = replace(self._segments[id_], state="filling", filled=NOBODY)

    @staticmethod
    def _most(segments: int) -> int:
        return max(min(JUDGEMENTS // max(segments, 1), MOST_CUSTOMERS), 50)

    # ---- the connection and the thread

    def _connection(self) -> psycopg.Connection[Any] | None:
        """The connection, when it holds the lock."""
        if self._conn is None or self._conn.closed or self._conn.broken:
            conn = postgres.connect(self._settings.postgres, role="memberships", prepare_threshold=0)
            if conn.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
                conn.close()
                return None
            conn.execute("SET plan_cache_mode = force_generic_plan")
            conn.execute("SELECT set_config('idle_session_timeout', %s, false)", (GONE_AFTER,))
            postgres.let_go_after(conn, self._settings.worker.session_timeout_ms)
            conn.execute("SET transaction_timeout = 0")  # a chunk of many segments may take its time
            conn.prepared_max = None
            self._conn, self._revision = conn, -1
        return self._conn

    @staticmethod
    def _in_transaction(
        conn: psycopg.Connection[Any], now: datetime, do: Callable[[psycopg.Connection[Any], datetime], bool]
    ) -> bool:
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (SWAP_LOCK,))
            return do(conn, now)

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = 0.0
            try:
                done = self.step()
                if not done:
                    wait_s = PAUSE_S if done is False else LEADER_S
            except CaudalError as exc:
                self._told.warning(Log.BATCH_RETRIED, step="memberships", code=exc.code, wait_s=LEADER_S)
                wait_s = LEADER_S
            except Exception as exc:
                logger().exception(Log.PROCESS_FAILED, process="worker", step="memberships", error=type(exc).__name__)
                wait_s = LEADER_S
                self.close()
            self._stop.wait(wait_s)


def refill(conn: psycopg.Connection[Any], *, reading: str | None = None) -> None:
    """Have every segment applied to everyone again, in the transaction that swaps other views in, or those that read one table."""
    conn.execute("LOCK TABLE hub.segments IN SHARE ROW EXCLUSIVE MODE")
    ids = [s.id for s in defined(conn) if reading is None or (s.condition and reading in criteria.reads(s.condition))]
    conn.execute(
        """UPDATE hub.segments s SET state = 'filling', filled = %s, revision = n.revision
           FROM (SELECT id, (SELECT max(revision) FROM hub.segments) + row_number() OVER (ORDER BY id) AS revision
                 FROM hub.segments) n
           WHERE s.id = n.id AND s.state IN ('filling', 'live') AND s.id = ANY (%s)""",
        (NOBODY, ids),
    )


def bundles(segments: Sequence[Segment], views: Sequence[View] = VIEWS) -> list[_Bundle]:
    """Segments in bundles, in the order in which they can be judged. `views` say which facts a view reads."""
    by_name = {segment.name: segment for segment in segments}
    conditions = {s.name: s.condition for s in segments if s.condition is not None}
    levels: dict[str, int] = dict.fromkeys(by_name, 0)
    named = {name: criteria.segments_named(condition) for name, condition in conditions.items()}
    for name in criteria.order(conditions):
        levels[name] = max((levels[other] + 1 for other in named[name] if other in levels), default=0)
    masks = {name: _mask(condition, views) for name, condition in conditions.items()}
    together: dict[tuple[int, int, int, bool], list[Segment]] = defaultdict(list)
    for segment in sorted(segments, key=lambda segment: segment.id):
        mask = masks.get(segment.name, LINKED)
        together[levels[segment.name], mask, segment.id >> BUNDLE_BITS, segment.name in conditions].append(segment)
    made = []
    for (level, mask, block, has_criteria), part in together.items():
        asked = [segment.condition for segment in part if segment.condition is not None]
        judged = criteria.judged(asked, LIVE) if has_criteria else criteria.Sql(_LISTED, {})
        ids = {by_name[other].id for segment in part for other in named.get(segment.name, ()) if other in by_name}
        name = f"{level}.{mask:x}.{block}" if has_criteria else f"lists.{block}"
        statement, names = _sql.numbered(_JUDGE.format(judged=judged.text))
        made.append(_Bundle(name, part, level, mask, statement, names, judged.parameters, ids))
    return sorted(made, key=lambda bundle: bundle.level)


def _mask(condition: criteria.Condition, views: Sequence[View]) -> int:
    """The facts whose change can change the answer; what it says of defined segments is followed by itself."""
    names = set(criteria.reads(condition)) - HUB_TABLES
    if not criteria.segments_named(condition) & SEGMENTS.keys():
        names.discard(segment_members.name)
    return LINKED | mask_of(names, views)


_WAITING = """
    SELECT EXISTS (SELECT FROM hub.segment_touched), EXISTS (SELECT FROM hub.segment_due WHERE at <= %(now)s),
           EXISTS (SELECT FROM hub.segments WHERE state IN ('filling', 'leaving')), (SELECT coalesce(max(revision), 0) FROM hub.segments),
           to_regclass('live.profiles') IS NOT NULL
"""
_TAKE = f"""
    WITH notes AS MATERIALIZED (
        SELECT ctid AS place, customer_id FROM hub.segment_touched LIMIT {NOTES}
    ), chosen AS MATERIALIZED (
        SELECT DISTINCT customer_id FROM notes LIMIT %(most)s
    ), taken AS (
        DELETE FROM hub.segment_touched
        WHERE ctid = ANY (ARRAY(SELECT place FROM notes WHERE customer_id IN (SELECT customer_id FROM chosen)))
        RETURNING customer_id, facts, cause
    )
    SELECT customer_id::text, bit_or(facts), coalesce(max(cause), '{BY_LINKS}') FROM taken GROUP BY customer_id
"""
"""Many notes of the same customers are one judgement. A note without a cause: accounts went from one customer to another."""
_DUE = """
    WITH gone AS (
        DELETE FROM hub.segment_due WHERE at <= %(now)s AND bundle <> ALL (%(bundles)s::text[])
    )
    SELECT customer_id::text, bundle, at FROM hub.segment_due WHERE at <= %(now)s AND bundle = ANY (%(bundles)s::text[])
    ORDER BY at LIMIT %(most)s
"""
_NEXT = """
    SELECT customer_id::text FROM (
        (SELECT customer_id FROM live.profiles WHERE customer_id > %(after)s ORDER BY 1 LIMIT %(most)s)
        UNION
        (SELECT DISTINCT customer_id FROM hub.segment_memberships WHERE segment_id = ANY (%(ids)s) AND customer_id > %(after)s
         ORDER BY 1 LIMIT %(most)s)
    ) next ORDER BY next.customer_id LIMIT %(most)s
"""
"""The next customers: those that are, and members who no longer are."""
_LEAVE = """
    WITH gone AS (
        DELETE FROM hub.segment_memberships WHERE (customer_id, segment_id) IN (
            SELECT customer_id, segment_id FROM hub.segment_memberships WHERE segment_id = %(segment)s ORDER BY customer_id LIMIT %(most)s)
        RETURNING customer_id
    ), told AS (
        INSERT INTO hub.segment_history (customer_id, segment_id, version, entered, at, cause)
        SELECT customer_id, %(segment)s, %(version)s, false, %(now)s, %(cause)s FROM gone
    )
    SELECT customer_id::text FROM gone
"""
_ERASED = """
    SELECT k.customer_id FROM unnest(%(customers)s::uuid[]) k(customer_id)
    LEFT JOIN LATERAL (SELECT true AS there FROM live.profiles x WHERE x.customer_id = k.customer_id OFFSET 0) p ON true
    CROSS JOIN LATERAL (SELECT bool_and(x.erased_at IS NOT NULL) AS erased FROM live.links x WHERE x.customer_id = k.customer_id) l
    WHERE p.there IS NULL AND l.erased
"""
"""Who has no account left that wasn't erased."""
_FORGET = """
    WITH gone AS MATERIALIZED (
        SELECT unnest(%(gone)s::uuid[]) AS customer_id
    ), ids AS MATERIALIZED (
        SELECT customer_id FROM gone
        UNION
        SELECT f.customer_id FROM gone JOIN live.links l USING (customer_id) JOIN hub.former_customers f ON f.subject = l.subject
        WHERE NOT EXISTS (
            SELECT FROM hub.former_customers o JOIN live.links x ON x.subject = o.subject
            WHERE o.customer_id = f.customer_id AND x.erased_at IS NULL)
    ), unlisted AS (
        DELETE FROM hub.segment_listed WHERE customer_id IN (SELECT customer_id FROM ids)
    ), untold AS (
        DELETE FROM hub.built_in_history WHERE customer_id IN (SELECT customer_id FROM ids)
    )
    DELETE FROM hub.segment_history WHERE customer_id IN (SELECT customer_id FROM ids)
"""
"""Of who was erased nothing is kept: neither history nor place on a list, also under ids that were merged into theirs."""
_JUDGE = """
    WITH k AS MATERIALIZED (
        SELECT * FROM unnest(%(customers)s::uuid[], %(causes)s::text[]) AS asked(customer_id, cause)
    ), judged AS MATERIALIZED ({judged}), j AS MATERIALIZED (
        SELECT k.customer_id, k.cause, judged.dues,
               ARRAY(SELECT s.id FROM unnest(%(ids)s::int[], judged.holds) s(id, holds) WHERE s.holds) AS has
        FROM k LEFT JOIN judged ON judged.customer_id = k.customer_id
    ), diff AS MATERIALIZED (
        SELECT j.customer_id, j.cause, j.has, had.ids AS had
        FROM j CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(m.segment_id), '{{}}') AS ids FROM hub.segment_memberships m
            WHERE m.customer_id = j.customer_id AND m.segment_id = ANY (%(ids)s::int[])
        ) had
        WHERE NOT (had.ids @> j.has AND j.has @> had.ids)
    ), moves AS MATERIALIZED (
        SELECT d.customer_id, v.id AS segment_id, false AS entered, d.cause FROM diff d, unnest(d.had) v(id) WHERE v.id <> ALL (d.has)
        UNION ALL
        SELECT d.customer_id, v.id, true, d.cause FROM diff d, unnest(d.has) v(id) WHERE v.id <> ALL (d.had)
    ), went AS (
        DELETE FROM hub.segment_memberships WHERE ctid = ANY (ARRAY(
            SELECT m.ctid FROM moves v CROSS JOIN LATERAL (
                SELECT ctid FROM hub.segment_memberships x
                WHERE x.customer_id = v.customer_id AND x.segment_id = v.segment_id OFFSET 0
            ) m WHERE NOT v.entered))
    ), came AS (
        INSERT INTO hub.segment_memberships (customer_id, segment_id, entered_at)
        SELECT customer_id, segment_id, %(now)s FROM moves WHERE entered
    ), told AS (
        INSERT INTO hub.segment_history (customer_id, segment_id, version, entered, at, cause)
        SELECT v.customer_id, v.segment_id, s.version, v.entered, %(now)s, v.cause
        FROM moves v JOIN unnest(%(ids)s::int[], %(versions)s::int[]) s(id, version) ON s.id = v.segment_id
    ), awaited AS MATERIALIZED (
        SELECT customer_id, (SELECT min(at) FROM unnest(dues) d(at)) AS at FROM j
    ), over AS (
        DELETE FROM hub.segment_due WHERE ctid = ANY (ARRAY(
            SELECT d.ctid FROM awaited a CROSS JOIN LATERAL (
                SELECT ctid FROM hub.segment_due x WHERE x.customer_id = a.customer_id AND x.bundle = %(bundle)s OFFSET 0
            ) d WHERE a.at IS NULL))
    ), noted AS (
        INSERT INTO hub.segment_due AS d (customer_id, bundle, at) SELECT customer_id, %(bundle)s, at FROM awaited WHERE at IS NOT NULL
        ON CONFLICT (customer_id, bundle) DO UPDATE SET at = excluded.at WHERE d.at <> excluded.at
    )
    SELECT customer_id::text, segment_id, entered, cause FROM moves
"""
"""Judge customers by a bundle, and write what follows: memberships, history, due moments. Gives the moves. What is deleted is
found by index for one customer at a time: the planner must not choose to read the whole of tables that grow.

Parameters: `customers` and their `causes`, `now`, the `bundle`, its segments' `ids` and `versions` in the order of their
conditions, and the conditions' own.
"""
_LISTED = """
    SELECT p.customer_id, dues.none AS dues, ARRAY(
        SELECT EXISTS (
            SELECT FROM hub.segment_listed x WHERE x.segment_id = s.id AND (x.customer_id = p.customer_id OR x.customer_id IN (
                SELECT f.customer_id FROM live.links l JOIN hub.former_customers f ON f.subject = l.subject
                WHERE l.customer_id = p.customer_id))
        ) FROM unnest(%(ids)s::int[]) WITH ORDINALITY s(id, place) ORDER BY s.place) AS holds
    FROM (SELECT DISTINCT unnest(%(customers)s::uuid[]) AS customer_id) k
    CROSS JOIN LATERAL (SELECT customer_id FROM live.profiles x WHERE x.customer_id = k.customer_id OFFSET 0) p
    CROSS JOIN (SELECT NULL::timestamptz[] AS none) dues
"""
"""Who is on lists, in the shape of `criteria.judged`: under the own id, or under one that was merged into it."""
