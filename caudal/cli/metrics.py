"""`caudal metrics`: figures of customers that an analyst defines, each by one SELECT in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli._output import Json, emit, examples, resolved, table
from caudal.cli.replay import opened
from caudal.cli.segments import user

if TYPE_CHECKING:
    import psycopg

    from caudal.projections.custom.check import Checked
    from caudal.projections.custom.metric import Metric

__all__ = ["app"]

app = typer.Typer(
    help="Custom metrics: figures of customers, each defined by one SELECT in a file.", no_args_is_help=True
)

Files = Annotated[Path, typer.Argument(metavar="[PATH]", help="A folder with .sql files, or one file.")]
FOLDER = Path("metrics")


@app.command("list", epilog=examples("caudal metrics list", "caudal metrics list --json | jq '.[].values'"))
def list_(as_json: Json = False) -> None:
    """List the custom metrics that are kept, with the values that they give.

    `given_up` says of how many customers one took too long: it is unknown for them; `everybody` when there were too many.
    """
    from caudal import postgres
    from caudal.projections.custom import bound, metric

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.connect(settings.postgres, role="cli") as conn, postgres.translated():
        metrics = metric.defined(conn)
        unknown = bound.unknown(conn)
    found = [
        {
            "metric": each.name, "title": each.title, "values": each.columns, "reads": each.reads,
            "given_up": unknown.get(each.function.removeprefix("hub."), 0),
            "applied_at": each.applied_at, "applied_by": each.applied_by, "statement": each.statement,
        }
        for each in metrics
    ]  # fmt: skip
    if as_json:
        emit(found)
    else:
        names = ("metric", "title", "values", "reads", "given_up", "applied_at", "applied_by")
        table(names, [[each[name] for name in names] for each in found])


@app.command(epilog=examples("caudal metrics check metrics/repeat_orders.sql", "caudal metrics check --json"))
def check(path: Files = FOLDER, as_json: Json = False) -> None:
    """Say whether files can become metrics, and what they give of some customers. Nothing is changed.

    Exit status 65, with file, line and column on standard error, when one can't.
    """
    with _connected() as conn:
        found = _checked(conn, path)
    if as_json:
        emit(
            [
                {
                    "metric": each.metric.name, "title": each.metric.title, "values": each.metric.columns, "reads": each.metric.reads,
                    "customers": each.customers, "known": each.known, "example": each.example,
                }
                for each in found
            ]
        )  # fmt: skip
        return
    rows = [
        (each.metric.name, f"custom.{name}", type_, f"{each.known[name]} of {each.customers}", each.example.get(name))
        for each in found
        for name, type_ in each.metric.columns.items()
    ]
    table(("metric", "value", "type", "known", "example"), rows)


@app.command(epilog=examples("caudal metrics apply", "caudal metrics apply metrics/repeat_orders.sql"))
def apply(path: Files = FOLDER, as_json: Json = False) -> None:
    """Make metrics be what files say, all or none; the same files again change nothing. Metrics without a file stay.

    Their values are computed for everyone from the facts that are there, beside the live view, and put in its place; workers go on
    with them by themselves.
    """
    with _connected() as conn:
        checked = [each.metric for each in _checked(conn, path)]
    _carry_out(checked, (), as_json=as_json)


@app.command(epilog=examples("caudal metrics remove repeat_orders"))
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The metrics' names.")], as_json: Json = False
) -> None:
    """Keep metrics no longer; their values go. Refused while a segment reads one."""
    with _connected():
        pass
    _carry_out((), names, as_json=as_json)


@contextmanager
def _connected() -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database whose live schema is there."""
    from caudal import postgres
    from caudal.projections import ensure_live

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.connect(settings.postgres, role="cli") as conn, postgres.translated():
        ensure_live(conn)
        yield conn


def _checked(conn: psycopg.Connection[Any], path: Path) -> list[Checked]:
    from caudal.projections.custom import check as checks
    from caudal.projections.custom import source

    return [checks.check(conn, each) for each in source.read(path)]


def _carry_out(save: Sequence[Metric], remove: Sequence[str], *, as_json: bool) -> None:
    """Save and remove; the view is made again when that changes it."""
    with opened(as_json) as work:
        planned = work.custom_metrics(save, remove, by=user())
    changes = [{"metric": name, "change": change} for name, change in sorted(planned.changes.items())]
    if as_json:
        emit(changes)
    else:
        table(("metric", "change"), [tuple(each.values()) for each in changes])
