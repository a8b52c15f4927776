"""The edge on a real socket in a thread, with every installed connector and a log in memory; and deliveries signed as the vendors do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from caudal.producers import _server, edge

from caudal import connections, sources
from caudal.settings import EdgeSettings, Settings
from caudal.sources import Source

SECRET = "hush"
CONNECTORS = ("hubspot", "shopify", "zendesk")
"""Those that sign the bytes of a delivery; the answers of our own forms carry their proof within."""
MAX_BODY = 64 * 1024
SAMPLES = sorted((Path(__file__).parent.parent / "connectors").glob("*/*.json"))


@dataclass
class MemoryLog:
    """Captures in a list."""

    captures: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None: ...

    async def close(self) -> None: ...

    def prepare(self, source: str) -> None: ...

    def check(self) -> list[str]:
        return []

    def append(self, capture: Mapping[str, Any]) -> asyncio.Future[tuple[int, int]]:
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self.captures.append(dict(capture))
        future.set_result((0, len(self.captures)))
        return future


@dataclass
class Running:
    """A running edge."""

    port: int
    log: MemoryLog

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def deliver(self, connector: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of a signed delivery."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            client.request("POST", f"/in/{connector}", body, {**headers, **signed(connector, body, self.port)})
            return client.getresponse().status
        finally:
            client.close()

    def well(self) -> bool:
        """Whether it still answers, and takes what is in order."""
        return self.deliver("shopify", b'{"id": 1}', {"x-shopify-topic": "customers/update"}) == 202


def signed(connector: str, body: bytes, port: int) -> dict[str, str]:
    """The headers with the vendor's signature."""
    at = str(int(time.time() * 1000) if connector == "hubspot" else int(time.time()))
    message = {
        "hubspot": b"POST" + f"http://127.0.0.1:{port}/in/hubspot".encode() + body + at.encode(),
        "zendesk": at.encode() + body,
    }.get(connector, body)
    digest = base64.b64encode(hmac.new(SECRET.encode(), message, hashlib.sha256).digest()).decode()
    if connector == "hubspot":
        return {"x-hubspot-signature-v3": digest, "x-hubspot-request-timestamp": at}
    if connector == "zendesk":
        return {"x-zendesk-webhook-signature": digest, "x-zendesk-webhook-signature-timestamp": at}
    return {"x-shopify-hmac-sha256": digest}


def sample(path: Path) -> tuple[str, dict[str, str], Any]:
    """Connector, headers and body of a sample of tests/connectors."""
    delivery = json.loads(path.read_text(encoding="utf-8"))["delivery"]
    return (
        path.parent.name,
        {name.lower(): value for name, value in delivery.get("headers", {}).items()},
        delivery["body"],
    )


@contextlib.contextmanager
def running(home: Path) -> Iterator[Running]:
    """An edge that gives slow senders little time."""
    settings = Settings(
        home=home,
        config_file=home / "caudal.toml",
        edge=EdgeSettings(port=0, max_body_bytes=MAX_BODY, receive_timeout_s=0.5),
    )
    for name in CONNECTORS:
        sources.add(settings, Source(name=name, connector=name, secrets=(name,)))
        sources.store_secret(settings, name, SECRET)
    log = MemoryLog()
    app = edge.build(settings, log=log)
    listener = connections.listen("127.0.0.1", 0, title="the edge", setting="CAUDAL_EDGE__PORT")
    listening, servers = threading.Event(), []

    @contextlib.contextmanager
    def unsignalled(server: Any) -> Iterator[None]:
        servers.append(server)  # signals are for main threads
        yield

    def serve() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_server.run(app, listener, listening.set, grace_s=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_server._Server, "capture_signals", unsignalled)
        patch.setattr(_server._Protocol, "request_s", 2.0)
        patch.setattr(_server, "KEEP_ALIVE_S", 2)
        thread = threading.Thread(target=serve, daemon=True)
        port = listener.getsockname()[1]
        thread.start()
        assert listening.wait(60)
        try:
            yield Running(port, log)
        finally:
            servers[0].should_exit = True
            thread.join(60)
            assert not thread.is_alive()
