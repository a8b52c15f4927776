"""Every error of the API as RFC 9457 `application/problem+json`: what was wrong and what to do, never a traceback."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caudal.errors import BrokerUnavailable, CaudalError, DatabaseUnavailable, Retryable
from caudal.telemetry import REQUEST_SECONDS, Log, Seldom, logger

__all__ = ["Boundary", "Problem", "install", "lacking", "response"]


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
    return Response(
        orjson.dumps(body), problem.status, {"cache-control": "no-store", **problem.headers}, "application/problem+json"
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


def _no_views(_request: Request, _exc: Exception) -> Response:
    return response(
        Problem(503, "views_missing", "the views don't exist yet; a worker makes them", headers={"retry-after": "2"})
    )


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
            started = started or message["type"] == "http.response.start"
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
                await response(problem)(scope, receive, send)
        route = getattr(scope.get("route"), "path", None)
        if route and route != "/changes":
            REQUEST_SECONDS.labels(route).observe(time.perf_counter() - began)
