"""`caudal run`: the processes that do the work."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from caudal.cli._output import note, settings

if TYPE_CHECKING:
    from caudal.settings import Settings

__all__ = ["Role", "run"]


class Role(StrEnum):
    """What one process does."""

    ALL = "all"
    EDGE = "edge"
    WORKER = "worker"
    TRANSLATE = "translate"
    PROJECT = "project"
    API = "api"
    REGISTRY = "registry"


def run(
    role: Annotated[
        Role,
        typer.Option(
            help="`all` supervises edge, workers and API, a process for each of a worker's two steps; the others run in the foreground. "
            "`worker` takes both steps in one process: less memory, and each step waits for the other."
        ),
    ] = Role.ALL,
    workers: Annotated[int, typer.Option(min=1, help="Workers of `all`.")] = 1,
    supervised_as: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run edge, workers and API until Ctrl-C, starting servers that are not configured and not up. A second Ctrl-C kills."""
    from caudal.telemetry import configure_logging

    configured = settings()
    if role is not Role.ALL:
        configure_logging(configured.log_level, json=configured.log_json, process=supervised_as or role)
    _say_who_is_away(configured)
    if role is Role.ALL:
        _tree(configured, workers)
        return
    if supervised_as:
        from caudal.supervisor import stop_with_parent

        stop_with_parent()
    _alone(role, configured)


def _say_who_is_away(configured: Settings) -> None:
    """Say at once when Kafka doesn't answer: what needs it waits for half a minute before it gives up."""
    from caudal import kafka
    from caudal.telemetry import Log, logger

    if configured.kafka.bootstrap_servers and not kafka.answers(configured.kafka, 2.0):
        logger().warning(Log.SERVER_UNREACHABLE, server="kafka", address=configured.kafka.bootstrap_servers)


def _tree(configured: Settings, workers: int) -> None:
    from caudal import embedded, standing
    from caudal.supervisor import Supervisor, members

    with embedded.borrowed(configured, note) as ready:
        standing.prepare(ready)
        note(f"edge http://{configured.edge.host}:{configured.edge.port}/in/<source>")
        note(f"API  http://{configured.serving.host}:{configured.serving.port}/docs")
        Supervisor(members(workers)).run()


def _alone(role: Role, configured: Settings) -> None:
    from caudal import embedded, standing

    if role is Role.REGISTRY:
        from caudal.schemas import _registry_server

        _registry_server.serve(configured)
        return
    with embedded.starting(configured) as ready:
        if role is not Role.EDGE:  # it takes deliveries with no database in reach
            standing.prepare(ready)
    if role is Role.EDGE:
        from caudal.producers import edge

        edge.serve(ready)
    elif role is Role.API:
        from caudal import serving

        serving.serve(ready)
    else:
        from caudal import worker
        from caudal.supervisor import ROLES

        worker.run(ready, roles=ROLES if role is Role.WORKER else (role,))
