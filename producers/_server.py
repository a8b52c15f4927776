"""Uvicorn as the edge needs it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from caudal.producers._http import App

from caudal.connections import Connection

__all__ = ["run"]

KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s), so that none is closed under a request."""


async def run(app: App, listener: socket.socket, started: Callable[[], None], *, grace_s: float) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish for `grace_s` at most."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        proxy_headers=False,  # what a request says of the address that it came through is not taken on trust
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="critical",  # a request that is no HTTP is answered with 400 and is nobody's error here
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(grace_s) + 1,
    )
    try:
        await _Server(config, started).serve(sockets=[listener])
    finally:
        listener.close()


class _OneWrite:
    """A transport that sends what is written in one turn of the event loop at once: head and body of an answer are one packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


class _Protocol(Connection):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type] # it stands in for one


class _Server(uvicorn.Server):
    """Uvicorn that tells when it listens, and that returns after a signal instead of ending the process by the same one."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, self, "should_exit", True)
        yield
