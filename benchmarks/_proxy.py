"""A TCP proxy whose connections can be cut, slowed down and held up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any

__all__ = ["Loop", "Proxy"]

HOST = "127.0.0.1"


class Loop:
    """The event loop of all proxies, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """Forwards what comes to `port` to the port `target`, both on this machine."""

    def __init__(self, loop: Loop, target: int, port: int = 0) -> None:
        self.delay_s = 0.0
        self.held_until = 0.0
        self._loop = loop
        self._target = target
        self._writers: dict[asyncio.StreamWriter, int] = {}
        listener = socket.create_server((HOST, port))
        self.port: int = listener.getsockname()[1]
        self._server = loop.run(asyncio.start_server(self._serve, sock=listener))

    def close(self) -> None:
        self._loop.run(self._stop())

    def cut(self) -> None:
        """Reset every connection that there is."""
        self._loop.run(self._cut())

    def hold(self, seconds: float) -> None:
        """Carry nothing for a while, and close nothing either: as a firewall that drops packets."""
        self.held_until = time.monotonic() + seconds

    def slow(self, delay_s: float) -> None:
        """Let each piece wait before it goes on; 0 ends it."""
        self.delay_s = delay_s

    def ports(self) -> set[int]:
        """The ports from which the connections to the target are made."""
        return set(self._writers.values())

    async def _stop(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        own = back.get_extra_info("sockname")[1]
        self._writers |= {writer: 0, back: own}
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            for one in (writer, back):
                self._writers.pop(one, None)
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                wait_s = max(self.delay_s, self.held_until - time.monotonic())
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # both ways end together
