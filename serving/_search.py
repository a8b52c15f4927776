"""Search: criteria, text, or both; sorted pages, counts, facets and exports. Every answer is of one snapshot and a bounded piece of work.

A page without a sort goes along the customers' ids and stops when it is full. Text finds what has every word, when nothing does what
contains them inside of words, and else what is written similarly; the best come first, and there is one page of them. With a sort all
are found that contain every word. A count looks at no more than `EXACT` matches and a moment of time; beyond that it is the planner's
estimate, and says so. Facets count the first `EXACT` matches.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import psycopg
from caudal.projections import criteria, search
from caudal.projections.criteria import tree
from caudal.projections.criteria.compile import Compiler
from caudal.projections.criteria.fields import FIELDS
from caudal.projections.membership import definitions
from caudal.projections.metrics import metrics
from caudal.projections.profiles import profiles
from caudal.projections.segments import MEMBERS, SEGMENTS
from caudal.serving._hints import hints
from caudal.serving._read import POSITION, Answer, token_of
from psycopg_pool import AsyncConnectionPool

from caudal.postgres import translated

__all__ = ["DEFAULT_FIELDS", "FACETS", "MOST", "BadSearch", "Search", "Searched", "check_names"]

MOST = 500
"""Most customers on one page."""
EXACT = 10_000
"""So many matches are counted one by one."""
RANKED = 300
"""So many customers whose text matches are ranked."""
COUNT_MS = 400
"""A count that takes longer becomes an estimate."""
FUZZY = 0.55
"""Least word similarity (pg_trgm) of a text that is found although it is written differently."""
ALIKE = 0.25
"""Least similarity (pg_trgm) of a word that may have been meant: `lix` is as near as that to `lima`."""
NEARLY = 0.6
"""What part of the best similarity other words need: beside `mariah`, `maria` has 0.62 and `mario` 0.3."""
MEANT = 10
"""So many words may have been meant by one."""

DEFAULT_FIELDS = ("name", "email", "phone", "city", "sources", "orders_count", "spend_minor", "last_order_at")

FACETS = {
    "city": "SELECT f.city AS value, f.customer_id FROM found f WHERE f.city IS NOT NULL",
    "source": "SELECT s.value, f.customer_id FROM found f, unnest(f.sources) s(value)",
    "favourite_category": (
        "SELECT m.favourite_category, f.customer_id FROM found f JOIN live.metrics m USING (customer_id)"
        " WHERE m.favourite_category IS NOT NULL"
    ),
    "segment": (
        "SELECT g.segment, f.customer_id FROM found f"
        f" CROSS JOIN LATERAL (SELECT segment FROM {MEMBERS} m WHERE m.customer_id = f.customer_id OFFSET 0) g"
    ),
}
"""What can be counted by value → rows (value, customer)."""

_SORT_TYPES = {
    "text": 'text COLLATE "C"', "code": 'text COLLATE "C"', "attribute": 'text COLLATE "C"', "time": "timestamptz", "date": "date",
    "custom": "jsonb",
}  # fmt: skip
_JSONB = {name for view in (profiles, metrics) for name, type_ in view.columns.items() if type_ == "jsonb"}


Way = Literal["words", "contains", "similar"]


class BadSearch(tree.BadCriteria):
    """A search that can't be made as asked, for another reason than its criteria."""

    code = "bad_search"


@dataclass(frozen=True)
class Searched:
    """What is searched for.

    Attributes:
        criteria: who is meant; everyone when None.
        text: words that the profile contains: of names, e-mail addresses, phones, documents, city.
        sort: a field, `-` before it for descending; None: by relevance where there is text, else by id.
        after: `next` of the page before.
        limit: most customers of the page.
        fields: what is told of each.
        facets: names of `FACETS` to count.
        count: whether to count them all.
        now: the moment that conditions on time are judged at.
    """

    criteria: tree.Condition | None = None
    text: str | None = None
    sort: str | None = None
    after: str | None = None
    limit: int = 50
    fields: tuple[str, ...] = DEFAULT_FIELDS
    facets: tuple[str, ...] = ()
    count: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


class _Query:
    """The parts of a search as SQL."""

    def __init__(self, asked: Searched, *, shape: Any = criteria.SEEK, indexed: bool = True) -> None:
        self.asked = asked
        self._compiler = Compiler("live", criteria.SEEK, "q")
        self.where = ["true"]
        parameters: dict[str, Any] = {"now": asked.now}
        if asked.criteria is not None:
            holds = criteria.predicate(asked.criteria, shape=shape)
            self.where.append(f"({holds.text})")
            parameters |= holds.parameters
        self.columns = [(name, self._column(name)) for name in asked.fields]
        self.source = "live.profiles p LEFT JOIN live.metrics m ON m.customer_id = p.customer_id"
        self.indexed = indexed
        self.text = "s.text" if indexed else search.TEXT.format(p="p")
        if asked.text is not None:
            if indexed:
                self.source += " JOIN live.search s ON s.customer_id = p.customer_id"
            words = _words(asked.text)
            self._runs = [run for word in words for run in _RUN.findall(word)]
            self.whole = f"hub.fold({self._compiler.value(' '.join(words), 'text')})"
            containing, inside = (
                [form.format(text=self.text, word=self._compiler.value(word, "text")) for word in words]
                for form in ("{text} LIKE hub.containing({word})", "strpos({text}, hub.fold({word})) > 0")
            )
            # one or two letters make no trigram: the index is asked for the others
            self.contains = " AND ".join(
                like if len(word) > 2 else found for word, like, found in zip(words, containing, inside, strict=True)
            )
            self._inside = " AND ".join(inside)
        self._parameters = parameters

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self._parameters, **self._compiler.parameters}

    def _column(self, name: str) -> str:
        if name == "segments":
            return (
                f"(SELECT coalesce(array_agg(g.segment ORDER BY g.segment), '{{}}') FROM {MEMBERS} g"
                " WHERE g.customer_id = p.customer_id)"
            )
        if name in _JSONB:
            return f"{'p' if name in profiles.columns else 'm'}.{name}"
        try:
            found, part = tree.field_of(name, FIELDS)
        except tree.BadCriteria as exc:
            raise BadSearch(exc.message, path="fields") from None
        sql = self._compiler.expression(found, part)
        return f"({sql})::int" if found.kind in {"days", "age"} else sql

    @property
    def ways(self) -> tuple[Way, ...]:
        """How text is looked for, the strictest first, until something is found."""
        return ("words", "contains", "similar") if self.indexed and self._runs else ("contains", "similar")

    def matches(self, way: Way = "contains") -> str:
        """The condition, the text included."""
        where = list(self.where)
        if self.asked.text is not None:
            where.append(self._found(way))
        return " AND ".join(where)

    def _found(self, way: Way) -> str:
        if way == "contains":
            return self.contains
        if way == "words":
            # the same as `contains` of fewer texts, in a form that leaves the index of trigrams alone
            return f"hub.search_words(s.text) @> hub.search_words({self.whole}) AND {self._inside}"
        spelt = [run for run in self._runs if len(run) > 2 and not re.search("[0-9]", run)]
        if not self.indexed or not spelt:
            return f"{self.whole} <%% {self.text}"
        numbers = [run for run in self._runs if re.search("[0-9]", run)]
        return " AND ".join(
            [f"hub.search_words(s.text) && {self._meant(run)}" for run in spelt]
            + [f"word_similarity({self._compiler.value(run, 'text')}, s.text) >= {FUZZY}" for run in numbers]
        )

    def _meant(self, run: str) -> str:
        """The words that may have been meant: where one is much nearer than others, as the word itself is, those are left out."""
        word = f"hub.fold({self._compiler.value(run, 'text')})"
        return f"""ARRAY(SELECT near.word FROM (
                SELECT v.word, v.times, similarity(v.word, {word}) AS score, max(similarity(v.word, {word})) OVER () AS best
                FROM live.search_vocabulary v WHERE v.word %% {word}
            ) near WHERE near.score >= {NEARLY} * near.best ORDER BY near.score DESC, near.times DESC, near.word LIMIT {MEANT})"""

    def ranked(self, way: Way) -> str:
        """The best of the first matches, most similar first; what is told of them is read for those alone."""
        columns = "".join(f", {sql} AS c{n}" for n, (_, sql) in enumerate(self.columns))
        alone = self.asked.criteria is None and self.text == "s.text"
        source, customer = ("live.search s", "s.customer_id") if alone else (self.source, "p.customer_id")
        return f"""
            SELECT best.customer_id, NULL::text AS key{columns}
            FROM (
                SELECT * FROM (
                    SELECT {customer}, word_similarity({self.whole}, {self.text}) AS score
                    FROM {source} WHERE {self.matches(way)} LIMIT {RANKED}
                ) first ORDER BY score DESC, customer_id LIMIT {self.asked.limit}
            ) best
            JOIN live.profiles p ON p.customer_id = best.customer_id LEFT JOIN live.metrics m ON m.customer_id = best.customer_id
            ORDER BY best.score DESC, best.customer_id"""

    def page(self) -> str:
        """A sorted page and one row more."""
        columns = "".join(f", {sql} AS c{n}" for n, (_, sql) in enumerate(self.columns))
        if self.asked.sort is None:
            after = self._after(None)
            return f"""
                SELECT p.customer_id, NULL::text AS key{columns} FROM {self.source} WHERE {self.matches()} {after}
                ORDER BY p.customer_id LIMIT {self.asked.limit + 1}"""
        key, type_, order = self._sorted_by(self.asked.sort)
        after = self._after(key, type_, ">" if order == "ASC" else "<")
        return f"""
            SELECT p.customer_id, {key}::text AS key{columns} FROM {self.source} WHERE {self.matches()} {after}
            ORDER BY {key} {order} NULLS LAST, p.customer_id LIMIT {self.asked.limit + 1}"""

    def all(self) -> str:
        """Everyone, sorted."""
        columns = "".join(f", {sql} AS c{n}" for n, (_, sql) in enumerate(self.columns))
        first = ""
        if self.asked.sort is not None:
            key, _, order = self._sorted_by(self.asked.sort)
            first = f"{key} {order} NULLS LAST, "
        return f"SELECT p.customer_id{columns} FROM {self.source} WHERE {self.matches()} ORDER BY {first}p.customer_id"

    def _sorted_by(self, sort: str) -> tuple[str, str, str]:
        """The key of a sort, its SQL type, and its direction."""
        try:
            found, part = tree.field_of(sort.removeprefix("-"), FIELDS)
        except tree.BadCriteria as exc:
            raise BadSearch(exc.message, path="sort") from None
        if found.kind in {"list", "codes"}:
            raise BadSearch("a list can't be sorted by", path="sort")
        type_ = _SORT_TYPES.get(found.kind, "numeric")
        key = f"(({self._compiler.expression(found, part)})::{type_})"
        return key, type_, "DESC" if sort.startswith("-") else "ASC"

    def _after(self, key: str | None, type_: str = "", beyond: str = "") -> str:
        if self.asked.after is None:
            return ""
        value, customer = _cursor(self.asked.after)
        this = self._compiler.value(customer, "uuid")
        if key is None:
            return f"AND p.customer_id > {this}"
        if value is None:
            return f"AND {key} IS NULL AND p.customer_id > {this}"
        last = self._compiler.value(value, "text") + f"::{type_}"
        return f"AND ({key} {beyond} {last} OR {key} IS NULL OR ({key} = {last} AND p.customer_id > {this}))"


class Search:
    """Searches customers."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def page(self, asked: Searched) -> Answer:
        """A page of customers, with a count and facets when asked.

        Raises:
            BadCriteria: the search can't be made as asked.
        """
        if not 1 <= asked.limit <= MOST:
            raise BadSearch(f"a number between 1 and {MOST} is needed", path="limit")
        async with self._snapshot() as (conn, indexed, reflected):
            await check_names(conn, asked.criteria)
            query = _Query(asked, indexed=indexed)
            data, way = await self._listed(conn, query)
            if not data["customers"] and asked.after is None:
                data["hints"] = await hints(conn, asked.criteria)
            if asked.count or asked.facets:
                data |= await self._counted(conn, query, way)
        return Answer(reflected, data)

    async def _listed(self, conn: psycopg.AsyncConnection[Any], query: _Query) -> tuple[dict[str, Any], Way]:
        """The customers, and the way in which their text was found."""
        asked, following = query.asked, None
        way: Way = "contains"
        rows: list[Any] = []
        if asked.text is not None and asked.sort is None:
            for way in query.ways:
                if rows := await _rows(conn, query.ranked(way), query):
                    break
        else:
            rows = await _rows(conn, query.page(), query)
            more_there, rows = len(rows) > asked.limit, rows[: asked.limit]
            following = _encoded(rows[-1][1], rows[-1][0]) if more_there else None
        names = asked.fields
        customers = [{"customer_id": row[0], **dict(zip(names, row[2:], strict=True))} for row in rows]
        return {"customers": customers, "next": following}, way

    async def _counted(self, conn: psycopg.AsyncConnection[Any], query: _Query, way: Way) -> dict[str, Any]:
        asked, matches = query.asked, query.matches(way)
        found = f"SELECT p.customer_id, p.city, p.sources FROM {query.source} WHERE {matches} LIMIT {EXACT + 1}"
        parts = ["SELECT NULL, NULL, (SELECT count(*) FROM found)"]
        for name in asked.facets:
            if name not in FACETS:
                raise BadSearch(f"there are {', '.join(FACETS)}", path="facets")
            parts.append(
                f"(SELECT '{name}', value, count(*) FROM ({FACETS[name]}) v(value, customer_id)"
                " GROUP BY value ORDER BY count(*) DESC, value LIMIT 20)"
            )
        statement = f"WITH found AS MATERIALIZED ({found}) {' UNION ALL '.join(parts)}"
        rows: list[Any] | None
        try:
            async with conn.transaction():
                if not asked.facets:
                    await conn.execute(f"SET LOCAL statement_timeout = {COUNT_MS}", prepare=False)
                rows = await _rows(conn, statement, query)
        except psycopg.errors.QueryCanceled:
            rows = None
        data: dict[str, Any] = {}
        many = rows is None or next(count for facet, _, count in rows if facet is None) > EXACT
        if rows is not None and asked.facets:
            data["facets"] = {
                name: [{"value": value, "count": count} for facet, value, count in rows if facet == name]
                for name in asked.facets
            }
        if asked.count:
            if many:
                value = await self._estimate(conn, query, matches)
            else:
                value = next(count for facet, _, count in rows or [] if facet is None)
            data["count"] = {"value": value, "exact": not many}
        return data

    async def _estimate(self, conn: psycopg.AsyncConnection[Any], query: _Query, matches: str) -> int:
        statement = f"EXPLAIN (FORMAT JSON) SELECT FROM {query.source} WHERE {matches}"
        # EXPLAIN takes no parameters: the client writes the values in, as literals
        async with psycopg.AsyncClientCursor(conn) as cursor:
            await cursor.execute(statement, query.parameters)
            row = await cursor.fetchone()
        assert row is not None
        return max(EXACT, int(row[0][0]["Plan"]["Plan Rows"]))

    async def export(self, asked: Searched) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Everyone found, in parts, by a cursor of the server: memory stays level however many they are."""
        async with self._snapshot() as (conn, indexed, _):
            await check_names(conn, asked.criteria)
            query = _Query(asked, shape=criteria.SCAN, indexed=indexed)
            names = ("customer_id", *asked.fields)
            async with conn.cursor(name="export") as cursor:
                await cursor.execute(query.all(), query.parameters)
                while rows := await cursor.fetchmany(2_000):
                    yield [dict(zip(names, row, strict=True)) for row in rows]

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], bool, str]]:
        """A transaction that sees one state, plans for the values at hand; whether there is a search index; and the state's token."""
        with translated():
            async with self._pool.connection() as conn, conn.transaction():
                await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", prepare=False)
                settings = (
                    f"SELECT ({search.READY.format(schema='live')}), {POSITION}, set_config('plan_cache_mode', 'force_custom_plan', true),"
                    f" set_config('pg_trgm.word_similarity_threshold', '{FUZZY}', true),"
                    f" set_config('pg_trgm.similarity_threshold', '{ALIKE}', true)"
                )
                row = await (await conn.execute(settings, prepare=False)).fetchone()
                assert row is not None
                try:
                    yield conn, bool(row[0]), token_of(row[1])
                except psycopg.DataError as exc:
                    # criteria can't cause it: a cursor of another sort, whose value is of another type
                    raise BadSearch("that is no `next` of this search", path="after") from exc


async def check_names(conn: psycopg.AsyncConnection[Any], condition: tree.Condition | None) -> None:
    """That the segments and the values of custom metrics which criteria name are there.

    Raises:
        BadCriteria: one isn't: nobody would be found, and nobody would know why.
    """
    if condition is not None and criteria.segments_named(condition) - SEGMENTS.keys():
        rows = await (await conn.execute(definitions.KNOWN, prepare=False)).fetchall()
        definitions.check_names(condition, [name for (name,) in rows])
    if condition is not None and criteria.metrics_named(condition):
        rows = await (await conn.execute(definitions.VALUES, prepare=False)).fetchall()
        definitions.check_values(condition, [name for (name,) in rows])


async def _rows(conn: psycopg.AsyncConnection[Any], statement: str, query: _Query) -> list[Any]:
    cursor = await conn.execute(statement, query.parameters, prepare=False)
    rows: list[Any] = await cursor.fetchall()
    return rows


_RUN = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[\d\s()+./-]+")


def _words(text: str) -> list[str]:
    """The words to look for; what is written like a phone or a document is one number.

    Raises:
        BadSearch: none of them is long enough to be found by.
    """
    if len(text) > tree.MAX_STRING or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadSearch(f"a text of at most {tree.MAX_STRING} characters is needed", path="q")
    digits = re.sub(r"\D", "", text)
    words = [digits] if len(digits) >= 4 and _NUMBER.fullmatch(text) else text.split()
    if not words or len(words) > 10 or max(map(len, words)) < 3:
        raise BadSearch("one to ten words are needed, one of them with three letters", path="q")
    return words


def _encoded(key: str | None, customer: uuid.UUID) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([key, str(customer)])).rstrip(b"=").decode()


def _cursor(text: str) -> tuple[str | None, uuid.UUID]:
    try:
        key, customer = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return None if key is None else str(key), uuid.UUID(customer)
    except (ValueError, TypeError, AttributeError):
        raise BadSearch("that is no `next` of a page", path="after") from None
