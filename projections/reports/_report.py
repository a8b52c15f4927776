"""What a report is: one parameterised SELECT over facts and views, and what its columns mean.

A SELECT may use the CTEs of `SHARED` that the report names in `reads`, and the parameters of `Asked.parameters`. Days begin at midnight in
the time zone that was asked for. What lies after `now` is not counted: it has not happened yet. Some CTEs stand in `ROLLED` too: there they
say the same, from a rollup instead of facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from caudal.projections import rollups
from caudal.projections._rollup import Rollup, both
from caudal.projections.criteria.fields import FACT_KINDS
from caudal.projections.metrics import PAID

__all__ = [
    "CURRENCY",
    "PERIOD",
    "PERIODS",
    "ROLLED",
    "SHARED",
    "Chart",
    "Column",
    "Period",
    "Report",
    "ratio",
    "truncated",
]

Period = Literal["day", "week", "month"]
PERIODS: tuple[Period, ...] = ("day", "week", "month")
"""Lengths of a period; a week begins on Monday (ISO 8601)."""

Type = Literal["date", "text", "integer", "number", "money", "share", "hours"]


@dataclass(frozen=True)
class Column:
    """A column of a report.

    Attributes:
        name: as in JSON and CSV; with its unit where there is one.
        type: `money` is in minor units of the row's `currency`; a `share` lies between 0 and 1.
        title: as people read it.
    """

    name: str
    type: Type
    title: str


@dataclass(frozen=True)
class Chart:
    """How a report is drawn.

    Attributes:
        kind: `line` and `bars` over `x`; `list`: one horizontal bar a row; `grid`: `y` over the pairs of `x` and `rows`.
        x: the column along the chart.
        y: the columns drawn; bars of several stand upon each other.
        split: one chart for each value of this column.
        band: the columns of the lower and upper bound drawn around the line.
        rows: of a grid, the column down the side.
    """

    kind: Literal["line", "bars", "list", "grid"]
    x: str
    y: tuple[str, ...]
    split: str | None = None
    band: tuple[str, str] | None = None
    rows: str | None = None


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        name: what it is asked for by.
        title: its heading.
        about: what it tells, and how its figures are made.
        columns: those of the SELECT, in order.
        reads: the CTEs of `SHARED` that the SELECT uses.
        select: the SELECT.
        chart: how it is drawn.
        by: the lengths of a period that it can be asked by, the usual one first; none when it isn't by period.
        takes: what else it can be asked: `currency`, `limit`, `segment`.
        sums: columns whose totals mean something; by currency where there is one.
        rates: further columns of the totals, made of the sums.
        marks: columns of a series that is watched for trend and anomalies.
        parts: the columns that tell one series from another.
    """

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    reads: tuple[str, ...]
    select: str
    chart: Chart
    by: tuple[Period, ...] = ()
    takes: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    rates: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def _as(sql: str) -> str:
    return sql.replace("f.", "x.")


_BOUGHT = FACT_KINDS["bought"]
_AT, _HOLDS = _as(_BOUGHT.at), _as(_BOUGHT.holds)
_PAID = PAID.replace("o.", "x.")


def _day(at: str) -> str:
    return f"({at} AT TIME ZONE %(zone)s)::date"


def _events(table: str, at: str, columns: str, holds: str, *, since: bool = True, more: str = "") -> str:
    """Facts of the customers who are meant, with the customer, the moment `at` and its `day`."""
    begin = f"AND {at} >= %(begin)s" if since else ""
    return f"""
        SELECT l.customer_id, {at} AS at, {_day(at)} AS day, {columns}
        FROM live.links l {{who}} JOIN live.{table} x USING (subject) {more}
        WHERE {holds} {begin} AND {at} < %(end)s AND {at} <= %(now)s"""


def _counted(rollup: Rollup, *, since: bool = True) -> str:
    """What a rollup's facts say, a row for each: its keys and sums, with the `day`."""
    begin = "{at} >= %(begin)s AND " if since else ""
    parts = []
    for part in rollup.parts:
        keys = ", ".join(f"{part.keys[name]} AS {name}" for name in rollup.keys)
        sums = ", ".join(f"{part.sums.get(name, '0')} AS {name}" for name in rollup.sums)
        parts.append(f"""
        SELECT {_day(part.at)} AS day, {keys}, {sums}
        FROM live.links l {{who}} JOIN live.{part.fact} f USING (subject)
        WHERE {part.holds} AND {begin.format(at=part.at)}{part.at} < %(end)s AND {part.at} <= %(now)s""")
    return " UNION ALL ".join(parts)


def _rolled(rollup: Rollup, *, since: bool = True) -> str:
    """The same as `_counted` of everyone, from the rollup."""
    begin = "r.at >= %(begin)s AND " if since else ""
    return f"""
        SELECT {_day("r.at")} AS day, {", ".join((*rollup.keys, *rollup.sums))}
        FROM ({both("live", rollup)}) r WHERE {begin}r.at < %(end)s AND r.at <= %(now)s"""


_ORDER = f"x.order_id, x.currency, x.total_minor, coalesce(x.discount_minor, 0) AS discount_minor, x.shipping_city, ({_PAID}) AS paid"
_LINES = (
    "unnest(x.line_products, x.line_product_ids, x.line_skus, x.line_categories, x.line_quantities, x.line_unit_prices_minor,"
    " x.line_discounts_minor)"
)
_OPENED = FACT_KINDS["opened_ticket"]
_MAIN = """
        SELECT coalesce(%(currency)s::text,
                        (SELECT currency FROM {of} WHERE currency IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1)) AS currency"""

SHARED: Mapping[str, str] = {
    "periods": """
        SELECT d::date AS period, ((d + ('1 ' || %(by)s)::interval) AT TIME ZONE %(zone)s) AS ends
        FROM generate_series(%(first)s::date::timestamp, %(last)s::date::timestamp, ('1 ' || %(by)s)::interval) d""",
    # every order that counts, also those before the first day: who is new is said by the first order ever
    "ever": _events("orders", _AT, _ORDER, _HOLDS, since=False),
    "placed": _events("orders", _AT, _ORDER, _HOLDS),
    "lines": _events(
        "orders",
        _AT,
        f"x.source, x.order_id, x.currency, ({_PAID}) AS paid, coalesce(i.product, i.product_id, i.sku) AS product, i.category, i.quantity,"
        " i.quantity * i.price - coalesce(i.discount, 0) AS amount_minor",
        _HOLDS,
        more=f"CROSS JOIN LATERAL {_LINES} AS i(product, product_id, sku, category, quantity, price, discount)",
    ),
    "sold": _counted(rollups.sales),
    "main_of_placed": _MAIN.format(of="placed"),
    "main_of_lines": _MAIN.format(of="lines"),
    "answers": _counted(rollups.feedback),
    # with those before the first day, since some of them are still open
    "helped": _counted(rollups.support, since=False),
    "tickets": _events("tickets", _as(_OPENED.at), "x.first_replied_at", _as(_OPENED.holds)),
}
"""Name → the CTE; `{who}` narrows to the customers that criteria mean."""
ROLLED: Mapping[str, str] = {
    "sold": _rolled(rollups.sales),
    "answers": _rolled(rollups.feedback),
    "helped": _rolled(rollups.support, since=False),
}
"""Name → the CTE that says of everyone what that of `SHARED` says."""


def truncated(day: str) -> str:
    """SQL of the first day of the period that a day is in."""
    return f"date_trunc(%(by)s, {day}::timestamp)::date"


def ratio(part: str, whole: str) -> Callable[[Mapping[str, Any]], float | None]:
    """A rate of the totals: one sum by another."""
    return lambda sums: sums[part] / sums[whole] if sums[whole] else None


PERIOD = Column("period", "date", "Period")
CURRENCY = Column("currency", "text", "Currency")
