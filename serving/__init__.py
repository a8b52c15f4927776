"""The HTTP API and the live stream: what is known about customers, and what changes."""

from caudal.serving._server import serve, server
from caudal.serving.api import build

__all__ = ["build", "serve", "server"]
