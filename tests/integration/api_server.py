"""The API as its own server, for tests that speak HTTP to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from caudal import access, postgres, serving
from caudal.settings import Settings


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve in a thread; gives the address."""
    server, listener = serving.server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield "http://{}:{}".format(*listener.getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def token_of(settings: Settings, *scopes: str, name: str = "tests") -> str:
    """A new token."""
    with postgres.connect(settings.postgres, role="tests") as conn:
        return access.create(conn, name, scopes)[0]
