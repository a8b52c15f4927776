"""Runs the API: its socket, its run file, and its end."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import uvicorn
from caudal.serving._stream import Streams
from caudal.serving.api import build

from caudal.connections import Connection, listen
from caudal.presence import announced
from caudal.settings import Settings
from caudal.telemetry import Log, logger

__all__ = ["serve", "server"]


class _Server(uvicorn.Server):
    """Stands in the home's list once it listens; at the end it first ends the live streams, with the reason."""

    def __init__(self, config: uvicorn.Config, streams: Streams, settings: Settings, listener: socket.socket) -> None:
        super().__init__(config)
        self._streams = streams
        self._home = settings.home
        self._present = ExitStack()
        self._host, self._port = listener.getsockname()[:2]

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop in good order, and exit with 0: uvicorn's own would raise the signal again."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        self._present.enter_context(announced(self._home, "api", host=self._host, port=self._port))
        logger().info(Log.SERVER_STARTED, server="api", host=self._host, port=self._port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams, finish requests, go."""
        self._present.close()
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
    listener = listen(host, port, title="the API", setting="CAUDAL_SERVING__PORT")
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
