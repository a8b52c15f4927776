"""The routes of search: the same by GET, for addresses, and by POST, for trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from caudal.projections import criteria
from caudal.serving._export import MEDIA_TYPES, encoded
from caudal.serving._problems import Problem
from caudal.serving._search import DEFAULT_FIELDS, FACETS, MOST, Search, Searched
from caudal.serving.models import ProblemDocument, SearchAnswer
from fastapi import FastAPI, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SearchBody", "problem_of", "register"]

Format = Literal["json", "csv", "ndjson", "parquet"]


class SearchBody(BaseModel):
    """What is searched for."""

    model_config = ConfigDict(extra="forbid")

    criteria: Any = Field(default=None, description="Who is meant: a condition tree, or its text form.")
    q: str | None = Field(
        default=None, description="Words of names, e-mail addresses, phones, documents, city; also misspelt."
    )
    sort: str | None = Field(
        default=None, description="A field, `-` before it for descending. Unset: by relevance with `q`, else by id."
    )
    after: str | None = Field(default=None, description="`next` of the page before.")
    limit: int = Field(default=50, ge=1, le=MOST)
    fields: list[str] = Field(default=list(DEFAULT_FIELDS), max_length=60, description="What is told of each.")
    facets: list[str] = Field(default=[], max_length=len(FACETS), description=f"Counted by value: {', '.join(FACETS)}.")
    count: bool = Field(default=False, description="Say how many there are.")
    format: Format = Field(default="json", description="Other than json: everyone found, streamed.")

    def searched(self) -> Searched:
        """As the search takes it."""
        condition = None if self.criteria is None else criteria.read(self.criteria)
        return Searched(
            criteria=condition, text=self.q, sort=self.sort, after=self.after, limit=self.limit,
            fields=tuple(dict.fromkeys(self.fields)), facets=tuple(dict.fromkeys(self.facets)), count=self.count,
        )  # fmt: skip


def register(app: FastAPI, search: Search, dependencies: list[Any], errors: Mapping[int | str, dict[str, Any]]) -> None:
    """Add the routes; they must come before those with an id in the path."""
    route: dict[str, Any] = {
        "tags": ["customers"],
        "dependencies": dependencies,
        "response_model": SearchAnswer,
        "responses": {**errors, 409: {"model": ProblemDocument, "description": "`min-token` was not reached in time"}},
    }

    @app.get("/customers/search", summary="Search customers", **route)
    async def search_by_address(
        *,
        criteria: Annotated[str | None, Query(description="Who is meant, in the text form.", max_length=65_536)] = None,
        q: Annotated[
            str | None, Query(description="Words of names, e-mail addresses, phones, documents, city; also misspelt.")
        ] = None,
        sort: Annotated[str | None, Query(description="A field, `-` before it for descending.")] = None,
        after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
        fields: Annotated[str | None, Query(description="Comma-separated.")] = None,
        facets: Annotated[str | None, Query(description=f"Comma-separated: {', '.join(FACETS)}.")] = None,
        count: bool = False,
        format: Annotated[Format, Query(description="Other than json: everyone found, streamed.")] = "json",  # noqa: A002 - the parameter's name in the address
    ) -> Response:
        body = SearchBody(
            criteria=criteria, q=q, sort=sort, after=after, limit=limit, count=count, format=format,
            fields=_listed(fields) or list(DEFAULT_FIELDS), facets=_listed(facets)[: len(FACETS) + 1],
        )  # fmt: skip
        return await _answered(search, body)

    @app.post("/customers/search", summary="Search customers by a tree", **route)
    async def search_by_body(body: SearchBody) -> Response:
        return await _answered(search, body)


def _listed(words: str | None) -> list[str]:
    return [word.strip() for word in (words or "").split(",") if word.strip()]


async def _answered(search: Search, body: SearchBody) -> Response:
    try:
        asked = body.searched()
        if body.format == "json":
            found = await search.page(asked)
            data = orjson.dumps({**found.data, "token": found.token}, default=str)
            headers = {"cache-control": "no-store", "caudal-token": found.token}
            return Response(data, headers=headers, media_type="application/json")
        parts = encoded(body.format, asked.fields, search.export(asked))
        first = await anext(parts, b"")  # what is wrong with the search is found before the answer begins
    except criteria.BadCriteria as exc:
        raise problem_of(exc) from exc

    async def whole() -> Any:
        yield first
        async for piece in parts:
            yield piece

    name = f"customers.{body.format}"
    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(whole(), headers=headers, media_type=MEDIA_TYPES[body.format])


def problem_of(exc: criteria.BadCriteria) -> Problem:
    """What is wrong with criteria or a search, and where."""
    more: dict[str, Any] = {}
    if exc.position is not None:
        more["position"] = exc.position
    if exc.path:
        more["path"] = exc.path
    if exc.expected:
        more["expected"] = list(exc.expected)
    return Problem(422, exc.code, exc.message, **more)
