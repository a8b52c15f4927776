"""What HTTP servers of ours have in common.

One connection of the edge and of the API, with limits for those who send: no head without end, and none that takes for ever.

Uvicorn bounds how long a connection idles between requests, and nothing else: a sender that says nothing, or a byte now and then, would
keep its connection, and a head may grow until memory is full.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from caudal.errors import BadSettings

__all__ = ["HEAD_MAX_BYTES", "REQUEST_S", "SAFE_HEADERS", "Connection", "is_loopback", "listen"]

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""On every answer, errors too, unless the answer has its own: it is data for the one who asked, never a page to guess at or to frame."""


HEAD_MAX_BYTES = 64 * 1024
"""Request line and headers; what came in one packet with it is not counted."""
REQUEST_S = 30.0
"""How long a request may take from its first byte to its last."""

_SAFE = "".join(f"{name}: {value}\r\n" for name, value in SAFE_HEADERS.items()).encode()
_REFUSED = b"HTTP/1.1 %b\r\n" + _SAFE + b"content-length: 0\r\nconnection: close\r\n\r\n"


UNREAD_MS = 60_000
"""How long the kernel keeps a connection whose other end takes nothing."""


def listen(host: str, port: int, *, title: str, setting: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        BadSettings: the address can't be listened on: taken, not this machine's, or not for this user.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or "no such address"
        raise BadSettings(
            f"{title} can't listen on {host}:{port}: {reason}", hint=f"{setting}=0 takes a free port"
        ) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)  # accepted connections inherit it
    return listener


class _Closed(list[Any]):
    """Headers that are complete: trailers, which may follow a body in pieces, are left out."""

    def append(self, _: Any) -> None:
        pass


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol with limits."""

    request_s = REQUEST_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait: for the first byte as long as for one after an answer."""
        super().connection_made(transport)
        self._since = 0.0
        self._head_bytes = 0
        self._in_head = False
        self._watch = self.loop.call_later(self.request_s / 4, self._look)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._watch.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, unless it is a head that doesn't end."""
        if self._since == 0.0:
            self._begin()  # also with what is no request yet, such as empty lines
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
                self.transport.write(_REFUSED % b"431 Request Header Fields Too Large")
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, with the headers of every answer."""
        self.transport.write(_REFUSED % b"400 Bad Request")
        self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins, which may be in the packet that ended the request before."""
        self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        super().on_headers_complete()
        self.headers = _Closed(self.headers)

    def on_message_complete(self) -> None:
        """The request is there: from now on it is we who keep the sender waiting."""
        self._since = 0.0
        super().on_message_complete()

    def _begin(self) -> None:
        self._since = self.loop.time()
        self._head_bytes = 0
        self._in_head = True

    def _look(self) -> None:
        """Cut the connection when its request takes too long. Closing would wait until the other end has read what it was answered."""
        if self._since and self.loop.time() - self._since > self.request_s:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self.request_s / 4, self._look)


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by a name that no name server can give to another."""
    try:
        name = host if host.count(":") > 1 and "[" not in host else urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
