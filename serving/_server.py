"""Runs the API: its socket, its run file, and its end."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import uvicorn
from caudal.serving._stream import Streams
from caudal.serving.api import build

from caudal.connections import Connection
from caudal.errors import BadSettings
from caudal.settings import Settings
from caudal.telemetry import Log, logger

__all__ = ["serve", "server"]

UNREAD_MS = 60_000
"""How long the kernel keeps a connection whose other end takes nothing."""


class _Server(uvicorn.Server):
    """Writes the run file once it listens; at the end it first ends the live streams, with the reason."""

    def __init__(self, config: uvicorn.Config, streams: Streams, settings: Settings, listener: socket.socket) -> None:
        super().__init__(config)
        self._streams = streams
        self._run_file = settings.home / "run" / "api.json"
        self._host, self._port = listener.getsockname()[:2]

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop in good order, and exit with 0: uvicorn's own would raise the signal again."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        self._run_file.parent.mkdir(parents=True, exist_ok=True)
        part = self._run_file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"host": self._host, "port": self._port, "pid": os.getpid()}))
        part.replace(self._run_file)
        logger().info(Log.SERVER_STARTED, server="api", host=self._host, port=self._port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams, finish requests, go."""
        self._run_file.unlink(missing_ok=True)
        self._streams.close()
        await super().shutdown(sockets)
        logger().info(Log.SERVER_STOPPED, server="api")


def server(settings: Settings) -> tuple[uvicorn.Server, socket.socket]:
    """The API's server and the socket it will listen on, for those who run it themselves.

    Raises:
        BadSettings: the address is taken, or isn't this machine's.
    """
    app = build(settings)
    host, port = settings.serving.host, settings.serving.port
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except OSError as exc:
        raise BadSettings(
            f"the API can't listen on {host}:{port}: {exc.strerror}", hint="CAUDAL_SERVING__PORT=0 takes a free port"
        ) from exc
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)  # accepted connections inherit it
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # addresses may hold a token
        server_header=False,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    return _Server(config, app.state.streams, settings, listener), listener


def serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT. `<home>/run/api.json` holds host, port and pid while it listens.

    Raises:
        Fatal: the settings can't be used, or the address is taken.
    """
    running, listener = server(settings)
    running.run(sockets=[listener])
