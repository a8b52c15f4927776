"""Reports as the API, the command line and the timer make them: one statement, of one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from caudal.projections.reports import REPORTS, Asked, Report, Result, finished, plan
from caudal.serving._read import POSITION, token_of
from caudal.serving._search import check_names
from psycopg_pool import AsyncConnectionPool

from caudal.errors import Fatal
from caudal.postgres import translated

__all__ = ["Made", "ReportTooSlow", "Reports", "UnknownReport", "document", "found"]


class UnknownReport(Fatal):
    """There is no report of this name."""

    code = "unknown_report"


class ReportTooSlow(Fatal):
    """A report took longer than a statement may."""

    code = "report_too_slow"


@dataclass(frozen=True)
class Made:
    """A report and the part of the log that it reflects."""

    result: Result
    token: str


def found(name: str) -> Report:
    """A report by its name.

    Raises:
        UnknownReport: there is none.
    """
    if name not in REPORTS:
        raise UnknownReport(f"no report is named {name[:80]!r}", hint=f"there are {', '.join(REPORTS)}")
    return REPORTS[name]


class Reports:
    """Makes reports."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def make(self, report: Report, asked: Asked) -> Made:
        """Make a report.

        Raises:
            BadReport: it can't be made as asked.
            BadCriteria: they name a segment that isn't there.
            ReportTooSlow: it took longer than a statement may.
            DatabaseUnavailable: PostgreSQL can't be reached.
        """
        planned = plan(report, asked)
        with translated():
            try:
                async with self._pool.connection() as conn, conn.transaction():
                    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", prepare=False)
                    row = await (
                        await conn.execute(
                            f"SELECT {POSITION}, set_config('plan_cache_mode', 'force_custom_plan', true)",
                            prepare=False,
                        )
                    ).fetchone()
                    assert row is not None
                    await check_names(conn, asked.criteria)
                    cursor = await conn.execute(planned.statement, planned.parameters, prepare=False)
                    rows = await cursor.fetchall()
            except psycopg.errors.QueryCanceled as exc:
                raise ReportTooSlow(
                    "the report took too long", hint="ask for fewer days, or raise CAUDAL_POSTGRES__STATEMENT_TIMEOUT_S"
                ) from exc
        return Made(finished(report, planned, rows), token_of(row[0]))


def document(made: Made) -> dict[str, Any]:
    """A report as JSON."""
    result, report = made.result, made.result.report
    return {
        "report": report.name,
        "title": report.title,
        "about": report.about,
        "parameters": result.parameters,
        "columns": [{"name": c.name, "type": c.type, "title": c.title} for c in report.columns],
        "rows": result.rows,
        "totals": result.totals,
        "trends": result.trends,
        "truncated": result.truncated,
        "token": made.token,
    }
