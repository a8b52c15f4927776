"""What every command shares: settings, tables or JSON on standard output, one line per error on standard error."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.errors import (
    BadSchema,
    BadSettings,
    BrokerRefused,
    CaudalError,
    DatabaseRefused,
    EmbeddedServerFailed,
    NotKnown,
    Poison,
    Retryable,
    UnknownConnector,
    UnknownSource,
)
from caudal.printable import json_escaped, printable, width

if TYPE_CHECKING:
    from caudal.settings import Settings

__all__ = [
    "Json",
    "bug",
    "compact",
    "complain",
    "counted",
    "emit",
    "emit_line",
    "examples",
    "exit_status",
    "note",
    "resolved",
    "say",
    "settings",
    "table",
]

NEGATIVE, DATA_ERROR, UNAVAILABLE, FAILED, CONFIGURATION_ERROR, INTERRUPTED = 1, 65, 69, 70, 78, 130

STATUSES = {
    0: "done; what was asked about holds or is there",
    NEGATIVE: "what was asked about doesn't hold or isn't there",
    2: "the command line can't be read that way",
    DATA_ERROR: "the payload can't be used; the code on standard error says why",
    UNAVAILABLE: "a server can't be reached or started; try again",
    FAILED: "something failed for good; the message says what",
    CONFIGURATION_ERROR: "a setting, `caudal.toml` or a name in it is wrong",
    INTERRUPTED: "interrupted",
}
"""What the exit statuses mean; above 2 they are those of sysexits.h."""

CELL, MESSAGE = 300, 4_000
"""Most characters of one value in a table, and of an error."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def examples(*lines: str) -> str:
    """An epilog that shows how a command is used, one example a line."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def settings(**overrides: Any) -> Settings:
    """The settings of this run, with logging set up after them."""
    from caudal.settings import load, suspect
    from caudal.telemetry import Log, configure_logging, logger

    loaded = load(**overrides)
    configure_logging(loaded.log_level, json=loaded.log_json)
    for name in suspect(loaded):
        logger().warning(Log.SETTING_SUSPECTED, setting=name)
    return loaded


def resolved(**overrides: Any) -> Settings:
    """The settings with the addresses of the servers that run; nothing is started.

    Raises:
        CaudalError: the servers are neither configured nor up.
    """
    from caudal import embedded

    return embedded.resolve(settings(**overrides))


def emit(data: Any) -> None:
    """Print one JSON value, indented for people, on one line for programs."""
    print(json_escaped(json.dumps(data, ensure_ascii=False, default=_plain, indent=2 if sys.stdout.isatty() else None)))


def emit_line(data: Any) -> None:
    """Print one line of NDJSON, at once."""
    print(compact(data), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: a drawn table on a terminal, aligned columns elsewhere. Long values are cut; JSON has all of them."""
    cells = [["" if value is None else printable(_cell(value), most=CELL) for value in row] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            drawn.add_row(*map(Text, row))  # a text is no markup
        Console().print(drawn)
        return
    widths = [max(width(column), *(width(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    for row in [list(columns), *cells]:
        print("  ".join(cell + " " * (most - width(cell)) for cell, most in zip(row, widths, strict=True)).rstrip())


def say(text: str = "") -> None:
    """Print lines of text, whoever wrote what stands in them."""
    print(printable(text, keep="\n\t"), flush=True)


def compact(value: Any) -> str:
    """A value on one line, as short as JSON can be."""
    return json_escaped(json.dumps(value, ensure_ascii=False, default=_plain, separators=(",", ":")))


def counted(number: int, thing: str) -> str:
    """`1 customer`, `2 customers`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def note(text: str) -> None:
    """Tell the person something that is no data: on standard error."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def complain(error: CaudalError) -> None:
    """Say what went wrong, in one line."""
    text = printable(f"{error.code}: {error}".replace("\n", " "), most=MESSAGE)
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}caudal: {text}{plain}", file=sys.stderr, flush=True)
    if error.excerpt:
        print("\n".join(f"  {line}" for line in error.excerpt.splitlines()), file=sys.stderr, flush=True)


def bug(error: Exception) -> CaudalError:
    """An error that nobody foresaw, by its type and place: its text may hold what must not be told."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return CaudalError(
        f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}",
        hint="this is a bug; CAUDAL_LOG_LEVEL=debug shows all of it",
    )


def exit_status(error: CaudalError) -> int:
    """The exit status that tells what to do about `error`."""
    match error:
        case NotKnown():
            return NEGATIVE
        case Poison():
            return DATA_ERROR
        case BrokerRefused() | DatabaseRefused():
            return CONFIGURATION_ERROR
        case Retryable() | EmbeddedServerFailed():
            return UNAVAILABLE
        case BadSettings() | BadSchema() | UnknownSource() | UnknownConnector():
            return CONFIGURATION_ERROR
        case _:
            return FAILED


def _cell(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case dict():
            return ", ".join(f"{name} {each}" for name, each in sorted(value.items()))
        case list() | tuple() | set() | frozenset():
            return ", ".join(sorted(str(item) for item in value))
        case _:
            return str(value)


def _plain(value: object) -> object:
    match value:
        case datetime() | date():
            return value.isoformat()
        case set() | frozenset():
            return sorted(value)
        case tuple():
            return list(value)
        case _:
            return str(value)
