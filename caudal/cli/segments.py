"""`caudal segments`: define segments, see who is in them and why."""

from __future__ import annotations

import asyncio
import getpass
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from caudal.cli._output import NEGATIVE, Json, counted, emit, examples, note, resolved, say, table
from caudal.cli.criteria import read as read_criteria
from caudal.cli.customers import follow, views_needed

if TYPE_CHECKING:
    import psycopg

    from caudal.projections.membership.definitions import Saved
    from caudal.projections.membership.lists import Listed
    from caudal.serving._read import Missing
    from caudal.serving._segments import Segments

__all__ = ["app", "user"]

app = typer.Typer(help="Segments: define them, see who is in them and why.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The segment's name.")]
Id = Annotated[uuid.UUID, typer.Argument(metavar="ID", help="The customer's id.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Customers' ids.")]
IdFile = Annotated[
    Path | None,
    typer.Option("--file", help="Ids one a line, or CSV with ids in the first column; `-`: standard input."),
]
Where = "Criteria: the text form, or `@` and a file with text, YAML or JSON."
_T = TypeVar("_T")


@app.command("list", epilog=examples("caudal segments list", "caudal segments list --archived --json"))
def list_(
    archived: Annotated[bool, typer.Option("--archived", help="Also those that were archived.")] = False,
    as_json: Json = False,
) -> None:
    """List all segments, built-in and defined ones, with their sizes."""
    found = _read(lambda segments: segments.listed(archived=archived))
    if as_json:
        emit(found)
    else:
        columns = ("name", "kind", "state", "version", "size", "description")
        sized = [{**each, "size": f"{'' if each['exact'] else 'about '}{each['size']}"} for each in found]
        table(columns, [[each[column] for column in columns] for each in sized])


@app.command(epilog=examples("caudal segments show loyal", "caudal segments show loyal --json | jq .criteria"))
def show(name: Name, as_json: Json = False) -> None:
    """Show a segment: its criteria, size and versions, and who changed a list last. Exit status 1 when there is none."""

    async def ask(segments: Segments) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        return await segments.one(name), await segments.versions(name)

    found, before = _read(ask)
    if as_json:
        emit({**found, **before})
        return
    say(f"{name}: {found['kind']}, {found['state']}, {counted(found['size'], 'member')}")
    if found["changed_by"]:
        say(f"last changed {found['changed_at']:%Y-%m-%d %H:%M:%S} by {found['changed_by']}")
    if found["progress"] is not None:
        say(f"{found['progress']:.0%} of the customers are done")
    for text in (found["description"], found["text"]):
        if text:
            say(f"\n{text}")
    for kind, columns in (
        ("versions", ("version", "changed_at", "changed_by", "description")),
        ("list_changes", ("change", "customers", "changed_at", "changed_by")),
    ):
        if before[kind]:
            say()
            table(columns, [[each[column] for column in columns] for each in before[kind]])


@app.command(
    epilog=examples(
        "caudal segments create loyal --where 'bought(times >= 2, within = 90d)' --description 'Often here'",
        "caudal segments create vips --list",
    )
)
def create(
    name: Name,
    *,
    where: Annotated[str | None, typer.Option(help=Where)] = None,
    is_list: Annotated[bool, typer.Option("--list", help="No criteria: customers are put on it.")] = False,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: Json = False,
) -> None:
    """Make a segment; an archived one of this name comes back. `caudal segments preview` tells before who would be in it."""
    from caudal.projections.membership import definitions

    if (where is None) != is_list:
        raise typer.BadParameter("give either --where or --list")
    draft = definitions.Draft(name, read_criteria(where) if where is not None else None, description)
    _show_saved([_change(lambda conn: definitions.create(conn, draft, user()))], as_json=as_json)


@app.command(
    epilog=examples(
        "caudal segments edit loyal --where 'bought(times >= 3, within = 90d)'",
        "caudal segments edit loyal --description 'Three times or more'",
    )
)
def edit(
    name: Name,
    *,
    where: Annotated[str | None, typer.Option(help=Where)] = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    as_json: Json = False,
) -> None:
    """Change a segment's criteria or description; what isn't given stays. Brings an archived one back."""
    from caudal.projections.membership import definitions

    condition = read_criteria(where) if where is not None else None
    saved = _change(lambda conn: definitions.edit(conn, name, user(), condition=condition, description=description))
    _show_saved([saved], as_json=as_json)


@app.command(epilog=examples("caudal segments archive loyal"))
def archive(name: Name, as_json: Json = False) -> None:
    """Let a segment's members leave; definition, versions and history stay. Editing brings it back."""
    from caudal.projections.membership import definitions

    _show_saved([_change(lambda conn: definitions.archive(conn, name, user()))], as_json=as_json)


@app.command(
    epilog=examples(
        "caudal segments apply",
        "caudal segments apply crm/segments --dry-run",
        "caudal segments apply segments/loyal.yaml --json",
    )
)
def apply(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="A folder with .yaml files, or one file.")] = Path(
        "segments"
    ),
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Make segments be what files say, all or none; the same files again change nothing. Segments without a file stay.

    A file has `criteria` (a text or a tree) or `list: true`, and may have `name` (else the file's) and `description`.
    """
    from caudal.projections.membership import definitions, files

    drafts = files.read(path)

    def save(conn: psycopg.Connection[Any]) -> list[Saved]:
        with conn.transaction(force_rollback=dry_run):
            return definitions.save(conn, drafts, user())

    _show_saved(_change(save), as_json=as_json)
    if dry_run:
        note("nothing was changed: this was a dry run")


@app.command(
    epilog=examples(
        "caudal segments preview 'city = \"Recife\" and bought(times >= 2, within = 90d)'",
        "caudal segments preview @segments/loyal.yaml --field name,email --overlap",
    )
)
def preview(
    criteria: Annotated[str, typer.Argument(metavar="CRITERIA", help=Where)],
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most customers of the sample.")] = 10,
    field: Annotated[str | None, typer.Option(help="Fields shown, comma-separated.")] = None,
    with_overlap: Annotated[bool, typer.Option("--overlap", help="Tell also how many are in other segments.")] = False,
    as_json: Json = False,
) -> None:
    """Say how many customers a segment of these criteria would have now, and show some. Nothing is stored."""
    from caudal.serving._search import DEFAULT_FIELDS

    condition = read_criteria(criteria)
    fields = tuple(word.strip() for word in field.split(",")) if field else DEFAULT_FIELDS

    async def ask(segments: Segments) -> dict[str, Any]:
        found = await segments.preview(condition, limit=limit, fields=fields)
        more = {"overlap": await segments.overlap(condition)} if with_overlap else {}
        return {**found.data, **more}

    found = _read(ask)
    if as_json:
        emit(found)
        return
    say(f"{_many(found['count']['value'], exact=found['count']['exact'])}\n")
    table(("customer", *fields), [[each[name] for name in ("customer_id", *fields)] for each in found["sample"]])
    for hint in found.get("hints", ()):
        note(f"hint: {hint}")
    if with_overlap:
        say()
        _show_overlap(found["overlap"])


@app.command(epilog=examples("caudal segments members loyal", "caudal segments members loyal --limit 10000 --json"))
def members(
    name: Name,
    *,
    after: Annotated[uuid.UUID | None, typer.Option(metavar="ID", help="Only those behind this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most members shown.")] = 100,
    as_json: Json = False,
) -> None:
    """List who is in a segment, by id, and since when."""
    found = _read(lambda segments: segments.members(name, after=after, limit=limit))
    if as_json:
        emit(found)
        return
    table(("customer", "entered_at"), [(each["customer_id"], each["entered_at"]) for each in found["members"]])
    if found["next"]:
        note(f"there are more: --after {found['next']}")


@app.command(epilog=examples("caudal segments history 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77"))
def history(
    customer_id: Id,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most changes shown.")] = 50,
    as_json: Json = False,
) -> None:
    """Show which segments a customer entered and left and why, newest first. Exit status 1 when there is no such customer."""
    found = _present(customer_id, lambda segments, id_: segments.history(id_, before=None, limit=limit))
    if as_json:
        emit(found["items"])
    else:
        columns = ("at", "change", "segment", "version", "cause")
        table(columns, [[each[column] for column in columns] for each in found["items"]])


@app.command(
    epilog=examples("caudal segments overlap loyal", "caudal segments overlap --where 'city = \"Recife\"' --json")
)
def overlap(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The segment's name.")] = None,
    *,
    where: Annotated[str | None, typer.Option(help=Where)] = None,
    as_json: Json = False,
) -> None:
    """Show how many of a segment's members, or of whom criteria hold of, are in other segments."""
    if (name is None) == (where is None):
        raise typer.BadParameter("give either a segment's name or --where")
    of = name or read_criteria(where or "")
    found = _read(lambda segments: segments.overlap(of))
    if as_json:
        emit(found)
    else:
        _show_overlap(found)


@app.command(epilog=examples("caudal segments explain loyal 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77"))
def explain(name: Name, customer_id: Id, as_json: Json = False) -> None:
    """Say why a customer is in a segment or not, since when, and what would change it. Exit status 1 when there is neither."""
    found = _present(customer_id, lambda segments, id_: segments.explain(name, id_))
    if as_json:
        emit(found)
        return
    change = found["last_change"]
    since = (
        f", {change['change']} {change['at']:%Y-%m-%d %H:%M:%S} by {change['cause']}"
        + (f" (version {change['version']})" if change["version"] is not None else "")
        if change
        else ""
    )
    say(f"{'in' if found['member'] else 'not in'} {name}{since}")
    if found["conditions"]:
        say()
        rows = [
            (c["holds"], c["condition"], c["next_look_at"], (c["because"] or {}).get("event_id"))
            for c in found["conditions"]
        ]
        table(("holds", "condition", "may change by time", "since event"), rows)
    if found["state"] in {"leaving", "archived"}:
        say("\nthe segment is archived: nobody is in it until an edit brings it back")
    elif found["would_change"]:
        say(f"\n{'leaves' if found['holds'] else 'enters'} when {found['would_change']}")


@app.command(
    epilog=examples(
        "caudal segments put vips 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77", "caudal segments put vips --file vips.csv"
    )
)
def put(name: Name, customer_ids: Ids = None, *, file: IdFile = None, as_json: Json = False) -> None:
    """Put customers on a list. An id that was merged into another customer puts that one on it."""
    from caudal.projections.membership import lists

    with _given(customer_ids, file) as given:
        _show_listed(_change(lambda conn: lists.put(conn, name, given, user())), "put on the list", as_json=as_json)


@app.command(
    epilog=examples(
        "caudal segments take vips 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77", "caudal segments take vips --file left.csv"
    )
)
def take(name: Name, customer_ids: Ids = None, *, file: IdFile = None, as_json: Json = False) -> None:
    """Take customers off a list."""
    from caudal.projections.membership import lists

    with _given(customer_ids, file) as given:
        _show_listed(_change(lambda conn: lists.take(conn, name, given, user())), "taken off the list", as_json=as_json)


@contextmanager
def _given(words: list[str] | None, file: Path | None) -> Iterator[Iterator[str]]:
    """The ids of the command line or of a file."""
    from caudal.projections.membership import lists

    if bool(words) == (file is not None):
        raise typer.BadParameter("give ids, or --file")
    if file is None:
        yield iter(words or ())
        return
    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8") as lines:
            yield lists.ids(lines)
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}") from None


def user() -> str:
    """Who changes a definition."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # bare containers have no user names
        return "cli"


def _change(change: Callable[[psycopg.Connection[Any]], _T]) -> _T:
    from caudal import postgres

    settings = resolved()
    postgres.migrate(settings.postgres)
    with _there(), views_needed(), postgres.connect(settings.postgres, role="cli") as conn, postgres.translated():
        return change(conn)


def _read(ask: Callable[[Segments], Awaitable[_T]]) -> _T:
    from caudal import postgres
    from caudal.serving._segments import Segments

    settings = resolved()

    async def read() -> _T:
        async with postgres.opened(settings.postgres, role="cli") as pool:
            return await ask(Segments(pool))

    with _there(), views_needed():
        return asyncio.run(read())


@contextmanager
def _there() -> Iterator[None]:
    """Exit status 1 for a segment that isn't there."""
    from caudal.projections.membership.definitions import UnknownSegment

    try:
        yield
    except UnknownSegment as exc:
        note(f"caudal: {exc}")
        raise typer.Exit(NEGATIVE) from None


def _present(
    customer_id: uuid.UUID, ask: Callable[[Segments, uuid.UUID], Awaitable[dict[str, Any] | Missing]]
) -> dict[str, Any]:
    """What is asked about the customer, or about the one that the id went into."""
    found = _read(lambda segments: ask(segments, customer_id))
    return found if isinstance(found, dict) else _present(follow(customer_id, found), ask)


def _show_saved(saved: list[Saved], *, as_json: bool) -> None:
    from caudal.serving._segments import plain

    if as_json:
        emit([{**plain(each.segment), "change": each.change} for each in saved])
    else:
        rows = [(each.segment.name, each.change, each.segment.version, each.segment.state) for each in saved]
        table(("segment", "change", "version", "state"), rows)


def _show_listed(found: Listed, what: str, *, as_json: bool) -> None:
    if as_json:
        emit(asdict(found))
        return
    say(f"{found.changed} {what}, {found.unchanged} unchanged, {found.unknown} unknown, {found.malformed} no ids")


def _show_overlap(found: dict[str, Any]) -> None:
    say(f"{_many(found['size'], exact=found['exact'])}, of whom in\n")
    rows = [(each["segment"], each["count"], f"{each['share']:.1%}") for each in found["segments"]]
    table(("segment", "customers", "share"), rows)


def _many(count: int, *, exact: bool) -> str:
    return f"{'' if exact else 'about '}{counted(count, 'customer')}"
