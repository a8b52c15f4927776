"""`caudal rates`: exchange rates into the base currency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caudal.cli._output import Json, counted, emit, examples, note, resolved, table

__all__ = ["app"]

app = typer.Typer(help="Exchange rates into the base currency: load them, list them.", no_args_is_help=True)


@app.command(epilog=examples("caudal rates load rates.csv"))
def load(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="CSV with the columns date, currency and rate: units of the base currency for one unit.",
        ),
    ],
) -> None:
    """Load rates. Those of the same currency and day are replaced; with another base currency than before, all are.

    Nothing is loaded when a line can't be used.
    """
    from caudal import postgres, rates

    settings = resolved()
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            found = rates.read(lines)
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}") from None
    postgres.migrate(settings.postgres)
    with postgres.translated(), postgres.connect(settings.postgres, role="rates") as conn:
        known = rates.load(conn, settings.base_currency, found)
    note(f"{counted(len(found), 'rate')} to {settings.base_currency} loaded; known in all: {known}")


@app.command("list", epilog=examples("caudal rates list", "caudal rates list --json | jq .missing"))
def list_(as_json: Json = False) -> None:
    """List the newest rate of each currency, and the currencies of customers' spend that have none."""
    from caudal import postgres, rates

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.translated(), postgres.connect(settings.postgres, role="rates") as conn:
        found = rates.listed(conn)
    if as_json:
        emit(found)
        return
    table(
        ("currency", "date", f"{found['base']} for one"),
        [
            *((rate["currency"], rate["date"], rate["rate"]) for rate in found["rates"]),
            *((currency, None, "missing") for currency in found["missing"]),
        ],
    )
