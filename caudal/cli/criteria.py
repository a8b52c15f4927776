"""`caudal criteria`: criteria read and shown, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caudal.cli._output import Json, emit, examples, say

if TYPE_CHECKING:
    from caudal.projections.criteria import Condition

__all__ = ["app", "read"]

app = typer.Typer(help="Criteria: check them, turn text into a tree and back.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "caudal criteria check 'city = \"Recife\" and bought(times >= 2, within = 90d)'",
        "caudal criteria check --json @loyal.yaml",
    )
)
def check(
    criteria: Annotated[
        str, typer.Argument(metavar="CRITERIA", help="The text form, or `@` and a file with text, YAML or JSON.")
    ],
    as_json: Json = False,
) -> None:
    """Say whether criteria can be used, and print them in the text form, or as a tree with --json.

    Exit status 65, with the place of the fault on standard error, when they can't.
    """
    from caudal.projections.criteria import dump, print_text

    condition = read(criteria)
    if as_json:
        emit(dump(condition))
    else:
        say(print_text(condition))


@app.command(epilog=examples("caudal criteria schema | jq .title"))
def schema() -> None:
    """Print the JSON Schema of the tree, for editors and other programs."""
    from caudal.projections.criteria import json_schema

    emit(json_schema())


def read(given: str) -> Condition:
    """Criteria from a command line: the text form, or `@` and a file.

    Raises:
        BadCriteria: they can't be used.
    """
    from caudal.projections.criteria import load_text, parse

    if not given.startswith("@"):
        return parse(given)
    file = Path(given[1:])
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}") from None
    return load_text(text) if file.suffix in {".yaml", ".yml", ".json"} else parse(text)
