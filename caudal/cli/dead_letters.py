"""`caudal dead-letters`: what could not be used, why, and putting it back once the cause is mended."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli._output import NEGATIVE, Json, emit, examples, note, resolved, say, table

if TYPE_CHECKING:
    from caudal.dead_letters import DeadLetter, DeadLetters

__all__ = ["app"]

app = typer.Typer(help="What could not be used: list it, show why, put it back.", no_args_is_help=True)

Stage = Annotated[str | None, typer.Option(help="Only of this stage: edge, translate or project.")]
Code = Annotated[str | None, typer.Option(help="Only with this error code, e.g. invalid_payload.")]
Source = Annotated[str | None, typer.Option(help="Only of this source.")]


@app.command(
    "list",
    epilog=examples("caudal dead-letters list", "caudal dead-letters list --source shop-br --code unknown_kind --json"),
)
def list_(
    *,
    stage: Stage = None,
    code: Code = None,
    source: Source = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only those that were not put back yet.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most dead letters shown.")] = 50,
    as_json: Json = False,
) -> None:
    """List dead letters, the newest first."""
    from caudal.dead_letters import Filter

    where = Filter(stage=stage, code=code, source=source, redriven=False if waiting else None)
    found = _open().list(where, limit=limit)
    if as_json:
        emit([_plain(letter) for letter in found])
    else:
        table(
            ("id", "failed_at", "stage", "code", "source", "kind", "put back"),
            [(x.dead_letter_id, x.failed_at, x.stage, x.code, x.source, x.kind, x.redriven_at) for x in found],
        )


@app.command(
    epilog=examples("caudal dead-letters show 5c1e", "caudal dead-letters show 5c1e --json | jq -r .record.body")
)
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The dead letter's id, or the beginning of it.")],
    as_json: Json = False,
) -> None:
    """Show one dead letter with what was sent. Exit status 1 when there is none."""
    letters = _open()
    letter = letters.show(id_)
    if letter is None:
        note(f"caudal: no single dead letter has an id that begins with {id_}")
        raise typer.Exit(NEGATIVE)
    record = letters.body(letter)
    if as_json:
        emit({**_plain(letter), "record": _readable(record), "payload": _readable(letter.payload)})
        return
    table(("field", "value"), [(name, value) for name, value in _plain(letter).items() if value is not None])
    say()
    if record is None:
        say(letter.text if letter.text is not None else f"{len(letter.payload)} bytes that are no text")
    else:
        table(("what was sent", ""), [(name, _readable(value)) for name, value in record.items() if value is not None])


@app.command(
    epilog=examples(
        "caudal dead-letters redrive --source shop-br --code invalid_payload",
        "caudal dead-letters redrive --id 5c1e6f2a-0000-5000-8000-000000000000 --again",
        "caudal dead-letters redrive --all",
    )
)
def redrive(
    *,
    ids: Annotated[list[str] | None, typer.Option("--id", help="This dead letter; may be repeated.")] = None,
    stage: Stage = None,
    code: Code = None,
    source: Source = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were put back before.")] = False,
    as_json: Json = False,
) -> None:
    """Put inputs back on the topics that they came from, as they were. Safe to repeat: an input used twice changes nothing."""
    from caudal.dead_letters import Filter

    if not (ids or stage or code or source or all_):
        raise typer.BadParameter("say which: --id, --stage, --code, --source or --all")
    where = Filter(ids=frozenset(ids or ()), stage=stage, code=code, source=source)
    done = _open().redrive(where, again=again)
    if as_json:
        emit(asdict(done))
    else:
        note(f"put back: {done.redriven}; left, put back before or of a former log: {done.skipped}")


def _open() -> DeadLetters:
    from caudal.dead_letters import DeadLetters
    from caudal.schemas.codec import Codec, Registry

    settings = resolved()
    return DeadLetters(settings, Codec(Registry(settings)))


def _plain(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter without its payload."""
    return {name: _readable(value) for name, value in asdict(letter).items() if name != "payload"}


def _readable(value: Any) -> Any:
    """Bytes as text where they are text, else in base64."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        case dict():
            return {name: _readable(each) for name, each in value.items()}
        case _:
            return value
