"""Why criteria find nobody: a value that is written otherwise than the data have it. Looked for only where nothing was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import psycopg
from caudal.projections.criteria import tree
from caudal.projections.criteria.compile import order_lines
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, Field
from psycopg import sql

__all__ = ["hints"]

LOOKED_AT = 20_000
"""Rows whose values are gathered for a hint."""
LOOK_MS = 300
MOST = 5
"""Most hints of an answer, and most values that one names."""
_TELLING = {"city", "country", "gender", "interests", "language", "region", "sources", "tags", "timezone"}
"""Fields of the profile with few enough values to be told; names, addresses and documents aren't."""


@dataclass(frozen=True)
class _Asked:
    """A value that somebody asks for: as what, which texts it may stand as, and the SQL of the values that there are."""

    what: str
    values: tuple[str, ...]
    forms: frozenset[str]
    source: str
    attribute: str = ""


async def hints(conn: psycopg.AsyncConnection[Any], condition: tree.Condition | None) -> list[str]:
    """What may be meant by the values that no row has, one sentence each; in the caller's transaction, within `LOOK_MS` a value."""
    found: list[str] = []
    for asked in _asked(condition):
        statement = sql.SQL(  # sources are constant texts of ours
            "SELECT v, count(*) FROM ({}) s(v) WHERE v <> '' GROUP BY v ORDER BY count(*) DESC, v LIMIT 1000"
        ).format(sql.SQL(asked.source.format(limit=LOOKED_AT)))
        try:
            async with conn.transaction():
                await conn.execute(f"SET LOCAL statement_timeout = {LOOK_MS}", prepare=False)
                cursor = await conn.execute(statement, {"attribute": asked.attribute}, prepare=False)
                there = [value for value, _ in await cursor.fetchall()]
        except psycopg.errors.QueryCanceled:
            continue
        known = {value.casefold(): value for value in there}
        if asked.forms & known.keys() or len(found) == MOST:
            continue
        near = [m for value in asked.values for m in get_close_matches(value.casefold(), known, n=2, cutoff=0.6)]
        near += [v for v in known for value in asked.values if len(value) > 2 and value.casefold() in v]
        meant = list(dict.fromkeys(known[v] for v in near))[:MOST]
        if meant:
            found.append(f"no {asked.what} {_quoted(asked.values)}; did you mean {' or '.join(map(_text, meant))}?")
        elif there:
            more = ", …" if len(there) > MOST else ""
            found.append(
                f"no {asked.what} {_quoted(asked.values)}; there are {', '.join(map(_text, there[:MOST]))}{more}"
            )
        else:
            found.append(f"no {asked.what} is known of anybody")
    return found


def _asked(condition: tree.Condition | None) -> Iterator[_Asked]:
    for _, node in tree.walk(condition) if condition else ():
        match node:
            case tree.Compare(op="=" | "in" | "has"):
                field, part = tree.field_of(node.field, FIELDS)
                if field.kind == "attribute":
                    source = (
                        "SELECT p.attributes ->> %(attribute)s FROM live.profiles p WHERE p.attributes ? %(attribute)s"
                    )
                    yield from _value(node, f"attribute {part}", field, f"{source} LIMIT {{limit}}", part)
                elif node.field in _TELLING:
                    each = f"unnest({field.sql})" if field.kind in {"list", "codes"} else field.sql
                    source = f"SELECT {each} FROM live.profiles p WHERE {field.sql} IS NOT NULL LIMIT {{limit}}"
                    yield from _value(node, node.field, field, source)
            case tree.Consent():
                source = "SELECT purpose FROM live.consents LIMIT {limit}"
                yield _Asked("consent for", (node.consent,), frozenset({node.consent.casefold()}), source)
            case tree.Fact():
                yield from _of_fact(node)
            case tree.Sequence():
                for fact in (node.sequence, *(step.fact for step in node.then if not step.absent)):
                    yield from _of_fact(fact)
            case _:
                pass


def _of_fact(fact: tree.Fact) -> Iterator[_Asked]:
    kind = FACT_KINDS[fact.fact]
    for compare in fact.where:
        field, _ = tree.field_of(compare.field, kind.fields)
        if compare.op not in {"=", "in", "has"} or field.kind not in {"code", "codes", "text", "list"}:
            continue
        each = f"unnest({field.sql})" if field.kind in {"list", "codes"} else field.sql
        rows = f"(SELECT * FROM live.{kind.table} f WHERE {kind.holds} LIMIT {{limit}}) f"
        if field.line:
            rows += f", {order_lines('f', {field.sql.removeprefix('i.')})}"
        yield from _value(compare, f"{compare.field} of {fact.fact}", field, f"SELECT {each} FROM {rows}")


def _value(compare: tree.Compare, what: str, field: Field, source: str, attribute: str = "") -> Iterator[_Asked]:
    given = compare.value if isinstance(compare.value, list) else [compare.value]
    values = tuple(value for value in given if isinstance(value, str))
    if values:
        forms = (field.forms(v) if field.kind in {"code", "codes"} else (v,) for v in values)
        yield _Asked(what, values, frozenset(v.casefold() for each in forms for v in each), source, attribute)


def _quoted(values: tuple[str, ...]) -> str:
    return " or ".join(_text(value) for value in values[:MOST])


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
