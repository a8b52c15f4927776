"""The routes of reports."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

import orjson
from caudal.projections import criteria as language
from caudal.projections.reports import REPORTS, Asked, Period
from caudal.serving._problems import Problem
from caudal.serving._report_files import MEDIA_TYPES, encoded
from caudal.serving._reports import Reports, ReportTooSlow, UnknownReport, found
from caudal.serving._search_routes import problem_of
from caudal.serving._segment_routes import permitted
from caudal.serving._segments import Segments
from caudal.serving.models import ProblemDocument, ReportAnswer, ReportsAnswer
from fastapi import FastAPI, Query, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool

from caudal.access import Grant

__all__ = ["register"]

Format = Literal["json", "csv", "html", "pdf"]


def register(
    app: FastAPI,
    reports: Reports,
    segments: Segments,
    *,
    reads: Any,
    dependencies: list[Any],
    errors: Mapping[int | str, dict[str, Any]],
) -> None:
    """Add the routes; `reads` gives the grant of who may read reports."""
    listed = orjson.dumps({
        "reports": [
            {
                "report": report.name, "title": report.title, "about": report.about, "by": report.by, "takes": report.takes,
                "columns": [{"name": c.name, "type": c.type, "title": c.title} for c in report.columns],
            }
            for report in REPORTS.values()
        ]
    })  # fmt: skip

    @app.get(
        "/reports",
        tags=["reports"],
        summary="What reports there are",
        dependencies=[reads, *dependencies],
        response_model=ReportsAnswer,
        responses={**errors, 409: {"model": ProblemDocument, "description": "`min-token` was not reached in time"}},
    )
    async def names() -> Response:
        return Response(listed, headers={"cache-control": "no-store"}, media_type="application/json")

    @app.get(
        "/reports/{name}",
        tags=["reports"],
        summary="A report",
        dependencies=dependencies,
        response_model=ReportAnswer,
        responses={
            **errors,
            404: {"model": ProblemDocument, "description": "No such report"},
            409: {"model": ProblemDocument, "description": "`min-token` was not reached in time"},
        },
    )
    async def report(
        name: Annotated[str, InPath(description="`GET /reports` lists them.")],
        *,
        grant: Grant = reads,
        criteria: Annotated[
            str | None, Query(description="Who is meant, in the text form; as they are now.", max_length=65_536)
        ] = None,
        first: Annotated[
            date | None, Query(alias="from", description="The first day; with periods, the whole period that it is in.")
        ] = None,
        last: Annotated[date | None, Query(alias="to", description="The last day; today when left out.")] = None,
        by: Annotated[Period | None, Query(description="The length of a period.")] = None,
        currency: Annotated[str | None, Query(description="ISO 4217.")] = None,
        segment: Annotated[str | None, Query(description="Of `segments`: only this one.")] = None,
        limit: Annotated[int | None, Query(ge=1, le=500, description="Most rows of a list.")] = None,
        time_zone: Annotated[
            str, Query(alias="time-zone", description="IANA name; its midnight begins a day.")
        ] = "UTC",
        format: Annotated[Format, Query(description="How it is written.")] = "json",  # noqa: A002 - the parameter's name in the address
    ) -> Response:
        try:
            asked = Asked(
                criteria=language.parse(criteria) if criteria is not None else None, first=first, last=last, by=by, currency=currency,
                segment=segment, limit=limit, zone=time_zone,
            )  # fmt: skip
            asked_of = found(name)
            await permitted(segments, grant, asked.criteria)
            made = await reports.make(asked_of, asked)
        except language.BadCriteria as exc:
            raise problem_of(exc) from exc
        except UnknownReport as exc:
            raise Problem(404, exc.code, "there is no such report; GET /reports lists them") from exc
        except ReportTooSlow as exc:
            raise Problem(422, exc.code, "the report took too long; ask for fewer days") from exc
        headers = {"cache-control": "no-store", "caudal-token": made.token}
        if format != "json":
            headers["content-disposition"] = f'attachment; filename="{name}.{format}"'
        # drawing a PDF takes a while: other requests go on
        body = await run_in_threadpool(encoded, made, format)
        return Response(body, headers=headers, media_type=MEDIA_TYPES[format])
