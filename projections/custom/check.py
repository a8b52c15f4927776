"""Whether a SELECT may become a metric: PostgreSQL reads it, in a transaction that is rolled back, and says what it is made of.

What a metric says of a customer must follow from that customer's facts. So it may read nothing else, and use no function that
writes, waits, or gives something else another time: the clock, chance, settings, the order in which rows happen to lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from caudal.projections._schema import LIVE
from caudal.projections.custom import order
from caudal.projections.custom.metric import RELATIONS, Metric
from caudal.projections.custom.source import BadMetric, Source
from caudal.projections.facts import FACTS
from caudal.projections.links import gone_at

__all__ = ["Checked", "check"]

SAMPLE = 200
"""Customers of whom a metric is computed to see whether it can be."""
SAMPLE_MS = 5_000
"""So long that may take: a metric is computed again for every customer that an event touches."""
MOST_VALUES = 20

_TYPES = {
    "int2": "integer", "int4": "integer", "int8": "integer", "numeric": "number", "float4": "number", "float8": "number",
    "text": "text", "varchar": "text", "bool": "boolean", "timestamptz": "time", "date": "date",
}  # fmt: skip
_FLOATS = {700, 701}
_ANY_ORDER = {"count", "min", "max"}
_KEYS = {
    "subjects": [{"subject"}], "profiles": [{"customer_id"}], **{
        fact.name: [{*fact.key}, {*fact.key} - {"source"} | {"subject"}] for fact in FACTS},
}  # fmt: skip
"""Relation → sets of columns, each of which tells its rows apart. A subject is of one source, so it may stand for it."""
_NAMES = """
    count sum avg min max bool_and bool_or every any_value mode percentile_cont percentile_disc stddev stddev_pop stddev_samp variance
    var_pop var_samp corr covar_pop covar_samp regr_slope regr_intercept regr_r2 regr_count regr_avgx regr_avgy bit_and bit_or
    array_agg string_agg json_agg jsonb_agg json_object_agg jsonb_object_agg  row_number rank dense_rank percent_rank cume_dist ntile
    lag lead first_value last_value nth_value  abs sign ceil ceiling floor round trunc mod div sqrt cbrt exp ln log log10 power pow
    width_bucket gcd lcm scale degrees radians  lower upper initcap length char_length character_length octet_length btrim ltrim rtrim
    substring substr left right replace  translate position strpos split_part concat concat_ws reverse ascii chr md5 starts_with
    overlay normalize unistr to_number  like notlike like_escape regexp_like regexp_count regexp_replace regexp_match regexp_matches
    regexp_substr regexp_instr similar_to_escape  string_to_array string_to_table array_to_string to_char  date_trunc date_part
    extract timezone age to_timestamp to_date make_date make_time make_timestamp make_timestamptz make_interval  date_bin date_add
    date_subtract isfinite overlaps justify_days justify_hours justify_interval  unnest cardinality array_length array_ndims
    array_upper array_lower array_position array_positions array_append array_prepend  array_cat array_remove array_replace trim_array
    array_reverse array_sort generate_series generate_subscripts num_nonnulls num_nulls  to_json to_jsonb json_build_object
    jsonb_build_object json_build_array jsonb_build_array json_typeof jsonb_typeof  json_array_length jsonb_array_length
    json_array_elements jsonb_array_elements json_array_elements_text jsonb_array_elements_text  json_object_keys jsonb_object_keys
    json_each jsonb_each json_each_text jsonb_each_text json_extract_path jsonb_extract_path  json_extract_path_text
    jsonb_extract_path_text jsonb_strip_nulls json_strip_nulls
"""
_ALLOWED = frozenset(_NAMES.split())
"""Functions of pg_catalog that a metric may call besides operators and casts: what they give follows from what they are given. A new
release of PostgreSQL adds nothing to it. Those that make much of little (`repeat`, `lpad`, `array_fill`) aren't here: nothing bounds their
memory."""
_FIXED = {
    "concat", "concat_ws", "to_char", "to_date", "array_to_string", "to_json", "to_jsonb", "jsonb_build_object",
    "json_build_object", "jsonb_build_array", "json_build_array", "anytextcat", "textanycat",
}  # fmt: skip
"""Of these, those that depend on settings which every session of ours has alike. So do those of times with a zone: it is UTC."""
_NUMERIC_POWERS = {"power", "pow", "numeric_power"}
_NUMERIC = 1700
_CATALOG_TYPES = re.compile(
    r":(?:consttype|resulttype|funcresulttype|vartype|opresulttype)"
    r" (?:24|220[2-6]|3734|3769|4089|4096|4191|2210|1033|27|28|29|3220|5069)\b"
)
"""`regclass` and its like, which are written by looking into the catalogue; rows' and transactions' numbers."""
_TIMESTAMPTZ = 1184
_READ_AS_TIME = {1082, 1083, 1114, 1184, 1266}
_SPECIAL = re.compile(r"'\s*(now|today|tomorrow|yesterday|allballs)\s*'", re.IGNORECASE)
_FUNCTION = re.compile(r":(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)")


@dataclass(frozen=True)
class Checked:
    """A metric that can be used, and what it gives.

    Attributes:
        metric: it.
        customers: of how many customers it was computed.
        known: value → of how many of them it is known.
        example: the values of one of them.
    """

    metric: Metric
    customers: int
    known: dict[str, int]
    example: dict[str, Any]


def check(conn: psycopg.Connection[Any], source: Source) -> Checked:
    """The metric of a file. The live schema must be there; nothing is changed.

    Raises:
        BadMetric: it can't be one; says why, with the line and the column.
    """
    with conn.transaction(force_rollback=True):
        conn.execute(f"SET LOCAL statement_timeout = {SAMPLE_MS}")
        _relations(conn)
        _parsed(conn, source)
        columns, reads = _columns(conn, source), _looked_through(conn, source)
        metric = Metric(source.name, source.title, source.statement, columns, reads)
        conn.execute("DROP SCHEMA metric_check CASCADE")
        return _computed(conn, source, metric)


def _relations(conn: psycopg.Connection[Any]) -> None:
    """Views of the names that a SELECT may use, in a schema of their own."""
    conn.execute("CREATE SCHEMA metric_check")
    conn.execute(
        f"""CREATE VIEW metric_check.subjects AS
            SELECT customer_id, subject, source, {gone_at(f"{LIVE}.links", "l")} AS deleted_at FROM {LIVE}.links l"""
    )
    for name in RELATIONS[1:]:
        own = "" if name == "profiles" else "NULL::uuid AS customer_id, "
        conn.execute(f"CREATE VIEW metric_check.{name} AS SELECT {own}x.* FROM {LIVE}.{name} x")
    conn.execute("SET LOCAL search_path = metric_check")


def _parsed(conn: psycopg.Connection[Any], source: Source) -> None:
    begin = "CREATE VIEW metric_check.metric AS\n"
    try:
        with conn.transaction():
            # with parameters, even none, the protocol takes one statement only
            conn.cursor(binary=True).execute(begin + source.statement)
    except psycopg.Error as exc:
        raise _fault(exc, source, len(begin)) from None


def _fault(exc: psycopg.Error, source: Source, before: int) -> BadMetric:
    said = exc.diag.message_primary or type(exc).__name__
    if "multiple commands" in said:
        return source.fault("one SELECT is needed, and nothing after it", source.statement.find(";"))
    if said == 'column "?column?" specified more than once':
        said = "every value needs a name, as in `count(*) AS orders`"
    place = exc.diag.statement_position
    hint = exc.diag.message_hint
    return source.fault(said, int(place) - 1 - before if place else None, hint=hint)


def _columns(conn: psycopg.Connection[Any], source: Source) -> dict[str, str]:
    """The values that it gives, with their types."""
    rows = conn.execute(
        """SELECT attname, t.typname, format_type(a.atttypid, NULL) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
           WHERE attrelid = 'metric_check.metric'::regclass AND attnum > 0 ORDER BY attnum"""
    ).fetchall()
    found = {}
    for name, type_, shown in rows:
        if name == "customer_id":
            continue
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
            raise source.fault("every value needs a name in lower case, as in `count(*) AS orders`", source.find(name))
        if type_ not in _TYPES:
            raise source.fault(
                f"{name} is of type {shown}",
                source.find(name),
                hint="a number, a text, a boolean, a date or a timestamptz is needed; cast it",
            )
        found[name] = _TYPES[type_]
    if not 1 <= len(found) <= MOST_VALUES:
        raise source.fault(f"1 to {MOST_VALUES} values besides customer_id are needed, not {len(found)}", None)
    return found


def _looked_through(conn: psycopg.Connection[Any], source: Source) -> tuple[str, ...]:
    """The relations that it reads; refuses what is not of the customer's facts alone."""
    row = conn.execute(
        "SELECT ev_action::text FROM pg_rewrite WHERE ev_class = 'metric_check.metric'::regclass"
    ).fetchone()
    assert row is not None
    tree = re.sub(r"\\.", "", row[0], flags=re.DOTALL)
    _functions(conn, source, {int(oid) for oid in _FUNCTION.findall(tree)})
    if "{SQLVALUEFUNCTION " in tree:
        raise source.fault(*_clock(source))
    if special := _SPECIAL.search(source.statement):
        raise source.fault("a metric can't tell the time: its value would change with no event", special.start())
    if _CATALOG_TYPES.search(tree):
        raise source.fault(
            "the catalogue can't be read here: reg types and rows' numbers aren't of a customer's facts",
            source.find("::reg"),
        )
    if ":hasRecursive true" in tree:
        raise source.fault("WITH RECURSIVE isn't possible here", source.find("recursive"))
    if ":hasForUpdate true" in tree:
        raise source.fault("a metric locks nothing", source.find("for"))
    for node in _nodes(tree):
        _node(conn, source, node)
    _ordered(conn, source, tree)
    rows = conn.execute(
        """SELECT c.relname, c.relnamespace = 'metric_check'::regnamespace, c.oid::regclass::text
           FROM pg_class c WHERE c.oid = ANY (%s::oid[]) ORDER BY 1""",
        ([int(oid) for oid in re.findall(r":relid (\d+)", tree)],),
    ).fetchall()
    for name, ours, shown in rows:
        if not ours:
            raise source.fault(
                f"{shown} can't be read here", source.find(name), hint=f"there are {', '.join(RELATIONS)}"
            )
    return tuple(name for name in RELATIONS if name in {name for name, _, _ in rows})


def _functions(conn: psycopg.Connection[Any], source: Source, oids: set[int]) -> None:
    rows = conn.execute(
        """SELECT p.proname, n.nspname, p.provolatile::text, p.pronargs, %(time)s = ANY (p.proargtypes::oid[]) OR p.prorettype = %(time)s,
               EXISTS (SELECT FROM pg_operator o WHERE o.oprcode = p.oid) OR EXISTS (SELECT FROM pg_cast c WHERE c.castfunc = p.oid),
               %(numeric)s = ANY (p.proargtypes::oid[])
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = ANY (%(oids)s::oid[]) ORDER BY p.proname""",
        {"time": _TIMESTAMPTZ, "numeric": _NUMERIC, "oids": sorted(oids)},
    )
    for name, schema, volatile, arguments, of_time, symbol, numeric in rows.fetchall():
        if (schema, name) == ("hub", "fold"):
            continue
        tells_time = name == "age" and arguments == 1
        if schema == "pg_catalog" and (tells_time or name in {"now", "statement_timestamp", "clock_timestamp"}):
            raise source.fault(*_clock(source, name))
        known = schema == "pg_catalog" and (symbol or name in _ALLOWED)
        follows = volatile == "i" or (volatile == "s" and (name in _FIXED or (of_time and arguments)))
        if name in _NUMERIC_POWERS and numeric:
            raise source.fault(
                "a power of numeric can have a hundred thousand digits", source.find("^" if name == "numeric_power" else name),
                hint="cast to float8 first",
            )  # fmt: skip
        if not (known and follows):
            raise source.fault(
                f"{name}() can't be used here: what a metric gives must follow from the customer's facts alone",
                source.find(name),
            )


def _clock(source: Source, *names: str) -> tuple[str, int | None]:
    words = (*names, "current_date", "current_timestamp", "current_time", "localtimestamp", "localtime", "current_user")
    places = [place for word in words if (place := source.find(word)) is not None]
    text = (
        "a metric can't tell the time: its value would change with no event; keep the time, and compare it in criteria"
    )
    return text, places[0] if places else None


def _node(conn: psycopg.Connection[Any], source: Source, node: str) -> None:
    """Refuse what depends on the order of rows, and texts that are read as times (`now` is one)."""
    if node.startswith("{COERCEVIAIO "):
        if int(_number(node, "resulttype")) in _READ_AS_TIME:
            raise source.fault(
                "a text can't be cast to a time here",
                source.find("::"),
                hint="use to_date or to_timestamp with a format",
            )
    elif node.startswith("{AGGREF ") and ":aggorder <>" in node:
        row = conn.execute("SELECT proname FROM pg_proc WHERE oid = %s", (_number(node, "aggfnoid"),)).fetchone()
        assert row is not None
        name = row[0]
        types = re.search(r":aggargtypes \(o ([\d ]+)\)", node)
        if types and {int(each) for each in types[1].split()} & _FLOATS and name not in _ANY_ORDER:
            raise _of_floats(source, name)
    elif node.startswith("{WINDOWFUNC ") and ":winagg true" in node and int(_number(node, "wintype")) in _FLOATS:
        row = conn.execute("SELECT proname FROM pg_proc WHERE oid = %s", (_number(node, "winfnoid"),)).fetchone()
        assert row is not None
        if row[0] not in _ANY_ORDER:
            raise _of_floats(source, row[0])


def _of_floats(source: Source, name: str) -> BadMetric:
    return source.fault(
        f"{name}() of floating point numbers hangs on the order of the rows", source.find(name), hint="cast to numeric first"
    )  # fmt: skip


def _ordered(conn: psycopg.Connection[Any], source: Source, tree: str) -> None:
    """Refuse what depends on which of several rows, equal in the order that is asked for, comes first."""
    rows = conn.execute(
        """SELECT c.oid::bigint, c.relname, jsonb_object_agg(a.attname, a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'metric_check'::regnamespace AND c.relname = ANY (%s) AND a.attnum > 0 GROUP BY 1, 2""",
        ([*_KEYS],),
    )
    keys = {oid: [{columns[name] for name in way} for way in _KEYS[relation]] for oid, relation, columns in rows}
    oids = [int(oid) for oid in re.findall(r":(?:winfnoid|aggfnoid) (\d+)", tree)]
    named = conn.execute("SELECT oid::bigint, proname FROM pg_proc WHERE oid = ANY (%s::oid[])", (oids,))
    functions: dict[int, str] = dict(named.fetchall())
    for word, what in order.undecided(tree, keys, functions):
        raise source.fault(
            f"{what} needs an order in which no two rows are equal", source.find(word),
            hint="end ORDER BY with the key, as in `ORDER BY placed_at, subject, order_id`; LIMIT may name what is selected instead",
        )  # fmt: skip


def _number(node: str, field: str) -> str:
    found = re.search(rf":{field} (\d+)", node)
    return found[1] if found else "0"


def _nodes(tree: str) -> Iterator[str]:
    """Every node of a tree as PostgreSQL writes it, without those within it."""
    while found := re.findall(r"\{[^{}]*\}", tree):
        yield from found
        tree = re.sub(r"\{[^{}]*\}", "node", tree)


def _computed(conn: psycopg.Connection[Any], source: Source, metric: Metric) -> Checked:
    """Compute it for some customers: a fault that data cause shows here, and how long it takes."""
    conn.execute(f"SET LOCAL search_path = {LIVE}")
    try:
        rows = conn.execute(
            f"""SELECT values FROM (SELECT DISTINCT customer_id FROM links ORDER BY 1 LIMIT {SAMPLE}) k
                CROSS JOIN LATERAL (SELECT ({metric.body("k.customer_id")}) AS values) computed""",
            prepare=False,
        ).fetchall()
    except psycopg.errors.QueryCanceled:
        raise source.fault(
            f"{SAMPLE} customers took longer than {SAMPLE_MS // 1000} s, which would hold up every event", None
        ) from None
    except psycopg.errors.CardinalityViolation:
        raise source.fault(
            "some customers have more than one row", None, hint="group by customer_id, or by nothing"
        ) from None
    except psycopg.Error as exc:
        said = exc.diag.message_primary or type(exc).__name__
        if isinstance(exc, psycopg.DataError):
            said = f"it can't be computed of every customer: {type(exc).__name__}"  # the text may quote a value
        raise source.fault(said, None) from None
    given = [values for (values,) in rows if values]
    known = {name: sum(name in values for values in given) for name in metric.columns}
    example: dict[str, Any] = max(given, key=len, default={})
    return Checked(metric, len(rows), known, example)
