"""A report's values as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from caudal.projections.criteria.fields import exponent
from caudal.projections.reports import Column, Result

__all__ = ["asked", "cell", "money", "summary"]


def cell(value: Any, column: Column, row: Mapping[str, Any]) -> str:
    """A value of a row."""
    match value, column.type:
        case None, _:
            return ""
        case _, "money":
            return money(value, row.get("currency"))
        case _, "share":
            return f"{value:.1%}"
        case float(), _:
            return f"{value:,.1f}"
        case int(), _:
            return f"{value:,}"
        case date(), _:
            return value.isoformat()
        case _:
            return str(value)


def money(minor: float, currency: str | None) -> str:
    """An amount in whole units with the digits of its currency, which a column beside it names."""
    digits = exponent(currency or "")
    whole, rest = divmod(abs(round(minor)), 10**digits)
    return f"{'-' if minor < 0 else ''}{whole:,}{f'.{rest:0{digits}}' if digits else ''}"


def asked(result: Result) -> str:
    """What was asked, in a line."""
    told = result.parameters
    names = {"criteria": "customers with", "from": "from", "to": "to", "time_zone": "days of", "by": "by"}
    words = [f"{names.get(name, name)} {value}" for name, value in told.items() if value is not None]
    return f"Asked: {', '.join(words)}."


def summary(result: Result) -> Iterator[str]:
    """What is to be said beside the rows: totals, trends, anomalies, what was left out."""
    columns = {column.name: column for column in result.report.columns}
    for total in result.totals:
        words = [f"{columns[n].title} {cell(v, columns[n], total)}" for n, v in total.items() if v is not None]
        yield f"In all: {', '.join(words)}."
    unit = result.parameters.get("by")
    for trend in result.trends:
        column = columns[trend["column"]]
        name = column.title + _which(result, trend)
        slope = f", {cell(trend['slope'], column, trend)} a {unit}" if trend["direction"] != "steady" else ""
        yield f"Trend of {name}: {trend['direction']}{slope}."
    for row in result.rows:
        for name, mark in row.get("marks", {}).items():
            if mark["anomaly"]:
                low, high = (cell(mark[end], columns[name], row) for end in ("low", "high"))
                title = columns[name].title + _which(result, row)
                yield f"{row['period']}: {title} {cell(row[name], columns[name], row)} is out of {low} to {high}."
    if result.truncated:
        yield "There are more rows; ask for less to see all."


def _which(result: Result, row: Mapping[str, Any]) -> str:
    """Of which of several series side by side, such as currencies."""
    parts = " ".join(str(row[part]) for part in result.report.parts)
    return f" ({parts})" if parts else ""
