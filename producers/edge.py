"""The capture edge: `POST /in/{source}`. What is authentic is stored as it came, and accepted only when Kafka has it.

Understanding it comes later (`processors/`), so a body that no connector can read is taken all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIServer

import orjson
import prometheus_client
import uvloop
from caudal.connectors import Connector, SignedRequest, Verdict, feedback
from caudal.connectors._sdk import EVENT_NAMESPACE
from caudal.producers import _feedback, _server
from caudal.producers._auth import authentic, without_credentials
from caudal.producers._captures import CaptureLog, Captures
from caudal.producers._http import RETRY, Body, Intake, Receive, Refusal, Scope, Send, answer, refuse
from caudal.producers._producer import MessageTooLarge
from caudal.producers._routes import Route, Routes
from caudal.schemas import derived_id, position
from caudal.schemas.codec import Registry

from caudal import connectors as installed
from caudal.connections import listen
from caudal.errors import BadSettings, CaudalError
from caudal.presence import announced
from caudal.settings import Settings
from caudal.telemetry import DELIVERIES, Log, logger

__all__ = ["Edge", "build", "serve"]

PREFIX = "/in/"

_NAMESPACE = EVENT_NAMESPACE.bytes
_NOT_FOUND = Refusal(404, "unknown_source", "there is no such source")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_HARMLESS = re.compile(r"[A-Za-z0-9_.:=+/-]{0,500}")
_NO_PAGE = Refusal(404, "not_found", "there is nothing here")


def build(
    settings: Settings, *, log: CaptureLog | None = None, connectors: Mapping[str, Connector] | None = None
) -> Edge:
    """The edge as an ASGI application, with lifespan.

    Args:
        settings: with the brokers filled in (`caudal.embedded.resolve`).
        log: where captures go; Kafka unless given.
        connectors: by name; all that are installed unless given.

    Raises:
        BadSettings: the sources can't be read.
    """
    return Edge(settings, log or _captures(settings), installed.registry() if connectors is None else connectors)


@dataclass(frozen=True, slots=True)
class Hello:
    """The answer to a step of setting up, of which nothing is stored."""

    text: bytes


class Edge:
    """The ASGI application. Nothing that is sent to it ends in a 500 or a traceback."""

    def __init__(self, settings: Settings, log: CaptureLog, connectors: Mapping[str, Connector]) -> None:
        self._settings = settings
        self._log = log
        self._routes = Routes(settings, connectors, log.prepare, log.check)
        self._intake = Intake(settings.edge.receive_timeout_s)
        self._public_url = (settings.edge.public_url or "").rstrip("/")

    async def start(self) -> None:
        """Connect. Kafka need not be there yet."""
        self._log.start()
        self._routes.start()

    async def close(self) -> None:
        """Finish what is under way and disconnect."""
        self._routes.stop()
        await self._log.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            try:
                if path.startswith(PREFIX):
                    await self._delivery(scope, receive, send)
                elif path == feedback.PATH:
                    await self._feedback(scope, receive, send)
                else:
                    await self._page(path, scope["method"], send)
            except Exception as exc:  # the sender comes again, and the log says what must be mended
                logger().error(Log.REQUEST_FAILED, error=type(exc).__name__, at=_place(exc))
                await refuse(send, Refusal(503, "unavailable", "something failed here; send it again", RETRY))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _delivery(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        name, _, token = scope["path"][len(PREFIX) :].partition("/")
        route = self._routes.get(name)
        if route is None or (token != "") != (route.source.auth == "path_token"):
            DELIVERIES.labels("", _NOT_FOUND.outcome).inc()
            logger().debug(Log.DELIVERY_REFUSED, outcome=_NOT_FOUND.outcome)
            await refuse(send, _NOT_FOUND)
            return
        method = scope["method"]
        if method in {"GET", "HEAD"}:
            await self._probed(scope, route, send)
            return
        if method != "POST":
            await refuse(send, _wrong_method(b"GET, HEAD, POST"))
            return
        headers = _headers(scope)
        body: Body | Refusal | None = None
        try:
            if route.fault:
                outcome: Refusal | Hello | bytes = Refusal(503, "unusable", "the source is not set up", RETRY)
            else:
                body = await self._intake.read(receive, headers.get("content-length"), route.max_body_bytes)
                if body is None:
                    route.count("disconnected")
                    return
                outcome = (
                    body if isinstance(body, Refusal) else await self._take(scope, route, token, headers, body.data)
                )
        finally:
            if isinstance(body, Body):
                self._intake.release(body)
        if isinstance(outcome, Refusal):
            route.refuse(outcome)
            await refuse(send, outcome)
        elif isinstance(outcome, Hello):
            route.count("handshake")
            await answer(send, 200, outcome.text, (_TEXT,))
        else:
            route.count("accepted")
            route.observe(time.perf_counter() - started)
            await answer(send, 202, outcome)

    async def _probed(self, scope: Scope, route: Route, send: Send) -> None:
        """Answer a look at the address: empty, unless the connector knows it as a step of setting up. Nothing is stored."""
        headers = _headers(scope)
        request = SignedRequest(b"", headers, scope["method"], self._url(route, scope, headers, _target(scope)))
        await answer(send, 200, (_handshake(route, request) or "").encode(), (_TEXT,))

    async def _take(
        self, scope: Scope, route: Route, token: str, headers: dict[str, str], body: bytes
    ) -> bytes | Refusal | Hello:
        """Verify and store one delivery; the answer's body, or why it isn't stored."""
        source, connector = route.source, route.connector
        assert connector is not None  # a route without one has a fault
        now = datetime.now(UTC)
        target = _target(scope)
        request = SignedRequest(body, headers, scope["method"], self._url(route, scope, headers, target))
        verdict = _verdict(route, request, token=token, now=now)
        if not verdict.ok:
            hello = _handshake(route, request)
            return Refusal(401, "unsigned", verdict.reason) if hello is None else Hello(hello.encode())
        delivery_id, kind = connector.key(headers, body)
        delivery_id = _text(delivery_id)
        capture_id = derived_id(_NAMESPACE, f"{source.name}\n{delivery_id}")
        if not route.ready.is_set():
            try:
                await asyncio.wait_for(route.ready.wait(), self._settings.edge.produce_timeout_s)
            except TimeoutError:
                return Refusal(503, "unavailable", "deliveries can't be stored now", RETRY)
        try:
            partition, offset = await self._log.append(
                {
                    "capture_id": capture_id,
                    "source": source.name,
                    "connector": connector.name,
                    "delivery_id": delivery_id,
                    "kind": None if kind is None else _text(kind),
                    "method": scope["method"],
                    "url": target if not token else PREFIX + source.name + _query(scope),
                    "headers": without_credentials(source, headers),
                    "body": body,
                    "captured_at": now,
                }
            )
        except MessageTooLarge as exc:
            return Refusal(413, "too_large", exc.message)
        except CaudalError as exc:
            self._routes.doubt(source.name)
            return Refusal(503, "unavailable", exc.message, RETRY)
        reflected = position.encode({f"capture.{source.name}": {partition: offset + 1}})
        return b'{"capture_id":"%s","token":"%s"}' % (capture_id.encode(), reflected.encode())

    async def _feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The form that a signed link opens, and its answer: JSON to programs, pages to people."""
        route, headers = self._routes.get(feedback.SOURCE), _headers(scope)
        if route is None or route.fault or route.connector is not feedback.connector:
            await refuse(send, _NO_PAGE)
            return
        lang = _feedback.language(headers.get("accept-language", ""))
        if scope["method"] in {"GET", "HEAD"}:
            given = _feedback.token_in(scope.get("query_string", b""))
            claims = _feedback.claimed(given, route.secrets, datetime.now(UTC))
            page = _feedback.form(claims, given, lang) if claims else _feedback.message(lang, "refused")
            await answer(send, 200 if claims else 403, page, _feedback.HEADERS)
            return
        if scope["method"] != "POST":
            await refuse(send, _wrong_method(b"GET, HEAD, POST"))
            return
        body = await self._intake.read(receive, headers.get("content-length"), route.max_body_bytes)
        if body is None:
            route.count("disconnected")
            return
        kind = headers.get("content-type", "")
        outcome: bytes | Refusal | Hello = Refusal(
            422, "invalid", "a score on the survey's scale, a token and perhaps a text are needed"
        )
        try:
            if isinstance(body, Refusal):
                outcome = body
            elif stored := _feedback.answered(kind, body.data):
                # stored as JSON however it came
                plain = {name: value for name, value in headers.items() if name != "content-encoding"}
                outcome = await self._take(scope, route, "", {**plain, "content-type": "application/json"}, stored)
        finally:
            if isinstance(body, Body):
                self._intake.release(body)
        assert not isinstance(outcome, Hello)  # own forms have no step of setting up
        if isinstance(outcome, Refusal):
            route.refuse(outcome)
        else:
            route.count("accepted")
        if kind.partition(";")[0].strip().lower() == "application/json":
            await (refuse(send, outcome) if isinstance(outcome, Refusal) else answer(send, 202, outcome))
        elif isinstance(outcome, Refusal):
            told = {401: "refused", 422: "missing"}.get(outcome.status, "unavailable")
            await answer(send, outcome.status, _feedback.message(lang, told), (*_feedback.HEADERS, *outcome.headers))
        else:
            await answer(send, 200, _feedback.message(lang, "thanks", "again"), _feedback.HEADERS)

    def _url(self, route: Route, scope: Scope, headers: Mapping[str, str], target: str) -> str:
        """The address as the vendor sees it. What a proxy says of itself is not trusted: `public_url` is."""
        if route.source.public_url:
            return route.source.public_url + _query(scope)
        if self._public_url:
            return self._public_url + target
        return f"{scope.get('scheme', 'http')}://{headers.get('host', '')}{target}"

    async def _page(self, path: str, method: str, send: Send) -> None:
        if path not in {"/health", "/ready"}:
            await refuse(send, _NO_PAGE)
        elif method not in {"GET", "HEAD"}:
            await refuse(send, _wrong_method(b"GET, HEAD"))
        elif path == "/health":
            await answer(send, 200, b'{"status":"ok"}')
        else:
            await self._ready(send)

    async def _ready(self, send: Send) -> None:
        """Whether a delivery would be stored now. A source that is set up wrongly is told, and doesn't stop the others."""
        reason, lost = "", set[str]()
        try:
            lost.update(await asyncio.to_thread(self._log.check))
        except CaudalError as exc:
            reason = exc.message
        lost &= {route.source.name for route in self._routes}  # what a source that was removed has sent may go
        for name in lost:
            self._routes.doubt(name)
        waiting = sorted(
            r.source.name for r in self._routes if not r.fault and (r.source.name in lost or not r.ready.is_set())
        )
        if waiting and not reason:
            reason = f"topics are being made for {', '.join(waiting)}"
        faults = {route.source.name: route.fault for route in self._routes if route.fault}
        body = {"ready": not reason, **({"reason": reason} if reason else {}), "unusable_sources": faults}
        await answer(send, 503 if reason else 200, orjson.dumps(body))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


def serve(settings: Settings, *, started: Callable[[str, int], None] | None = None) -> None:
    """Run the edge until SIGTERM or SIGINT, then finish what is under way and return.

    While it runs, `<home>/run/edge.json` holds host, port and process id.

    Args:
        settings: with the brokers filled in (`caudal.embedded.resolve`).
        started: called with host and port once it listens.

    Raises:
        BadSettings: the sources can't be read or the address can't be listened on.
    """

    def up(host: str, port: int) -> None:
        # What is loaded by now stays. Looking through it again and again would cost 3 % and pauses of tens of milliseconds.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        if started is not None:
            started(host, port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, up))


async def _serve(settings: Settings, started: Callable[[str, int], None]) -> None:
    app = build(settings)
    listener = listen(settings.edge.host, settings.edge.port, title="the edge", setting="CAUDAL_EDGE__PORT")
    host, port = listener.getsockname()[:2]
    metrics = _metrics_page(settings)
    present = contextlib.ExitStack()

    def tell() -> None:
        where = f"http://{settings.edge.metrics_host}:{metrics.server_port}/metrics"
        present.enter_context(announced(settings.home, "edge", host=host, port=port, details={"metrics": where}))
        logger().info(Log.PROCESS_STARTED, role="edge", host=host, port=port, metrics=where)
        started(host, port)

    try:
        await _server.run(
            app, listener, tell, grace_s=settings.edge.produce_timeout_s + settings.edge.receive_timeout_s
        )
    finally:
        metrics.shutdown()
        metrics.server_close()
        present.close()
        logger().info(Log.PROCESS_STOPPED, role="edge")


def _metrics_page(settings: Settings) -> WSGIServer:
    """Serve the figures in a thread of their own, on an address that vendors don't reach."""
    edge = settings.edge
    try:
        return prometheus_client.start_http_server(edge.metrics_port, edge.metrics_host)[0]
    except OSError as exc:
        raise BadSettings(
            f"the edge's metrics page can't listen on {edge.metrics_host}:{edge.metrics_port}: {exc.strerror}",
            hint="CAUDAL_EDGE__METRICS_PORT",
        ) from None


def _captures(settings: Settings) -> CaptureLog:
    return Captures(settings, Registry(settings))


def _verdict(route: Route, request: SignedRequest, *, token: str, now: datetime) -> Verdict:
    assert route.scheme is not None  # a route without one has a fault
    try:
        return authentic(
            route.source, route.scheme, request, route.secrets, token=token, now=now, window_s=route.replay_window_s
        )
    except Exception as exc:  # a scheme that trips over odd input must not let it in, and must not look like an outage
        logger().error(Log.REQUEST_FAILED, source=route.source.name, error=type(exc).__name__, at=_place(exc))
        return Verdict(ok=False, reason="the signature can't be checked")


def _handshake(route: Route, request: SignedRequest) -> str | None:
    """The connector's answer to a step of setting up; None where it is none. Anyone can ask, so only plain, short words are said."""
    if route.connector is None or route.connector.handshake is None:
        return None
    try:
        text = route.connector.handshake(request)
    except Exception as exc:  # as for a scheme
        logger().error(Log.REQUEST_FAILED, source=route.source.name, error=type(exc).__name__, at=_place(exc))
        return None
    return text if text is None or _HARMLESS.fullmatch(text) else None


def _place(exc: Exception) -> str:
    """Where it was raised. The text of an error of someone else's may quote what was sent, so it stays out of the log."""
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _headers(scope: Scope) -> dict[str, str]:
    raw = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(headers) != len(raw):  # one came twice: its values are joined, as HTTP says (RFC 9110, 5.3)
        headers = {}
        for name, value in ((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw):
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _target(scope: Scope) -> str:
    """Path and query as they were sent."""
    raw: Any = scope.get("raw_path")
    path = raw.decode("latin-1") if raw is not None else quote(scope["path"])
    return path + _query(scope)


def _query(scope: Scope) -> str:
    query: bytes = scope.get("query_string", b"")
    return "?" + query.decode("latin-1") if query else ""


def _text(text: str) -> str:
    """JSON may hold half a surrogate pair, which is no text that could be stored."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _wrong_method(allowed: bytes) -> Refusal:
    return Refusal(405, "wrong_method", "this method is not served here", ((b"allow", allowed),))
