"""`caudal report`: reports as tables and files."""

from __future__ import annotations

import asyncio
import sys
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from caudal.cli._output import Json, emit, examples, note, resolved, say, table

if TYPE_CHECKING:
    from caudal.serving._reports import Made

__all__ = ["app"]


class _ByName(TyperGroup):
    """A group in which the name of a report stands for making it."""

    # click's own types come from another place in each version of typer
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["make", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(help="Make reports: `caudal report NAME`.", no_args_is_help=True, cls=_ByName)


@app.command(
    epilog=examples(
        "caudal report sales --by month --time-zone America/Sao_Paulo",
        "caudal report products --where 'city = \"Recife\"' --from 2026-01-01 --to 2026-03-31 --limit 10",
        "caudal report cohorts --format html --out cohorts.html",
    )
)
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="`caudal report list` shows them.")],
    *,
    where: Annotated[
        str | None,
        typer.Option(
            help="Only these customers, as they are now: criteria, or `@` and a file with text, YAML or JSON."
        ),
    ] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DAY", help="The first day.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DAY", help="The last day; unset: today.")
    ] = None,
    by: Annotated[Literal["day", "week", "month"] | None, typer.Option(help="The length of a period.")] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217.")] = None,
    segment: Annotated[str | None, typer.Option(help="Of `segments`: only this one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=500, help="Most rows of a list.")] = None,
    time_zone: Annotated[str, typer.Option(help="An IANA time zone; its midnight begins a day.")] = "UTC",
    format_: Annotated[
        Literal["table", "json", "csv", "html", "pdf"], typer.Option("--format", help="How it is written.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Make a report; `caudal report NAME` is short for it."""
    from caudal import postgres
    from caudal.cli.criteria import read
    from caudal.projections.reports import Asked
    from caudal.serving._report_files import encoded
    from caudal.serving._reports import Reports, found

    if format_ == "table" and out is not None:
        raise typer.BadParameter("a table is printed only; choose another --format for a file")
    report = found(name)
    asked = Asked(
        criteria=read(where) if where is not None else None, first=_day(first), last=_day(last), by=by, currency=currency, segment=segment,
        limit=limit, zone=time_zone,
    )  # fmt: skip
    settings = resolved()

    async def run() -> Made:
        async with postgres.opened(settings.postgres, role="cli") as pool:
            return await Reports(pool).make(report, asked)

    made = _views_exist(run())
    if format_ == "table":
        _show(made)
    elif out is not None:
        try:
            out.write_bytes(encoded(made, format_))
        except OSError as exc:
            raise typer.BadParameter(f"{out}: {exc.strerror}") from None
    else:
        sys.stdout.buffer.write(encoded(made, format_) + (b"\n" if format_ == "json" else b""))


@app.command("list", epilog=examples("caudal report list", "caudal report list --json | jq -r '.[].report'"))
def list_(as_json: Json = False) -> None:
    """List the reports."""
    from caudal.projections.reports import REPORTS

    if as_json:
        emit([
            {"report": r.name, "title": r.title, "about": r.about, "by": r.by, "takes": r.takes} for r in REPORTS.values()
        ])  # fmt: skip
    else:
        table(("report", "what it is", "by"), [(r.name, r.title, ", ".join(r.by)) for r in REPORTS.values()])


@app.command("run-due", epilog=examples("caudal report run-due"))
def run_due() -> None:
    """Write the reports scheduled in `caudal.toml` whose period is over and whose file isn't there; workers do it by themselves.

    Prints the files. Nothing happens while another process does it.
    """
    from datetime import UTC

    from caudal import _scheduled

    for file in _scheduled.run_due(resolved(), datetime.now(UTC)):
        say(str(file))


def _show(made: Made) -> None:
    from caudal.serving._report_words import cell, summary

    result = made.result
    marked = any("marks" in row for row in result.rows)
    rows = [
        [*(cell(row[c.name], c, row) for c in result.report.columns), *([_mark(row)] if marked else [])]
        for row in result.rows
    ]
    table((*(c.title for c in result.report.columns), *(["!"] if marked else [])), rows)
    for line in summary(result):
        note(line)


def _mark(row: dict[str, Any]) -> str:
    return ", ".join(column for column, mark in row.get("marks", {}).items() if mark["anomaly"])


def _day(given: datetime | None) -> date | None:
    return given.date() if given else None


def _views_exist(work: Any) -> Any:
    import psycopg

    from caudal.errors import Fatal

    try:
        return asyncio.run(work)
    except psycopg.errors.UndefinedTable as exc:
        raise Fatal("the views have not been built yet", hint="`caudal run` builds them") from exc
