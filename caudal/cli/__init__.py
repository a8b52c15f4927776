"""The command `caudal`. One file per group of commands; the work itself is done by the modules that they call.

Modules are imported inside the commands, so that `caudal --help` is quick and `faust` never sees the command line.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from caudal import __version__
from caudal.cli import (
    connectors,
    criteria,
    customers,
    dead_letters,
    feedback,
    metrics,
    rates,
    replay,
    report,
    scores,
    segments,
    servers,
    sources,
    tokens,
    topics,
    verify,
)
from caudal.cli._output import FAILED, bug, complain, examples, exit_status
from caudal.cli.demo import demo
from caudal.cli.run import run
from caudal.errors import CaudalError
from caudal.stopping import arm

__all__ = ["app", "main"]

app = typer.Typer(
    name="caudal",
    help="An event-sourced customer integration hub: captures customer changes, projects them live, replays history.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=examples("caudal demo", "caudal up && caudal run", "caudal customers find --email maria@example.com"),
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"caudal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


servers.register(app)
app.command(
    epilog=examples("caudal run", "caudal run --workers 2", "caudal run --role edge"),
)(run)
app.command(epilog=examples("caudal demo", "caudal demo --once", "caudal demo --once --json"))(demo)
connectors.register(app)
topics.register(app)
verify.register(app)
app.add_typer(sources.app, name="sources")
app.add_typer(connectors.app, name="connectors")
app.add_typer(criteria.app, name="criteria")
app.add_typer(customers.app, name="customers")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(feedback.app, name="feedback")
app.add_typer(metrics.app, name="metrics")
app.add_typer(rates.app, name="rates")
app.add_typer(replay.app, name="replay")
app.add_typer(scores.app, name="scores")
app.add_typer(segments.app, name="segments")
app.add_typer(report.app, name="report")
app.add_typer(tokens.app, name="tokens")


def main() -> None:
    """Run the command line; whatever goes wrong becomes one line and an exit status."""
    os.umask(0o077)  # what is written (data, logs, exports, reports) is for nobody else unless somebody says so
    arm()
    try:
        app()
    except CaudalError as error:
        complain(error)
        sys.exit(exit_status(error))
    except BrokenPipeError:  # whoever read it has enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.filename and error.strerror:
            complain(CaudalError(f"{os.fsdecode(error.filename)}: {error.strerror}"))
            sys.exit(FAILED)
        if os.environ.get("CAUDAL_LOG_LEVEL", "").lower() == "debug":
            raise
        complain(bug(error))
        sys.exit(FAILED)
