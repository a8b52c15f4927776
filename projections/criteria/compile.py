"""Criteria to SQL: one predicate over the aliases `p` (live.profiles) and `m` (live.metrics), its values always parameters.

Time is the parameter `now`: what a criterion says of a customer follows from facts, views and `now` alone. A fact counts once its time has
come (`at <= now`). NULL in a predicate means no; only `none` looks at it, with IS NOT TRUE.

Two shapes of the same meaning. By customer (`SEEK`), facts are looked up by index for one customer at a time, behind fences that
keep the planner from reading whole tables: for touched customers, for one customer, and for a page of a search, which stops early. By
set (`SCAN`), the facts that fit are grouped once for all customers: for a count or a backfill over everyone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any

from caudal.projections.criteria import tree
from caudal.projections.criteria._due import next_moments
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, LINE_COLUMNS, FactKind, Field
from caudal.projections.criteria.tree import Condition, duration, field_of, measure_of, moment
from caudal.projections.links import gone_at
from caudal.projections.segments import SEGMENTS

__all__ = ["SCAN", "SEEK", "Sql", "conditions", "explanation", "judged", "members", "order_lines", "predicate", "reads"]


_COLUMNS = 1_000
"""Totals of one pass over the facts: PostgreSQL takes 1,664 columns."""


class Shape(Enum):
    """How facts are found: by the customer, or for all at once."""

    SEEK = "seek"
    SCAN = "scan"


SEEK, SCAN = Shape.SEEK, Shape.SCAN


@dataclass(frozen=True)
class Sql:
    """A piece of SQL and its parameters; `now` is among those of the caller."""

    text: str
    parameters: Mapping[str, Any]


def predicate(condition: Condition, schema: str = "live", *, shape: Shape = SEEK, prefix: str = "c") -> Sql:
    """Whether the condition holds of the customer whose rows are `p` and `m`. `m` may be an outer join's.

    Args:
        condition: the tree.
        schema: where facts and views are; a name of ours.
        shape: see the module.
        prefix: what the names of the parameters begin with, so that several predicates fit into one statement.
    """
    compiler = Compiler(schema, shape, prefix)
    return Sql(compiler.condition(condition), compiler.parameters)


def members(condition: Condition, schema: str = "live", *, shape: Shape = SCAN, prefix: str = "c") -> Sql:
    """The customers (those with a profile) of whom the condition holds: rows (customer_id). See `predicate`."""
    where = predicate(condition, schema, shape=shape, prefix=prefix)
    source = _from(reads(condition), schema, among=False)
    return Sql(f"SELECT p.customer_id {source} WHERE {where.text}", where.parameters)


def explanation(condition: Condition, schema: str = "live") -> Sql:
    """For each of the parameter `customers`: (customer_id, holds, dues), two arrays in the order of `conditions`."""
    return judged([node for _, node in conditions(condition)], schema)


def judged(nodes: Sequence[Condition], schema: str = "live") -> Sql:
    """For each of the parameter `customers` who has a profile: (customer_id, holds, dues), two arrays in the order of the conditions."""
    compiler = Compiler(schema, SEEK, "c", shared=Shared())
    holds = ", ".join(f"({compiler.condition(node)}) IS TRUE" for node in nodes)
    dues = ", ".join(next_moments(node, compiler) for node in nodes)
    source = _from(frozenset().union(*map(reads, nodes)), schema, among=True)
    columns = f"p.customer_id, ARRAY[{holds}] AS holds, ARRAY[{dues}] AS dues"
    return Sql(f"SELECT {columns} {source} {compiler.laterals()}", compiler.parameters)


def conditions(condition: Condition) -> list[tuple[str, Condition]]:
    """Every condition with its path, parents first."""
    return list(tree.walk(condition))


def reads(condition: Condition) -> frozenset[str]:
    """The facts and views whose change can change the answer. Links are always among them, so they aren't named."""
    found: set[str] = set()
    for _, node in tree.walk(condition):
        match node:
            case tree.Compare():
                field = field_of(node.field, FIELDS)[0]
                found |= {field.reads, field.hub} - {""}
            case tree.Fact():
                found.add(FACT_KINDS[node.fact].table)
            case tree.Sequence():
                found |= {FACT_KINDS[f.fact].table for f in (node.sequence, *(s.fact for s in node.then))}
            case tree.Consent():
                found.add("consents")
            case tree.Segment():
                found.add("segment_members")
            case tree.Near():
                found.add("profiles")
            case _:
                pass
    return frozenset(found)


def _from(read: frozenset[str], schema: str, *, among: bool) -> str:
    metrics = "metrics" in read
    if not among:
        joined = f"LEFT JOIN {schema}.metrics m ON m.customer_id = p.customer_id" if metrics else ""
        return f"FROM {schema}.profiles p {joined}"
    joined = (
        f"LEFT JOIN LATERAL (SELECT * FROM {schema}.metrics x WHERE x.customer_id = k.customer_id OFFSET 0) m ON true"
        if metrics
        else ""
    )
    return f"""FROM (SELECT DISTINCT unnest(%(customers)s::uuid[]) AS customer_id) k
        CROSS JOIN LATERAL (SELECT * FROM {schema}.profiles x WHERE x.customer_id = k.customer_id OFFSET 0) p {joined}"""


@dataclass
class Shared:
    """What several conditions ask of one customer and is found once: values of the profile, and facts, kind by kind in one pass.

    Attributes:
        values: what tells an expression over `p` and `m` apart → its column of `e`, and its SQL.
        tests: kind of fact → condition on one fact → its column, and the condition's SQL.
        totals: kind of fact → expressions over all facts of the customer, in the order of their columns.
        since: length of a window → when it begins, computed once for all customers.
    """

    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    tests: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    totals: dict[str, list[str]] = field(default_factory=dict)
    since: dict[timedelta, str] = field(default_factory=dict)

    def value(self, sql: str, asked: str = "") -> str:
        """The column that holds the value of an expression; `asked` tells it apart where its SQL has parameters."""
        return f"e.{self.values.setdefault(asked or sql, (f'e{len(self.values)}', sql))[0]}"

    def test(self, kind: str, asked: str, sql: Callable[[], str]) -> str:
        """The column of a fact that says whether it is as `asked` (which tells conditions apart)."""
        tests = self.tests.setdefault(kind, {})
        if asked not in tests:
            tests[asked] = (f"t{len(tests)}", sql())
        return f"f0.{tests[asked][0]}"

    def total(self, kind: str, sql: str) -> str:
        """The column that holds the value of an expression with aggregates."""
        totals = self.totals.setdefault(kind, [])
        if sql not in totals:
            totals.append(sql)
        number = totals.index(sql)
        return f"{kind}_facts{number // _COLUMNS}.a{number}"


@dataclass
class Compiler:
    """Compiles nodes, collecting their parameters; with `shared`, also what is asked once for all of them (see `laterals`)."""

    schema: str
    shape: Shape
    prefix: str
    parameters: dict[str, Any] = field(default_factory=dict)
    shared: Shared | None = None

    now = "%(now)s::timestamptz"

    def value(self, value: Any, type_: str) -> str:
        """A parameter of an SQL type."""
        name = f"{self.prefix}{len(self.parameters)}"
        self.parameters[name] = value
        return f"%({name})s::{type_}"

    def laterals(self) -> str:
        """The joins that give the columns of what is shared."""
        assert self.shared is not None
        joins = []
        if self.shared.values:
            values = ", ".join(f"{sql} AS {name}" for name, sql in self.shared.values.values())
            joins.append(f"CROSS JOIN LATERAL (SELECT {values} OFFSET 0) e")
        for kind, totals in self.shared.totals.items():
            tests = "".join(f", ({sql}) AS {name}" for name, sql in self.shared.tests.get(kind, {}).values())
            at = _as(FACT_KINDS[kind].at, "f0")
            facts = f"SELECT f0.*, {at} AS at{tests} {self.facts(FACT_KINDS[kind], 'p.customer_id')} OFFSET 0"
            for first in range(0, len(totals), _COLUMNS):
                part = enumerate(totals[first : first + _COLUMNS], first)
                columns = ", ".join(f"{sql} AS a{number}" for number, sql in part)
                joins.append(f"CROSS JOIN LATERAL (SELECT {columns} FROM ({facts}) f0) {kind}_facts{first // _COLUMNS}")
        return "\n".join(joins)

    def begin(self, window: timedelta) -> str:
        """When a window that ends now begins."""
        if self.shared is None:
            return f"{self.now} - {self.value(window, 'interval')}"
        if window not in self.shared.since:
            self.shared.since[window] = f"(SELECT {self.now} - {self.value(window, 'interval')})"
        return self.shared.since[window]

    def fits(self, fact: tree.Fact) -> str:
        """`static` of f0; where facts are shared, the column that has it."""
        if self.shared is None:
            return self.static(fact)
        asked = repr((fact.since, fact.until, fact.where))
        return self.shared.test(fact.fact, asked, lambda: self.static(fact))

    def condition(self, node: Condition) -> str:
        """Whether a node holds; NULL is no."""
        match node:
            case tree.All():
                return self._joined(" AND ", node.all)
            case tree.Any_():
                return self._joined(" OR ", node.any)
            case tree.None_():
                return f"({self._joined(' OR ', node.none)}) IS NOT TRUE"
            case tree.Compare():
                found, part = field_of(node.field, FIELDS)
                return self.compared(found, part, node.op, node.value)
            case tree.Fact():
                return self._fact(node)
            case tree.Sequence():
                return self._sequence(node)
            case tree.Consent():
                return self._consent(node)
            case tree.Segment():
                return self._segment(node.segment)
            case tree.Near():
                return self._near(node.near)

    def _joined(self, word: str, nodes: list[Condition]) -> str:
        return word.join(f"({self.condition(node)})" for node in nodes)

    def _exists(self, source: str) -> str:
        # a scalar subquery is never turned into a join over whole tables
        return f"EXISTS (SELECT {source})" if self.shape is SCAN else f"(SELECT true {source} LIMIT 1)"

    def expression(self, found: Field, part: str) -> str:
        """The SQL of a field's value."""
        sql = found.sql.replace("{now}", self.now).replace("{today}", f"({self.now} AT TIME ZONE 'UTC')::date")
        shared = self.shared if found.reads in {"profiles", "metrics"} and found.kind not in _TEXTS else None
        if found.kind in {"money", "attribute", "custom"}:
            asked = f"{found.sql} {part}"
            if shared is not None and asked in shared.values:
                return shared.value("", asked)
            sql = sql.replace(f"{{{'currency' if found.kind == 'money' else 'attribute'}}}", self.value(part, "text"))
            return sql if shared is None else shared.value(sql, asked)
        return shared.value(sql) if shared is not None and not _COLUMN.fullmatch(sql) else sql

    def compared(self, found: Field, part: str, op: str, value: tree.Value) -> str:
        """A comparison of a field."""
        sql = self.expression(found, part)
        if op == "known":
            return f"({sql}) IS {'NOT ' if value else ''}NULL"
        match found.kind:
            case "text":
                return self._text(sql, op, value, _folded)
            case "code":
                return self._text(sql, *_coded(found, op, value), _exactly)
            case "list":
                return (
                    f"EXISTS (SELECT FROM unnest({sql}) e WHERE {_folded('e')} = {_folded(self.value(value, 'text'))})"
                )
            case "codes":
                return f"{self.value([*found.forms(str(value))], 'text[]')} && ({sql})"
            case "attribute" if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str)):
                return self._text(sql, op, value, _folded)
            case "attribute":
                plain = r"'^-?[0-9]{1,15}(\.[0-9]{1,9})?$'"
                return self._ordered(
                    f"(CASE WHEN {sql} ~ {plain} THEN ({sql})::float8 END)", op, _each(value, float), "float8"
                )
            case "custom":
                return self._custom(sql, op, value)
            case "time":
                return self._ordered(sql, op, _each(value, moment), "timestamptz")
            case "date":
                return self._ordered(sql, op, _each(value, lambda v: moment(v).date()), "date")
            case "age" if self.shared is None and (ages := _ages(op, value)):
                return self._born(found.since, *ages)
            case _:
                return self._ordered(sql, op, *_numbers(value))

    def _custom(self, sql: str, op: str, value: tree.Value) -> str:
        """A comparison of a value that is JSON; with one of another type it doesn't hold."""
        first = value[0] if isinstance(value, list) else value
        text = f"({sql} #>> '{{}}')"
        if isinstance(first, bool):
            return f"{sql} {_SQL_OPERATOR[op]} to_jsonb({self.value(value, 'boolean')}) AND jsonb_typeof({sql}) = 'boolean'"
        if not isinstance(first, str):
            number = f"CASE WHEN jsonb_typeof({sql}) = 'number' THEN {text}::float8 END"
            return self._ordered(number, op, _each(value, float), "float8")
        if op in _MOMENTS:
            # a text of that shape may still be no time: the 39th of a 19th month
            shaped = f"{text} ~ {_ISO} AND pg_input_is_valid({text}, 'timestamptz')"
            time = f"CASE WHEN {shaped} THEN {text}::timestamptz END"
            return self._ordered(time, op, _each(value, moment), "timestamptz")
        return self._text(f"CASE WHEN jsonb_typeof({sql}) = 'string' THEN {text} END", op, value, _folded)

    def _text(self, sql: str, op: str, value: tree.Value, form: Callable[[str], str]) -> str:
        here = form(sql)
        if self.shared is not None and here != sql and not _NOT_OF_A_VIEW.search(sql):
            here = self.shared.value(here)
        if isinstance(value, list):
            given = f"ARRAY(SELECT {form('e')} FROM unnest({self.value(value, 'text[]')}) e)"
            return f"{here} {'= ANY' if op == 'in' else '<> ALL'} ({given})"
        given = form(self.value(value, "text"))
        if self.shared is not None:
            given = f"(SELECT {given})"  # asks nothing of the customer: computed once for all
        match op:
            case "contains":
                return f"strpos({here}, {given}) > 0"
            case "starts with":
                return f"starts_with({here}, {given})"
            case _:
                return f"{here} {_SQL_OPERATOR[op]} {given}"

    def _ordered(self, sql: str, op: str, value: Any, type_: str) -> str:
        if op == "between":
            return f"({sql}) BETWEEN {self.value(value[0], type_)} AND {self.value(value[1], type_)}"
        if op in {"in", "not in"}:
            return f"({sql}) {'= ANY' if op == 'in' else '<> ALL'} ({self.value(value, f'{type_}[]')})"
        return f"({sql}) {_SQL_OPERATOR[op]} {self.value(value, type_)}"

    def _born(self, date: str, least: int, below: int | None) -> str:
        """That an age is at least one and below another, said of the date of birth: of those the planner knows how many there are."""

        def ago(years: int) -> str:
            return f"(({self.now} AT TIME ZONE 'UTC')::date - make_interval(years => {self.value(years, 'int')}))::date"

        before = f"{date} <= {ago(least)}"
        return before if below is None else f"{before} AND {date} > {ago(below)}"

    def _segment(self, name: str) -> str:
        here = f"g.customer_id = p.customer_id AND {{}} = {self.value(name, 'text')}"
        if name in SEGMENTS:
            return self._exists(f"FROM {self.schema}.segment_members g WHERE {here.format('g.segment')}")
        defined = "FROM hub.segments s JOIN hub.segment_memberships g ON g.segment_id = s.id"
        return self._exists(f"{defined} WHERE {here.format('s.name')}")

    def _near(self, point: tree.Point) -> str:
        latitude, longitude = self.value(point.latitude, "float8"), self.value(point.longitude, "float8")
        # great circle by the haversine formula, mean radius; least() keeps rounding out of asin's way
        half = (
            f"power(sin(radians(p.latitude - {latitude}) / 2), 2)"
            f" + cos(radians({latitude})) * cos(radians(p.latitude)) * power(sin(radians(p.longitude - {longitude}) / 2), 2)"
        )
        return (
            "CASE WHEN p.latitude BETWEEN -90 AND 90 AND p.longitude BETWEEN -180 AND 180"
            f" THEN 2 * 6371.0088 * asin(least(1, sqrt({half}))) <= {self.value(point.km, 'float8')} END"
        )

    def facts(self, kind: FactKind, customer: str, number: int = 0, *, fenced: bool | None = None) -> str:
        """FROM and WHERE of a customer's facts of a kind, as alias f<number>; conditions can follow with AND."""
        fence = "OFFSET 0" if (self.shape is SEEK if fenced is None else fenced) else ""
        f, links = f"f{number}", f"l{number}"
        return f"""FROM (SELECT * FROM {self.schema}.links x WHERE x.customer_id = {customer} {fence}) {links}
            CROSS JOIN LATERAL (SELECT * FROM {self.schema}.{kind.table} x WHERE x.subject = {links}.subject {fence}) {f}
            WHERE {_as(kind.holds, f)}"""

    def happened(self, fact: tree.Fact, number: int = 0) -> str:
        """That a fact's time has come and lies in its window."""
        at = _as(FACT_KINDS[fact.fact].at, f"f{number}")
        parts = [self.static(fact, number), *self._in_time(fact, at)]
        return " AND ".join(parts)

    def _in_time(self, fact: tree.Fact, at: str) -> list[str]:
        parts = [f"{at} <= {self.now}"]
        if fact.within:
            parts.append(f"{at} > {self.begin(duration(fact.within))}")
        return parts

    def static(self, fact: tree.Fact, number: int = 0) -> str:
        """What a fact must be besides its time passing: nothing that depends on now."""
        kind, f = FACT_KINDS[fact.fact], f"f{number}"
        at = _as(kind.at, f)
        parts = ["true"]
        if fact.since:
            parts.append(f"{at} >= {self.value(moment(fact.since), 'timestamptz')}")
        if fact.until:
            parts.append(f"{at} < {self.value(moment(fact.until), 'timestamptz')}")
        lines: list[str] = []
        asked: set[str] = set()
        for compare in fact.where:
            found, part = field_of(compare.field, kind.fields)
            text = self.compared(found, part, compare.op, compare.value)
            (lines if found.line else parts).append(_as(text, f))
            asked |= {found.sql.removeprefix("i.")} if found.line else set()
        if lines:
            # all conditions on lines are met by one and the same line
            parts.append(f"EXISTS (SELECT FROM {order_lines(f, asked)} WHERE {' AND '.join(lines)})")
        return " AND ".join(parts)

    def _fact(self, node: tree.Fact) -> str:
        kind = FACT_KINDS[node.fact]
        if self.shared is not None:
            happened = " AND ".join([self.fits(node), *self._in_time(node, "f0.at")])
            total = self.having(node, happened) if node.having else f"count(*) FILTER (WHERE {happened}) > 0"
            return self.shared.total(node.fact, total)
        if not node.having:
            source = f"{self.facts(kind, 'p.customer_id')} AND {self.happened(node)}"
            return self._exists(source)
        if self.shape is SEEK:
            source = f"{self.facts(kind, 'p.customer_id')} AND {self.happened(node)}"
            return f"(SELECT {self.having(node)} {source})"
        counted = self.having(node)
        # who has no such facts is in no group, so the groups that don't fit are asked for when zero fits
        zero = all(_holds_of_zero(h.op, h.value) for h in node.having)
        groups = f"""SELECT l0.customer_id FROM {self.schema}.links l0 JOIN {self.schema}.{kind.table} f0 USING (subject)
            WHERE {_as(kind.holds, "f0")} AND {self.happened(node)}
            GROUP BY l0.customer_id HAVING {f"NOT ({counted})" if zero else counted}"""
        return f"{'NOT ' if zero else ''}EXISTS (SELECT FROM ({groups}) g WHERE g.customer_id = p.customer_id)"

    def having(self, node: tree.Fact, happened: str = "true", over: str = "") -> str:
        """Comparisons of totals over the facts that `happened`; with `over`, of running totals over that window."""
        kind, parts = FACT_KINDS[node.fact], []
        for asked in node.having:
            measure, currency = measure_of(asked.measure, kind)
            match measure:
                case "units":
                    total = f"coalesce(sum({self._units(node)}) FILTER (WHERE {happened}) {over}, 0)"
                case "amount_minor":
                    which = self.value(currency, "text")
                    total = f"coalesce(sum({_as(kind.amount or '', 'f0')}) FILTER (WHERE f0.currency = {which} AND {happened}) {over}, 0)"
                case _:
                    total = f"count(*) FILTER (WHERE {happened}) {over}"
            parts.append(self._ordered(total, asked.op, *_numbers(asked.value)))
        return " AND ".join(parts)

    def _units(self, node: tree.Fact) -> str:
        """Units of the lines that fit."""
        kind, fits, asked = FACT_KINDS[node.fact], ["true"], {"quantity"}
        for compare in node.where:
            found, part = field_of(compare.field, kind.fields)
            if found.line:
                asked.add(found.sql.removeprefix("i."))
                fits.append(self.compared(found, part, compare.op, compare.value))
        return f"(SELECT sum(i.quantity) FROM {order_lines('f0', asked)} WHERE {' AND '.join(fits)})"

    def _sequence(self, node: tree.Sequence) -> str:
        return self._exists(self.followed(node))

    def followed(self, node: tree.Sequence) -> str:
        """FROM and WHERE of the facts f0 with which a sequence begins."""
        kind = FACT_KINDS[node.sequence.fact]
        return f"{self.facts(kind, 'p.customer_id')} AND {self.happened(node.sequence)} AND {self._then(node, 0)}"

    def _then(self, node: tree.Sequence, number: int) -> str:
        """What follows the fact f<number> of a sequence."""
        if number == len(node.then):
            return "true"
        step, before = node.then[number], node.sequence if number == 0 else node.then[number - 1].fact
        kind = FACT_KINDS[step.fact.fact]
        ends = f"{_as(FACT_KINDS[before.fact].at, f'f{number}')} + {self.value(duration(step.within), 'interval')}"
        at = _as(kind.at, f"f{number + 1}")
        source = self.facts(kind, "p.customer_id", number + 1, fenced=False)
        fits = f"{at} > {_as(FACT_KINDS[before.fact].at, f'f{number}')} AND {at} <= {ends}"
        happened = self.happened(step.fact, number + 1)
        if step.absent:
            return f"{ends} <= {self.now} AND NOT EXISTS (SELECT {source} AND {fits} AND {happened})"
        return f"EXISTS (SELECT {source} AND {fits} AND {happened} AND {self._then(node, number + 1)})"

    def consents(self, purpose: str) -> str:
        """FROM and WHERE of a customer's statements about a purpose; those that a deleted account made before don't count."""
        fence = "OFFSET 0" if self.shape is SEEK else ""
        return f"""FROM (SELECT * FROM {self.schema}.links x WHERE x.customer_id = p.customer_id {fence}) l0
            CROSS JOIN LATERAL (SELECT * FROM {self.schema}.consents x
                                WHERE x.subject = l0.subject AND x.purpose = {self.value(purpose, "text")} {fence}) f0
            WHERE f0.occurred_at > coalesce({gone_at(f"{self.schema}.links", "l0")}, '-infinity')"""

    def valid(self, node: tree.Consent) -> str:
        """That a statement about a purpose makes the condition hold."""
        if node.state != "granted" or node.lapsed:
            return f"f0.state = '{node.state}'"
        return f"f0.state = 'granted' AND (f0.expires_at IS NULL OR f0.expires_at > {self.now})"

    def _consent(self, node: tree.Consent) -> str:
        valid = self._exists(f"{self.consents(node.consent)} AND {self.valid(node)}")
        if node.state != "granted":
            return valid
        withdrawn = self._exists(f"{self.consents(node.consent)} AND f0.state = 'withdrawn'")
        return f"({valid}) AND ({withdrawn}) IS NOT TRUE"


_COLUMN = re.compile(r"[pm]\.[a-z_]+")
_NOT_OF_A_VIEW = re.compile(r"\b[efi]\.")
_TEXTS = {"text", "code", "list", "codes"}
_MOMENTS = {"<", "<=", ">", ">=", "between"}
_ISO = "'^[0-9]{4}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]\\.[0-9]{6}Z)?$'"
_SQL_OPERATOR = {"=": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def _folded(sql: str) -> str:
    return f"hub.fold({sql})"


def _exactly(sql: str) -> str:
    return sql


def _each(value: tree.Value, convert: Callable[[Any], Any]) -> Any:
    return [convert(v) for v in value] if isinstance(value, list) else convert(value)


def _coded(found: Field, op: str, value: tree.Value) -> tuple[str, tree.Value]:
    """A comparison of a code with every form that the value may stand as."""
    given = value if isinstance(value, list) else [value]
    forms: list[Any] = list(dict.fromkeys(form for each in given for form in found.forms(str(each))))
    if len(forms) == 1 and not isinstance(value, list):
        return op, forms[0]
    return {"=": "in", "!=": "not in"}.get(op, op), forms


def _numbers(value: Any) -> tuple[Any, str]:
    """Numbers and their SQL type; a list has one type for all."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(n, float) for n in numbers):
        return _each(value, float), "float8"
    return value, "bigint"


def _ages(op: str, value: Any) -> tuple[int, int | None] | None:
    """A comparison of whole years as the least age that fits and the first that no longer does; None where it is no such range."""
    match op:
        case "<":
            return 0, value
        case "<=":
            return 0, value + 1
        case ">":
            return value + 1, None
        case ">=":
            return value, None
        case "=":
            return value, value + 1
        case "between":
            return value[0], value[1] + 1
        case _:
            return None


def _as(sql: str, alias: str) -> str:
    """SQL over the alias f as SQL over another."""
    return sql.replace("f.", f"{alias}.")


def order_lines(alias: str, asked: set[str]) -> str:
    """The lines of an order as rows of the columns that are asked for."""
    columns = {name: column for name, column in LINE_COLUMNS.items() if name in asked}
    arrays = ", ".join(f"{alias}.{column}" for column in columns.values())
    return f"unnest({arrays}) AS i({', '.join(columns)})"


def _holds_of_zero(op: str, value: Any) -> bool:
    match op:
        case "between":
            return bool(value[0] <= 0 <= value[1])
        case "=":
            return bool(value == 0)
        case "!=":
            return bool(value != 0)
        case "<":
            return bool(value > 0)
        case "<=":
            return bool(value >= 0)
        case ">":
            return bool(value < 0)
        case _:
            return bool(value <= 0)
