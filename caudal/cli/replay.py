"""`caudal replay`: make the views again from the log, see what would change, swap them in, and go back."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli import verify
from caudal.cli._output import Json, counted, emit, examples, note, resolved, table

if TYPE_CHECKING:
    from caudal.projections.replay import Record
    from caudal.replaying import Replaying

__all__ = ["app", "opened", "progress"]

app = typer.Typer(
    help="Make the views again from the log, beside the live ones; see what would change; swap them in.",
    epilog=examples(
        "caudal replay --dry-run",
        "caudal replay --yes --max-changed 1%",
        "caudal replay --from captures --dry-run",
        "caudal replay status",
        "caudal replay rollback",
        "caudal replay --customer 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77 --dry-run",
        "caudal replay --as-of 2026-03-01 --into march",
    ),
)


class Origin(StrEnum):
    """What the views are made from."""

    LOG = "log"
    CAPTURES = "captures"


MaxChanged = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Refuse the swap when more of a view's rows would change, e.g. 1%.")
]
Force = Annotated[bool, typer.Option("--force", help="Swap whatever would change.")]
Yes = Annotated[bool, typer.Option("--yes", help="Swap without asking.")]
Topics = Annotated[
    bool,
    typer.Option("--topics", help="Delete the topics of former generations of the log, too. They can't be made again."),
]
Id = Annotated[int | None, typer.Argument(metavar="ID", help="The replay's number. Unset: the newest that fits.")]


@app.callback(invoke_without_command=True)
def replay(
    context: typer.Context,
    *,
    from_: Annotated[
        Origin,
        typer.Option(
            "--from", help="`captures`: translate what came in again first, after a connector or rule was mended."
        ),
    ] = Origin.LOG,
    view: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this view and those that read it, from the facts that are there."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop before the swap; `caudal replay swap` goes on.")
    ] = False,
    max_changed: MaxChanged = None,
    force: Force = False,
    yes: Yes = False,
    from_start_of_log: Annotated[
        bool, typer.Option("--from-start-of-log", help="Rebuild from what is left of a log that lost its first events.")
    ] = False,
    customer: Annotated[
        uuid.UUID | None, typer.Option(metavar="ID", help="Only this customer: compare with the log and put right.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The views as they stood then, e.g. 2026-03-01 or 2026-03-01T12:00-03:00."),
    ] = None,
    into: Annotated[str | None, typer.Option(metavar="SCHEMA", help="Where --as-of puts them.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make the schema of --as-of anew.")] = False,
    as_json: Json = False,
) -> None:
    """Rebuild every view from the log, beside the live ones, and swap them in.

    Reads and the live projection go on meanwhile. On a terminal it shows what would change and asks; elsewhere it stops there unless
    --yes is given. What was live before is kept until `caudal replay drop`.
    """
    if context.invoked_subcommand:
        return
    if (as_of is None) != (into is None):
        raise typer.BadParameter("--as-of and --into belong together")
    if as_of is not None and into is not None:
        verify.as_of(as_of, into, replace=replace, as_json=as_json)
        return
    if customer is not None:
        verify.rebuild_customer(customer, dry_run=dry_run, as_json=as_json)
        return
    share = _share(max_changed)
    with opened(as_json) as work:
        left = work.interrupted()
        if view is not None:
            built = work.view(view)
        elif (
            left is not None
            and left.kind == ("captures" if from_ is Origin.CAPTURES else "full")
            and _asks(f"replay {left.id} was interrupted; go on with it?", as_json)
        ):
            built = work.resume()
        elif from_ is Origin.CAPTURES:
            built = work.captures(truncated=from_start_of_log)
        else:
            built = work.full(truncated=from_start_of_log)
        _settle(work, built, dry_run=dry_run, share=share, force=force, yes=yes, as_json=as_json)


@app.command(epilog=examples("caudal replay resume", "caudal replay resume --yes"))
def resume(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop before the swap.")] = False,
    max_changed: MaxChanged = None,
    force: Force = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Go on with the replay that was interrupted."""
    share = _share(max_changed)
    with opened(as_json) as work:
        _settle(work, work.resume(), dry_run=dry_run, share=share, force=force, yes=yes, as_json=as_json)


@app.command(epilog=examples("caudal replay swap", "caudal replay swap 4 --max-changed 0.5%"))
def swap(id_: Id = None, *, max_changed: MaxChanged = None, force: Force = False, as_json: Json = False) -> None:
    """Swap in what was built: it is caught up with the log and compared again first."""
    share = _share(max_changed)
    with opened(as_json) as work:
        _told(work.swap(id_, max_changed=share, force=force), as_json)


@app.command(epilog=examples("caudal replay rollback"))
def rollback(*, as_json: Json = False) -> None:
    """Put back the views that the last swap replaced, caught up with the log."""
    with opened(as_json) as work:
        _told(work.rollback(), as_json)


@app.command(epilog=examples("caudal replay keep --yes"))
def keep(*, yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False, as_json: Json = False) -> None:
    """Keep the views though the log was lost or made again, and project what it holds now on top of them.

    What only the views hold then is in no log any more: no later replay brings it back, and `caudal verify` tells of it.
    """
    if not (yes or _asks("keep views that the log doesn't hold any more?", as_json)):
        raise typer.Exit(1)
    with opened(as_json) as work:
        work.keep()
    if as_json:
        emit({"kept": True})
    else:
        note("the views are kept; the log is projected from its beginning")


@app.command(epilog=examples("caudal replay status", "caudal replay status --json"))
def status(
    *, limit: Annotated[int, typer.Option(min=1, help="Most replays shown.")] = 10, as_json: Json = False
) -> None:
    """List replays, the newest first, with how far each is."""
    from caudal import postgres
    from caudal.projections import replay as replays

    with postgres.connect(resolved().postgres, role="cli") as conn, postgres.translated():
        found = replays.records(conn, limit=limit)
    if as_json:
        emit([record.plain() for record in found])
        return
    table(
        ("id", "kind", "state", "started", "stage", "done", "rate", "differences"),
        [
            (
                r.id, r.kind, "interrupted" if r.interrupted else r.state, r.started_at, r.progress.get("stage"), _done(r.progress),
                _rate(r.progress), r.diff and r.diff.get("differences"),
            )
            for r in found
        ],
    )  # fmt: skip


@app.command(epilog=examples("caudal replay diff", "caudal replay diff 4 --json"))
def diff(id_: Id = None, *, as_json: Json = False) -> None:
    """Show what a replay would change, or has changed. Exit status 1 when none was compared."""
    from caudal import postgres
    from caudal.projections import replay as replays

    with postgres.connect(resolved().postgres, role="cli") as conn, postgres.translated():
        compared = [replays.one(conn, id_)] if id_ is not None else replays.records(conn)
    found = next((r for r in compared if r is not None and r.diff is not None), None)
    if found is None:
        note("caudal: no replay was compared yet")
        raise typer.Exit(1)
    if as_json:
        emit(found.diff)
    else:
        _show(found)


@app.command(epilog=examples("caudal replay cancel"))
def cancel(id_: Id = None, *, as_json: Json = False) -> None:
    """End a replay that runs or waits, and drop what it built. The live views stay as they are."""
    from caudal.projections import replay as replays

    found = replays.cancel(resolved(), id_)
    if as_json:
        emit(found.plain())
    else:
        note(f"replay {found.id} is cancelled")


@app.command(
    epilog=examples(
        "caudal replay drop", "caudal replay drop 4", "caudal replay drop march", "caudal replay drop --topics"
    )
)
def drop(
    which: Annotated[
        str | None, typer.Argument(metavar="ID|SCHEMA", help="A replay's number, or a schema it made.")
    ] = None,
    *,
    topics: Topics = False,
    as_json: Json = False,
) -> None:
    """Drop the schemas that replays left: what was live before a swap, and what was never swapped in; what --as-of made only by name."""
    number = int(which) if which and which.isdecimal() else None
    with opened(as_json) as work:
        dropped = work.drop(number, schema=which if number is None else None, topics=topics)
    if as_json:
        emit(dropped)
    else:
        note(f"dropped: {', '.join(dropped) or 'nothing, there was none'}")


# ---- what they share


@contextmanager
def opened(as_json: bool) -> Iterator[Replaying]:
    """The right to replay, with a bar that shows how far it is."""
    from caudal import replaying, sources
    from caudal.schemas.codec import Codec, Registry

    settings = resolved()
    priorities = {name: source.priority for name, source in sources.load(settings).items()}
    registry = Registry(settings)
    try:
        with (
            progress(as_json) as tell,
            replaying.Replaying.opened(settings, Codec(registry), priorities=priorities, tell=tell) as work,
        ):
            yield work
    finally:
        registry.close()


@contextmanager
def progress(as_json: bool) -> Iterator[Callable[[Record], None]]:
    """A bar for each stage on standard error; nothing where that is no terminal, or JSON is asked for."""
    if as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        console=Console(stderr=True), transient=True,
    ) as bars:  # fmt: skip
        tasks: dict[str, Any] = {}

        def tell(record: Record) -> None:
            at = record.progress
            if not at:
                return
            bars.start()
            stage = at["stage"]
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, rate="")
            bars.update(tasks[stage], completed=at["done"], total=max(at["total"], 1), rate=_rate(at))
            if stage == "compare" and at["done"]:
                bars.stop()  # what follows is told in words, or asked

        yield tell


def _settle(
    work: Replaying, built: Record, *, dry_run: bool, share: float | None, force: bool, yes: bool, as_json: bool
) -> None:
    """Show what would change; swap when that is wanted."""
    if not as_json:
        _show(built)
    if dry_run or not (yes or _asks("swap it in?", as_json)):
        if as_json:
            emit(built.plain())
        elif built.kind == "view":
            note("nothing was swapped, and nothing is kept: a view is quickly made again")
        else:
            note(f"replay {built.id} is built: `caudal replay swap` swaps it in, `caudal replay cancel` drops it")
        return
    _told(work.swap(built.id, max_changed=share, force=force), as_json)


def _asks(question: str, as_json: bool) -> bool:
    return not as_json and sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm(question, err=True)


def _told(record: Record, as_json: bool) -> None:
    if as_json:
        emit(record.plain())
    elif record.state == "swapped":
        note(
            f"replay {record.id} is live; `caudal replay rollback` goes back, `caudal replay drop` gives the space free"
        )
    else:
        note(f"replay {record.id} is {record.state.replace('_', ' ')}")


def _show(record: Record) -> None:
    diff = record.diff or {}
    rows = []
    for name, view in diff.get("views", {}).items():
        fields = ", ".join(f"{field} {count:,}" for field, count in view["fields"].items())
        rows.append(
            (name, view["rows_before"], view["rows_after"], view["added"], view["removed"], view["changed"], fields)
        )
    table(("view", "rows", "rows after", "added", "removed", "changed", "fields"), rows)
    for name, view in diff.get("views", {}).items():
        for what, found in view["examples"].items():
            for example in found:
                more = example.get("item") or ", ".join(example.get("fields", ()))
                note(f"  {name} {what}: {example['customer_id']} {more}".rstrip())
        for what in ("columns_added", "columns_dropped"):
            if view[what]:
                note(f"  {name}, {what.replace('_', ' ')}: {', '.join(view[what])}")
    for name, count in diff.get("rollups", {}).items():
        if count:
            note(f"  rollup {name}: {counted(count, 'differing row')}")
    moved = {n: s for n, s in diff.get("segments", {}).items() if s["before"] != s["after"]}
    if moved:
        table(("segment", "customers", "customers after"), [(n, s["before"], s["after"]) for n, s in moved.items()])
    _show_customers(diff)
    if diff.get("live_behind_events"):
        note(f"the live views are {counted(diff['live_behind_events'], 'event')} behind: their changes are among these")


def _show_customers(diff: dict[str, Any]) -> None:
    """What a replay from captures does besides: to customers, to dead letters, to what people said."""
    if (found := diff.get("customers")) is None:
        return
    table(
        ("customers", "merged", "split", "renamed", "subjects new", "subjects gone"),
        [tuple(found[n] for n in ("unchanged", "merges", "splits", "renames", "new_subjects", "gone_subjects"))],
    )
    for what, arrow in (("merged", "<-"), ("split", "->")):
        for customer, others in found[what].items():
            note(f"  {what}: {customer} {arrow} {', '.join(others)}")
    for what in ("new", "gone"):
        if found[f"{what}_examples"]:
            note(f"  subjects {what}: {', '.join(found[f'{what}_examples'])}")
    if letters := diff.get("dead_letters"):
        table(("dead letters still", "recovered", "new"), [tuple(letters[n] for n in ("still", "recovered", "new"))])
        for one in letters["new_examples"]:
            note(f"  new: {one['code']} at {one['topic']}[{one['partition']}] {one['offset']}")
    for one in diff.get("unmatched", ()):
        note(f"  {one['type']} is about {one['subject']}, which no capture names any more")


def _share(text: str | None) -> float | None:
    """A share as `1%` or `0.01`."""
    if text is None:
        return None
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no share; write 1% or 0.01", param_hint="--max-changed") from None
    if not 0 <= value <= 1:
        raise typer.BadParameter("a share lies between 0% and 100%", param_hint="--max-changed")
    return value


def _done(progress: dict[str, Any]) -> str | None:
    return f"{progress['done']:,} of {progress['total']:,}" if progress else None


def _rate(progress: dict[str, Any]) -> str:
    if not progress or progress["stage"] not in {"translate", "load", "catch_up"} or not progress.get("rate"):
        return ""
    eta = f", {progress['eta_s']:,.0f} s left" if "eta_s" in progress else ""
    return f"{progress['rate']:,.0f}/s{eta}"
