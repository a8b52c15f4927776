"""A report's rows, with totals, and marks on its series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from caudal.projections.reports._ask import MOST_ROWS, Plan
from caudal.projections.reports._report import Column, Report
from caudal.projections.reports.marks import expected, trend

__all__ = ["Result", "finished"]

_LONG = 2**63 - 1


@dataclass(frozen=True)
class Result:
    """A report that was made.

    Attributes:
        report: which one.
        parameters: what was asked, in full.
        rows: column → value. In a series a row may have `marks`: column → `low`, `high` (what was to be expected) and `anomaly`; a period
            that isn't over, or isn't told of as a whole, has `partial`.
        totals: sums and rates, one for each currency where there is one.
        trends: of each series and column `slope` by period and `direction`: rising, falling or steady.
        truncated: whether rows were left out.
    """

    report: Report
    parameters: dict[str, Any]
    rows: list[dict[str, Any]]
    totals: list[dict[str, Any]]
    trends: list[dict[str, Any]]
    truncated: bool


def finished(report: Report, plan: Plan, rows: Sequence[Sequence[Any]]) -> Result:
    """The report of the rows that its statement gave."""
    made = [
        {column.name: _plain(value, column) for column, value in zip(report.columns, row, strict=True)}
        for row in rows[:MOST_ROWS]
    ]
    trends = list(_marked(report, plan, made))
    return Result(report, plan.described, made, _totals(report, made), trends, len(rows) > MOST_ROWS)


def _plain(value: Any, column: Column) -> Any:
    if isinstance(value, Decimal):
        # sums have no bound in PostgreSQL; a JSON number beyond a long would be read wrongly
        return max(min(int(value), _LONG), -_LONG) if column.type in {"integer", "money"} else float(value)
    return value


def _totals(report: Report, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    if not report.sums:
        return []
    by_currency: dict[str | None, dict[str, Any]] = {}
    for row in rows:
        currency = row.get("currency")
        sums = by_currency.setdefault(currency, dict.fromkeys(report.sums, 0))
        for name in report.sums:
            sums[name] += row[name]
    return [
        {**({"currency": currency} if currency else {}), **sums, **{n: rate(sums) for n, rate in report.rates.items()}}
        for currency, sums in by_currency.items()
    ]


def _marked(report: Report, plan: Plan, rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Mark the rows of each series; gives the trends."""
    series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows if plan.by and report.marks else ():
        if plan.whole(row["period"]):
            series.setdefault(tuple(row[part] for part in report.parts), []).append(row)
        else:
            row["partial"] = True
    for key, own in series.items():
        for column in report.marks:
            known = [row for row in own if row[column] is not None]
            # a gap would move the weekdays against each other
            daily = plan.by == "day" and len(known) == len(own)
            values = [float(row[column]) for row in known]
            line = trend(values)
            if line is None:
                continue
            # no strict: of some series no ranges are told
            for row, value, (low, high) in zip(known, values, expected(values, daily=daily), strict=False):
                row.setdefault("marks", {})[column] = {"low": low, "high": high, "anomaly": not low <= value <= high}
            yield {
                **dict(zip(report.parts, key, strict=True)),
                "column": column,
                "slope": line.slope,
                "direction": line.direction,
            }
