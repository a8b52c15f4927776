"""What is asked of a report, checked, and its statement."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from caudal.projections import criteria
from caudal.projections._rollup import QUARTER, ZONES_SINCE
from caudal.projections.criteria import tree
from caudal.projections.membership.definitions import NAME
from caudal.projections.reports._report import ROLLED, SHARED, Period, Report

__all__ = ["MOST_PERIODS", "MOST_ROWS", "Asked", "BadReport", "Plan", "plan", "zone_of"]

MOST_ROWS = 10_000
"""Rows of a report; more are left out, and it says so."""
MOST_PERIODS = 1_000
USUAL = {"day": 35, "week": 26, "month": 12}
"""So many periods, the running one included, are told of when no first day is given."""
CURRENT = timedelta(minutes=1)
"""A report of a moment that is longer ago reads facts: a rollup doesn't know which of the events of a quarter of an hour came after it."""
FIRST, LAST = date(1970, 1, 1), date(2199, 12, 31)


class BadReport(tree.BadCriteria):
    """A report that can't be made as asked; `path` is the parameter."""

    code = "bad_report"


@dataclass(frozen=True)
class Asked:
    """What is asked of a report.

    Attributes:
        criteria: who is meant, as they are now; everyone when None.
        first: the first day; with periods, the whole period that it is in.
        last: the last day.
        by: the length of a period.
        currency: an ISO 4217 code.
        segment: the name of a segment.
        limit: most rows of a list.
        zone: an IANA time zone, whose midnight begins a day.
        now: the moment that is asked about.
    """

    criteria: tree.Condition | None = None
    first: date | None = None
    last: date | None = None
    by: Period | None = None
    currency: str | None = None
    segment: str | None = None
    limit: int | None = None
    zone: str = "UTC"
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Plan:
    """A report's statement, its parameters, and what was asked for in full."""

    statement: str
    parameters: dict[str, Any]
    first: date | None
    last: date
    by: Period | None
    described: dict[str, Any]

    def whole(self, period: date) -> bool:
        """Whether a period is over, and all of it was asked for."""
        today = self.parameters["now"].astimezone(ZoneInfo(self.parameters["zone"])).date()
        return self.by is not None and after(period, self.by) <= min(self.last + timedelta(days=1), today)


def plan(report: Report, asked: Asked) -> Plan:
    """How a report is read.

    Raises:
        BadReport: it can't be made as asked.
    """
    zone = zone_of(asked.zone)
    by = _by(report, asked)
    last = asked.last or asked.now.astimezone(zone).date()
    first = asked.first
    for name, day in (("from", first), ("to", last)):
        if day is not None and not FIRST <= day <= LAST:
            raise BadReport(f"a day from {FIRST} to {LAST} is needed", path=name)
    if by is not None:
        first = _begin(first, by) if first else _back(_begin(last, by), by, USUAL[by] - 1)
    if not FIRST <= (first or FIRST) <= last <= LAST:
        raise BadReport(f"a first day not after the last one, both from {FIRST} to {LAST}, is needed", path="from")
    if by is not None and first is not None and _count(first, last, by) > MOST_PERIODS:
        raise BadReport(f"at most {MOST_PERIODS} periods can be told of; there is {by!r} to be made longer", path="by")
    _fits(report, asked)
    limit = (asked.limit or 20) if "limit" in report.takes else None
    begin, end = (
        datetime.combine(first or FIRST, time.min, zone),
        datetime.combine(last + timedelta(days=1), time.min, zone),
    )
    parameters = {
        "now": asked.now, "zone": asked.zone, "by": by, "first": first, "last": _begin(last, by) if by else last,
        "begin": begin, "end": end, "currency": asked.currency, "segment": asked.segment, "limit": limit,
    }  # fmt: skip
    current = asked.now >= datetime.now(UTC) - CURRENT
    quarters = not any((at.utcoffset() or QUARTER) % QUARTER for at in (begin, end))
    quarters &= by is None or begin.date() >= ZONES_SINCE
    rolled = ROLLED if asked.criteria is None and current and quarters else {}
    shared = {name: rolled.get(name, SHARED[name]) for name in report.reads}
    who = ""
    if asked.criteria is not None:
        meant = criteria.members(asked.criteria)
        parameters |= meant.parameters
        shared = {"who": meant.text, **shared}
        who = "JOIN who USING (customer_id)"
    ctes = ", ".join(f"{name} AS {'MATERIALIZED ' * (name == 'who')}({text})" for name, text in shared.items())
    statement = f"SELECT * FROM (WITH {ctes} {report.select}) r LIMIT {MOST_ROWS + 1}".replace("{who}", who)
    told: dict[str, Any] = {
        "criteria": criteria.print_text(asked.criteria) if asked.criteria is not None else None,
        "from": first, "to": last, "time_zone": asked.zone,
    }  # fmt: skip
    told |= {"by": by} if by else {}
    told |= {
        name: {"currency": asked.currency, "segment": asked.segment, "limit": limit}[name] for name in report.takes
    }
    return Plan(statement, parameters, first, last, by, told)


def _fits(report: Report, asked: Asked) -> None:
    given = {"currency": asked.currency, "segment": asked.segment, "limit": asked.limit}
    for name, value in given.items():
        if value is not None and name not in report.takes:
            raise BadReport(f"the report {report.name} doesn't take it", path=name)
    if asked.currency is not None and not re.fullmatch("[A-Z]{3}", asked.currency):
        raise BadReport("three capital letters (ISO 4217) are needed", path="currency")
    if asked.segment is not None and not NAME.fullmatch(asked.segment):
        raise BadReport("the name of a segment is needed", path="segment")
    if asked.limit is not None and not 1 <= asked.limit <= 500:
        raise BadReport("a number between 1 and 500 is needed", path="limit")


def _by(report: Report, asked: Asked) -> Period | None:
    if not report.by:
        if asked.by is not None:
            raise BadReport(f"the report {report.name} isn't by period", path="by")
        return None
    if asked.by is not None and asked.by not in report.by:
        raise BadReport(f"the report {report.name} can be asked by {', '.join(report.by)}", path="by")
    return asked.by or report.by[0]


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        BadReport: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise BadReport(
            "a time zone of the IANA database is needed, such as America/Recife", path="time-zone"
        ) from None


def _begin(day: date, by: Period) -> date:
    match by:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case _:
            return day


def after(period: date, by: Period) -> date:
    """The first day of the period that follows."""
    match by:
        case "week":
            return period + timedelta(days=7)
        case "month":
            return (period + timedelta(days=31)).replace(day=1)
        case _:
            return period + timedelta(days=1)


def _back(period: date, by: Period, count: int) -> date:
    if by == "month":
        months = period.year * 12 + period.month - 1 - count
        return max(date(max(months // 12, 1), months % 12 + 1, 1), FIRST)
    return max(period - timedelta(days=count * (7 if by == "week" else 1)), FIRST)


def _count(first: date, last: date, by: Period) -> int:
    if by == "month":
        return (last.year - first.year) * 12 + last.month - first.month + 1
    return (last - first).days // (7 if by == "week" else 1) + 1
