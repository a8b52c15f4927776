"""`caudal demo`: the screen of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli._output import INTERRUPTED, emit, note, say, settings, table

if TYPE_CHECKING:
    from rich.table import Table

    from caudal.demo import Demo, Moment, Summary
    from caudal.settings import Settings

__all__ = ["demo"]


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop when everything has been shown and checked.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON summary and nothing else on standard output.")
    ] = False,
) -> None:
    """Three systems send what they know about some people; each person becomes one customer, live.

    Everything is real (Kafka, PostgreSQL, HTTP, signatures), made-up only are the people, and it all lives in a folder of its own
    (.caudal/demo), begun anew at each run. Stays up until Ctrl-C, which stops all of it. Exit status 70 when a check of it fails.
    """
    from caudal.telemetry import configure_logging

    configured = settings()
    configure_logging("warning", json=configured.log_json)  # the screen tells the rest
    try:
        asyncio.run(_demo(configured, once=once, as_json=as_json))
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None


async def _demo(configured: Settings, *, once: bool, as_json: bool) -> None:
    from caudal.demo import DemoFailed, running

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with running(configured, note) as demo:
        tending = asyncio.create_task(demo.tend())
        try:
            summary = await _unless(tending, _play(demo, quiet=as_json))
            if as_json:
                emit(summary.as_json())
            else:
                _report(summary)
            if summary.faults:
                raise DemoFailed(f"not so: {'; '.join(summary.faults)}")
            if not once:
                _invite(demo, summary)
                with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how this is meant to end
                    await tending
        finally:
            tending.cancel()


async def _unless(tending: asyncio.Task[None], work: Coroutine[Any, Any, Summary]) -> Summary:
    """The work's result, or the error of the tending that came first."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({tending, working}, return_when=asyncio.FIRST_COMPLETED)
        if tending.done():
            tending.result()
        return await working
    finally:
        working.cancel()


async def _play(demo: Demo, *, quiet: bool) -> Summary:
    note("sending")
    with contextlib.nullcontext() if quiet else _live(demo.moment):
        await demo.play()
    return await demo.summary()


@contextlib.contextmanager
def _live(moment: Moment) -> Iterator[None]:
    """A table that moves, on a terminal."""
    if not sys.stdout.isatty():
        yield
        return
    from rich.live import Live

    with Live(get_renderable=lambda: _screen(moment), refresh_per_second=5):
        yield


def _screen(moment: Moment) -> Table:
    from rich.table import Table

    screen = Table.grid(padding=(0, 2))
    screen.add_column(style="bold cyan", no_wrap=True)
    screen.add_column(justify="right", no_wrap=True)
    screen.add_column(style="dim")
    latencies = sorted(moment.latencies_ms)
    middle = f"{latencies[len(latencies) // 2]:,.0f} ms" if latencies else ""
    refused = ", ".join(f"{count} refused with {status}" for status, count in moment.refused.items())
    rows = (
        ("deliveries", moment.deliveries, f"to the edge by Shopify, HubSpot and Zendesk {refused}"),
        ("captures", moment.captures, "as they came, in capture.*"),
        ("events", moment.events, "what they mean, on customer.changes"),
        ("customers", moment.customers, "who they are about"),
        ("views", sum(moment.views.values()), _listed(moment.views)),
        ("segments", sum(moment.segments.values()), _listed(moment.segments)),
        ("changes", sum(moment.changes.values()), _listed(moment.changes)),
        ("dead letters", moment.dead_letters, "what nobody could read"),
    )
    for name, count, words in rows:
        screen.add_row(name, f"{count:,}", words)
    screen.add_row("latency", middle, "from accepted to readable, median")
    return screen


def _report(summary: Summary) -> None:
    counts, latency = summary.counts, summary.latency_ms
    table(
        ("stage", "count", ""),
        [
            (
                "deliveries",
                counts["deliveries"],
                _listed({f"refused with {k}": n for k, n in counts["refused"].items()}),
            ),
            ("captures", counts["captures"], ""),
            ("events", counts["events"], _listed(counts["events_by_type"])),
            ("subjects", counts["subjects"], f"{counts['merged_subjects']} of them joined another's customer"),
            ("customers", counts["customers"], ""),
            ("views", sum(counts["views"].values()), _listed(counts["views"])),
            ("segments", sum(counts["segments"].values()), _listed(counts["segments"])),
            ("changes", sum(counts["change_messages"].values()), _listed(counts["change_messages"])),
            ("dead letters", sum(counts["dead_letters"].values()), _listed(counts["dead_letters"])),
        ],
    )
    rate = summary.deliveries_per_s
    say(f"\nin a rush: {rate['accepted']:,} deliveries a second accepted, {rate['readable']:,} a second readable")
    say(f"one by one, from accepted to readable: median {latency['p50']} ms, 99 % within {latency['p99']} ms")
    say(", ".join(f"{name} {version}" for name, version in summary.versions.items()))
    if summary.person:
        from caudal.cli.customers import show

        orders, tickets = (", ".join(summary.metrics_from[kind]) for kind in ("order", "ticket"))
        say(f"\nOne person of three systems, one customer; orders counted from {orders}, tickets from {tickets}:\n")
        show(summary.person)


def _invite(demo: Demo, summary: Summary) -> None:
    home = _relative(demo.settings.home)
    caudal = "caudal" if shutil.which("caudal") else _relative(Path(sys.executable).with_name("caudal"))
    command = f"CAUDAL_HOME={home} CAUDAL_CONFIG_FILE={home}/caudal.toml {caudal}"
    say(f"""
It is up, until Ctrl-C:

  edge   {demo.edge}/in/<source>
  API    {demo.api}/docs?token={demo.token}
  token  {demo.token}

Try next, in another terminal:

  curl -H 'Authorization: Bearer {demo.token}' '{demo.api}/customers?email={demo.person.email}'
  {command} customers timeline {summary.person["customer_id"]}
  {command} tail profiles segments --from-beginning
""")  # fmt: skip


def _relative(path: Path) -> str:
    shorter = os.path.relpath(path)
    return shorter if len(shorter) < len(str(path)) else str(path)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
