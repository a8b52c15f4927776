"""`caudal tokens`: who may use the API, and for what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from caudal.cli._output import NEGATIVE, Json, emit, examples, note, resolved, say, table

__all__ = ["app"]

app = typer.Typer(help="Tokens for the API: create, list, revoke.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "caudal tokens create reports --scope customers:read",
        "caudal tokens create feed --scope changes:read --scope customers:read --days 90",
    )
)
def create(
    name: Annotated[str, typer.Argument(help="What the token is for; shown in lists.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="What it allows: customers:read, changes:read, segments:read, segments:write, metrics:read, reports:read, operate,"
            " admin."
        ),
    ],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires. Unset: never.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it. It is shown only this once."""
    from caudal import access

    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with _database() as connection:
        token, info = access.create(connection, name, scope, expires_at=expires_at)
    if as_json:
        emit({"token": token, **asdict(info)})
    else:
        say(token)
        note("Keep it: only its hash is stored. Use it as `Authorization: Bearer …`.")


@app.command("list", epilog=examples("caudal tokens list", "caudal tokens list --json"))
def list_(as_json: Json = False) -> None:
    """List the tokens, without the tokens themselves."""
    from caudal import access

    with _database() as connection:
        rows = [asdict(info) for info in access.list_tokens(connection)]
    if as_json:
        emit(rows)
    else:
        columns = ("name", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
        table(columns, [[row[column] for column in columns] for row in rows])


@app.command(epilog=examples("caudal tokens revoke reports"))
def revoke(name: Annotated[str, typer.Argument(help="The token's name.")]) -> None:
    """Make a token useless, within 2 seconds everywhere. Exit status 1 when there is none of that name."""
    from caudal import access

    with _database() as connection:
        if not access.revoke(connection, name):
            note(f"caudal: no valid token is named {name}")
            raise typer.Exit(NEGATIVE)
    note(f"{name} is revoked")


@contextmanager
def _database() -> Iterator[Any]:
    from caudal import postgres

    settings = resolved()
    postgres.migrate(settings.postgres)
    with postgres.connect(settings.postgres, role="cli") as connection:
        yield connection
