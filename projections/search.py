"""The search index: a text per profile with its words and trigrams indexed, kept a moment behind the profiles.

It is a cache beside the views, and no view: writing trigrams costs more than projecting the event that changed the profile, so it is
done after the batch. A trigger notes the ids of changed profiles (a plain insert per batch); `refresh` writes the texts of those that
really changed. Whoever serves searches keeps it: the index of a schema that is new, or was swapped in by a rebuild, is made by `ensure`,
and until it is there searches by text read the profiles themselves.

Whole words are found by far the fastest: the index holds a list of customers for each. The vocabulary tells which words there are, so
that a misspelt one is compared with words and not with customers; a word leaves it with the last customer who has it.
"""

from __future__ import annotations

from typing import Any

import psycopg
from caudal.projections._schema import LIVE, SWAP_LOCK

from caudal.postgres import Lock

__all__ = ["BATCH", "READY", "TEXT", "due", "ensure", "refresh"]

_LOCK = Lock.SEARCH
BATCH = 2_000
"""Most notes that `refresh` takes."""

TEXT = (
    "hub.search_text({p}.name, {p}.email, {p}.phone, {p}.cpf, {p}.cnpj, {p}.city, {p}.other_emails, {p}.other_phones)"
)
"""The text of the profile `{p}`."""

READY = "SELECT to_regclass('{schema}.search_words') IS NOT NULL"
"""Whether the index is complete: that of the words is made last."""

_TABLES = """
    CREATE TABLE {schema}.search (customer_id uuid PRIMARY KEY, text text NOT NULL) WITH (fillfactor = 90);
    CREATE TABLE {schema}.search_due (customer_id uuid NOT NULL);
    CREATE TRIGGER search_inserted AFTER INSERT ON {schema}.profiles REFERENCING NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION hub.note_for_search();
    CREATE TRIGGER search_updated AFTER UPDATE ON {schema}.profiles REFERENCING NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION hub.note_for_search();
    CREATE TRIGGER search_deleted AFTER DELETE ON {schema}.profiles REFERENCING OLD TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION hub.note_for_search();
"""
_FILL = f"""
    INSERT INTO {{schema}}.search (customer_id, text) SELECT p.customer_id, {TEXT.format(p="p")} FROM {{schema}}.profiles p
    ON CONFLICT DO NOTHING
"""
_CITY = "CREATE INDEX CONCURRENTLY IF NOT EXISTS search_city ON {schema}.profiles (hub.fold(city), customer_id)"
"""The projection goes on while it is made."""
_SPELT = "length(word) > 2 AND word !~ '[0-9]'"
"""What words are in the vocabulary: numbers would be as many as customers."""
_TEXTS = f"""
    CREATE INDEX IF NOT EXISTS search_text ON {{schema}}.search USING gin (text gin_trgm_ops);
    CREATE TABLE {{schema}}.search_vocabulary (word text PRIMARY KEY, times bigint NOT NULL);
    INSERT INTO {{schema}}.search_vocabulary
        SELECT word, count(*) FROM {{schema}}.search s, unnest(hub.search_words(s.text)) word WHERE {_SPELT} GROUP BY word;
    CREATE INDEX search_vocabulary_similar ON {{schema}}.search_vocabulary USING gin (word gin_trgm_ops);
    CREATE INDEX search_words ON {{schema}}.search USING gin (hub.search_words(text));
    ANALYZE {{schema}}.search;
    ANALYZE {{schema}}.search_vocabulary;
"""
_TAKE = f"""
    WITH taken AS MATERIALIZED (
        DELETE FROM {{schema}}.search_due WHERE ctid = ANY (ARRAY(SELECT ctid FROM {{schema}}.search_due LIMIT {BATCH}))
        RETURNING customer_id
    ), now AS (
        SELECT t.customer_id, p.text FROM (SELECT DISTINCT customer_id FROM taken) t LEFT JOIN LATERAL (
            SELECT {TEXT.format(p="x")} AS text FROM {{schema}}.profiles x WHERE x.customer_id = t.customer_id OFFSET 0
        ) p ON true
    ), gone AS (
        DELETE FROM {{schema}}.search s USING now n WHERE s.customer_id = n.customer_id AND n.text IS NULL
    ), written AS (
        INSERT INTO {{schema}}.search AS s (customer_id, text) SELECT customer_id, text FROM now WHERE text IS NOT NULL ORDER BY 1
        ON CONFLICT (customer_id) DO UPDATE SET text = excluded.text WHERE s.text <> excluded.text
    ), counted AS (
        SELECT word, sum(times) AS times FROM (
            SELECT unnest(hub.search_words(n.text)) AS word, 1 AS times FROM now n
            UNION ALL SELECT unnest(hub.search_words(s.text)), -1 FROM {{schema}}.search s JOIN now n USING (customer_id)
        ) words WHERE {_SPELT} GROUP BY word HAVING sum(times) <> 0
    ), unused AS (
        DELETE FROM {{schema}}.search_vocabulary v USING counted c WHERE v.word = c.word AND v.times + c.times <= 0
    ), used AS (
        INSERT INTO {{schema}}.search_vocabulary AS v (word, times)
        SELECT c.word, c.times FROM counted c LEFT JOIN {{schema}}.search_vocabulary o USING (word)
        WHERE coalesce(o.times, 0) + c.times > 0
        ON CONFLICT (word) DO UPDATE SET times = v.times + excluded.times
    )
    SELECT count(*) FROM taken
"""


def ensure(conn: psycopg.Connection[Any], schema: str = LIVE) -> None:
    """Make and fill the index if it isn't there; one process does, the others go on. What was begun and broken off is finished."""
    if not _one(conn, "SELECT pg_try_advisory_lock(%s)", _LOCK):
        return
    try:
        if _one(conn, READY.format(schema=schema)) or not _one(
            conn, f"SELECT to_regclass('{schema}.profiles') IS NOT NULL"
        ):
            return
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (SWAP_LOCK,))
            if not _one(conn, f"SELECT to_regclass('{schema}.search') IS NOT NULL"):
                conn.execute(_TABLES.format(schema=schema))
        with conn.transaction():
            conn.execute(_FILL.format(schema=schema))
        conn.execute(_CITY.format(schema=schema))
        conn.execute(f"ANALYZE {schema}.profiles")  # or the planner knows nothing of the cities
        with conn.transaction():
            conn.execute(_TEXTS.format(schema=schema))
    finally:
        conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def refresh(conn: psycopg.Connection[Any], schema: str = LIVE) -> int:
    """Bring a part of what is due up to date; the number of notes taken, 0 when nothing is due or another process is at it."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (SWAP_LOCK,))
        if not _one(conn, "SELECT pg_try_advisory_xact_lock(%s)", _LOCK):
            return 0
        taken = _one(conn, _TAKE.format(schema=schema))
    return int(taken)


def _one(conn: psycopg.Connection[Any], statement: str, *parameters: Any) -> Any:
    row = conn.execute(statement, parameters or None).fetchone()
    return row[0] if row else None


def due(conn: psycopg.Connection[Any], schema: str = LIVE) -> bool:
    """Whether anything waits; nothing does where there is no index yet."""
    there = _one(conn, f"SELECT to_regclass('{schema}.search_due') IS NOT NULL")
    return bool(there and _one(conn, f"SELECT EXISTS (SELECT FROM {schema}.search_due)"))
