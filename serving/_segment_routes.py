"""The routes of segments."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, TypeVar

import orjson
import psycopg
from caudal.projections import criteria
from caudal.projections.membership import definitions, lists
from caudal.projections.membership.definitions import BadSegment, Draft, Saved, SegmentConflict, UnknownSegment
from caudal.projections.membership.lists import Listed
from caudal.serving import _answers
from caudal.serving._problems import Problem, lacking
from caudal.serving._read import Cursor, Missing
from caudal.serving._search import DEFAULT_FIELDS
from caudal.serving._search_routes import problem_of
from caudal.serving._segments import Segments, plain
from caudal.serving.models import (
    ExplainAnswer,
    HistoryAnswer,
    ListedAnswer,
    MembersAnswer,
    OverlapAnswer,
    PreviewAnswer,
    ProblemDocument,
    SegmentAnswer,
    SegmentsAnswer,
    VersionsAnswer,
)
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from caudal import access, postgres
from caudal.settings import Settings

__all__ = ["Access", "Changes", "add", "permitted"]

LARGEST_LIST = 16 * 1024 * 1024
"""Bytes of a body with ids: more than 400,000 of them."""
_T = TypeVar("_T")
_UNTOLD: dict[str, Any] = {"criteria": None, "text": None}
_Name = Annotated[str, InPath(description="The segment's name.", pattern=f"^{definitions.NAME.pattern}$")]
_CustomerId = Annotated[uuid.UUID, InPath(description="The customer's id.")]


class Access(NamedTuple):
    """Dependencies that check scopes: segments:read, segments:write, customers:read."""

    reads: Any
    writes: Any
    customers: Any


async def permitted(segments: Segments, grant: access.Grant, condition: criteria.Condition | None) -> None:
    """Pass when the grant allows to ask by these criteria: by personal data only who may read it.

    Raises:
        Problem: it doesn't.
    """
    if not grant.allows(access.Scope.CUSTOMERS_READ) and await segments.personal(condition):
        raise _lacking()


def _lacking() -> Problem:
    return lacking(access.Scope.CUSTOMERS_READ.value, ": the criteria ask by personal data")


class Definition(BaseModel):
    """What a segment shall be: criteria, or a list."""

    model_config = ConfigDict(extra="forbid")

    criteria: Any = Field(default=None, description="Who belongs to it: a condition tree, or its text form.")
    list: bool = Field(default=False, description="It has no criteria: customers are put on it.")
    description: str | None = Field(default=None, description="For people. Left out: stays as it is.")

    def draft(self, name: str) -> Draft:
        """As it is saved."""
        if (self.criteria is None) != self.list:
            raise Problem(422, "invalid_parameters", "give either criteria or `list`: true")
        return Draft(name, None if self.criteria is None else criteria.read(self.criteria), self.description)


class NewSegment(Definition):
    """A segment that isn't there yet."""

    name: str = Field(description="Lower-case letters, digits and hyphens.")


class Preview(BaseModel):
    """Criteria to try."""

    model_config = ConfigDict(extra="forbid")

    criteria: Any = Field(description="A condition tree, or its text form.")
    limit: int = Field(default=10, ge=1, le=100, description="Most customers of the sample.")
    fields: list[str] = Field(default=list(DEFAULT_FIELDS), max_length=60, description="What is told of each.")
    overlap: bool = Field(default=False, description="Tell also how many are in other segments.")


class Changes:
    """Changes segments, on connections of its own in threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def make(self, change: Callable[[psycopg.Connection[Any]], _T]) -> _T:
        """What `change` gives."""

        def made() -> _T:
            with postgres.connect(self._settings.postgres, role="api") as conn, postgres.translated():
                return change(conn)

        with _told():
            return await asyncio.to_thread(made)


def add(
    app: FastAPI, segments: Segments, changes: Changes, needs: Access, errors: Mapping[int | str, dict[str, Any]]
) -> None:
    """Add the routes."""
    more = {409: {"model": ProblemDocument, "description": "It doesn't go with what there is"}}
    reads: dict[str, Any] = {"tags": ["segments"], "dependencies": [needs.reads], "responses": dict(errors)}
    writes: dict[str, Any] = {"tags": ["segments"], "responses": {**errors, **more}}
    _reading(app, segments, reads, needs)
    _changing(app, segments, changes, writes, needs)


def _reading(app: FastAPI, segments: Segments, route: dict[str, Any], needs: Access) -> None:
    route = {name: value for name, value in route.items() if name != "dependencies"}

    async def told_of(name: _Name, grant: access.Grant = needs.reads) -> None:
        """Who is in a segment of personal data is told to those who may read it."""
        if not grant.allows(access.Scope.CUSTOMERS_READ) and name in await segments.personal_names():
            raise _lacking()

    who = {**route, "dependencies": [Depends(told_of)]}

    async def withheld(grant: access.Grant) -> set[str]:
        """The segments whose criteria this caller isn't told."""
        return set() if grant.allows(access.Scope.CUSTOMERS_READ) else await segments.personal_names()

    @app.get("/segments", summary="All segments with their sizes", response_model=SegmentsAnswer, **route)
    async def listed(
        *,
        grant: access.Grant = needs.reads,
        archived: Annotated[bool, Query(description="Also those that were archived.")] = False,
    ) -> Response:
        kept = await withheld(grant)
        found = await segments.listed(archived=archived)
        return _answers.json({"segments": [each | _UNTOLD if each["name"] in kept else each for each in found]})

    @app.get("/segments/{name}", summary="One segment", response_model=SegmentAnswer, **route)
    async def one(name: _Name, grant: access.Grant = needs.reads) -> Response:
        with _told():
            found = await segments.one(name)
        return _answers.json(found | _UNTOLD if name in await withheld(grant) else found)

    @app.get("/segments/{name}/versions", summary="What it was", response_model=VersionsAnswer, **route)
    async def versions(name: _Name, grant: access.Grant = needs.reads) -> Response:
        with _told():
            found = await segments.versions(name)
        if not grant.allows(access.Scope.CUSTOMERS_READ):
            for each in found["versions"]:
                if each["criteria"] is not None and await segments.personal(criteria.load(each["criteria"])):
                    each["criteria"] = None
        return _answers.json(found)

    @app.get("/segments/{name}/members", summary="Who is in it", response_model=MembersAnswer, **who)
    async def members(
        name: _Name,
        after: Annotated[uuid.UUID | None, Query(description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    ) -> Response:
        with _told():
            return _answers.json(await segments.members(name, after=after, limit=limit))

    @app.get("/segments/{name}/overlap", summary="Who is in others too", response_model=OverlapAnswer, **who)
    async def overlap(name: _Name, grant: access.Grant = needs.reads) -> Response:
        with _told():
            found = await segments.overlap(name)
        kept = await withheld(grant)
        found["segments"] = [each for each in found["segments"] if each["segment"] not in kept]
        return _answers.json(found)

    person = {**route, "dependencies": [needs.reads, needs.customers]}

    @app.get(
        "/segments/{name}/explain/{customer_id}",
        summary="Why a customer is in it or not",
        response_model=ExplainAnswer,
        **person,
    )
    async def explain(name: _Name, customer_id: _CustomerId) -> Response:
        with _told():
            found = await segments.explain(name, customer_id)
        if isinstance(found, Missing):
            return _answers.missing(found, f"/segments/{name}/explain/{{}}")
        return _answers.json(found)

    @app.get(
        "/customers/{customer_id}/segments/history",
        summary="Which segments a customer entered and left",
        response_model=HistoryAnswer,
        **person,
    )
    async def history(
        customer_id: _CustomerId,
        before: Annotated[str | None, Query(description="`next` of the page before, or a time with its zone.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        try:
            cursor = Cursor.decode(before) if before is not None else None
        except ValueError as exc:
            raise Problem(422, "invalid_parameters", "before: neither a cursor nor a time with its zone") from exc
        found = await segments.history(customer_id, before=cursor, limit=limit)
        if isinstance(found, Missing):
            return _answers.missing(found, "/customers/{}/segments/history")
        return _answers.json(found)

    @app.post(
        "/segments/preview",
        summary="How many criteria hold of, and some of them",
        response_model=PreviewAnswer,
        **person,
    )
    async def preview(asked: Preview) -> Response:
        with _told():
            condition = criteria.read(asked.criteria)
            found = await segments.preview(condition, limit=asked.limit, fields=tuple(dict.fromkeys(asked.fields)))
            overlap = {"overlap": await segments.overlap(condition)} if asked.overlap else {}
        return _answers.answer(found, {**found.data, **overlap})


def _changing(app: FastAPI, segments: Segments, changes: Changes, route: dict[str, Any], needs: Access) -> None:
    @app.post("/segments", summary="Make a segment", status_code=201, response_model=SegmentAnswer, **route)
    async def create(asked: NewSegment, grant: access.Grant = needs.writes) -> Response:
        draft = _drafted(asked, asked.name)
        await permitted(segments, grant, draft.condition)
        return _saved(await changes.make(lambda conn: definitions.create(conn, draft, grant.name)))

    @app.put("/segments/{name}", summary="Make or edit a segment", response_model=SegmentAnswer, **route)
    async def put(name: _Name, asked: Definition, grant: access.Grant = needs.writes) -> Response:
        draft = _drafted(asked, name)
        await permitted(segments, grant, draft.condition)
        return _saved((await changes.make(lambda conn: definitions.save(conn, [draft], grant.name)))[0])

    @app.delete("/segments/{name}", summary="Archive a segment", response_model=SegmentAnswer, **route)
    async def archive(name: _Name, grant: access.Grant = needs.writes) -> Response:
        saved = await changes.make(lambda conn: definitions.archive(conn, name, grant.name))
        told = grant.allows(access.Scope.CUSTOMERS_READ) or not await segments.personal(saved.segment.condition)
        return _saved(saved, told=told)

    ids: dict[str, Any] = {
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "text/plain": {"schema": {"type": "string", "description": "One id a line."}},
                    "text/csv": {"schema": {"type": "string", "description": "Ids in the first column."}},
                    "application/json": {"schema": {"type": "array", "items": {"type": "string"}}},
                },
            }
        }
    }

    @app.post("/segments/{name}/list", summary="Put customers on a list", response_model=ListedAnswer, **route, **ids)
    async def put_on(name: _Name, request: Request, grant: access.Grant = needs.writes) -> Response:
        given = await _ids(request)
        return _counts(await changes.make(lambda conn: lists.put(conn, name, given, grant.name)))

    @app.delete(
        "/segments/{name}/list", summary="Take customers off a list", response_model=ListedAnswer, **route, **ids
    )
    async def take_off(name: _Name, request: Request, grant: access.Grant = needs.writes) -> Response:
        given = await _ids(request)
        return _counts(await changes.make(lambda conn: lists.take(conn, name, given, grant.name)))


async def _ids(request: Request) -> Iterator[str]:
    """The ids in a body: a JSON array, or text with one a line."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_LIST:
            raise Problem(413, "list_too_large", f"at most {LARGEST_LIST} bytes at once; send it in parts")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            given = orjson.loads(bytes(body))
            if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
                raise ValueError
            return iter(given)
        return lists.ids(body.decode("utf-8").splitlines())
    except ValueError as exc:
        raise Problem(422, "invalid_parameters", "ids are needed: one a line, or a JSON array of texts") from exc


def _drafted(asked: Definition, name: str) -> Draft:
    with _told():
        return asked.draft(name)


def _saved(saved: Saved, *, told: bool = True) -> Response:
    status = 201 if saved.change in {"created", "restored"} else 200
    return _answers.json({**plain(saved.segment), **({} if told else _UNTOLD), "change": saved.change}, status)


def _counts(found: Listed) -> Response:
    return _answers.json(found)


@contextmanager
def _told() -> Iterator[None]:
    """What can't be done as a problem."""
    try:
        yield
    except UnknownSegment as exc:
        raise Problem(404, "unknown_segment", str(exc)) from exc
    except SegmentConflict as exc:
        raise Problem(409, "segment_conflict", str(exc)) from exc
    except BadSegment as exc:
        raise Problem(422, "bad_segment", str(exc)) from exc
    except criteria.BadCriteria as exc:
        raise problem_of(exc) from exc
