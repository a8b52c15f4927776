"""How a worker stops its Faust app, with an app that does as Faust does at its worst."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from caudal import worker
from caudal.settings import Settings


class App:
    """Starts when it may, and hangs when it is stopped before that."""

    crash_reason: Any = None

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.steps: list[str] = []
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        while not self.may_start.is_set():
            try:
                await self.may_start.wait()
            except asyncio.CancelledError:
                self.steps.append("a cancellation is swallowed")
        self.steps.append("started")

    async def wait_until_stopped(self) -> None:
        await self.stopped.wait()

    async def stop(self) -> None:
        self.steps.append("stop")
        if "started" not in self.steps:
            await asyncio.Event().wait()
        self.stopped.set()


async def test_an_app_that_is_starting_is_stopped_when_it_has_started():
    app, ours = App(), worker._Worker(Settings(), ("project",))
    running = asyncio.ensure_future(ours._run_app(app))
    stopping = asyncio.ensure_future(ours._stop_app(app, running))
    await asyncio.sleep(0)
    app.may_start.set()
    assert await stopping
    assert app.steps == ["started", "stop"]


async def test_an_app_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "STOP_S", 0.05)
    app, ours = App(), worker._Worker(Settings(), ("project",))
    running = asyncio.ensure_future(ours._run_app(app))
    assert not await ours._stop_app(app, running)
    app.may_start.set()
    app.stopped.set()
    await running
    assert app.steps == ["stop", "a cancellation is swallowed", "started"]


async def test_an_app_that_never_started_is_not_trusted_to_have_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "STOP_S", 0.05)

    class Waiting(App):
        async def start(self) -> None:
            await self.may_start.wait()

        async def stop(self) -> None:
            self.stopped.set()

    app, ours = Waiting(), worker._Worker(Settings(), ("project",))
    running = asyncio.ensure_future(ours._run_app(app))
    assert not await ours._stop_app(app, running)
    assert running.cancelled()
