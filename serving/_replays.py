"""Replays over the API. The work is done by `caudal replay` in a process of its own, which outlives this one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
import psycopg
from caudal.projections import VIEWS, replay
from caudal.projections.replay import Record
from caudal.serving._problems import Problem
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from caudal import postgres
from caudal.errors import CaudalError, ReplayRefused, ReplayRunning
from caudal.settings import Settings, environment

__all__ = ["Replays", "Start", "add"]

_VIEWS = tuple(view.name for view in VIEWS)
STARTED_S = 30.0
"""Longest wait for a started process to say what it does."""
TELL_EVERY_S = 0.5
_T = TypeVar("_T")
_Id = Annotated[int, InPath(alias="id", description="The replay's number.", ge=1, le=2**31 - 1)]


class Start(BaseModel):
    """What to rebuild."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["full", "view", "captures"] = "full"
    view: str | None = Field(None, description="With kind `view`: its name.")
    swap: bool = Field(False, description="Swap in what was built; else it waits for `POST /replays/{id}/swap`.")
    max_changed: float | None = Field(
        None, ge=0, le=1, description="Refuse the swap when more of a view's rows would change."
    )
    from_start_of_log: bool = Field(False, description="Rebuild from what is left of a log that lost its first events.")


class Replays:
    """Reads replays and starts processes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def listed(self) -> list[Record]:
        """The newest replays, newest first."""
        return await self._read(lambda conn: replay.records(conn, limit=100))

    async def one(self, id_: int) -> Record:
        """A replay.

        Raises:
            Problem: 404, there is none of this number.
        """
        found = await self._read(lambda conn: replay.one(conn, id_))
        if found is None:
            raise Problem(404, "unknown_replay", "no replay has this number")
        return found

    async def start(self, asked: Start) -> Record:
        """Start a replay; gives it as soon as it is known.

        Raises:
            Problem: 409, another one runs, or it is refused.
        """
        words = ["--json", "--yes" if asked.swap else "--dry-run"]
        if asked.kind == "view":
            words += ["--view", asked.view or ""]
        if asked.kind == "captures":
            words += ["--from", "captures"]
        if asked.max_changed is not None:
            words += ["--max-changed", str(asked.max_changed)]
        if asked.from_start_of_log:
            words.append("--from-start-of-log")
        last = await self._read(replay.latest)
        before = last.id if last else 0

        async def begun() -> bool:
            newest = await self._read(replay.latest)
            return newest is not None and newest.id > before

        await self._spawn(words, begun)
        newest = await self._read(replay.latest)
        if newest is None or newest.id <= before:
            raise Problem(409, "replay_refused", "the replay ended before it began")
        return newest

    async def swap(self, id_: int, *, max_changed: float | None, force: bool) -> Record:
        """Swap in what was built, and wait until that is done or takes long."""
        words = ["swap", str((await self.one(id_)).id), "--json"]
        if max_changed is not None:
            words += ["--max-changed", str(max_changed)]
        await self._spawn([*words, "--force"] if force else words)
        return await self.one(id_)

    async def rollback(self, id_: int) -> Record:
        """Put back what this replay replaced, and wait until that is done or takes long."""
        newest = await self._read(lambda conn: replay.latest(conn, "swapped"))
        if newest is None or newest.id != (await self.one(id_)).id:
            raise Problem(409, "replay_refused", "only the newest swap can be undone")
        await self._spawn(["rollback", "--json"])
        return await self.one(id_)

    async def cancel(self, id_: int) -> Record:
        """End it."""
        await self.one(id_)
        try:
            return await asyncio.to_thread(replay.cancel, self._settings, id_)
        except (ReplayRefused, ReplayRunning) as exc:
            raise Problem(409, exc.code, str(exc)) from exc

    async def progress(self, id_: int, gone: Callable[[], Any]) -> AsyncIterator[bytes]:
        """How far it is, as server-sent events, until it runs no more."""
        while not await gone():
            try:
                record = await self.one(id_)
            except CaudalError:
                return  # the listener comes again
            told = {name: value for name, value in record.plain().items() if name != "diff"}
            yield b"event: progress\ndata: " + orjson.dumps(told) + b"\n\n"
            if record.state != "running" or record.interrupted:
                return
            await asyncio.sleep(TELL_EVERY_S)

    async def _read(self, ask: Callable[[psycopg.Connection[Any]], _T]) -> _T:
        def read() -> _T:
            with postgres.connect(self._settings.postgres, role="api") as conn, postgres.translated():
                return ask(conn)

        return await asyncio.to_thread(read)

    async def _spawn(self, words: Sequence[str], begun: Callable[[], Any] | None = None) -> None:
        """Run `caudal replay …`; return when it has begun what was asked, has ended, or takes long.

        Raises:
            Problem: it ended and says why.
        """
        with tempfile.TemporaryFile() as said:
            # no process of asyncio's: that one would be killed with the event loop
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own command line; it returns at once
                [sys.executable, "-m", "caudal.cli", "replay", *words],
                env=environment(self._settings), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                start_new_session=True,  # it goes on when this process is stopped
            )  # fmt: skip
            _started[:] = [one for one in _started if one.poll() is None] + [process]
            deadline = asyncio.get_running_loop().time() + STARTED_S
            while process.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.1)
                if begun is not None and await begun():
                    return
            if process.poll():
                said.seek(0)
                raise _refused(said.read().decode(errors="replace"))


_started: list[subprocess.Popen[bytes]] = []
"""Kept until they are seen to have ended, so that none stays behind as a zombie for long."""


def _refused(said: str) -> Problem:
    """What the command wrote on standard error as a problem: `caudal: code: message`."""
    lines = [line.removeprefix("caudal: ") for line in said.splitlines() if line.startswith("caudal: ")]
    code, _, detail = (lines[-1] if lines else "replay_failed: the replay ended; its log says why").partition(": ")
    return Problem(503 if code in {"broker_unavailable", "database_unavailable"} else 409, code, detail)


def add(app: FastAPI, replays: Replays, operates: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes; `operates` is the dependency that checks the scope."""
    options: dict[str, Any] = {"tags": ["operations"], "dependencies": [operates]}
    found: dict[int | str, dict[str, Any]] = {**errors, 404: {"description": "No such replay"}}
    refused: dict[int | str, dict[str, Any]] = {**found, 409: {"description": "It can't be done as things stand"}}

    @app.post("/replays", summary="Start a replay", status_code=202, responses=refused, **options)
    async def start(asked: Start) -> Response:
        if (asked.kind == "view") != (asked.view is not None):
            raise Problem(422, "invalid_parameters", "name the view with kind `view`, and only then")
        if asked.view is not None and asked.view not in _VIEWS:
            raise Problem(422, "unknown_view", f"there is no such view; there are {', '.join(_VIEWS)}")
        return _json((await replays.start(asked)).plain(), 202)

    @app.get("/replays", summary="Replays, the newest first", responses=errors, **options)
    async def listed() -> Response:
        return _json({"replays": [record.plain() for record in await replays.listed()]})

    @app.get("/replays/{id}", summary="One replay", responses=found, **options)
    async def one(id_: _Id) -> Response:
        return _json((await replays.one(id_)).plain())

    @app.get("/replays/{id}/diff", summary="What it would change, or did", responses=found, **options)
    async def diff(id_: _Id) -> Response:
        record = await replays.one(id_)
        if record.diff is None:
            raise Problem(404, "not_compared", "the replay was not compared yet")
        return _json(record.diff)

    @app.get(
        "/replays/{id}/progress",
        summary="How far it is, as it goes on",
        responses={**found, 200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}},
        **options,
    )
    async def progress(request: Request, id_: _Id) -> Response:
        await replays.one(id_)
        events = replays.progress(id_, request.is_disconnected)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.post("/replays/{id}/swap", summary="Swap in what was built", responses=refused, **options)
    async def swap(id_: _Id, max_changed: float | None = None, *, force: bool = False) -> Response:
        return _json((await replays.swap(id_, max_changed=max_changed, force=force)).plain())

    @app.post("/replays/{id}/rollback", summary="Put back what it replaced", responses=refused, **options)
    async def rollback(id_: _Id) -> Response:
        return _json((await replays.rollback(id_)).plain())

    @app.post("/replays/{id}/cancel", summary="End it and drop what it built", responses=refused, **options)
    async def cancel(id_: _Id) -> Response:
        return _json((await replays.cancel(id_)).plain())


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, {"cache-control": "no-store"}, "application/json")
