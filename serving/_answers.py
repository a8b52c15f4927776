"""How answers are written."""

from __future__ import annotations

from typing import Any

import orjson
from caudal.serving._problems import Problem, response
from caudal.serving._read import Answer, Missing
from fastapi import Response

__all__ = ["answer", "json", "missing"]


def json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Data that nobody keeps."""
    return Response(orjson.dumps(data), status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def answer(found: Answer, data: dict[str, Any]) -> Response:
    """Data and the token that they reflect."""
    return json({**data, "token": found.token}, headers={"caudal-token": found.token})


def missing(found: Missing, place: str) -> Response:
    """Why there is no such customer; `place` is the path under which the one it went into is told, with {} for its id."""
    headers = {"caudal-token": found.token}
    if found.erased:
        return response(Problem(410, "customer_erased", "the customer was erased", headers=headers, token=found.token))
    if len(found.went_to) == 1:
        into = found.went_to[0]
        headers["location"] = place.format(into)
        # not to be cached: a merge can be undone
        return json({"merged_into": into, "token": found.token}, 308, headers)
    if found.went_to:
        ids = [str(i) for i in found.went_to]
        detail = "the customer was split into several"
        return response(Problem(404, "customer_split", detail, headers=headers, split_into=ids, token=found.token))
    return response(
        Problem(
            404, "unknown_customer", "no customer has this id; GET /customers looks one up by an identifier",
            headers=headers, token=found.token,
        )
    )  # fmt: skip
