"""The SQL of a build: load tables, then each table of the schema made whole by one statement. Names are our own declarations.

A table is made by `CREATE TABLE AS`, which may use several processes, and gets its keys and indexes when it is full. What comes out
is what `_sql.tables` declares (a test compares the catalogues).
"""

from __future__ import annotations

from collections.abc import Mapping

from caudal.projections import _sql
from caudal.projections._fact import Fact
from caudal.projections._sql import VERSION
from caudal.projections._view import View
from caudal.projections.profiles import FIELDS

__all__ = ["fact_steps", "links_steps", "load_tables", "view_steps"]

_NEWEST = ", ".join(f"{c.strip()} DESC" for c in VERSION.split(","))


def load_tables(schema: str, facts: tuple[Fact, ...]) -> list[str]:
    """Unlogged tables without a key for what the log says, and how far it was read.

    A value that a view can't use is refused here, as the live projection does when it refreshes the view.
    """
    made = [
        f"""CREATE UNLOGGED TABLE {schema}.load_subjects (
            subject text COLLATE "C" NOT NULL, customer_id text NOT NULL CHECK (pg_input_is_valid(customer_id, 'uuid')),
            link_seq bigint NOT NULL)""",
        f"""CREATE UNLOGGED TABLE {schema}.load_gone (
            subject text COLLATE "C" NOT NULL, deleted_at timestamptz, erased_at timestamptz, merged_into text COLLATE "C")""",
        f"CREATE UNLOGGED TABLE {schema}.load_offsets (partition int PRIMARY KEY, next_offset bigint, end_offset bigint)",
    ]
    for fact in facts:
        check = f", {_CORRECTIONS}" if fact.name == "corrections" else ""
        made.append(f"CREATE UNLOGGED TABLE {schema}.load_{fact.name} ({', '.join(_sql.column_ddl(fact))}{check})")
    return made


_TYPED = {name: type_ for name, type_ in FIELDS.items() if type_ != "text" and not type_.endswith("[]")}
_CASES = " ".join(f"WHEN '{name}' THEN pg_input_is_valid(value, '{type_}')" for name, type_ in _TYPED.items())
_CORRECTIONS = f"CHECK (CASE field {_CASES} ELSE true END)"


def links_steps(schema: str) -> list[str]:
    """Of each subject the newest link, and when it was deleted or erased."""
    return [
        f"ANALYZE {schema}.load_subjects",
        f"""CREATE TABLE {schema}.links WITH (fillfactor = 90) AS
            SELECT l.subject, split_part(l.subject, ':', 1) COLLATE "C" AS source, l.customer_id::uuid AS customer_id, l.link_seq,
                   g.deleted_at, g.erased_at, g.merged_into
            FROM (
                SELECT DISTINCT ON (subject) * FROM (
                    SELECT DISTINCT subject, customer_id, link_seq FROM {schema}.load_subjects
                ) stated ORDER BY subject, link_seq DESC, customer_id
            ) l LEFT JOIN (
                SELECT subject, max(deleted_at) AS deleted_at, max(erased_at) AS erased_at,
                       array_agg(DISTINCT merged_into ORDER BY merged_into) FILTER (WHERE merged_into IS NOT NULL) AS merged_into
                FROM {schema}.load_gone GROUP BY subject
            ) g USING (subject)""",
        f"""ALTER TABLE {schema}.links ADD PRIMARY KEY (subject), ALTER source SET NOT NULL, ALTER customer_id SET NOT NULL,
            ALTER link_seq SET NOT NULL""",
        *_sql.link_indexes(schema),
        f"ANALYZE {schema}.links",
    ]


def fact_steps(schema: str, fact: Fact, *, erased: bool, mixed: bool) -> list[str]:
    """Of each thing the newest statement, or what the newest statements of each set of fields say together.

    Args:
        schema: what is built.
        fact: the table.
        erased: whether any subject was erased; what was stated about it up to then is left out.
        mixed: whether a source states different sets of fields.
    """
    key, columns, load = ", ".join(fact.key), ", ".join(fact.all_columns), f"{schema}.load_{fact.name}"
    parts = f"{schema}.{fact.name}_parts"
    where, rows = "", f"{load} f"
    gone = f"{schema}.links l WHERE l.subject = f.subject AND l.erased_at >= f.occurred_at"
    if erased and "subject" in fact.key:
        where = f"WHERE NOT EXISTS (SELECT FROM {gone})"
    elif erased:
        left = {column: f"f.{column}" for column in fact.all_columns}
        left |= {c: f"CASE WHEN x.erased THEN {v} ELSE f.{c} END" for c, v in _sql.erased_columns(fact, "f").items()}
        rows = f"""(SELECT {", ".join(f"{value} AS {column}" for column, value in left.items())}
                FROM {load} f CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM {gone}) AS erased) x) f"""
    if not (fact.partial and mixed):
        made = [
            f"""CREATE TABLE {schema}.{fact.name} WITH (fillfactor = 80) AS
                SELECT DISTINCT ON ({key}) {columns} FROM {rows} {where} ORDER BY {key}, {_NEWEST}"""
        ]
        if fact.partial:
            made.append(f"CREATE TABLE {parts} AS SELECT {columns} FROM {schema}.{fact.name} LIMIT 0")
    else:
        newest = f"{schema}.newest_{fact.name}"
        made = [
            f"""CREATE UNLOGGED TABLE {newest} AS
                SELECT *, count(*) OVER (PARTITION BY {key}) AS sets FROM (
                    SELECT DISTINCT ON ({key}, stated) {columns} FROM {rows} {where} ORDER BY {key}, stated, {_NEWEST}
                ) newest""",
            f"CREATE TABLE {parts} AS SELECT {columns} FROM {newest} WHERE sets > 1",
            f"""CREATE TABLE {schema}.{fact.name} WITH (fillfactor = 80) AS
                SELECT {columns} FROM {newest} WHERE sets = 1
                UNION ALL
                SELECT {columns} FROM ({_sql.folded(fact, f"{parts} p")}) folded""",
            f"DROP TABLE {newest}",
        ]
    made.append(_keyed(schema, fact, fact.name, fact.key))
    if fact.partial:
        made.append(_keyed(schema, fact, f"{fact.name}_parts", (*fact.key, "stated")))
    return [
        f"ANALYZE {load} ({key})",
        *made,
        *_sql.fact_indexes(schema, fact),
        _analyze(schema, fact.name, {**dict.fromkeys(fact.all_columns, ""), **{c.name: c.type for c in fact.columns}}),
        f"DROP TABLE {load}",
    ]


def _keyed(schema: str, fact: Fact, table: str, key: tuple[str, ...]) -> str:
    given = ("subject", "source", "occurred_at", "captured_at", "event_id", "stated", *fact.extra_key)
    needed = ", ".join(f"ALTER {column} SET NOT NULL" for column in given if column not in key)
    return f"ALTER TABLE {schema}.{table} ADD PRIMARY KEY ({', '.join(key)}), {needed}"


def view_steps(schema: str, view: View, priority: str, *, facts: str | None = None) -> list[str]:
    """A view by its SELECT over all customers; `facts` is the schema that holds them, if it is another."""
    columns = ", ".join(f"{name}::{_typed(type_)} AS {name}" for name, type_ in _sql.view_types(view).items())
    return [
        f"""CREATE TABLE {schema}.{view.name} WITH (fillfactor = 80) AS
            SELECT {columns} FROM ({_sql.select(view, facts or schema, priority)}) fresh""",
        f"ALTER TABLE {schema}.{view.name} ADD PRIMARY KEY ({', '.join(view.key)})",
        _analyze(schema, view.name, view.columns),
    ]


def _analyze(schema: str, table: str, columns: Mapping[str, str]) -> str:
    """Statistics for the views that read the table, from the small sample that a build's sessions take.

    The columns are named because autovacuum then still sees a table that was not analysed, and takes the usual sample later. Elements
    of arrays are left to it too: they took longer than all the rest, and no plan of a view depends on them.
    """
    named = [column for column, type_ in columns.items() if not type_.endswith("[]")]
    return f"ANALYZE {schema}.{table} ({', '.join(named)})"


def _typed(type_: str) -> str:
    """The type with its collation named: else it would be that of the facts, which sort by their bytes."""
    return f'{type_} COLLATE "default"' if type_ in {"text", "text[]"} else type_
