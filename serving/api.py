"""The HTTP API and the live stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from caudal.projections import priority_sql
from caudal.schemas.codec import Codec, Registry
from caudal.serving import _answers, _decision_routes, _docs, _replays, _report_routes, _search_routes, _segment_routes
from caudal.serving._indexing import Indexing
from caudal.serving._positions import Positions, decode
from caudal.serving._problems import Boundary, Problem, Route, install, lacking
from caudal.serving._read import KINDS, Cursor, Customers, Missing, Timeline
from caudal.serving._ready import Readiness
from caudal.serving._reports import Reports
from caudal.serving._search import Search
from caudal.serving._segments import Segments
from caudal.serving._stream import EventStream, Selection, Streams
from caudal.serving._tail import TOPICS
from caudal.serving.models import CustomerAnswer, CustomersAnswer, ProblemDocument, TimelineAnswer
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg_pool import AsyncConnectionPool

from caudal import __version__, access, identifiers, kafka, postgres, sources
from caudal.errors import DatabaseUnavailable
from caudal.settings import Settings

__all__ = ["build"]

TOKEN_IN_ADDRESS = {"/docs", "/openapi.json", "/changes"}
"""Paths that a browser opens without being able to set a header."""

_TAGS = [
    {"name": "customers", "description": "Who the customers are, with the source of every value."},
    {"name": "segments", "description": "Who belongs to what, since when and why."},
    {"name": "reports", "description": "What is to be known of many customers."},
    {"name": "changes", "description": "What changes, as it changes."},
    {"name": "operations", "description": "Health, figures and this page."},
]
_DESCRIPTION = """
Every answer with data of the log carries a `token` (also as the header `Caudal-Token`): the part of the log that it reflects. A read with
`min-token` waits until it reflects at least that. Every error is an RFC 9457 problem document with a stable `code`.
"""

_CustomerId = Annotated[uuid.UUID, InPath(description="The customer's id.")]
_MinToken = Annotated[
    str | None,
    Query(alias="min-token", description="Wait until the answer reflects this token. Also as the header `Min-Token`."),
]
_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="`caudal tokens create` makes one.")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemDocument, "description": text}
    for status, text in {
        401: "No token, or one that is not valid",
        403: "The token lacks the scope",
        422: "A parameter doesn't fit",
        503: "PostgreSQL or Kafka can't be reached; try again",
    }.items()
}
_MISSING: dict[int | str, dict[str, Any]] = {
    308: {"description": "The customer was merged into another; `Location` names it"},
    404: {"model": ProblemDocument, "description": "No such customer"},
    409: {"model": ProblemDocument, "description": "`min-token` was not reached in time"},
    410: {"model": ProblemDocument, "description": "The customer was erased"},
}


class _Api:
    """What the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool: AsyncConnectionPool[Any] = postgres.pool(settings.postgres, role="api")
        self.access = access.Checker(self.pool)
        priority = priority_sql({name: source.priority for name, source in sources.load(settings).items()})
        self.customers = Customers(self.pool, priority)
        self.search = Search(self.pool)
        self.segments = Segments(self.pool)
        self.reports = Reports(self.pool)
        self.indexing = Indexing(settings.postgres)
        self.timeline = Timeline(self.pool)
        self.positions = Positions(self.pool, settings.kafka, settings.serving.min_token_wait_s)
        self.registry = Registry(settings)
        self.streams = Streams(settings.kafka, Codec(self.registry))
        self.readiness = Readiness(self.pool, settings.kafka)


def build(settings: Settings) -> FastAPI:
    """The API as an ASGI application, over servers that `settings` name.

    Raises:
        Fatal: the settings or the sources file can't be used.
    """
    api = _Api(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await api.pool.open(wait=False)  # PostgreSQL may come later: until then answers are 503
        api.indexing.start()
        yield
        api.indexing.stop()
        await api.streams.stop()
        api.registry.close()
        await api.pool.close()

    app = FastAPI(
        title="Caudal",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        default_response_class=Response,
        separate_input_output_schemas=False,
    )
    app.router.route_class = Route
    app.state.streams = api.streams
    install(app)
    app.add_middleware(Boundary)
    _operations(app, api)
    _customers(app, api)
    _changes(app, api)
    _segment_routes.add(
        app,
        api.segments,
        _segment_routes.Changes(settings),
        _segment_routes.Access(
            _needs(api, access.Scope.SEGMENTS_READ),
            _needs(api, access.Scope.SEGMENTS_WRITE),
            _needs(api, access.Scope.CUSTOMERS_READ),
        ),
        {**_ERRORS, 404: _MISSING[404]},
    )
    _decision_routes.add(
        app,
        _decision_routes.Decisions(settings, Codec(api.registry)),
        _needs(api, access.Scope.CUSTOMERS_WRITE),
        _needs(api, access.Scope.CUSTOMERS_READ),
        _ERRORS,
    )
    _replays.add(app, _replays.Replays(settings), _needs(api, access.Scope.OPERATE), _ERRORS)
    return app


def _needs(api: _Api, scope: access.Scope | None) -> Any:
    """A dependency: the caller's grant, which holds `scope`."""

    async def verified(
        request: Request, header: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> access.Grant:
        token = header.credentials if header else None
        if token is None and request.url.path in TOKEN_IN_ADDRESS:
            token = request.query_params.get("token")
        return await _grant(api, token, scope)

    return Depends(verified)


async def _grant(api: _Api, token: str | None, scope: access.Scope | None) -> access.Grant:
    if not token:
        raise Problem(
            401, "no_token", "send a token as `Authorization: Bearer …`; `caudal tokens create` makes one",
            headers={"www-authenticate": 'Bearer realm="caudal"'},
        )  # fmt: skip
    grant = await api.access.check(token)
    if grant is None:
        raise Problem(
            401, "invalid_token", "the token is unknown, revoked or expired",
            headers={"www-authenticate": 'Bearer realm="caudal", error="invalid_token"'},
        )  # fmt: skip
    if scope is not None and not grant.allows(scope):
        raise lacking(scope.value)
    return grant


def _operations(app: FastAPI, api: _Api) -> None:
    @app.get("/health", tags=["operations"], summary="The process lives")
    async def health() -> Response:
        return _answers.json({"status": "ok"})

    @app.get(
        "/ready", tags=["operations"], summary="PostgreSQL, Kafka and the views answer", responses={503: _ERRORS[503]}
    )
    async def ready() -> Response:
        missing = await api.readiness.missing()
        if missing:
            raise Problem(
                503, "not_ready", f"not ready: {', '.join(missing)}", headers={"retry-after": "1"}, missing=missing
            )
        return _answers.json({"status": "ready"})

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="This process's figures for Prometheus",
        dependencies=[_needs(api, access.Scope.METRICS_READ)],
        responses={200: {"content": {"text/plain": {}}}, **_ERRORS},
    )
    async def metrics() -> Response:
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/openapi.json", include_in_schema=False, dependencies=[_needs(api, None)])
    async def openapi() -> Response:
        return _answers.json(app.openapi())

    @app.get("/docs", include_in_schema=False, dependencies=[_needs(api, None)])
    async def docs() -> Response:
        return Response(_docs.page(), headers=_docs.HEADERS, media_type="text/html")

    document: dict[str, Any] = {}

    def schema() -> dict[str, Any]:
        if not document:
            document.update(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    tags=app.openapi_tags,
                )
            )
        return document

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's documented way to set the document


def _customers(app: FastAPI, api: _Api) -> None:
    reads = _needs(api, access.Scope.CUSTOMERS_READ)

    async def reached(request: Request, min_token: _MinToken = None) -> None:
        asked = min_token or request.headers.get("min-token")
        if asked:
            await api.positions.wait(decode(asked))

    waits = Depends(reached)
    _search_routes.register(app, api.search, [reads, waits], _ERRORS)
    reports = _needs(api, access.Scope.REPORTS_READ)
    _report_routes.register(app, api.reports, api.segments, reads=reports, dependencies=[waits], errors=_ERRORS)

    @app.get(
        "/customers/{customer_id}",
        tags=["customers"],
        summary="One customer",
        dependencies=[reads, waits],
        response_model=CustomerAnswer,
        responses={**_ERRORS, **_MISSING},
    )
    async def read(customer_id: _CustomerId) -> Response:
        found = await api.customers.by_id(customer_id)
        if isinstance(found, Missing):
            return _answers.missing(found, "/customers/{}")
        return _answers.answer(found, found.data)

    @app.get(
        "/customers",
        tags=["customers"],
        summary="Customers by an identifier",
        dependencies=[reads, waits],
        response_model=CustomersAnswer,
        responses={**_ERRORS, 409: _MISSING[409]},
    )
    async def lookup(
        request: Request,
        *,
        email: str | None = None,
        phone: Annotated[str | None, Query(description="With or without the country code.")] = None,
        cpf: str | None = None,
        cnpj: str | None = None,
        external_id: Annotated[str | None, Query(description="As the source states it, with its scope.")] = None,
        subject: Annotated[str | None, Query(description="`<source>:<type>:<id>`")] = None,
    ) -> Response:
        asked = {
            "email": email,
            "phone": phone,
            "cpf": cpf,
            "cnpj": cnpj,
            "external_id": external_id,
            "subject": subject,
        }
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) != 1:
            raise Problem(422, "invalid_parameters", f"give exactly one of {', '.join(asked)}")
        [(kind, raw)] = given.items()
        value = identifiers.normalise(kind, raw, api.settings.default_region)
        if value is None:
            hint = "; in an address `+` is written %2B" if kind == "phone" and request.url.query.find("+") >= 0 else ""
            raise Problem(422, "invalid_identifier", f"that is no valid {kind}{hint}")
        if kind == "subject":
            found = await api.customers.by_subject(value)
        else:
            found = await api.customers.by_identifier(kind, value)
        return _answers.answer(found, {"customers": found.data})

    @app.get(
        "/customers/{customer_id}/timeline",
        tags=["customers"],
        summary="What happened, newest first",
        dependencies=[reads, waits],
        response_model=TimelineAnswer,
        responses={**_ERRORS, **_MISSING},
    )
    async def timeline(
        customer_id: _CustomerId,
        before: Annotated[str | None, Query(description="`next` of the page before, or a time with its zone.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        kinds: Annotated[
            str | None, Query(description=f"Comma-separated; all when left out. {', '.join(KINDS)}.")
        ] = None,
    ) -> Response:
        chosen = _chosen(kinds, KINDS, "kinds")
        try:
            cursor = Cursor.decode(before) if before is not None else None
        except ValueError as exc:
            raise Problem(422, "invalid_parameters", f"before: {exc}") from exc
        found = await api.timeline.page(customer_id, before=cursor, limit=limit, kinds=chosen)
        if isinstance(found, Missing):
            return _answers.missing(found, "/customers/{}/timeline")
        return _answers.answer(found, {"customer_id": customer_id, **found.data})


def _changes(app: FastAPI, api: _Api) -> None:
    grants = _needs(api, access.Scope.CHANGES_READ)

    @app.get(
        "/changes",
        tags=["changes"],
        summary="The live stream of changed profiles, metrics and memberships",
        response_class=EventStream,
        status_code=200,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}, **_ERRORS},
        description=(
            "The event's name is the topic, its data the new value as JSON (`{customer_id, value: null}` when the customer is gone), "
            "its id a position: sent as `Last-Event-ID` or `after`, the stream goes on right behind it. Without one it starts now."
        ),
    )
    async def changes(
        request: Request,
        *,
        grant: access.Grant = grants,
        topics: Annotated[
            str | None, Query(description=f"Comma-separated; all when left out. {', '.join(TOPICS)}.")
        ] = None,
        customer: Annotated[uuid.UUID | None, Query(description="Only this customer's changes.")] = None,
        segment: Annotated[
            str | None, Query(description="Only this segment's; without `topics` the other topics are left out.")
        ] = None,
        after: Annotated[str | None, Query(description="As `Last-Event-ID`, which wins.")] = None,
        start: Annotated[Literal["beginning", "now"], Query(alias="from")] = "now",
    ) -> Response:
        chosen = _chosen(topics or (kafka.SEGMENTS if segment else None), TOPICS, "topics")
        selection = Selection(frozenset(chosen), str(customer) if customer else None, segment)
        position = request.headers.get("last-event-id") or after
        token = _credentials(request)

        async def verdict() -> str | None:
            try:
                now = await api.access.check(token)
            except DatabaseUnavailable as exc:
                return exc.code
            if now is None:
                return "token_expired" if grant.expired(datetime.now(UTC)) else "token_revoked"
            return None

        return await api.streams.open(
            selection, decode(position) if position else None, beginning=start == "beginning", verdict=verdict
        )


def _credentials(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.query_params.get("token", "")


def _chosen(given: str | None, known: tuple[str, ...], name: str) -> list[str]:
    chosen = [word.strip() for word in given.split(",")] if given else list(known)
    if not set(chosen) <= set(known):
        raise Problem(422, "invalid_parameters", f"{name}: known are {', '.join(known)}")
    return chosen
