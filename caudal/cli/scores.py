"""`caudal scores`: RFM, probability alive, predicted value: of everybody, now and then."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer

from caudal.cli._output import NEGATIVE, Json, counted, emit, examples, note, resolved, table

__all__ = ["app"]

app = typer.Typer(help="Scores of everybody: compute them now, show the last run and its error.", no_args_is_help=True)


@app.command(epilog=examples("caudal scores refresh"))
def refresh() -> None:
    """Compute everybody's scores now; a worker does it daily. Exit status 1 when another one computes them, or nothing is projected."""
    from caudal import postgres, scores

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.translated(), postgres.connect(settings.postgres, role="scores") as conn:
        found = scores.refresh(conn, datetime.now(UTC))
    if found is None:
        note("nothing was computed: somebody else does it, or there are no views yet")
        raise typer.Exit(NEGATIVE)
    note(f"scores of {counted(found['customers'], 'customer')} computed in {found['seconds']} s")


@app.command(epilog=examples("caudal scores show", "caudal scores show --json | jq .calibration"))
def show(as_json: Json = False) -> None:
    """Show when scores were computed, the fitted models, and how well they predicted the last 90 days. Exit status 1 when never."""
    from caudal import postgres, scores

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.translated(), postgres.connect(settings.postgres, role="scores") as conn:
        found = scores.shown(conn)
    if found is None:
        note("no scores were computed yet: caudal scores refresh")
        raise typer.Exit(NEGATIVE)
    if as_json:
        emit(found)
        return
    told = {name: _rounded(value) for name, value in found.items()}
    table(("what", "is"), [(name.replace("_", " "), value) for name, value in told.items()])


def _rounded(value: Any) -> Any:
    """What people read: four digits are plenty of a fitted parameter."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value
