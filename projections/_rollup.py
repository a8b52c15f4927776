"""What a rollup is: sums of facts by time, kept exact at every commit by differences; and its SQL, generated from the declaration.

Triggers on the facts see the old and the new rows of every statement that changes them, whoever gives it (a batch, an erasure, a repair,
an edit by hand), and append what it changed in the sums to a second table. Rows are only added there, so that no worker waits for another
on the row of today; a fold moves them into the first table now and then. Sums are exact numbers: they are the same in any order.

The time of a row is the beginning of its quarter of an hour, since midnight is one's beginning in every time zone (see `ZONES_SINCE`).
What is dated later than the moment at which it is written keeps its own time, so that a reader can leave it out until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import psycopg

from caudal.postgres import Lock

__all__ = [
    "QUARTER",
    "ZONES_SINCE",
    "Part",
    "Rollup",
    "both",
    "computed",
    "daily",
    "differing",
    "fill",
    "finish",
    "fold",
    "stored",
    "tables",
]

ZONES_SINCE = date(1980, 1, 1)
"""Since then the offset of every time zone of the IANA database is a multiple of a quarter of an hour (a test looks)."""
QUARTER = timedelta(minutes=15)
_ORIGIN = "timestamptz '2000-01-01 00:00+00'"
# whatever is older than any report tells of is one heap; it also keeps the oldest times from leaving the range of the type
_OLDEST = "timestamptz '1900-01-01 00:00+00'"


@dataclass(frozen=True)
class Part:
    """What the rows of one fact add to a rollup. All SQL stands over the alias `f`.

    Attributes:
        fact: the fact.
        at: when a row counts.
        holds: which rows count.
        keys: what they are summed by.
        sums: what a row adds: integers, null for nothing; sums that aren't named get nothing from it.
    """

    fact: str
    at: str
    holds: str
    keys: Mapping[str, str]
    sums: Mapping[str, str]


@dataclass(frozen=True)
class Rollup:
    """Sums of facts by time and some keys.

    Attributes:
        name: its tables are `rollup_<name>` and `rollup_<name>_new`, its view for people `daily_<name>`.
        keys: key column → SQL type.
        sums: the columns that are summed.
        parts: what is summed. What a row adds hangs on that row alone.
    """

    name: str
    keys: Mapping[str, str]
    sums: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def table(self) -> str:
        """The table of what is folded; that of what is new has `_new` at the end."""
        return f"rollup_{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of both tables."""
        return ("at", *self.keys, *self.sums)


def tables(schema: str, rollup: Rollup) -> list[str]:
    """Statements that make the tables, empty."""
    typed = [
        "at timestamptz NOT NULL",
        *(f"{name} {type_}" for name, type_ in rollup.keys.items()),
        *(f"{name} numeric NOT NULL" for name in rollup.sums),
    ]
    unique = f"CONSTRAINT {rollup.table}_key UNIQUE NULLS NOT DISTINCT ({', '.join(('at', *rollup.keys))})"
    return [
        f"CREATE TABLE {schema}.{rollup.table} ({', '.join(typed)}, {unique}) WITH (fillfactor = 80)",
        f"CREATE TABLE {schema}.{rollup.table}_new ({', '.join(typed)})",
    ]


def finish(schema: str, rollups: Sequence[Rollup]) -> list[str]:
    """Statements that make triggers and views; the facts must be there, and what they hold must be in the rollups."""
    made = []
    for fact in dict.fromkeys(part.fact for rollup in rollups for part in rollup.parts):
        function = f"{schema}.roll_up_{fact}"
        added, taken = _appended(rollups, fact, came="came"), _appended(rollups, fact, went="went")
        changed = _appended(rollups, fact, came="came", went="went")
        # a schema is renamed when it is swapped: names are looked up in the one that the fact is in now. Temporary tables come last.
        made.append(f"""
            CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
            BEGIN
                PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
                IF TG_OP = 'INSERT' THEN {added}
                ELSIF TG_OP = 'UPDATE' THEN {changed}
                ELSE {taken}
                END IF;
                RETURN NULL;
            END $$""")
        made += [
            f"""CREATE TRIGGER rolled_up_{event.lower()} AFTER {event} ON {schema}.{fact} REFERENCING {rows}
                FOR EACH STATEMENT EXECUTE FUNCTION {function}()"""
            for event, rows in (
                ("INSERT", "NEW TABLE AS came"),
                ("UPDATE", "OLD TABLE AS went NEW TABLE AS came"),
                ("DELETE", "OLD TABLE AS went"),
            )
        ]
    return made + [f"CREATE VIEW {schema}.daily_{rollup.name} AS {daily(schema, rollup)}" for rollup in rollups]


def _appended(rollups: Sequence[Rollup], fact: str, **rows: str) -> str:
    """The statements of a trigger on `fact`: append what the rows of `came` add and those of `went` take away."""
    made = []
    for rollup in rollups:
        parts = [part for part in rollup.parts if part.fact == fact]
        if parts:
            steps = [_added(rollup, p, table, minus=kind == "went") for p in parts for kind, table in rows.items()]
            made.append(
                f"INSERT INTO {rollup.table}_new ({', '.join(rollup.columns)}) {_summed(rollup, ' UNION ALL '.join(steps))};"
            )
    return " ".join(made)


def _added(rollup: Rollup, part: Part, rows: str, *, minus: bool = False) -> str:
    """What each row adds. Rows without content, left of what was erased, belong to nobody and add nothing."""
    sums = ", ".join(f"{'-' * minus}({part.sums.get(name, '0')})::numeric AS {name}" for name in rollup.sums)
    keys = ", ".join(f"{part.keys[name]} AS {name}" for name in rollup.keys)
    return f"SELECT {_stored_at(part.at)} AS at, {keys}, {sums} FROM {rows} f WHERE {part.holds} AND left(f.subject, 1) <> '~'"


def _stored_at(at: str) -> str:
    return f"CASE WHEN {at} > statement_timestamp() THEN {at} ELSE {_quarter(at)} END"


def _quarter(at: str) -> str:
    return f"date_bin(interval '15 minutes', greatest({at}, {_OLDEST}), {_ORIGIN})"


def _summed(rollup: Rollup, rows: str, at: str = "at") -> str:
    """Rows summed by time and keys, without those that say nothing."""
    keys = ", ".join(rollup.keys)
    sums = ", ".join(f"coalesce(sum({name}), 0)::numeric AS {name}" for name in rollup.sums)
    having = " OR ".join(f"sum({name}) <> 0" for name in rollup.sums)
    return f"SELECT {at} AS at, {keys}, {sums} FROM ({rows}) r GROUP BY {at}, {keys} HAVING {having}"


def both(schema: str, rollup: Rollup) -> str:
    """All rows of both tables."""
    columns = ", ".join(rollup.columns)
    return f"SELECT {columns} FROM {schema}.{rollup.table} UNION ALL SELECT {columns} FROM {schema}.{rollup.table}_new"


def stored(schema: str, rollup: Rollup) -> str:
    """What the rollup says, by quarters of an hour: equal to `computed` at every commit."""
    return _summed(rollup, both(schema, rollup), _quarter("r.at"))


def _from_facts(schema: str, rollup: Rollup) -> str:
    return " UNION ALL ".join(_added(rollup, part, f"{schema}.{part.fact}") for part in rollup.parts)


def computed(schema: str, rollup: Rollup) -> str:
    """What the facts say, by quarters of an hour."""
    return _summed(rollup, _from_facts(schema, rollup), _quarter("r.at"))


def differing(rollup: Rollup, one: str, other: str) -> str:
    """The rows that two of the SELECTs of `stored` and `computed` don't give alike, as JSON; null where one has none."""
    keys = ", ".join(("at", *rollup.keys))  # null is a key like others, so this is no join
    sides = " UNION ALL ".join(
        f"SELECT {keys}, {side}, to_jsonb(t) AS whole FROM ({select}) t"
        for side, select in (("true AS first", one), ("false", other))
    )
    first, second = (f"any_value(whole) FILTER (WHERE {side})" for side in ("first", "NOT first"))
    return f"SELECT {first}, {second} FROM ({sides}) s GROUP BY {keys} HAVING {first} IS DISTINCT FROM {second} ORDER BY {keys}"


def daily(schema: str, rollup: Rollup) -> str:
    """What the rollup says, by days in UTC."""
    summed = _summed(rollup, both(schema, rollup), "(r.at AT TIME ZONE 'UTC')::date")
    return summed.replace("::date AS at", "::date AS day", 1)


def fill(schema: str, rollup: Rollup) -> list[str]:
    """Statements that fill an empty rollup from the facts."""
    columns = ", ".join(rollup.columns)
    return [
        f"INSERT INTO {schema}.{rollup.table} ({columns}) {_summed(rollup, _from_facts(schema, rollup))} ORDER BY at",
        f"ANALYZE {schema}.{rollup.table}",
    ]


def fold(cur: psycopg.Cursor[Any], schema: str, rollups: Sequence[Rollup]) -> None:
    """Move what is new into the first tables. Within the caller's transaction; one worker at a time."""
    cur.execute("SELECT pg_try_advisory_xact_lock(%s)", (Lock.ROLLUPS,))
    if (got := cur.fetchone()) and not got[0]:
        return
    for rollup in rollups:
        columns = ", ".join(rollup.columns)
        sets = ", ".join(f"{name} = t.{name} + excluded.{name}" for name in rollup.sums)
        cur.execute(
            f"""WITH taken AS (DELETE FROM {schema}.{rollup.table}_new RETURNING *)
                INSERT INTO {schema}.{rollup.table} AS t ({columns}) {_summed(rollup, "SELECT * FROM taken")} ORDER BY at
                ON CONFLICT ({", ".join(("at", *rollup.keys))}) DO UPDATE SET {sets}"""
        )
