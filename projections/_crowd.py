"""Sums of the orders of subjects that have very many, so that one order more doesn't read all the others.

Such a subject is noted in `crowded`; from then on triggers on the orders keep what the metrics need of its orders in `order_sums` and
`order_times`, by differences, whoever changes them (a batch, an erasure, a repair, an edit by hand). The metrics of a touched customer
take these sums for crowded subjects and read the orders of all others. A rebuild and a proof read nothing but orders. Sums are exact
numbers, and earliest and latest times are looked up among all of them, so both give the same row.

Who notes a subject, and whoever writes its orders, holds the stripe of its customer (see _runner.py): no order is missed.
"""

from __future__ import annotations

__all__ = ["CROWDED", "LARGE", "MONEY", "TIMES", "finish", "lines", "noting", "tables"]

LARGE = 1_000
"""Orders that make a subject crowded: reading as many takes some milliseconds."""

MONEY = ("order", "order without currency", "spend", "discount", "net", "weekday")
"""What is summed besides the three favourites, `category`, `product` and `channel`."""

# What one order adds if it counts: amounts where there is one. The alias `o` is a row of orders with what metrics.py derives from it.
_ADDED = """(
    SELECT 'order' AS what, o.currency AS value, 0::numeric AS amount WHERE o.currency IS NOT NULL
    UNION ALL SELECT 'order without currency', '', 0 WHERE o.currency IS NULL
    UNION ALL SELECT 'spend', o.currency, o.total_minor WHERE o.paid AND o.total_minor IS NOT NULL
    UNION ALL SELECT 'discount', o.currency, coalesce(o.discount_minor, 0)
    UNION ALL SELECT 'net', o.currency, o.net_minor WHERE o.net_minor IS NOT NULL
    UNION ALL SELECT 'weekday', extract(isodow FROM o.placed_at AT TIME ZONE 'UTC')::text, 0
    UNION ALL SELECT 'channel', o.channel, 0
    UNION ALL SELECT 'category', l.value, l.quantity FROM unnest(o.line_categories, o.line_quantities) l(value, quantity)
    UNION ALL SELECT 'product', l.value, l.quantity FROM unnest(o.line_products, o.line_quantities) l(value, quantity)
)"""

CROWDED = "(l.subject IN (SELECT subject FROM {schema}.crowded)) IS TRUE"
"""Whether the subject of the link `l` is crowded; put so, the few that are get into a hash table."""


def tables(schema: str) -> dict[str, list[str]]:
    """Statements that make the tables, empty. A value may be too long for an index, so its hash is the key."""
    return {
        "crowded": [f'CREATE TABLE {schema}.crowded (subject text COLLATE "C" PRIMARY KEY)'],
        "order_sums": [
            f"""CREATE TABLE {schema}.order_sums (
                subject text COLLATE "C", what text COLLATE "C", key bytea, value text NOT NULL, n bigint NOT NULL, amount numeric NOT NULL,
                PRIMARY KEY (subject, what, key)) WITH (fillfactor = 50)"""
        ],
        "order_times": [
            f"""CREATE TABLE {schema}.order_times (
                subject text COLLATE "C", counts boolean, at timestamptz, n bigint NOT NULL, PRIMARY KEY (subject, counts, at))"""
        ],
    }


def finish(schema: str, placed: str) -> list[str]:
    """Statements that make the triggers; `placed` are the columns that metrics.py derives from an order `o`."""

    def added(rows: str, sign: str) -> str:
        return f"""SELECT o.subject, v.what, v.value, {sign}1 AS n, {sign}v.amount AS amount
            FROM (SELECT subject, {placed} FROM {rows} o) o CROSS JOIN LATERAL {_ADDED} v WHERE o.counts AND v.value IS NOT NULL"""

    def times(rows: str, sign: str) -> str:
        return f"""SELECT o.subject, o.counts, o.placed_at AS at, {sign}1 AS n
            FROM (SELECT subject, {placed} FROM {rows} o) o WHERE o.placed_at IS NOT NULL"""

    def appended(**signs: str) -> str:
        """Add what the rows of these tables add to, or take away from, both tables; a sum of no orders goes."""
        sums = " UNION ALL ".join(added(rows, sign) for rows, sign in signs.items())
        moments = " UNION ALL ".join(times(rows, sign) for rows, sign in signs.items())
        return (
            _added("order_sums", ("subject", "what", "key"), ("value", "n", "amount"),
                   f"""SELECT subject, what, sha256(convert_to(value, 'UTF8')) AS key, value, n, amount FROM (
                           SELECT subject, what, value, sum(n)::bigint AS n, sum(amount) AS amount FROM ({sums}) r GROUP BY 1, 2, 3
                       ) summed WHERE n <> 0 OR amount <> 0""")
            + _added("order_times", ("subject", "counts", "at"), ("n",),
                     f"SELECT subject, counts, at, sum(n)::bigint AS n FROM ({moments}) r GROUP BY 1, 2, 3 HAVING sum(n) <> 0")
        )  # fmt: skip

    def crowded(rows: str) -> str:
        return f"(SELECT * FROM {rows} r WHERE (r.subject IN (SELECT subject FROM crowded)) IS TRUE)"

    came, went = crowded("came"), crowded("went")
    known = (
        "(SELECT o.* FROM came c CROSS JOIN LATERAL (SELECT * FROM orders x WHERE x.subject = c.subject OFFSET 0) o)"
    )
    functions = {
        "sum_up_orders": f"""
            IF NOT EXISTS (SELECT FROM crowded) THEN RETURN NULL; END IF;
            IF TG_OP = 'INSERT' THEN {appended(**{came: ""})}
            ELSIF TG_OP = 'UPDATE' THEN {appended(**{came: "", went: "-"})}
            ELSE {appended(**{went: "-"})}
            END IF;""",
        "sum_up_crowded": f"""
            IF TG_OP = 'INSERT' THEN {appended(**{known: ""})}
            ELSE
                DELETE FROM order_sums s USING went w WHERE s.subject = w.subject;
                DELETE FROM order_times s USING went w WHERE s.subject = w.subject;
            END IF;""",
    }
    # a schema is renamed when it is swapped: names are looked up in the one that the table is in now
    made = [
        f"""CREATE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
            BEGIN
                PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
                {body}
                RETURN NULL;
            END $$"""
        for name, body in functions.items()
    ]
    changes = {"INSERT": "NEW TABLE AS came", "UPDATE": "OLD TABLE AS went NEW TABLE AS came", "DELETE": "OLD TABLE AS went"}  # fmt: skip
    for table, function, events in (
        ("orders", "sum_up_orders", ("INSERT", "UPDATE", "DELETE")),
        ("crowded", "sum_up_crowded", ("INSERT", "DELETE")),
    ):
        made += [
            f"""CREATE TRIGGER summed_up_{event.lower()} AFTER {event} ON {schema}.{table} REFERENCING {changes[event]}
                FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}()"""
            for event in events
        ]
    return made


def _added(table: str, key: tuple[str, ...], rest: tuple[str, ...], delta: str) -> str:
    """A statement that adds `delta` to a table. No row is both written and deleted, and none is inserted that is there already."""
    on = " AND ".join(f"t.{k} = d.{k}" for k in key)
    sets = ", ".join(f"{c} = t.{c} + excluded.{c}" for c in rest if c != "value")
    return f"""
        WITH delta AS MATERIALIZED ({delta}), gone AS (
            DELETE FROM {table} t USING delta d WHERE {on} AND t.n + d.n = 0
        )
        INSERT INTO {table} AS t ({", ".join(key + rest)})
        SELECT {", ".join(key + rest)} FROM delta d
        WHERE NOT EXISTS (SELECT FROM {table} t WHERE {on} AND t.n + d.n = 0) ORDER BY {", ".join(key)}
        ON CONFLICT ({", ".join(key)}) DO UPDATE SET {sets};"""


TIMES = " UNION ALL ".join(
    f"""(SELECT x.counts, x.at FROM {{schema}}.order_times x WHERE x.subject = s.subject AND x.counts = {counts}
        ORDER BY x.at {direction} LIMIT 1)"""
    for counts, direction in (("true", "ASC"), ("true", "DESC"), ("false", "DESC"))
)
"""When the crowded subject `s` ordered first and last, and when last of orders that don't count: rows (counts, at)."""


def lines(*what: str) -> str:
    """The sums of crowded subjects, for a FROM: rows `c` beside their subject `s`."""
    named = ", ".join(f"'{each}'" for each in what)
    return f"""FROM subjects s CROSS JOIN LATERAL (
        SELECT * FROM {{schema}}.order_sums x WHERE x.subject = s.subject AND x.what IN ({named}) {{fence}}
    ) c WHERE s.crowded"""


def noting(schema: str) -> str:
    """A CTE that notes the subjects that have become crowded, beside `changed` rows of the metrics.

    While no customer among these has many orders, it reads nothing else.
    """
    return f""", crowded AS (
        INSERT INTO {schema}.crowded (subject)
        SELECT t.subject FROM touched_subjects t
        WHERE EXISTS (SELECT FROM changed WHERE orders_count >= {LARGE}) AND NOT t.crowded
            AND (t.customer_id IN (SELECT customer_id FROM changed WHERE orders_count >= {LARGE})) IS TRUE
            AND (SELECT count(*) FROM (SELECT FROM {schema}.orders o WHERE o.subject = t.subject LIMIT {LARGE}) found) >= {LARGE}
        ORDER BY t.subject ON CONFLICT DO NOTHING)"""
