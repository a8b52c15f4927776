"""`caudal up`, `down`, `status`: the servers, and how far everything has got."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from caudal.cli._output import NEGATIVE, UNAVAILABLE, Json, emit, examples, note, resolved, say, settings, table
from caudal.errors import ServersInUse

if TYPE_CHECKING:
    from caudal.embedded import ServerStatus

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command(epilog=examples("caudal up", "caudal up --json"))(up)
    app.command(epilog=examples("caudal down"))(down)
    app.command(
        epilog=examples(
            "caudal credentials",
            "caudal credentials kafka --java",
            "caudal credentials --json | jq .registry",
        )
    )(credentials)
    app.command(epilog=examples("caudal status", "caudal status --json | jq .workers"))(status)


def up(as_json: Json = False) -> None:
    """Start Kafka, PostgreSQL and the schema registry where none are configured, and prepare topics and tables.

    They go on in the background until `caudal down`; doing it again does nothing.
    """
    from caudal import embedded, presence, standing

    configured = settings()
    with embedded.starting(configured, note) as ready:
        standing.prepare(ready)
    presence.forget(configured.home, embedded.BORROWER)  # what one that was killed had started is meant to stay now
    _print_servers(embedded.status(configured), as_json=as_json)
    if not as_json and embedded.running(configured):
        note("clients need a password: `caudal credentials`")


def down(
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Also while edge, workers or API use them.")] = False,
) -> None:
    """Stop the servers that `caudal up` started. Data stay where they are."""
    from caudal import embedded, presence

    configured = settings()
    users = presence.alive(configured.home)
    if users and not force and embedded.running(configured):
        named = ", ".join(f"{one.name} (pid {one.pid})" for one in users)
        raise ServersInUse(f"the servers are in use by {named}", hint="end these first, or say --force")
    stopped = embedded.down(configured)
    presence.forget(configured.home, embedded.BORROWER)
    if as_json:
        emit({"stopped": stopped})
    else:
        note(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(as_json: Json = False) -> None:
    """Show the servers, the sources, where the topics end and how far the workers are. Exit status 69 when a server is down,
    1 when a log doesn't fit what was read of it.
    """
    from caudal import embedded
    from caudal.standing import standing

    configured = settings()
    servers = embedded.status(configured)
    healthy = all(server.state == "running" for server in servers)
    where = standing(embedded.resolve(configured)) if healthy else None
    if as_json:
        emit({"servers": [asdict(server) for server in servers], **(where or {})})
    else:
        _print_servers(servers, as_json=False)
        if where is not None:
            say()
            table(("topic", "records"), [(topic, sum(ends.values())) for topic, ends in where["topics"].items()])
            say()
            table(("worker step", "waiting"), where["workers"].items())
            say()
            table(("source", "connector", "captures"), [tuple(source.values()) for source in where["sources"]])
            if where["logs"]:
                say()
                table(("log", "fault", "deleted unread"), [tuple(log.values()) for log in where["logs"]])
    if where is not None and any(log["fault"] for log in where["logs"]):
        from caudal.offsets import WAYS_OUT

        note(f"a log doesn't fit what was read of it: {WAYS_OUT}")
        raise typer.Exit(NEGATIVE)
    if not healthy:
        raise typer.Exit(UNAVAILABLE)


class ServerKind(StrEnum):
    """A server that clients of others' use, too."""

    KAFKA = "kafka"
    POSTGRES = "postgres"
    REGISTRY = "registry"


def credentials(
    server: Annotated[ServerKind | None, typer.Argument(help="Which server; all unless given.")] = None,
    java: Annotated[bool, typer.Option("--java", help="Kafka's own clients' properties, not librdkafka's.")] = False,
    as_json: Json = False,
) -> None:
    """Print what clients of your own need to connect to Kafka, PostgreSQL and the registry: addresses, users and PASSWORDS."""
    from caudal.connecting import kafka_properties, postgres_dsn, registry_properties

    ready = resolved()
    found = {
        ServerKind.KAFKA: kafka_properties(ready.kafka, java=java),
        ServerKind.POSTGRES: {"dsn": postgres_dsn(ready.postgres)},
        ServerKind.REGISTRY: registry_properties(ready.registry),
    }
    wanted = {kind: properties for kind, properties in found.items() if server in {None, kind}}
    if as_json:
        emit({kind.value: properties for kind, properties in wanted.items()} if server is None else wanted[server])
        return
    for kind, properties in wanted.items():
        if server is None:
            print(f"# {kind}")
        for name, value in properties.items():
            print(value if kind is ServerKind.POSTGRES else f"{name}={value}")


def _print_servers(servers: list[ServerStatus], *, as_json: bool) -> None:
    if as_json:
        emit([asdict(server) for server in servers])
        return
    table(
        ("server", "state", "address", "version", "kind"),
        [
            (server.name, server.state, server.address, server.version, "embedded" if server.embedded else "external")
            for server in servers
        ],
    )
