"""The routes by which people put right who is who."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import orjson
import psycopg
from caudal.schemas.codec import Codec
from caudal.serving._problems import Problem
from caudal.serving.models import DecisionAnswer, DecisionsAnswer, ProblemDocument
from fastapi import FastAPI, Header, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from caudal import access, decisions, postgres
from caudal.decisions import Decision
from caudal.errors import DecisionRefused, NotKnown
from caudal.settings import Settings

__all__ = ["Decisions", "add"]

DONE_WITHIN_S = 5.0
"""Longest wait for a worker to do what was decided; then the answer is 202."""
_IDS = uuid.UUID("5a5be0ab-0f77-5b54-9e8c-7d1f3f7b6c42")
"""Namespace of the ids of decisions that come with an idempotency key."""
_T = TypeVar("_T")
_Id = Annotated[uuid.UUID, InPath(alias="id", description="The decision's id.")]
_Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200,
        description="The same decision sent again with the same key is made once.",
    ),
]  # fmt: skip
_Reason = Annotated[str | None, Field(max_length=2_000, description="Why, for those who look at it later.")]


class Decide(BaseModel):
    """What is decided of a subject."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["split", "move"]
    subject: str = Field(
        min_length=3, max_length=500, description="`<source>:<type>:<id>`", examples=["shop-br:customer:2071"]
    )
    to: str | None = Field(
        None, max_length=500, description="With kind `move`: the customer's id, or a subject of the customer."
    )
    alone: bool = Field(
        False, description="Take nothing along: it is parted from what names it (its orders, deals, tickets), too."
    )
    reason: _Reason = None


class Undo(BaseModel):
    """Why a decision is undone."""

    model_config = ConfigDict(extra="forbid")

    reason: _Reason = None


class Decisions:
    """Makes decisions and tells of them."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings = settings
        self._codec = codec

    async def make(
        self, plan: Callable[[psycopg.Connection[Any], str], Decision], key: str | None, grant: access.Grant
    ) -> tuple[dict[str, Any], bool]:
        """Store what is planned and wait a moment; the decision, and whether it is done.

        Raises:
            Problem: it can't be made as things stand.
        """
        id_ = str(uuid.uuid5(_IDS, f"{grant.name}\n{key}") if key else uuid.uuid4())

        def decide(db: psycopg.Connection[Any]) -> tuple[dict[str, Any], bool]:
            if (done := decisions.one(db, id_)) is not None:
                return done, True
            try:
                decision = plan(db, id_)
            except NotKnown as exc:
                raise Problem(404, exc.code, str(exc)) from exc
            except DecisionRefused as exc:
                raise Problem(409, exc.code, str(exc)) from exc
            decisions.store(self._settings, self._codec, decision)
            if (done := decisions.wait(db, id_, DONE_WITHIN_S)) is not None:
                return done, True
            told = {
                "decision_id": decision.id, "kind": decision.kind, "subject": decision.subject, "decided_at": decision.at,
                "actor": decision.actor, "comment": decision.comment, "undoes": decision.undoes, "undone_by": None, "moves": [],
            }  # fmt: skip
            return told, False

        return await self.ask(decide)

    async def ask(self, ask: Callable[[psycopg.Connection[Any]], _T]) -> _T:
        """What PostgreSQL says, in a thread."""

        def run() -> _T:
            with postgres.connect(self._settings.postgres, role="api") as db, postgres.translated():
                return ask(db)

        return await asyncio.to_thread(run)


def add(app: FastAPI, made: Decisions, writes: Any, reads: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes; `writes` and `reads` are the dependencies that check the scopes, and give the grant."""
    missing: dict[int | str, dict[str, Any]] = {404: {"model": ProblemDocument, "description": "Nothing has this name"}}
    stored: dict[int | str, dict[str, Any]] = {
        **errors,
        **missing,
        202: {"model": DecisionAnswer, "description": "Stored; it is done as soon as a worker gets to it"},
        409: {"model": ProblemDocument, "description": "It can't be done as things stand"},
    }

    @app.post(
        "/decisions",
        tags=["customers"],
        summary="Split a subject off its customer, or move it to another",
        response_model=DecisionAnswer,
        responses=stored,
    )
    async def decide(asked: Decide, grant: access.Grant = writes, key: _Key = None) -> Response:
        if (asked.kind == "move") != (asked.to is not None):
            raise Problem(422, "invalid_parameters", "name `to` with kind `move`, and only then")

        def plan(db: psycopg.Connection[Any], id_: str) -> Decision:
            told: dict[str, Any] = {"actor": grant.name, "comment": asked.reason, "alone": asked.alone, "id_": id_}
            if asked.to is not None:
                return decisions.plan_move(db, asked.subject, asked.to, **told)
            return decisions.plan_split(db, asked.subject, **told)

        done, whether = await made.make(plan, key, grant)
        if (done["kind"], done["subject"]) != (asked.kind, asked.subject):
            raise Problem(409, "idempotency_key_reused", "another decision was sent with this key")
        return _answer(done, whether)

    @app.post(
        "/decisions/{id}/undo",
        tags=["customers"],
        summary="Undo a decision",
        response_model=DecisionAnswer,
        responses=stored,
    )
    async def undo(id_: _Id, asked: Undo | None = None, grant: access.Grant = writes, key: _Key = None) -> Response:
        reason = asked.reason if asked else None
        done, whether = await made.make(
            lambda db, new: decisions.plan_undo(db, str(id_), actor=grant.name, comment=reason, id_=new), key, grant
        )
        if done["undoes"] != str(id_):
            raise Problem(409, "idempotency_key_reused", "another decision was sent with this key")
        return _answer(done, whether)

    @app.get(
        "/decisions",
        tags=["customers"],
        summary="Decisions, the newest first",
        dependencies=[reads],
        response_model=DecisionsAnswer,
        responses=errors,
    )
    async def listed(
        subject: Annotated[str | None, Query(description="Only those about this subject.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        found = await made.ask(lambda db: decisions.listed(db, subject=subject, limit=limit))
        return _json({"decisions": [_plain(each) for each in found]})

    @app.get(
        "/decisions/{id}",
        tags=["customers"],
        summary="One decision, and whom it moved",
        dependencies=[reads],
        response_model=DecisionAnswer,
        responses={**errors, **missing},
    )
    async def one(id_: _Id) -> Response:
        found = await made.ask(lambda db: decisions.one(db, str(id_)))
        if found is None:
            raise Problem(404, "not_known", "no decision of this id was done")
        return _answer(found, True)


def _plain(decision: dict[str, Any], done: bool = True) -> dict[str, Any]:
    told = {name: value for name, value in decision.items() if name != "comment"}
    return {**told, "reason": decision["comment"], "done": done}


def _answer(decision: dict[str, Any], done: bool) -> Response:
    return _json(_plain(decision, done), 200 if done else 202)


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, {"cache-control": "no-store"}, "application/json")
