"""The SQL of facts and views, generated from their declarations. Every value is a column or a parameter; names are our own.

Staging tables are temporary, and emptied at the end of each batch: `ON COMMIT DELETE ROWS` would empty every one of them with each
commit, and make the index of its long values anew, which took longer than a small batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from caudal.projections import _crowd, _places, _rollup
from caudal.projections._fact import HEADER, Fact
from caudal.projections._view import View
from caudal.projections.links import gone_at, merged_at
from caudal.projections.metrics import PLACED
from caudal.projections.rollups import ROLLUPS

__all__ = [
    "ANY_ERASED",
    "GONE_UPSERT",
    "LINKS_UPSERT",
    "STAGES",
    "TOUCH",
    "TOUCH_SUBJECTS",
    "books",
    "clear",
    "column_ddl",
    "composites",
    "definition",
    "definitions",
    "fact_indexes",
    "folded",
    "link_indexes",
    "numbered",
    "priority_sql",
    "prune",
    "refresh",
    "remove",
    "stage_ddl",
    "staging",
    "tables",
    "upsert",
    "view_types",
]

VERSION = "occurred_at, captured_at, event_id"
_HEADER_TYPES = {
    "subject": 'text COLLATE "C" NOT NULL',
    "source": 'text COLLATE "C" NOT NULL',
    "occurred_at": "timestamptz NOT NULL",
    "captured_at": "timestamptz NOT NULL",
    "event_id": 'text COLLATE "C" NOT NULL',
}
FENCE = "OFFSET 0"
"""Keeps a subquery from being merged into the join, so that it is looked up by index for each row of the batch."""
ERASED = "~"
"""Mark before the subject of a statement of which only the version is left."""
COMPOSITE = -1
"""`stated` of a row that was put together from statements with different sets of fields (they are kept in <fact>_parts)."""


def column_ddl(fact: Fact) -> list[str]:
    """A fact's columns as a table declares them."""
    types = {c.name: c.type for c in fact.columns}
    lines = []
    for name in fact.all_columns:
        if name in _HEADER_TYPES:
            lines.append(f"{name} {_HEADER_TYPES[name]}")
        elif name == "stated":
            lines.append("stated bigint NOT NULL")
        elif name in fact.extra_key:
            lines.append(f'{name} text COLLATE "C" NOT NULL')
        else:
            lines.append(f"{name} {types[name]}")
    return lines


def tables(schema: str, facts: tuple[Fact, ...], views: tuple[View, ...]) -> dict[str, list[str]]:
    """Statements that make each table of an empty schema: the facts, their parts and the views."""
    made: dict[str, list[str]] = {
        "links": [
            f"""CREATE TABLE {schema}.links (
                subject text COLLATE "C" PRIMARY KEY, source text COLLATE "C" NOT NULL, customer_id uuid NOT NULL,
                link_seq bigint NOT NULL, deleted_at timestamptz, erased_at timestamptz,
                merged_into text[] COLLATE "C") WITH (fillfactor = 90)""",
            *link_indexes(schema),
        ],
        **books(schema),
    }
    for fact in facts:
        key = ", ".join(fact.key)
        made[fact.name] = [
            f"CREATE TABLE {schema}.{fact.name} ({', '.join(column_ddl(fact))}, PRIMARY KEY ({key})) WITH (fillfactor = 80)"
        ]
        if fact.partial:
            made[fact.name].append(
                f"CREATE TABLE {schema}.{fact.name}_parts ({', '.join(column_ddl(fact))}, PRIMARY KEY ({key}, stated))"
            )
        made[fact.name] += fact_indexes(schema, fact)
    for view in views:
        types = ", ".join(f"{name} {type_}" for name, type_ in view_types(view).items())
        made[view.name] = [
            f"CREATE TABLE {schema}.{view.name} ({types}, PRIMARY KEY ({', '.join(view.key)})) WITH (fillfactor = 80)"
        ]
    return made


_BOOKS = {
    "stated_sets": """CREATE TABLE {schema}.stated_sets (
        fact text, source text COLLATE "C", stated bigint, PRIMARY KEY (fact, source, stated))""",
    "offsets": "CREATE TABLE {schema}.offsets (partition int PRIMARY KEY, next_offset bigint NOT NULL)",
}


def books(schema: str) -> dict[str, list[str]]:
    """Statements that make what the projection keeps beside facts and views."""
    return {
        **{name: [statement.format(schema=schema)] for name, statement in _BOOKS.items()},
        "places": _places.tables(schema),
        **_crowd.tables(schema),
    }


def link_indexes(schema: str) -> list[str]:
    """Statements that make the indexes of the links, besides their key."""
    return [
        f"CREATE INDEX links_customer_id ON {schema}.links (customer_id)",
        f"CREATE INDEX links_erased ON {schema}.links (subject) WHERE erased_at IS NOT NULL",
    ]


def fact_indexes(schema: str, fact: Fact) -> list[str]:
    """Statements that make the indexes of a fact and its parts, besides their keys."""
    names = (fact.name, f"{fact.name}_parts") if fact.partial else (fact.name,)
    return [f"CREATE INDEX {name}_{c} ON {schema}.{name} ({c})" for name in names for c in fact.indexes]


def view_types(view: View) -> dict[str, str]:
    """A view's columns with their types; names of segments sort by their bytes."""
    collate = {"segment": 'text COLLATE "C"'}
    return {name: collate.get(name, type_) for name, type_ in view.columns.items()}


def definitions(facts: tuple[Fact, ...], views: tuple[View, ...]) -> dict[str, str]:
    """A digest of what each table is: its declaration, a view's SELECT, and what keeps a rollup."""
    text = {name: "\n".join(statements) for name, statements in tables("s", facts, views).items()}
    for view in views:
        text[view.name] += view.select
    for rollup in ROLLUPS:
        made = (*_rollup.tables("s", rollup), *_rollup.fill("s", rollup), *_rollup.finish("s", (rollup,)))
        text[rollup.table] = "\n".join(made)
    text["crowded"] += "\n".join(_crowd.finish("s", PLACED))
    return {name: hashlib.sha256(stated.encode()).hexdigest()[:16] for name, stated in text.items()}


def definition(facts: tuple[Fact, ...], views: tuple[View, ...]) -> str:
    """A digest of what the tables and SELECTs are; a schema built by another definition must be rebuilt, not written to."""
    text = "\n".join(f"{name} {digest}" for name, digest in definitions(facts, views).items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


STAGES = (
    """CREATE TEMP TABLE stage_subjects (
        subject text COLLATE "C", customer_id text, link_seq bigint, event_id text COLLATE "C", facts int)""",
    """CREATE TEMP TABLE stage_gone (
        subject text COLLATE "C", deleted_at timestamptz, erased_at timestamptz, merged_into text COLLATE "C")""",
    'CREATE TEMP TABLE stage_moved (subject text COLLATE "C", facts int)',
    "CREATE TEMP TABLE stage_linked (customer_id uuid, facts int, cause text)",
    "CREATE TEMP TABLE touched (customer_id uuid, facts int, cause text)",
    """CREATE TEMP TABLE touched_subjects (
        customer_id uuid, subject text, source text, deleted_at timestamptz, merged_at timestamptz, facts int, crowded boolean)""",
)
"""Staging tables that every batch uses."""


def numbered(statement: str) -> tuple[str, list[str]]:
    """A statement with $1, $2 … instead of named parameters, and their names in that order, for `psycopg.RawCursor`: psycopg looks for
    named ones anew each time in what is longer than 4 KB.
    """
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    return re.sub(r"%\((\w+)\)s", number, statement).replace("%%", "%"), [*numbers]


def staging(facts: Iterable[Fact]) -> list[str]:
    """The names of the staging tables that every batch uses, and of those of these facts."""
    return [_named(ddl) for ddl in (*STAGES, *(ddl for fact in facts for ddl in stage_ddl(fact)))]


def _named(ddl: str) -> str:
    """The name in CREATE TEMP TABLE."""
    return ddl.split()[3]


def clear(stages: Iterable[str]) -> str:
    """Empty the tables that these statements made after a few rows; TRUNCATE is for many, since it makes every plan anew."""
    deleted = ", ".join(f"d{number} AS (DELETE FROM {_named(ddl)})" for number, ddl in enumerate(stages))
    return f"WITH {deleted} SELECT"


def stage_ddl(fact: Fact) -> tuple[str, ...]:
    """The staging tables of a fact: its rows, and the keys of things put together from several statements."""
    staged = f"CREATE TEMP TABLE stage_{fact.name} ({', '.join(column_ddl(fact))})"
    if not fact.partial:
        return (staged,)
    names = ", ".join(f'{k} text COLLATE "C"' for k in fact.key)
    return staged, f"CREATE TEMP TABLE composite_{fact.name} ({names})"


LINKS_UPSERT = """
    WITH known AS MATERIALIZED (
        SELECT s.subject, s.customer_id::uuid AS stated, s.link_seq, s.facts, s.event_id, l.customer_id AS linked, l.erased_at,
               l.subject IS NULL OR l.link_seq < s.link_seq
               OR (l.link_seq + s.link_seq = 0 AND s.customer_id::uuid < l.customer_id) AS newer
        FROM stage_subjects s LEFT JOIN LATERAL (SELECT * FROM {schema}.links x WHERE x.subject = s.subject OFFSET 0) l ON true
    ), newest AS MATERIALIZED (
        SELECT DISTINCT ON (subject) subject, stated, link_seq FROM known WHERE newer ORDER BY subject, link_seq DESC, stated
    ), written AS (
        INSERT INTO {schema}.links AS l (subject, source, customer_id, link_seq)
        SELECT subject, split_part(subject, ':', 1), stated, link_seq FROM newest
        ON CONFLICT (subject) DO UPDATE SET customer_id = excluded.customer_id, link_seq = excluded.link_seq
        WHERE l.link_seq < excluded.link_seq OR (l.link_seq + excluded.link_seq = 0 AND excluded.customer_id < l.customer_id)
        RETURNING new.customer_id AS customer_id, old.customer_id AS was
    ), linked AS (
        INSERT INTO stage_linked (customer_id, facts, cause)
        SELECT CASE WHEN newer THEN stated ELSE linked END, facts, event_id FROM known
        UNION ALL
        SELECT customer_id, CASE WHEN was IS NULL THEN %(new)s::int ELSE %(all)s::int END, NULL FROM written
        UNION ALL
        SELECT was, %(all)s, NULL FROM written WHERE was IS NOT NULL
    )
    SELECT (SELECT count(*) FROM newest) = (SELECT count(*) FROM written),
           EXISTS (SELECT FROM written WHERE was IS NOT NULL),
           EXISTS (SELECT FROM known WHERE erased_at IS NOT NULL)
"""
"""The newest seq of a subject wins; seq 0, which an erasure gives, may name several customers, of which the least wins. The customers
of the batch's subjects are noted; with a moved subject everything known of it moves. Gives whether every link was written (else another
worker was quicker), whether some customer lost a subject by it, and whether some subject is erased. `new` are the facts that a new subject
touches beside those that are stated of it.
"""

GONE_UPSERT = """
    UPDATE {schema}.links l
    SET deleted_at = greatest(l.deleted_at, g.deleted_at), erased_at = greatest(l.erased_at, g.erased_at),
        merged_into = CASE WHEN g.merged_into IS NULL THEN l.merged_into
                      ELSE ARRAY(SELECT DISTINCT s FROM unnest(l.merged_into || g.merged_into) s ORDER BY s) END
    FROM (SELECT subject, max(deleted_at) AS deleted_at, max(erased_at) AS erased_at,
                 array_agg(merged_into) FILTER (WHERE merged_into IS NOT NULL) AS merged_into
          FROM stage_gone GROUP BY subject) g
    WHERE l.subject = g.subject
"""
"""Deletions and erasures only move forward in time, and merges only add up, so their order of arrival doesn't matter."""

ANY_ERASED = """
    SELECT EXISTS (
        SELECT FROM stage_subjects s
        CROSS JOIN LATERAL (SELECT FROM {schema}.links x WHERE x.subject = s.subject AND x.erased_at IS NOT NULL OFFSET 0) l
    )
"""

STATED_SETS = """
    WITH batch AS (
        SELECT * FROM unnest(%(facts)s::text[], %(sources)s::text[], %(sets)s::bigint[]) v(fact, source, stated)
    ), added AS (
        INSERT INTO {schema}.stated_sets (fact, source, stated)
        SELECT fact, source, stated FROM batch ORDER BY fact, source, stated ON CONFLICT DO NOTHING
    )
    SELECT array_agg(fact) FROM (
        SELECT fact, source FROM (
            SELECT fact, source, stated FROM batch
            UNION
            SELECT s.fact, s.source, s.stated FROM batch b JOIN {schema}.stated_sets s USING (fact, source)
        ) seen GROUP BY fact, source HAVING count(*) > 1
    ) several
"""
"""Note which sets of fields each source states; gives the facts of which some source of the batch states more than one."""

TOUCH_SUBJECTS = f"""INSERT INTO touched_subjects (customer_id, subject, source, deleted_at, merged_at, facts, crowded)
        SELECT t.customer_id, l.subject, l.source, {gone_at("{schema}.links", "l")}, {merged_at("l")}, t.facts, {_crowd.CROWDED}
        FROM touched t CROSS JOIN LATERAL (SELECT * FROM {{schema}}.links x WHERE x.customer_id = t.customer_id OFFSET 0) l"""
"""All subjects of the touched customers."""

TOUCH = (
    """
    WITH t AS (
        INSERT INTO touched (customer_id, facts, cause)
        SELECT customer_id, bit_or(facts), max(cause) FROM (
            SELECT customer_id, facts, cause FROM stage_linked
            UNION ALL
            SELECT l.customer_id, m.facts, NULL FROM stage_moved m
            CROSS JOIN LATERAL (SELECT x.customer_id FROM {schema}.links x WHERE x.subject = m.subject OFFSET 0) l
        ) s GROUP BY customer_id
        RETURNING customer_id, facts, cause
    ), subjects AS ("""
    + TOUCH_SUBJECTS.replace("touched t", "t")
    + """), noted AS (
        INSERT INTO hub.touched (customer_id) SELECT customer_id FROM t
        WHERE EXISTS (SELECT FROM hub.control WHERE key = 'replay.noting' AND changed_at > now() - interval '15 minutes')
    ){judged}
    SELECT array_agg(DISTINCT crc32(convert_to(customer_id::text, 'UTF8')) & 63), bit_or(facts) FROM t
"""
)
"""The customers that the batch touched, with what was touched, and all their subjects; returns their stripes (see _runner.py) and the
bits of all that was touched. While one view is rebuilt, they are noted for it too (see replay/_one_view.py). `judged` may hold
`TO_BE_JUDGED`."""

TO_BE_JUDGED = """, judged AS (
        INSERT INTO hub.segment_touched (customer_id, facts, cause) SELECT customer_id, facts, cause FROM t
        WHERE EXISTS (SELECT FROM hub.segments WHERE state IN ('filling', 'live'))
           OR EXISTS (SELECT FROM stage_gone WHERE erased_at IS NOT NULL)
    )"""
"""Notes the touched customers for the stage that keeps the defined segments, and forgets who was erased (see membership/stage.py)."""

APPEARED = """, appeared AS (
        INSERT INTO hub.segment_touched (customer_id, facts) SELECT customer_id, {all_facts} FROM changed
        WHERE appeared AND EXISTS (SELECT FROM hub.segments WHERE state IN ('filling', 'live'))
    )"""


def upsert(schema: str, fact: Fact) -> str:
    """The generic versioned upsert: of each thing the newest statement, written where it is newer than what is there.

    A statement of other fields than the row's is not written (see `composites`). Subjects that lost a thing are noted as moved.
    """
    columns = ", ".join(fact.all_columns)
    key = ", ".join(fact.key)
    changed = [c for c in fact.all_columns if c not in fact.key and c != "stated"]
    sets = ", ".join(f"{c} = excluded.{c}" for c in changed)
    version = ", ".join(f"excluded.{c.strip()}" for c in VERSION.split(","))
    current = ", ".join(f"f.{c.strip()}" for c in VERSION.split(","))
    write = f"""
        INSERT INTO {schema}.{fact.name} AS f ({columns})
        SELECT DISTINCT ON ({key}) {columns} FROM stage_{fact.name}
        ORDER BY {key}, {", ".join(f"{c.strip()} DESC" for c in VERSION.split(","))}
        ON CONFLICT ({key}) DO UPDATE SET {sets}
        WHERE f.stated = excluded.stated AND ({current}) < ({version})"""
    return write if "subject" in fact.key else _noting_moved(write)


def composites(schema: str, fact: Fact) -> tuple[str, ...]:
    """Things of which statements with different sets of fields are known: keep the newest of each set, then put the row together.

    The row takes every field from the newest statement that states it; subject and version come from the newest of all.
    """  # IN (…) IS TRUE keeps the planner from a join, so that it looks up a hash
    key = ", ".join(fact.key)
    on = " AND ".join(f"f.{k} = s.{k}" for k in fact.key)
    newest = ", ".join(f"{c.strip()} DESC" for c in VERSION.split(","))
    columns = ", ".join(fact.all_columns)
    parts = f"{schema}.{fact.name}_parts"
    rest = [c for c in fact.all_columns if c not in fact.key and c != "stated"]
    version = ", ".join(f"excluded.{c.strip()}" for c in VERSION.split(","))
    current = ", ".join(f"p.{c.strip()}" for c in VERSION.split(","))
    sets = ", ".join(f"{c} = excluded.{c}" for c in [*rest, "stated"])
    fold = _fold(schema, fact, sets)
    return (
        f"""INSERT INTO composite_{fact.name}
            SELECT {key} FROM stage_{fact.name} GROUP BY {key} HAVING min(stated) <> max(stated)
            UNION
            SELECT {", ".join(f"s.{k}" for k in fact.key)} FROM stage_{fact.name} s
            CROSS JOIN LATERAL (SELECT f.stated FROM {schema}.{fact.name} f WHERE {on} {FENCE}) f
            WHERE f.stated <> s.stated""",
        f"""INSERT INTO {parts} ({columns})
            SELECT {", ".join(f"f.{c}" for c in fact.all_columns)} FROM composite_{fact.name} s
            CROSS JOIN LATERAL (SELECT * FROM {schema}.{fact.name} f WHERE {on} {FENCE}) f
            WHERE f.stated <> {COMPOSITE} ORDER BY {", ".join(f"f.{k}" for k in fact.key)} ON CONFLICT ({key}, stated) DO NOTHING""",
        f"""INSERT INTO {parts} AS p ({columns})
            SELECT DISTINCT ON ({", ".join(f"f.{k}" for k in fact.key)}, f.stated) {", ".join(f"f.{c}" for c in fact.all_columns)}
            FROM stage_{fact.name} f WHERE (({", ".join(f"f.{k}" for k in fact.key)}) IN (SELECT {key} FROM composite_{fact.name})) IS TRUE
            ORDER BY {", ".join(f"f.{k}" for k in fact.key)}, f.stated, {newest}
            ON CONFLICT ({key}, stated) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in rest)}
            WHERE ({current}) < ({version})""",
        fold if "subject" in fact.key else _noting_moved(fold, fact),
    )


def _noting_moved(write: str, folded: Fact | None = None) -> str:
    """Run `write` and note the subjects that lost a thing by it; and those whose thing was `folded` with a statement of another subject."""
    noted = "SELECT was, %(bit)s FROM written WHERE was <> now"
    if folded:
        noted += f"""
            UNION ALL
            SELECT now, %(bit)s FROM written WHERE (now IN (SELECT subject FROM stage_{folded.name})) IS FALSE"""
    return f"""
        WITH written AS ({write} RETURNING old.subject AS was, new.subject AS now)
        INSERT INTO stage_moved (subject, facts) {noted}"""


def folded(fact: Fact, parts: str) -> str:
    """Rows put together from the newest statements of each set of fields, which `parts` gives."""
    bits = fact.stated_bits
    states = {c.name: bits[c.states] for c in fact.columns}
    fields = []
    for column in fact.all_columns:
        if column in fact.key:
            fields.append(column)
        elif column == "stated":
            fields.append(f"({COMPOSITE})::bigint AS stated")
        elif column in states:
            fields.append(f"any_value({column}) FILTER (WHERE effective & {states[column]} <> 0) AS {column}")
        else:
            fields.append(f"any_value({column}) FILTER (WHERE place = 1) AS {column}")
    newest = ", ".join(f"p.{c.strip()} DESC" for c in VERSION.split(","))
    return f"""
        SELECT {", ".join(fields)} FROM (
            SELECT p.*, row_number() OVER w AS place,
                   p.stated & ~coalesce(bit_or(p.stated) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS effective
            FROM {parts}
            WINDOW w AS (PARTITION BY {", ".join(f"p.{k}" for k in fact.key)} ORDER BY {newest})
        ) parts
        GROUP BY {", ".join(fact.key)}"""


def _fold(schema: str, fact: Fact, sets: str) -> str:
    key = ", ".join(fact.key)
    on = " AND ".join(f"p.{k} = s.{k}" for k in fact.key)
    parts = f"""(SELECT DISTINCT {key} FROM composite_{fact.name}) s
            CROSS JOIN LATERAL (SELECT * FROM {schema}.{fact.name}_parts p WHERE {on} {FENCE}) p"""
    return f"""
        INSERT INTO {schema}.{fact.name} AS f ({", ".join(fact.all_columns)})
        {folded(fact, parts)} ORDER BY {key}
        ON CONFLICT ({key}) DO UPDATE SET {sets}"""


def erased_columns(fact: Fact, row: str) -> dict[str, str]:
    """What is left of a statement about an erased subject, for things that may go from one subject to another: that it was made.

    If it were forgotten whole, an older statement of another subject would win where it arrives later, and would not where it was
    there before. So the version stays and wins, says nothing, and belongs to nobody: no subject begins with the mark.
    """
    kept = (*fact.key, *HEADER, "stated")
    return {"subject": f"'{ERASED}' || {row}.subject"} | {c: "NULL" for c in fact.all_columns if c not in kept}


def prune(schema: str, fact: Fact) -> tuple[str, ...]:
    """Remove what was stated about erased subjects up to their erasure, from the staged rows and from the tables.

    A composite row is dropped with its parts and put together again from those that are left.
    """
    if "subject" not in fact.key:
        return _blank(schema, fact)
    on = " AND ".join(f"f.{k} = p.{k}" for k in fact.key)
    late = f"""DELETE FROM stage_{fact.name} f USING {schema}.links l
               WHERE l.subject = f.subject AND f.occurred_at <= l.erased_at"""
    rows = f"""DELETE FROM {schema}.{fact.name} f USING stage_gone g
               WHERE g.erased_at IS NOT NULL AND f.subject = g.subject AND f.occurred_at <= g.erased_at"""
    if not fact.partial:
        return late, rows
    return (
        late,
        f"""WITH dropped AS (
                DELETE FROM {schema}.{fact.name}_parts p USING stage_gone g
                WHERE g.erased_at IS NOT NULL AND p.subject = g.subject AND p.occurred_at <= g.erased_at RETURNING p.*)
            , freed AS (DELETE FROM {schema}.{fact.name} f USING dropped p WHERE {on} RETURNING f.*)
            INSERT INTO stage_{fact.name} SELECT {", ".join(f"p.{c}" for c in fact.all_columns)}
            FROM {schema}.{fact.name}_parts p JOIN (SELECT DISTINCT {", ".join(fact.key)} FROM freed) f ON {on}
            WHERE NOT EXISTS (SELECT FROM dropped d WHERE {" AND ".join(f"d.{k} = p.{k}" for k in fact.key)} AND d.stated = p.stated)""",
        f"""DELETE FROM {schema}.{fact.name}_parts p USING stage_{fact.name} f
            WHERE {on} AND NOT EXISTS (SELECT FROM {schema}.{fact.name} t WHERE {" AND ".join(f"t.{k} = p.{k}" for k in fact.key)})""",
        rows,
    )


def _blank(schema: str, fact: Fact) -> tuple[str, ...]:
    """Leave nothing but the version of what was stated about erased subjects; composite rows are put together again."""

    def blank(table: str, rest: str) -> str:
        sets = ", ".join(f"{column} = {value}" for column, value in erased_columns(fact, "f").items())
        return f"UPDATE {table} f SET {sets} {rest}"

    gone = "FROM stage_gone g WHERE g.erased_at IS NOT NULL AND f.subject = g.subject AND f.occurred_at <= g.erased_at"
    steps = [
        blank(
            f"stage_{fact.name}", f"FROM {schema}.links l WHERE l.subject = f.subject AND f.occurred_at <= l.erased_at"
        ),
        blank(f"{schema}.{fact.name}", f"{gone} AND f.stated <> {COMPOSITE}"),
    ]
    if fact.partial:
        keys = ", ".join(f"f.{k}" for k in fact.key)
        parts = blank(f"{schema}.{fact.name}_parts", gone)
        steps.append(f"""WITH blanked AS ({parts} RETURNING {keys})
            INSERT INTO composite_{fact.name} SELECT {", ".join(fact.key)} FROM blanked""")
    return tuple(steps)


def _ctes(view: View, schema: str, restriction: str) -> str:
    if restriction:
        return f"""customers AS (SELECT customer_id FROM touched WHERE {restriction}),
            subjects AS (SELECT customer_id, subject, source, deleted_at, merged_at, crowded FROM touched_subjects WHERE {restriction})"""
    return f"""customers AS (SELECT DISTINCT customer_id FROM {schema}.links),
        subjects AS (
            SELECT customer_id, subject, source, {gone_at(f"{schema}.links", "l")} AS deleted_at, {merged_at("l")} AS merged_at,
                   false AS crowded
            FROM {schema}.links l)"""


def select(view: View, schema: str, priority: str) -> str:
    """The view's SELECT over all customers: what a rebuild runs, and what a test compares with."""
    fresh = view.select.format(schema=schema, priority=priority, fence="")
    columns = ", ".join(view.columns) if len(view.key) == 1 else f"customer_id, unnest(members) AS {view.key[1]}"
    return f"WITH {_ctes(view, schema, '')} SELECT {columns} FROM ({fresh}) fresh"


def refresh(
    view: View, schema: str, priority: str, mask: int, *, feed: bool, all_facts: int = 0, crowded: bool = False
) -> str:
    """Refresh a view for the touched customers, where it is different.

    With `feed` what changed is noted in hub.outbox, by who has to publish it, memberships in hub.built_in_history too (when the
    statement begins, the locks are held: of a customer, later is later), and what this worker has to publish is returned: rows
    of the view, or (customer_id, value, entered, cause) for memberships, each with the number of its outbox row at the end. When
    there is nothing but `gone` customers it is a row of nulls. With `all_facts`, their bits, customers whose row is new are noted
    for all defined segments: nobody without it is in one. With `crowded` subjects with very many orders are noted (see _crowd.py).
    Parameters: `mine`, the worker's partitions, `whole`, whether these are
    all, `partitions`, how many there are, and `gone`, customers who lost their row before.
    """
    restriction = f"facts & {mask} <> 0"
    body = view.select.format(schema=schema, priority=priority, fence=FENCE)
    table = f"{schema}.{view.name}"
    columns = ", ".join(view.columns)
    if len(view.key) == 1:
        rest = [c for c in view.columns if c not in view.key]
        beside = APPEARED.format(all_facts=all_facts) if all_facts else ""
        beside += _crowd.noting(schema) if crowded else ""
        write = f"""WITH {_ctes(view, schema, restriction)}, changed AS (
            INSERT INTO {table} AS v ({columns})
            SELECT {columns} FROM ({body}) fresh ORDER BY customer_id
            ON CONFLICT ({view.key[0]}) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in rest)}
            WHERE ({", ".join(f"v.{c}" for c in rest)}) IS DISTINCT FROM ({", ".join(f"excluded.{c}" for c in rest)})
            RETURNING {", ".join(f"v.{c}" for c in view.columns)}, old.customer_id IS NULL AS appeared){beside}"""
        if not (feed and view.topic):
            return f"{write} SELECT FROM changed LIMIT 0"
        return f"""{write}, noted AS (
                INSERT INTO hub.outbox (partitions, topic, customer_ids)
                SELECT {_PARTITIONS}, '{view.topic}', array_agg(customer_id)
                FROM (
                    SELECT customer_id, {_OWNER} AS owner
                    FROM (SELECT customer_id FROM changed UNION ALL SELECT unnest(%(gone)s::uuid[])) ids
                ) owned
                GROUP BY owner RETURNING id, partitions
            )
            SELECT {_returned(view, "c")}, o.id FROM (SELECT id FROM noted WHERE partitions = %(mine)s::int[]) o
            LEFT JOIN (SELECT * FROM changed WHERE {_OWNER} = -1) c ON true"""
    value = view.key[1]
    write = f"""WITH diff AS MATERIALIZED (
            SELECT t.customer_id, t.cause, had.members AS had, has.members AS has, had.stale
            FROM touched t
            CROSS JOIN LATERAL (WITH customers AS (SELECT t.customer_id) {body}) has
            CROSS JOIN LATERAL (
                SELECT coalesce(array_agg(m.{value}), '{{}}') AS members,
                       array_agg(m.ctid) FILTER (WHERE m.{value} <> ALL (has.members)) AS stale
                FROM {table} m WHERE m.customer_id = t.customer_id
            ) had
            WHERE t.{restriction} AND NOT (had.members @> has.members AND has.members @> had.members)
        ), gone AS (
            DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT unnest(stale) FROM diff))
        ), came AS (
            INSERT INTO {table} ({columns})
            SELECT d.customer_id, v.value FROM diff d, unnest(d.has) v(value) WHERE v.value <> ALL (d.had) ORDER BY 1, 2
        )"""
    if not (feed and view.topic):
        return f"{write} SELECT FROM diff LIMIT 0"
    return f"""{write}, changed AS MATERIALIZED (
            SELECT customer_id, value, entered, cause, {_OWNER} AS owner FROM (
                SELECT d.customer_id, v.value, false AS entered, d.cause
                FROM diff d, unnest(d.had) v(value) WHERE v.value <> ALL (d.has)
                UNION ALL
                SELECT d.customer_id, v.value, true, d.cause
                FROM diff d, unnest(d.has) v(value) WHERE v.value <> ALL (d.had)
            ) moves
        ), noted AS (
            INSERT INTO hub.outbox (partitions, topic, customer_ids, payload)
            SELECT {_PARTITIONS}, '{view.topic}', array_agg(DISTINCT customer_id),
                   jsonb_agg(jsonb_build_array(customer_id, value, entered, cause))
            FROM changed GROUP BY owner RETURNING id, partitions
        ), told AS (
            INSERT INTO hub.built_in_history (customer_id, at, cause, had, has)
            SELECT customer_id, statement_timestamp(), cause, had, has FROM diff
        )
        SELECT c.customer_id::text, c.value, c.entered, c.cause, o.id
        FROM (SELECT id FROM noted WHERE partitions = %(mine)s::int[]) o LEFT JOIN (SELECT * FROM changed WHERE owner = -1) c ON true"""


_OWNER = """(SELECT CASE WHEN %(whole)s::bool THEN -1 WHEN p = ANY (%(mine)s::int[]) THEN -1 ELSE p END
    FROM (SELECT (crc32(convert_to(customer_id::text, 'UTF8')) %% %(partitions)s)::int AS p) at)"""
"""-1 where the customer's partition is this worker's, else the partition: librdkafka's default partitioner."""
_PARTITIONS = "CASE WHEN owner = -1 THEN %(mine)s::int[] ELSE ARRAY[owner] END"


def read(view: View, schema: str) -> str:
    """A view's rows of some customers, as `refresh` returns them; parameters are the version and the ids."""
    return f"SELECT {_returned(view, 'v')}, %s::bigint FROM {schema}.{view.name} v WHERE v.customer_id = ANY(%s::text[]::uuid[])"


def _returned(view: View, alias: str) -> str:
    """The columns for publishing: the id as text, since that is the key of the message."""
    return ", ".join(f"{alias}.{c}::text" if c == "customer_id" else f"{alias}.{c}" for c in view.columns)


def remove(view: View, schema: str, priority: str) -> str:
    """Delete rows of touched customers for whom the SELECT gives none any more; returns their ids.

    Only needed after moves and deletions.
    """
    return f"""WITH {_ctes(view, schema, "true")}
        DELETE FROM {schema}.{view.name} WHERE ctid = ANY (ARRAY(
            SELECT v.ctid FROM touched t
            CROSS JOIN LATERAL (SELECT ctid FROM {schema}.{view.name} x WHERE x.customer_id = t.customer_id {FENCE}) v
            WHERE t.customer_id NOT IN (SELECT customer_id FROM ({view.select.format(schema=schema, priority=priority, fence=FENCE)}) fresh)
        ))
        RETURNING customer_id"""


_BORROWED = (
    *("order", "checkout", "draft_order", "cart", "deal", "invoice", "quote", "refund", "return", "fulfillment"),
    *("ticket", "conversation", "subscription", "dispute", "feedback"),
)
"""Types of subjects that stand for a person only by what they bought or asked. What these say of the person, such as the name on an
invoice, yields to what any source's record of the person says."""
_BELOW = 10**10


def priority_sql(priorities: Mapping[str, int]) -> str:
    """How much a statement counts, as an SQL expression over the columns `source` and `subject` of `s`: first whether it is of a record of
    the person, then by its source's priority; sources that aren't named have 0.
    """
    cases = "".join(
        f" WHEN '{source}' THEN {int(value)}"
        for source, value in sorted(priorities.items())
        if value and _plain_name(source)
    )
    types = ", ".join(f"'{type_}'" for type_ in _BORROWED)
    own = f"CASE s.source{cases} ELSE 0 END" if cases else "0"
    return f"({own} - CASE WHEN split_part(s.subject, ':', 2) IN ({types}) THEN {_BELOW} ELSE 0::bigint END)"


def _plain_name(source: str) -> bool:
    if not source.replace("-", "").isalnum():
        raise ValueError(f"not a source name: {source!r}")
    return True


assert set(HEADER) == set(_HEADER_TYPES)
