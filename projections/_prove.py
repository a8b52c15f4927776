"""One customer from the log: what facts and views must hold, compared with what they do hold, and put right.

The events that name the customer's subjects are found by the index of places (_places.py), read one by one, and projected by the very
statements of the live path into temporary tables. That and the comparison happen in one snapshot, so live projection may go on.

A thing may pass from one subject to another (an order that was placed as a guest). So whatever other subject holds such a thing in the
live tables is read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from caudal.projections import _places, _sql
from caudal.projections._batch import ALL, STRIPES, Batch, Message, stripe
from caudal.projections._pick import Picker
from caudal.projections._runner import SCRATCH, STRIPE_LOCKS, Runner, statements
from caudal.projections._schema import FACTS, LIVE, ROLLUPS, SWAP_LOCK, VIEWS
from caudal.schemas.codec import Codec

from caudal import generations, offsets, postgres
from caudal.errors import Fatal
from caudal.settings import Settings

__all__ = ["Difference", "Prover", "Rebuilt", "compared", "difference", "known", "sample"]

_MOVABLE = tuple(fact for fact in FACTS if "subject" not in fact.key)
_CLEAN_EVERY = 200
"""Rebuilds after which the temporary tables are emptied: what a rollback leaves in them is still there to be stepped over."""


@dataclass(frozen=True)
class Difference:
    """A row that isn't what the log says.

    Attributes:
        customer_id: whose rebuild showed it; None for a row of a rollup.
        table: where.
        key: the row's key.
        fields: field → (in the live table, from the log); of a row that only one side has every field that isn't null.
        what: `missing` (only the log has it), `extra` (only the table has it) or `changed`.
    """

    customer_id: str | None
    table: str
    key: Mapping[str, Any]
    fields: Mapping[str, tuple[Any, Any]]
    what: str


@dataclass
class Rebuilt:
    """What the rebuild of a customer showed."""

    customer_id: str
    events: int = 0
    subjects: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    repaired: bool = False


def compared() -> dict[str, tuple[str, ...]]:
    """The tables that must be equal, with their keys."""
    tables: dict[str, tuple[str, ...]] = {"links": ("subject",)}
    for fact in FACTS:
        tables[fact.name] = fact.key
        if fact.partial:
            tables[f"{fact.name}_parts"] = (*fact.key, "stated")
    return tables | {view.name: view.key for view in VIEWS}


_KNOWN = " UNION ".join(
    f"SELECT customer_id FROM {table}"
    for table in ("hub.subjects", f"{LIVE}.links", *(f"{LIVE}.{view.name}" for view in VIEWS))
)


def known(conn: psycopg.Connection[Any]) -> int:
    """How many customers the identity state, the links or a view know."""
    row = conn.execute(f"SELECT count(*) FROM ({_KNOWN}) k").fetchone()
    return row[0] if row else 0


def sample(conn: psycopg.Connection[Any], number: int) -> list[str]:
    """Customers drawn at random of all that are `known`, each as likely as another; all of them when there are no more than `number`."""
    rows = conn.execute(f"SELECT customer_id::text FROM ({_KNOWN}) k ORDER BY random() LIMIT %s", (number,))
    return sorted(customer for (customer,) in rows.fetchall())


class Prover(Runner):
    """Rebuilds customers one by one. For one thread; keep it, since connecting takes longer than a rebuild."""

    def __init__(self, settings: Settings, codec: Codec, *, priorities: Mapping[str, int] | None = None) -> None:
        """Connect; the live schema must be there.

        Raises:
            LogTruncated: the log is not the one that was projected.
        """
        self._live: dict[str, Any] = {}
        super().__init__(settings, codec, priorities=priorities, schema=SCRATCH, feed=False)
        self._picker = Picker(settings.kafka)
        self._rebuilds = 0
        try:
            with postgres.translated():
                offsets.check(settings, self._connection(), generations.topic(settings.kafka, self.generation))
        except BaseException:
            self.close()
            raise

    def rebuild(self, customer_id: str, *, repair: bool = False) -> Rebuilt:
        """Compare a customer with the log; with `repair`, write what the log says and note the changed rows in the outbox.

        Raises:
            Fatal: the log or the index no longer holds what is needed, or there are no live tables.
            DatabaseUnavailable: try again.
            BrokerUnavailable: try again.
        """
        try:
            with postgres.translated():
                found, customers = self._within_limits(customer_id, repair=False)
                while repair and found.differences and not found.repaired:
                    with self._locked(customers):
                        found, more = self._within_limits(customer_id, repair=True, locked=customers)
                    customers |= more
        except psycopg.errors.UndefinedTable as exc:
            raise Fatal("the views have not been built yet", hint="`caudal run` builds them") from exc
        return found

    def close(self) -> None:
        """Disconnect."""
        super().close()
        self._picker.close()

    # ---- the proof

    def _within_limits(self, customer_id: str, *, repair: bool, locked: Iterable[str] = ()) -> tuple[Rebuilt, set[str]]:
        """As `_prove`, again for each custom metric that takes too long."""
        while True:
            try:
                return self._prove(customer_id, repair=repair, locked=locked)
            except psycopg.Error as exc:
                self._overdue(exc, alone=True)

    def _prove(self, customer_id: str, *, repair: bool, locked: Iterable[str] = ()) -> tuple[Rebuilt, set[str]]:
        """What is different, and the customers that a repair touches; repaired only if all of these are locked."""
        conn = self._connection()
        self._clean(conn)
        found = Rebuilt(customer_id)
        with postgres.transaction(conn), conn.cursor(binary=True) as cur:
            if self._define():
                self._live = statements(LIVE, self._priority, self._views, feed=True)
            cur.execute(_SUBJECTS, {"customer": customer_id})
            row = cur.fetchone()
            generation, found.subjects = row or (1, [])
            topic = generations.topic(self._settings.kafka, generation)
            found.events = self._project(conn, cur, topic, customer_id, found.subjects)
            marked = [_sql.ERASED + subject for subject in found.subjects]
            rows = _asked(conn, _COMPARE, {"customer": customer_id, "subjects": found.subjects + marked})
            found.differences = [difference(customer_id, *row) for row in rows]
            customers = self._concerned(cur, found)
            if repair and found.differences and customers <= set(locked):
                self._repair(cur, found.differences, customers)
                cur.execute(_EMPTY)
                found.repaired = True
            else:
                raise psycopg.Rollback
        return found, customers

    def _project(
        self, conn: psycopg.Connection[Any], cur: psycopg.Cursor[Any], topic: str, customer_id: str, subjects: list[str]
    ) -> int:
        """Project every event that names the subjects into the scratch tables; the number of events."""
        read: list[str] = []
        messages: list[Message] = []
        more = list(subjects)
        while more:
            read += more
            at = {(m.partition(), m.offset()) for m in messages}
            places = _places.find(conn, LIVE, more)
            wanted = {p: [o for o in offsets if (p, o) not in at] for p, offsets in places.items()}
            messages += self._picker.pick(topic, wanted)
            messages.sort(key=lambda m: (m.partition() or 0, m.offset() or 0))
            batch = self.decode(messages)
            if not batch.stages:
                break
            with conn.transaction() as attempt:
                self._transaction(batch, set(range(STRIPES)))
                more = [subject for (subject,) in _asked(conn, _OTHERS, {"read": read, "customer": customer_id})]
                if more:
                    raise psycopg.Rollback(attempt)
        return len(messages)

    def _concerned(self, cur: psycopg.Cursor[Any], found: Rebuilt) -> set[str]:
        subjects = {*found.subjects}
        for difference in found.differences:
            subjects |= {s for s in difference.fields.get("subject", ()) if s is not None}
        cur.execute(_CUSTOMERS, {"subjects": sorted(subjects)})
        return {found.customer_id, *(customer for (customer,) in cur.fetchall())}

    # ---- the repair

    @contextmanager
    def _locked(self, customers: Iterable[str]) -> Iterator[None]:
        """Hold the stripes of the customers, so that no batch touches them, and keep a swap out. Locks of the session: the snapshot
        must be taken when they are held.
        """
        conn = self._connection()
        try:
            conn.execute("SELECT pg_advisory_lock_shared(%s)", (SWAP_LOCK,))
            for one in sorted({stripe(customer) for customer in customers}):
                conn.execute("SELECT pg_advisory_lock(%s::int, %s::int)", (STRIPE_LOCKS, one))
            yield
        finally:
            if not conn.closed:
                conn.execute("SELECT pg_advisory_unlock_all()")

    def _repair(self, cur: psycopg.Cursor[Any], differences: Iterable[Difference], customers: Iterable[str]) -> None:
        views = {view.name for view in VIEWS}
        for difference in differences:
            if difference.table in views:
                continue
            where = " AND ".join(f"{column} = %({column})s" for column in difference.key)
            cur.execute(f"DELETE FROM {LIVE}.{difference.table} WHERE {where}", difference.key)
            cur.execute(
                f"INSERT INTO {LIVE}.{difference.table} SELECT * FROM {SCRATCH}.{difference.table} WHERE {where}",
                difference.key,
            )
        cur.execute(f"INSERT INTO {LIVE}.stated_sets SELECT * FROM {SCRATCH}.stated_sets ON CONFLICT DO NOTHING")
        cur.execute("DELETE FROM touched")
        cur.execute("DELETE FROM touched_subjects")
        cur.execute(
            "INSERT INTO touched (customer_id, facts) SELECT unnest(%s::text[])::uuid, %s", (sorted(customers), ALL)
        )
        cur.execute(  # the sums of their orders are made anew
            f"DELETE FROM {LIVE}.crowded WHERE subject IN (SELECT l.subject FROM {LIVE}.links l JOIN touched USING (customer_id))"
        )
        cur.execute(_sql.TOUCH_SUBJECTS.format(schema=LIVE))
        own, self._statements = self._statements, self._live
        try:
            changes = self._refresh(cur.connection, ALL, shrinking=True)
        finally:
            self._statements = own
        cur.execute(
            "INSERT INTO hub.segment_touched (customer_id, facts, cause) SELECT unnest(%s::text[])::uuid, %s, 'rebuild'",
            (sorted(customers), ALL),
        )
        cur.execute("UPDATE hub.outbox SET rebuilt = true WHERE id = ANY(%s)", ([c.outbox for c in changes],))
        cur.execute(
            "UPDATE hub.built_in_history SET cause = 'rebuild' WHERE customer_id = ANY(%s::text[]::uuid[]) AND at >= now()",
            (sorted(customers),),
        )

    # ---- what the runner does for a schema that lasts

    def _ensure(self) -> int:
        self._connection()
        return 0

    def _connection(self) -> psycopg.Connection[Any]:
        known = self._conn
        conn = super()._connection()
        if conn is not known:
            for table in _sql.tables(SCRATCH, FACTS, VIEWS).values():
                for statement in table:
                    conn.execute(statement)
            conn.execute("SET default_transaction_isolation = 'repeatable read'")
        return conn

    def _clean(self, conn: psycopg.Connection[Any]) -> None:
        self._rebuilds += 1
        if self._rebuilds % _CLEAN_EVERY == 0:
            conn.execute(_EMPTY)

    def _lock(self, cur: psycopg.Cursor[Any], stripes: set[int]) -> None:
        """Nobody else sees these tables."""

    def _store_places(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """They are known."""

    def _fold(self, cur: psycopg.Cursor[Any], events: int) -> None:
        """There are no rollups of these tables."""

    def _advance(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """These tables stand nowhere in the log."""

    def _check_advance(self, cur: psycopg.Cursor[Any], batch: Batch) -> None:
        """Nobody else moves them on."""


_SUBJECTS = f"""
    SELECT number, ARRAY(
        SELECT subject FROM {LIVE}.links WHERE customer_id = %(customer)s::text::uuid
        UNION SELECT subject FROM hub.subjects WHERE customer_id = %(customer)s::text::uuid
        UNION SELECT subject FROM hub.former_customers WHERE customer_id = %(customer)s::text::uuid)
    FROM hub.generation
"""

_OTHERS = _sql.numbered(
    " UNION ".join(
        f"""SELECT f.subject FROM {SCRATCH}.{fact.name} s
        CROSS JOIN LATERAL (SELECT ltrim(x.subject, '{_sql.ERASED}') AS subject FROM {LIVE}.{table} x
                            WHERE {" AND ".join(f"x.{k} = s.{k}" for k in fact.key)} {_sql.FENCE}) f
        WHERE f.subject <> ALL (%(read)s::text[])"""
        for fact in _MOVABLE
        for table in ([fact.name, f"{fact.name}_parts"] if fact.partial else [fact.name])
    )
    + f"""
    UNION SELECT subject FROM {SCRATCH}.links
    WHERE customer_id = %(customer)s::text::uuid AND subject <> ALL (%(read)s::text[])"""
)
"""Subjects not yet read: those that the live tables know as the holder of something that was stated about the ones read, and those
that an event about another gave to the customer, who may have gone to somebody else since."""

_CUSTOMERS = " UNION ".join(
    f"SELECT customer_id::text FROM {schema}.links WHERE subject = ANY (%(subjects)s::text[])"
    for schema in (LIVE, SCRATCH)
)

_EMPTY = "TRUNCATE " + ", ".join(f"{SCRATCH}.{name}" for name in (*compared(), "stated_sets", *_sql.staging(FACTS)))


def _keys(table: str, key: tuple[str, ...]) -> str:
    """The keys of a table's rows that are compared for a customer: what either side gives to the customer, or to its subjects."""
    of_customer = key[0] == "customer_id"
    chosen = "customer_id = %(customer)s::text::uuid" if of_customer else "subject = ANY (%(subjects)s::text[])"
    columns = ", ".join(key)
    return " UNION ".join(f"SELECT {columns} FROM {schema}.{table} WHERE {chosen}" for schema in (LIVE, SCRATCH))


def _compare(table: str, key: tuple[str, ...]) -> str:
    def on(side: str) -> str:
        return " AND ".join(f"x_{side}.{column} = k.{column}" for column in key)

    sides = " ".join(
        f"LEFT JOIN LATERAL (SELECT x_{side} AS whole FROM {schema}.{table} x_{side} WHERE {on(side)} {_sql.FENCE}) {side} ON true"
        for schema, side in ((LIVE, "l"), (SCRATCH, "r"))
    )
    return f"""SELECT '{table}', to_jsonb(l.whole), to_jsonb(r.whole) FROM ({_keys(table, key)}) k {sides}
               WHERE l.whole IS DISTINCT FROM r.whole"""


_COMPARE = _sql.numbered(" UNION ALL ".join(_compare(table, key) for table, key in compared().items()))


def _asked(
    conn: psycopg.Connection[Any], numbered: tuple[str, list[str]], values: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    """The rows of a statement with numbered parameters."""
    statement, names = numbered
    return psycopg.RawCursor(conn).execute(statement, [values[name] for name in names], binary=True).fetchall()


def difference(
    customer_id: str | None, table: str, live: dict[str, Any] | None, log: dict[str, Any] | None
) -> Difference:
    """What differs between a row of a live table and the same row from the log; None where there is none."""
    one, other = live or {}, log or {}
    names = list(dict.fromkeys([*one, *other]))
    fields = {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
    what = "changed" if live and log else "missing" if log else "extra"
    keys = compared() | {rollup.table: ("at", *rollup.keys) for rollup in ROLLUPS}
    key = {column: (live or other)[column] for column in keys[table]}
    return Difference(customer_id, table, key, fields, what)
