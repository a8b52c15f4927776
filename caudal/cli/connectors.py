"""`caudal connectors` and `caudal translate`: what the connectors know, tried on files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import typer

from caudal.cli._output import NEGATIVE, Json, emit, emit_line, examples, note, say, table

__all__ = ["app", "register"]

app = typer.Typer(
    help="Systems that Caudal can read: list them, show their kinds, check a signature.",
    epilog=examples("caudal connectors", "caudal connectors show shopify"),
)

Headers = Annotated[
    str, typer.Option("--headers", help='The request\'s headers as a JSON object, e.g. \'{"x-a": "1"}\'.')
]
File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The body as it was received; `-` is standard input.", allow_dash=True)
]
Name = Annotated[
    str, typer.Argument(metavar="CONNECTOR", help="The connector's name, as `caudal connectors` lists it.")
]


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, as_json: Json = False) -> None:
    """Systems that Caudal can read. With no command: list them."""
    from caudal.connectors import _tools

    if context.invoked_subcommand:
        return
    rows = _tools.listing()
    if as_json:
        emit(rows)
    else:
        table(("name", "title", "kinds"), [(row["name"], row["title"], len(row["kinds"])) for row in rows])


@app.command(epilog=examples("caudal connectors show shopify", "caudal connectors show hubspot --json"))
def show(name: Name, as_json: Json = False) -> None:
    """Show one connector: how its deliveries are signed, what to set up at the vendor's side, which kinds it reads."""
    from caudal import connectors
    from caudal.connectors import _signatures

    connector = connectors.get(name)
    ignored = sorted(connector.ignored)
    signed, setup = _signatures.described(connector.verify), connector.setup
    if as_json:
        emit(
            {
                "name": connector.name,
                "title": connector.title,
                "signed": signed,
                "signature_versions": list(getattr(connector.verify, "versions", ())),
                "webhooks": setup and setup.webhooks,
                "key_at": setup and setup.key_at,
                "note": setup and setup.note,
                "topics": list(connector.topics),
                "kinds": list(connector.kinds),
                "ignored": ignored,
            }
        )
        return
    say(f"{connector.title} ({connector.name})")
    say(f"signed: {signed}")
    if setup:
        say(f"address and topics: {setup.webhooks}")
        say(f"secret: {setup.key_at or 'make one up (--generate)'}")
        if setup.note:
            say(setup.note)
    say("\n".join(["kinds that give events, to subscribe to:", *(f"  {kind}" for kind in connector.topics)]))
    if others := sorted(set(connector.kinds) - set(connector.topics)):
        say("\n".join(["kinds that give events and that no webhook brings:", *(f"  {kind}" for kind in others)]))
    if ignored:
        say("\n".join(["kinds that say nothing about a customer:", *(f"  {kind}" for kind in ignored)]))


@app.command(
    epilog=examples(
        'caudal connectors verify shopify --secret S --headers \'{"x-shopify-hmac-sha256": "…"}\' body.json',
        'caudal connectors verify hubspot --secret S --headers "$(cat headers.json)" --url https://hooks.example.com/in/crm -',
    )
)
def verify(
    name: Name,
    file: File,
    *,
    secret: Annotated[list[str], typer.Option(help="The secret; give two while rotating.")],
    headers: Headers = "{}",
    method: Annotated[str, typer.Option(help="The request's method, for vendors that sign it.")] = "POST",
    url: Annotated[str, typer.Option(help="The address as the vendor called it, for vendors that sign it.")] = "",
    at: Annotated[
        str | None, typer.Option(help="Judge the age of a signed time as of this time: ISO 8601 or seconds since 1970.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a signature holds: exit status 0 when it does, 1 when not. The replay window is judged only with --at.

    All versions of the vendor's signature are judged; a source takes the strongest alone, unless `signature_versions` names others.
    """
    from caudal import connectors, sources
    from caudal.connectors import _tools

    with _opened(file) as stream:
        body = stream.read()
    verdict = _tools.verify(
        connectors.get(name),
        body,
        secrets=[sources.plain_secret(each, name="--secret") for each in secret],
        headers=_parsed(_tools.parse_headers, headers, "--headers"),
        method=method,
        url=url,
        at=None if at is None else _parsed(_tools.parse_time, at, "--at"),
    )
    if as_json:
        emit({"ok": verdict.ok, "reason": verdict.reason or None})
    else:
        say("the signature holds" if verdict.ok else f"the signature does not hold: {verdict.reason}")
    if not verdict.ok:
        raise typer.Exit(NEGATIVE)


def register(app: typer.Typer) -> None:
    """Add `translate` to the root."""
    app.command(
        epilog=examples(
            "caudal translate shopify --kind orders/create order.json",
            "caudal translate hubspot --source crm - < webhook.json | jq .type",
            "caudal translate zendesk --ndjson deliveries.ndjson",
        )
    )(translate)


def translate(
    name: Name,
    file: File,
    *,
    kind: Annotated[
        str | None, typer.Option(help="The vendor's topic. Unset: as the headers or the body tell.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Name of the source. Unset: the connector's.")] = None,
    headers: Headers = "{}",
    ndjson: Annotated[
        bool,
        typer.Option(
            "--ndjson", help="FILE holds a line {kind?, headers?, body} per delivery; each gets a line in answer."
        ),
    ] = False,
) -> None:
    """Print the canonical events of a delivery, one JSON object a line. Needs no server.

    Standard error names the parts that could not be read and were left out. Exit status 65, with the code on standard error, when the
    connector can't use the payload or an item of it; the events of the other items are printed. With --ndjson each line is answered by
    {events, left_out?} or {poison, message}, or all of these when only some items could be used.
    """
    from caudal import connectors
    from caudal.connectors import _tools

    connector = connectors.get(name)
    parsed = _parsed(_tools.parse_headers, headers, "--headers")
    if ndjson:
        with _opened(file) as lines:
            for answer in _tools.translate_lines(connector, source or name, lines):
                emit_line(answer)
        return
    with _opened(file) as stream:
        body = stream.read()
    delivery = _tools.delivery(body, source=source or name, kind=kind, headers=parsed)
    found = _tools.translate(connector, delivery)
    for event in found.events:
        emit_line(_tools.as_json(event))
    for part in found.left_out:
        note(f"left out: {part.path} ({part.reason})")
    if found.poison is not None:
        raise found.poison


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror}", param_hint="FILE") from None
    with stream:
        yield stream


_T = TypeVar("_T")


def _parsed(parse: Callable[[str], _T], text: str, option: str) -> _T:
    try:
        return parse(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from None
