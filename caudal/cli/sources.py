"""`caudal sources`: which systems send to this hub."""

from __future__ import annotations

import os
import secrets as random
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from caudal.cli._output import NEGATIVE, Json, emit, examples, note, say, settings, table

if TYPE_CHECKING:
    from caudal.settings import Settings
    from caudal.sources import Source

__all__ = ["app"]

app = typer.Typer(help="Systems that send to this hub: add, list, remove.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "caudal sources add shop-br --connector shopify",
        "pass show shopify | caudal sources add shop-br --connector shopify --secret -",
        "caudal sources add crm --connector hubspot --public-url https://hooks.example.com/in/crm",
        "caudal sources add help --connector zendesk --secret-name help-old --secret-name help-new",
        "caudal sources add feedback --connector feedback --generate",
    )
)
def add(
    name: Annotated[str, typer.Argument(help="The source's name: lower-case letters, digits, hyphens.")],
    *,
    connector: Annotated[str, typer.Option(help="Which connector reads it; see `caudal connectors`.")],
    secret: Annotated[
        str | None,
        typer.Option(help="Store this secret in the secrets file; `-` reads it from standard input."),
    ] = None,
    generate: Annotated[bool, typer.Option(help="Make up a secret, store it and print it once.")] = False,
    secret_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of a secret that is valid now; give two while rotating. Unset: the source's name."),
    ] = None,
    auth: Annotated[str, typer.Option(help="signature, path_token, basic or header.")] = "signature",
    header: Annotated[str | None, typer.Option(help="Header that carries the secret, with --auth header.")] = None,
    public_url: Annotated[str | None, typer.Option(help="This source's address as the vendor calls it.")] = None,
    priority: Annotated[int, typer.Option(help="Where sources differ on a field, the higher priority wins.")] = 0,
    as_json: Json = False,
) -> None:
    """Add a source, or change it: the same command twice changes nothing. Says what is left to do at the vendor's side."""
    from pydantic import ValidationError

    from caudal import connectors, sources
    from caudal.connectors import feedback
    from caudal.errors import BadSettings

    if secret is not None and generate:
        raise typer.BadParameter("give either --secret or --generate")
    configured = settings()
    if connectors.get(connector) is feedback.connector and name != feedback.SOURCE:
        raise BadSettings(f"source {name}: the source of the connector feedback is named {feedback.SOURCE}")
    try:
        source = sources.Source.model_validate(
            {
                "name": name,
                "connector": connector,
                "secrets": tuple(secret_name or ()),
                "auth": auth,
                "header": header,
                "public_url": public_url,
                "priority": priority,
            }
        )
    except ValidationError as exc:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'source'}: {e['msg']}"
            for e in exc.errors(include_input=False, include_url=False)
        )
        raise BadSettings(f"source {name}: {faults}") from None
    setup = connectors.get(connector).setup
    if generate and auth == "signature" and setup is not None and setup.key_at:
        raise BadSettings(
            f"source {name}: {connectors.get(connector).title} makes its own secret, and would sign with no other",
            hint=f"take it from {setup.key_at}, then --secret -",
        )
    value = None if secret is None else _secret(source.secrets[-1], secret)
    generated = random.token_urlsafe(32) if generate else None
    if generated and auth == "basic":
        generated = f"{name}:{generated}"
    changed = sources.add(configured, source)
    stored = value or generated
    secret_changed = stored is not None and sources.store_secret(configured, source.secrets[-1], stored)
    answer = {
        "name": name,
        "connector": connector,
        "changed": changed or secret_changed,
        "address": _address(configured, source),
        "secret_variables": [sources.secret_variable(each) for each in source.secrets],
        "secret_set": _has_secret(configured, name),
        **({"secret": generated} if generated else {}),
    }
    if as_json:
        emit(answer)
        return
    say(f"{'saved' if changed else 'unchanged'}: {name} ({connector}) in {configured.config_file}")
    if value:
        kept = f"secret {source.secrets[-1]} in {sources.secrets_path(configured)}"
        say(f"{'saved' if secret_changed else 'unchanged'}: {kept}")
    if name == feedback.SOURCE:
        say(f"customers answer at {answer['address']}; `caudal feedback link` makes their links")
    else:
        say(f"send its webhooks to {answer['address']}")
    if setup:
        say(f"entered in {setup.webhooks}; `caudal connectors show {connector}` lists the topics")
    if generated and name == feedback.SOURCE:
        say("its secret is made up and kept; nobody else needs it")
    elif generated:
        say(f"its secret, shown only now: {generated}")
    elif not answer["secret_set"]:
        found = f" ({setup.key_at})" if setup and setup.key_at and auth == "signature" else ""
        note(f"its secret is missing{found}: set {sources.secret_variable(source.secrets[0])}, or use --secret -")


@app.command("list", epilog=examples("caudal sources list", "caudal sources list --json"))
def list_(as_json: Json = False) -> None:
    """List the sources, with where they send to and whether their secrets are there."""
    from caudal import sources

    configured = settings()
    rows = [
        {
            "name": source.name,
            "connector": source.connector,
            "auth": source.auth,
            "priority": source.priority,
            "address": _address(configured, source),
            "secrets": list(source.secrets),
            "secret_set": _has_secret(configured, source.name),
        }
        for source in sources.load(configured).values()
    ]
    if as_json:
        emit(rows)
    else:
        columns = ("name", "connector", "auth", "priority", "address", "secret_set")
        table(columns, [[row[column] for column in columns] for row in rows])


@app.command(epilog=examples("caudal sources remove shop-br", "caudal sources remove shop-br --keep-secrets"))
def remove(
    name: Annotated[str, typer.Argument(help="The source's name.")],
    *,
    keep_secrets: Annotated[bool, typer.Option(help="Leave its secrets in the secrets file.")] = False,
) -> None:
    """Stop taking deliveries of a source; what it sent stays. Exit status 1 when there is no such source.

    Its secrets go from the secrets file, unless another source uses them.
    """
    from caudal import sources

    configured = settings()
    source = sources.load(configured).get(name)
    if source is None or not sources.remove(configured, name):
        note(f"caudal: no source is named {name}")
        raise typer.Exit(NEGATIVE)
    note(f"{name} is removed; what it sent stays")
    dropped = () if keep_secrets else sources.drop_secrets(configured, source.secrets)
    if dropped:
        note(f"removed from {sources.secrets_path(configured)}: {', '.join(dropped)}")
    for each in source.secrets:
        if sources.secret_variable(each) in os.environ:
            note(f"{sources.secret_variable(each)} is still set")


def _secret(name: str, given: str) -> str:
    """The secret that was given, or that standard input holds.

    Raises:
        BadSettings: it can't be what a vendor gave, or is too short to keep anyone out.
    """
    from caudal import sources
    from caudal.errors import BadSettings

    if given == "-":
        try:
            given = sys.stdin.buffer.readline().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadSettings("the secret on standard input is not UTF-8") from None
    value = sources.plain_secret(given, name=name)
    if not value:
        raise typer.BadParameter("the secret is empty")
    if len(value) < sources.SECRET_MIN_CHARS:
        raise BadSettings(
            f"secret {name} has {len(value)} characters, fewer than {sources.SECRET_MIN_CHARS}: it could be found by trying",
            hint="was it cut off? --generate makes one up where the vendor makes none",
        )
    return value


def _address(configured: Settings, source: Source) -> str:
    from caudal.connectors import feedback

    if source.public_url:
        return source.public_url
    base = configured.edge.public_url or f"http://{configured.edge.host}:{configured.edge.port}"
    path = feedback.PATH if source.connector == feedback.connector.name else f"/in/{source.name}"
    return f"{base.rstrip('/')}{path}"


def _has_secret(configured: Settings, name: str) -> bool:
    from caudal import sources
    from caudal.errors import BadSettings

    try:
        return bool(sources.load(configured).secrets(name))
    except BadSettings:
        return False
