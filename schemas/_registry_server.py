"""The embedded schema registry: Confluent's REST API over the `_schemas` topic, for Avro.

Answers come from memory. A change is checked against the topic's end, written, acknowledged by Kafka, and then applied by
reading it back, so what a caller was told survives a crash. As with the other registries one process writes at a time.

Who asks needs the password, also on this machine: others may have accounts on it, and a page in somebody's browser can send requests to
it, too, so requests that a page of elsewhere makes are refused whatever they bring.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from caudal.schemas._registry_log import Log
from caudal.schemas._registry_state import Record, Refused, State, Version, records
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from caudal.connections import is_loopback, listen
from caudal.errors import BadSettings, CaudalError
from caudal.settings import RegistrySettings, Settings

__all__ = ["build", "serve"]

_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_T = TypeVar("_T")


class Store:
    """State and log together, safe to share by threads."""

    def __init__(self, log: Log) -> None:
        """Reads the log to its end."""
        self._log = log
        self._state = State()
        self._lock = threading.Lock()
        self._catch_up()

    def ask(self, question: Callable[[State], _T]) -> _T:
        """An answer of the state; when something isn't found, another registry may have written it a moment ago."""
        with self._lock:
            try:
                return question(self._state)
            except Refused as exc:
                if exc.code // 100 != 404:
                    raise
                self._catch_up()
                return question(self._state)

    def change(self, decision: Callable[[State], tuple[_T, list[Record]]]) -> _T:
        """Write what `decision` says on the newest state, and give its answer."""
        with self._lock:
            self._catch_up()
            answer, changes = decision(self._state)
            self._log.append([(_compact(r.key), None if r.value is None else _compact(r.value)) for r in changes])
            self._catch_up()
            return answer

    def close(self) -> None:
        """Leave the brokers."""
        with self._lock:
            self._log.close()

    def _catch_up(self) -> None:
        for record in records(self._log.read()):
            self._state.apply(record)


@dataclass(frozen=True)
class Access:
    """Who may ask: with this user and password; `local` when only this machine's own names for itself are good in `Host`."""

    user: str
    password: str
    local: bool = True

    @classmethod
    def of(cls, settings: RegistrySettings) -> Access:
        """What the settings say.

        Raises:
            BadSettings: no password is set.
        """
        password = settings.password.get_secret_value() if settings.password else ""
        if not (settings.username and password):
            raise BadSettings(
                "the schema registry serves nobody without a password",
                hint="CAUDAL_REGISTRY__USERNAME and CAUDAL_REGISTRY__PASSWORD, the same for it and for those who ask it",
            )
        return cls(settings.username, password, local=is_loopback(settings.host))

    def refusal(self, method: str, headers: Headers) -> Refused | None:
        """Why a request is not served, if it isn't."""
        if self.local and not is_loopback(headers.get("host", "")):
            return Refused(403, "HTTP 403 Forbidden: this is not the registry of that host")
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            return Refused(403, "HTTP 403 Forbidden: pages of elsewhere have no business here")
        if not self._let_in(headers.get("authorization", "")):
            return Refused(40101, "User cannot access the resource")
        if method in ("POST", "PUT") and not _is_json(headers.get("content-type", "")):
            return Refused(415, "HTTP 415 Unsupported Media Type: the body must say that it is JSON")
        return None

    def _let_in(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        try:
            known = base64.b64decode(given, validate=True)
        except (ValueError, binascii.Error):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(known, f"{self.user}:{self.password}".encode())


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


class _Guard:
    """Serves nothing, whatever the path and method, to who isn't let in."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._access.refusal(scope["method"], Headers(scope=scope))):
            answer = _refusal(refused)
            if answer.status_code == 401:
                answer.headers["WWW-Authenticate"] = 'Basic realm="caudal schema registry"'
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def build(settings: Settings) -> Starlette:
    """The registry as an ASGI app; the topic has been read when it returns.

    Raises:
        BadSettings: no password is set.
        BrokerUnavailable: the brokers can't be reached.
    """
    access = Access.of(settings.registry)
    return build_over(Store(Log(settings.kafka)), access)


def serve(settings: Settings) -> None:
    """Run the registry at `settings.registry.host` and `port` until told to stop.

    Raises:
        BadSettings: no password is set, or the address can't be listened on.
        BrokerUnavailable: the brokers can't be reached.
    """
    import uvicorn

    app = build(settings)
    listener = listen(
        settings.registry.host, settings.registry.port, title="the schema registry", setting="CAUDAL_REGISTRY__PORT"
    )
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def build_over(store: Store, access: Access) -> Starlette:
    """The app over an opened store."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(store.close)

    return Starlette(
        routes=list(_routes(store)),
        lifespan=lifespan,
        middleware=[Middleware(_Guard, access=access)],
        exception_handlers={Refused: _refused, HTTPException: _http_error, CaudalError: _store_failed},
    )


Handler = Callable[["_Call"], Any]


class _Call:
    """A request, its body read."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.path: dict[str, str] = request.path_params
        self._query = request.query_params
        self._body = body

    def flag(self, name: str) -> bool:
        return self._query.get(name, "").lower() == "true"

    def text(self, name: str) -> str | None:
        return self._query.get(name)

    def page(self, answer: list[_T]) -> list[_T]:
        """The part of a list that `offset` and `limit` ask for."""
        try:
            offset, limit = int(self._query.get("offset", 0)), int(self._query.get("limit", -1))
        except ValueError:
            raise Refused(400, "offset and limit are numbers") from None
        return answer[offset:] if limit < 0 else answer[offset : offset + limit]

    @property
    def schema_id(self) -> int:
        try:
            return int(self.path["id"])
        except ValueError:
            raise Refused(404, "HTTP 404 Not Found") from None

    def json(self) -> dict[str, Any]:
        try:
            parsed = json.loads(self._body)
        except (ValueError, RecursionError):
            raise Refused(400, "Unrecognized token: the body is not JSON") from None
        if not isinstance(parsed, dict):
            raise Refused(400, "Cannot deserialize the body: not an object")
        return parsed

    def schema(self) -> str:
        """The schema in the body."""
        body = self.json()
        if body.get("schemaType", "AVRO") not in ("AVRO", None):
            raise Refused(42201, f"Invalid schema type {body['schemaType']}: this registry takes AVRO")
        if body.get("references"):
            raise Refused(42201, "Invalid schema: this registry takes no references")
        schema = body.get("schema")
        if not isinstance(schema, str) or not schema.strip():
            raise Refused(42201, "Empty schema")
        return schema


def _routes(store: Store) -> Iterable[Route]:
    ask, change = store.ask, store.change

    def subjects(call: _Call) -> Any:
        prefix = call.text("subjectPrefix") or ""
        names = ask(lambda s: s.subjects(deleted=call.flag("deleted") or call.flag("deleted_only")))
        if call.flag("deleted_only"):
            live = set(ask(lambda s: s.subjects()))
            names = [name for name in names if name not in live]
        return call.page([name for name in names if name.startswith(prefix)])

    def versions(call: _Call) -> Any:
        found = ask(lambda s: s.versions(call.path["subject"], deleted=call.flag("deleted")))
        return call.page([v.version for v in found])

    def register(call: _Call) -> Any:
        schema = call.schema()
        version = change(lambda s: s.register(call.path["subject"], schema))
        return version.answer()

    def lookup(call: _Call) -> Any:
        schema = call.schema()
        return ask(lambda s: s.lookup(call.path["subject"], schema, deleted=call.flag("deleted"))).answer()

    def version(call: _Call) -> Version:
        return ask(lambda s: s.version(call.path["subject"], call.path["version"], deleted=call.flag("deleted")))

    def uses(call: _Call, *, deleted: bool) -> list[Version]:
        found = ask(lambda s: s.uses(call.schema_id, deleted=deleted))
        subject = call.text("subject")
        return [v for v in found if subject is None or v.subject == subject]

    def schema_by_id(call: _Call) -> Any:
        found = ask(lambda s: s.uses(call.schema_id, deleted=True))[0].answer()
        return {name: value for name, value in found.items() if name in ("schema", "schemaType")}

    def compatibility(call: _Call) -> Any:
        subject, schema, number = call.path["subject"], call.schema(), call.path.get("version")

        def test(state: State) -> list[str]:
            against = None if number is None else [state.version(subject, number)]
            return state.incompatibilities(subject, schema, against)

        reasons = ask(test)
        return {"is_compatible": not reasons} | ({"messages": reasons} if call.flag("verbose") else {})

    def level(call: _Call) -> Any:
        subject = call.path.get("subject")
        return {"compatibilityLevel": ask(lambda s: s.level(subject, default=call.flag("defaultToGlobal")))}

    def set_level(call: _Call) -> Any:
        wanted = call.json().get("compatibility")
        if not isinstance(wanted, str):
            raise Refused(42203, "Invalid compatibility level")
        change(lambda s: (None, s.set_level(call.path.get("subject"), wanted.upper())))
        return {"compatibility": wanted.upper()}

    def delete_level(call: _Call) -> Any:
        subject = call.path.get("subject")
        return {"compatibilityLevel": change(lambda s: (s.level(subject), s.set_level(subject, None)))}

    def delete_subject(call: _Call) -> Any:
        return change(lambda s: s.delete_subject(call.path["subject"], permanent=call.flag("permanent")))

    def delete_version(call: _Call) -> Any:
        subject, number = call.path["subject"], call.path["version"]
        return change(lambda s: s.delete_version(subject, number, permanent=call.flag("permanent")))

    def mode(_call: _Call) -> Any:
        return {"mode": "READWRITE"}

    one = "/subjects/{subject}/versions/{version}"
    return [
        _route("GET", "/", lambda _: {}),
        _route("GET", "/subjects", subjects),
        _route("POST", "/subjects/{subject}", lookup),
        _route("DELETE", "/subjects/{subject}", delete_subject),
        _route("GET", "/subjects/{subject}/versions", versions),
        _route("POST", "/subjects/{subject}/versions", register),
        _route("GET", one, lambda call: version(call).answer()),
        _route("DELETE", one, delete_version),
        _route("GET", one + "/schema", lambda call: json.loads(version(call).schema)),
        _route("GET", one + "/referencedby", lambda call: (version(call), [])[1]),
        _route("GET", "/schemas/types", lambda _: ["AVRO"]),
        _route("GET", "/schemas/ids/{id}", schema_by_id),
        _route("GET", "/schemas/ids/{id}/schema", lambda call: json.loads(schema_by_id(call)["schema"])),
        _route(
            "GET",
            "/schemas/ids/{id}/versions",
            lambda call: [
                {"subject": v.subject, "version": v.version} for v in uses(call, deleted=call.flag("deleted"))
            ],
        ),
        _route(
            "GET",
            "/schemas/ids/{id}/subjects",
            lambda call: sorted({v.subject for v in uses(call, deleted=call.flag("deleted"))}),
        ),
        _route("POST", "/compatibility/subjects/{subject}/versions/{version}", compatibility),
        _route("POST", "/compatibility/subjects/{subject}/versions", compatibility),
        _route("GET", "/config", level),
        _route("PUT", "/config", set_level),
        _route("DELETE", "/config", delete_level),
        _route("GET", "/config/{subject}", level),
        _route("PUT", "/config/{subject}", set_level),
        _route("DELETE", "/config/{subject}", delete_level),
        _route("GET", "/mode", mode),
        _route("GET", "/mode/{subject}", mode),
    ]


def _route(method: str, path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        call = _Call(request, await request.body())
        return _answer(await run_in_threadpool(handler, call))

    return Route(path, endpoint, methods=[method])


def _answer(content: Any, status: int = 200) -> Response:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    # a message may quote half of a surrogate pair, which is no text that could be sent
    return Response(text.encode("utf-8", "replace"), status, media_type=_MEDIA_TYPE)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


async def _refused(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refused)
    return _refusal(exc)


def _refusal(exc: Refused) -> Response:
    status = exc.code if exc.code < 1000 else exc.code // 100
    return _answer({"error_code": exc.code, "message": exc.message}, status)


async def _http_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return _answer({"error_code": exc.status_code, "message": f"HTTP {exc.status_code} {exc.detail}"}, exc.status_code)


async def _store_failed(_request: Request, exc: Exception) -> Response:
    return _answer({"error_code": 50001, "message": f"Error in the backend data store: {exc}"}, 500)
