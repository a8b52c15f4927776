"""Identity of a generation of the log that isn't live: its tables beside those in `hub`, customer ids, comparison, exchange.

A generation is made in a schema of its own, `identity_<n>`, with tables like those that schema `hub` has for the live one. Cutting over
exchanges the tables, so that live ones are always in `hub` and each kept generation's in its schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from caudal.processors.identity import founded
from psycopg import sql

from caudal.errors import Fatal

__all__ = ["TABLES", "Compared", "compare", "drop", "exchange", "kept", "make", "schema_of", "settle_ids"]

TABLES = (
    "subjects",
    "identifiers",
    "decisions",
    "decided",
    "former_customers",
    "unpublished_links",
    "translated",
    "offsets",
    "generation",
)
"""What belongs to a generation. Each table goes into another schema as a whole, with its indexes and triggers."""
PAGE = 10_000
EXAMPLES = 20

Connection = psycopg.Connection[tuple[Any, ...]]


def schema_of(number: int) -> str:
    """The schema that holds what belongs to a generation while it is not live."""
    return f"identity_{number}"


def make(db: Connection, number: int) -> None:
    """Make the tables of a new generation, if they aren't there yet."""
    schema = schema_of(number)
    if db.execute("SELECT to_regclass(%s)", (f"{schema}.generation",)).fetchone() != (None,):
        return
    with db.transaction():
        db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        for table in TABLES:
            _copy(db, schema, table)
        db.execute(sql.SQL("INSERT INTO {}.generation VALUES ({})").format(sql.Identifier(schema), number))
        _make_working(db, schema)


def _make_working(db: Connection, schema: str) -> None:
    for statement in _WORKING:
        db.execute(sql.SQL(statement).format(sql.Identifier(schema)))


_WORKING = (
    """CREATE TABLE IF NOT EXISTS {}.put_aside (
           topic text, partition int, "offset" bigint, code text NOT NULL, source text, kind text,
           PRIMARY KEY (topic, partition, "offset"))""",
    """CREATE TABLE IF NOT EXISTS {}.relabelled (subject text COLLATE "C" PRIMARY KEY, customer_id uuid NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS {}.unmatched (event_type text, subject text COLLATE "C", PRIMARY KEY (event_type, subject))""",
)


def _copy(db: Connection, schema: str, table: str) -> None:
    """An empty table like the live one, down to the names of what belongs to it: they change places later."""
    names = {"table": sql.Identifier(table), "schema": sql.Identifier(schema)}
    db.execute(
        sql.SQL(
            "CREATE TABLE {schema}.{table} (LIKE hub.{table} INCLUDING ALL EXCLUDING INDEXES EXCLUDING CONSTRAINTS)"
        ).format(**names)
    )
    of = (f"hub.{table}",)
    for name, definition in db.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype <> 'n'",
        of,
    ).fetchall():
        db.execute(
            sql.SQL("ALTER TABLE {schema}.{table} ADD CONSTRAINT {name} {definition}").format(
                **names, name=sql.Identifier(name), definition=sql.SQL(definition)
            )
        )
    moved = f" ON {schema}."  # the catalogue writes the live table's name as ` ON hub.<table>`
    for (definition,) in db.execute(
        """SELECT pg_get_indexdef(indexrelid) FROM pg_index i WHERE indrelid = %s::regclass
           AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
           UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal""",
        of * 2,
    ).fetchall():
        db.execute(sql.SQL(definition.replace(" ON hub.", moved, 1)))
    row = db.execute("SELECT obj_description(%s::regclass)", of).fetchone()
    db.execute(sql.SQL("COMMENT ON TABLE {schema}.{table} IS {text}").format(**names, text=row[0] if row else None))


def exchange(db: Connection, *, outgoing: int, incoming: int) -> None:
    """Make `incoming` live and keep `outgoing` in its schema. Runs in the caller's transaction, which swaps the views too.

    Raises:
        Fatal: the incoming tables are of another release.
    """
    for table in TABLES:
        shapes = db.execute(
            """SELECT count(*) FROM (
                   SELECT array_agg((attname, atttypid) ORDER BY attnum) AS columns FROM pg_attribute
                   WHERE attrelid IN (%s::regclass, %s::regclass) AND attnum > 0 AND NOT attisdropped
                   GROUP BY attrelid) a GROUP BY columns""",
            (f"hub.{table}", f"{schema_of(incoming)}.{table}"),
        ).fetchall()
        if len(shapes) != 1:
            raise Fatal(
                f"table {table} of generation {incoming} is of another release", hint="replay from captures again"
            )
    db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema_of(outgoing))))
    for table in TABLES:
        for origin, target in (("hub", schema_of(outgoing)), (schema_of(incoming), "hub")):
            db.execute(sql.SQL("ALTER TABLE {}.{} SET SCHEMA {}").format(*map(sql.Identifier, (origin, table, target))))
    _make_working(db, schema_of(outgoing))


def kept(db: Connection) -> list[int]:
    """Generations that are not live and whose identity is kept."""
    rows = db.execute(
        """SELECT substr(n.nspname, 10)::int FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
           WHERE relname = 'generation' AND nspname ~ '^identity_[1-9][0-9]*$' ORDER BY 1"""
    )
    return [number for (number,) in rows]


def drop(db: Connection, number: int) -> None:
    """Forget a generation that is not live."""
    db.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema_of(number))))


# ---- customer ids

_WANTED = """
    CREATE TEMP TABLE wanted ON COMMIT DROP AS
    WITH pairs AS (
        SELECT o.customer_id AS old, n.customer_id AS new, count(*) AS shared, o.customer_id = n.customer_id AS same,
               min(o.created_at) AS since, min(subject) AS first
        FROM subjects n JOIN hub.subjects o USING (subject) GROUP BY 1, 2
    ),
    for_old AS (SELECT DISTINCT ON (old) old, new FROM pairs ORDER BY old, same DESC, shared DESC, since, first),
    for_new AS (SELECT DISTINCT ON (new) old, new FROM pairs ORDER BY new, same DESC, shared DESC, since, first)
    SELECT old, new FROM for_old JOIN for_new USING (old, new)
"""
"""Live customer and customer of the new generation that are each other's best: those of the same subjects always are."""

_HOMELESS = """
    SELECT customer_id, min(subject) FROM subjects n
    WHERE EXISTS (SELECT FROM hub.subjects o WHERE o.customer_id = n.customer_id)
      AND NOT EXISTS (SELECT FROM wanted w WHERE w.new = n.customer_id) GROUP BY 1
"""
"""Customers of the new generation that have the id of a live one and none of its subjects."""


def settle_ids(db: Connection, published: Callable[[], None]) -> int:
    """Give each customer of the new generation the id of the live one that it continues; returns how many subjects got another id.

    A customer whose subjects are those of one live customer has that one's id afterwards, whatever happened on the way to it.
    Where customers were merged or split, who has an id of theirs already keeps it; else it goes where most of its subjects are. New links
    are left as unpublished, at most a page at a time; `published` is called after each and publishes them.

    Args:
        db: its search path is the schema of the new generation. Nothing else may write there meanwhile.
        published: see above.
    """
    done = _relabel(db, published)  # of a settling that was broken off
    with db.transaction():
        db.execute(_WANTED)
        number = db.execute("SELECT number FROM generation").fetchone()
        assert number is not None
        homeless = [
            (customer, founded(f"{subject}\ngeneration {number[0]}")) for customer, subject in db.execute(_HOMELESS)
        ]
        db.execute(
            """WITH moves (new, id) AS (
                   SELECT new, old FROM wanted WHERE old <> new
                   UNION ALL SELECT * FROM unnest(%s::uuid[], %s::uuid[]) h)
               INSERT INTO relabelled SELECT subject, id FROM subjects JOIN moves ON new = customer_id""",
            ([customer for customer, _ in homeless], [customer for _, customer in homeless]),
        )
    return done + _relabel(db, published)


def _relabel(db: Connection, published: Callable[[], None]) -> int:
    done = 0
    while True:
        with db.transaction():
            page = db.execute(
                """WITH page AS (DELETE FROM relabelled WHERE subject IN (
                                     SELECT subject FROM relabelled ORDER BY subject LIMIT %s) RETURNING *)
                   UPDATE subjects s SET customer_id = p.customer_id, link_seq = link_seq + 1
                   FROM page p WHERE s.subject = p.subject RETURNING s.subject""",
                (PAGE,),
            ).fetchall()
            if not page:
                return done
            # an old date: nobody else is about to publish these
            db.execute(
                "INSERT INTO unpublished_links (created_at, subjects) VALUES (now() - interval '1 hour', %s)",
                ([subject for (subject,) in page],),
            )
        published()
        done += len(page)


_REMEMBERED = """
    INSERT INTO former_customers
    SELECT f.customer_id, f.subject FROM hub.former_customers f JOIN subjects USING (subject)
    UNION SELECT o.customer_id, subject FROM hub.subjects o JOIN subjects n USING (subject) WHERE o.customer_id <> n.customer_id
    ON CONFLICT DO NOTHING
"""
"""Whoever still has a former id finds where its subjects went, whichever generation moved them."""


def remember_former(db: Connection) -> None:
    """Know the former customers that the live generation knows, and those that this one makes former."""
    db.execute(_REMEMBERED)


# ---- comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """How the customers of a generation differ from the live ones, by the subjects that both know.

    Attributes:
        unchanged: customers of the same subjects under the same id.
        merged: new customer → the live customers that it unites; the first `EXAMPLES`, as all of these.
        split: live customer → the new customers that its subjects went to.
        renamed: live customer → id of the new one, where their subjects are the same.
        new_subjects: known to the new generation only.
        gone_subjects: known to the live one only.
    """

    unchanged: int
    merges: int
    splits: int
    renames: int
    merged: dict[str, list[str]]
    split: dict[str, list[str]]
    renamed: dict[str, str]
    new_subjects: int
    gone_subjects: int
    new_examples: list[str]
    gone_examples: list[str]


_PAIRS = """
    CREATE TEMP TABLE pairs ON COMMIT DROP AS
    SELECT o.customer_id AS old, n.customer_id AS new FROM subjects n JOIN hub.subjects o USING (subject) GROUP BY 1, 2
"""
_MERGED = "SELECT new::text, array_agg(old::text ORDER BY old) FROM pairs GROUP BY new HAVING count(*) > 1"
_SPLIT = "SELECT old::text, array_agg(new::text ORDER BY new) FROM pairs GROUP BY old HAVING count(*) > 1"
_RENAMED = """
    SELECT old::text, new::text FROM pairs p WHERE old <> new
    AND NOT EXISTS (SELECT FROM pairs q WHERE (q.old = p.old OR q.new = p.new) AND q <> p)
"""
_UNCHANGED = """
    SELECT count(*) FROM pairs p WHERE old = new
    AND NOT EXISTS (SELECT FROM pairs q WHERE (q.old = p.old OR q.new = p.new) AND q <> p)
"""
_NEW = "SELECT subject FROM subjects n WHERE NOT EXISTS (SELECT FROM hub.subjects o WHERE o.subject = n.subject)"
_GONE = "SELECT subject FROM hub.subjects o WHERE NOT EXISTS (SELECT FROM subjects n WHERE o.subject = n.subject)"


def compare(db: Connection) -> Compared:
    """Compare the generation whose schema is the search path of `db` with the live one, as both stand now."""
    with db.transaction():
        db.execute(_PAIRS)
        db.execute("CREATE INDEX ON pairs (old)")
        db.execute("CREATE INDEX ON pairs (new)")
        db.execute("ANALYZE pairs")

        def count(query: str) -> int:
            row = db.execute(f"SELECT count(*) FROM ({query}) q").fetchone()
            return int(row[0]) if row else 0

        def some(query: str) -> list[tuple[Any, ...]]:
            return db.execute(f"{query} ORDER BY 1 LIMIT {EXAMPLES}").fetchall()

        unchanged = db.execute(_UNCHANGED).fetchone()
        return Compared(
            unchanged=int(unchanged[0]) if unchanged else 0,
            merges=count(_MERGED),
            splits=count(_SPLIT),
            renames=count(_RENAMED),
            merged=dict(some(_MERGED)),
            split=dict(some(_SPLIT)),
            renamed=dict(some(_RENAMED)),
            new_subjects=count(_NEW),
            gone_subjects=count(_GONE),
            new_examples=[subject for (subject,) in some(_NEW)],
            gone_examples=[subject for (subject,) in some(_GONE)],
        )
