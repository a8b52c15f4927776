"""Every error of the API as RFC 9457 `application/problem+json`: what was wrong and what to do, never a traceback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

import orjson
import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caudal.connections import SAFE_HEADERS
from caudal.errors import BrokerUnavailable, CaudalError, DatabaseUnavailable, Retryable
from caudal.telemetry import REQUEST_SECONDS, Log, Seldom, logger

__all__ = ["Boundary", "Problem", "Route", "install", "lacking", "response"]

LARGEST_BODY = 1024 * 1024
"""Bytes of a JSON body."""


class Problem(Exception):
    """An answer other than success. `code` is stable across releases; `extra` are further members of the document."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra


def response(problem: Problem) -> Response:
    """The problem as an HTTP answer."""
    body = {
        "type": f"urn:caudal:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        **problem.extra,
    }
    try:
        document = orjson.dumps(body)
    except TypeError:  # a text of the request with half a surrogate pair, which is no text that could be sent
        document = json.dumps(body, default=str).encode()
    return Response(
        document, problem.status, {"cache-control": "no-store", **problem.headers}, "application/problem+json"
    )


def lacking(scope: str, why: str = "") -> Problem:
    """The token doesn't allow it."""
    return Problem(
        403, "insufficient_scope", f"the token lacks the scope {scope}{why}",
        headers={"www-authenticate": f'Bearer realm="caudal", error="insufficient_scope", scope="{scope}"'},
    )  # fmt: skip


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(CaudalError, _ours)
    app.add_exception_handler(psycopg.DataError, _unstorable)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)
    app.add_exception_handler(psycopg.errors.UndefinedTable, _no_views)
    app.add_exception_handler(psycopg.errors.InvalidSchemaName, _no_views)


def _problem(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Problem)
    return response(exc)


def _invalid(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    # the faulty values stay out: a lookup carries personal data
    errors = [_fault(e) for e in exc.errors()]
    detail = "; ".join(f"{e['where'].removeprefix('query.').removeprefix('path.')}: {e['fault']}" for e in errors)
    return response(Problem(422, "invalid_parameters", detail, errors=errors))


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    """Where it is and what is wrong; of JSON that can't be read at which character, which pydantic has as the place."""
    if error["type"] == "json_invalid":
        return {"where": "body", "fault": f"{error['msg']} at character {error['loc'][-1]}"}
    return {"where": ".".join(str(part) for part in error["loc"]), "fault": error["msg"]}


def _http(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == HTTPStatus.BAD_REQUEST:  # what FastAPI says of a body that is no text
        return response(Problem(422, "invalid_parameters", "the body can't be read"))
    code = HTTPStatus(exc.status_code).phrase.lower().replace(" ", "_")
    details = {404: "there is no such path; /docs lists what there is", 405: "the path doesn't take this method"}
    detail = details.get(exc.status_code, str(exc.detail))
    return response(Problem(exc.status_code, code, detail, headers=exc.headers))


_unreachable = Seldom()


def _ours(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, CaudalError)
    if isinstance(exc, Retryable):
        what = {DatabaseUnavailable: "PostgreSQL", BrokerUnavailable: "Kafka"}.get(type(exc), "a server that is needed")
        _unreachable.warning(Log.SERVER_UNREACHABLE, code=exc.code)
        return response(Problem(503, exc.code, f"{what} can't be reached; try again", headers={"retry-after": "1"}))
    raise exc  # Boundary logs it


def _unstorable(_request: Request, exc: Exception) -> Response:
    """A value that no column and no text can hold: a zero byte, half a surrogate pair, a number or a time out of range."""
    logger().info(Log.REQUEST_FAILED, error=type(exc).__name__)
    return response(
        Problem(
            422, "invalid_parameters", "a value can't be read: it isn't a text, number or time that could be stored"
        )
    )


def _no_views(_request: Request, _exc: Exception) -> Response:
    return response(
        Problem(503, "views_missing", "the views don't exist yet; a worker makes them", headers={"retry-after": "2"})
    )


class Route(APIRoute):
    """A route whose JSON body is bounded and is text throughout: Python's own reader takes halves of surrogate pairs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return read


class _Strict(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            body = bytearray()
            async for part in self.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    raise Problem(413, "body_too_large", f"a body has at most {LARGEST_BODY} bytes")
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


class Boundary:
    """Measures answers, and turns what nobody expected into a problem document before a server prints it with its values."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, started = time.perf_counter(), False

        async def observed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as exc:
            # where it happened, without the message: drivers quote values in theirs
            last = exc.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
            logger().error(Log.REQUEST_FAILED, error=type(exc).__name__, where=where)
            if not started:
                problem = Problem(500, "internal_error", "the request failed; the log says where")
                await response(problem)(scope, receive, observed)
        route = getattr(scope.get("route"), "path", None)
        if route and route != "/changes":
            REQUEST_SECONDS.labels(route).observe(time.perf_counter() - began)
