"""Run seeds: each sends what a story tells to the edge while faults happen, then checks everything. `make test-faults` comes here.

Much of a seed is waiting, so several stacks run side by side, each with a process of its own that takes the next seed when it is ready.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import checks
import httpx
import psycopg
from caudal.projections import Prover
from caudal.schemas import position
from caudal.schemas.codec import Codec, Registry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from schedule import LOSING, Fault, draw, strike
from stack import PATIENCE_S, PROCESSES, SECRET, Stack, Stuck, until
from story import Sent, Story
from watchers import StreamWatcher, TopicWatcher

from caudal import kafka
from caudal._demo_data import signed
from caudal.errors import CaudalError

SENDERS = 4
PAUSE_S = 0.004
"""Between two deliveries of one sender: so that faults find something under way."""


@dataclass
class Result:
    """What became of a seed; `wrong` is empty when all holds."""

    seed: int
    deliveries: int
    faults: list[Fault]
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    """The end of what each process wrote, of a seed that is wrong."""


class Driver:
    """Runs seeds one after the other on one stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.topics = TopicWatcher(stack.settings)
        self.stream = StreamWatcher(stack.api, stack.token)
        self._registry = Registry(stack.settings)
        self._prover = Prover(stack.settings, Codec(self._registry))

    def close(self) -> None:
        self._prover.close()
        self.stream.stop()
        self.topics.stop()
        self._registry.close()

    def run(self, seed: int) -> Result:
        began = time.monotonic()
        story = Story(seed)
        result = Result(seed, len(story.sent), draw(seed, len(story.sent)))
        sending = _Sending(self.stack, story.sent)
        before = self.topics.published
        try:
            for fault in result.faults:
                self._await(fault, sending, before)
                self._strike(fault, sending)
            sending.join()
            self.stack.settle()
            result.parts["sent"] = time.monotonic() - began
            until(self.stack.answers, "answer of PostgreSQL")
            checks.rest(self.stack, self.topics, self.stream)
            result.parts["at rest"] = time.monotonic() - began
            found = checks.faults(
                self.stack, story, self.topics, self.stream, prover=self._prover, tokens=sending.tokens
            )
            result.wrong += sending.wrong + list(found)
            if any(fault.kind == "oversize a profile" for fault in result.faults) and not self.topics.cut():
                result.wrong.append("no profile was cut")
        except AssertionError as exc:
            result.wrong += [*sending.wrong, str(exc), *getattr(exc, "__notes__", ())]
        finally:
            sending.stop()
            self.stack.settle()
        result.seconds = time.monotonic() - began
        if result.wrong:
            result.logs = {name: self.stack.log(name).read_text()[-3000:] for name in PROCESSES}
        return result

    def _strike(self, fault: Fault, sending: _Sending) -> None:
        if fault.kind not in LOSING:
            strike(self.stack, fault)
            return
        topic = f"capture.{fault.target}"
        with sending.held():
            until(lambda: self._read_to_end(topic), "end of the captures")
            strike(self.stack, fault)
            self.topics.begin_again(topic)
            if fault.kind == "make captures again":
                sending.forget(topic)

    def _read_to_end(self, topic: str) -> bool:
        """Whether all that is in the topic is translated, and the checks know of it."""
        try:
            ends = kafka.end_offsets(self.stack.settings.kafka, [topic])
            with self.stack.connect() as conn:
                done = dict(
                    conn.execute("SELECT partition, next_offset FROM hub.offsets WHERE topic = %s", (topic,)).fetchall()
                )
        except (CaudalError, psycopg.Error):
            return False
        return all(done.get(p, 0) >= end for p, end in ends[topic].items()) and self.topics.reached(ends)

    def _await(self, fault: Fault, sending: _Sending, before: int) -> None:
        """Wait for the fault's moment; at the latest it is when all is sent and nothing more comes of it."""
        quiet_since, seen = 0.0, -1
        while True:
            published = self.topics.published - before
            if (sending.acknowledged if fault.measure == "acknowledged" else published) >= fault.after:
                return
            if not sending.done() or published != seen:
                quiet_since, seen = time.monotonic(), published
            if time.monotonic() - quiet_since > 0.5:
                return
            time.sleep(0.005)


class _Sending:
    """Some senders, each of which tries again what was not acknowledged."""

    def __init__(self, stack: Stack, sent: Sequence[Sent]) -> None:
        self.acknowledged = 0
        self.tokens: list[str] = []
        self.wrong: list[str] = []
        self._stack = stack
        self._left: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        for one in sent:
            self._left.put(one)
        self._stopped = threading.Event()
        self._gate = threading.Condition()
        self._under_way = 0
        self._held = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def forget(self, topic: str) -> None:
        """Positions in the topic that was deleted are never reached again."""
        kept = [{name: at for name, at in position.decode(token).items() if name != topic} for token in self.tokens]
        self.tokens[:] = [position.encode(one) for one in kept if one]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is sent meanwhile, and nothing is under way."""
        with self._gate:
            self._held = True
            self._gate.wait_for(lambda: not self._under_way)
        try:
            yield
        finally:
            with self._gate:
                self._held = False
                self._gate.notify_all()

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        with self._gate:
            self._gate.wait_for(lambda: not self._held)
            self._under_way += 1
        try:
            yield
        finally:
            with self._gate:
                self._under_way -= 1
                self._gate.notify_all()

    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            if thread.is_alive():
                raise Stuck("a delivery is not taken")

    def _run(self) -> None:
        with httpx.Client(timeout=httpx.Timeout(10), verify=False) as client:  # no certificates to load: all is plain
            while not self._stopped.is_set():
                try:
                    sent = self._left.get_nowait()
                except queue.Empty:
                    return
                self._send(client, sent)
                time.sleep(PAUSE_S)

    def _send(self, client: httpx.Client, sent: Sent) -> None:
        deadline = time.monotonic() + PATIENCE_S
        url = f"{self._stack.edge}/in/{sent.delivery.source}"
        secret = SECRET if sent.fate != "refused" else "of somebody else"
        while not self._stopped.is_set():
            headers = signed(sent.delivery, secret, url, datetime.now(UTC))
            status = 0
            with self._passing(), contextlib.suppress(httpx.HTTPError):
                answer = client.post(url, content=sent.delivery.body, headers=headers)
                status = answer.status_code
            if status == 202:
                self.tokens.append(answer.json()["token"])
                self.acknowledged += 1
            if status in {202, 401}:
                if (status == 202) != (sent.fate != "refused"):
                    self.wrong.append(f"a delivery that was to be {sent.fate} was answered {status}")
                return
            if status not in {0, 503}:
                self.wrong.append(f"a delivery was answered {status}")
                return
            if time.monotonic() > deadline:
                self.wrong.append(f"a delivery was never taken; the last answer was {status or 'none'}")
                return
            time.sleep(0.05)


@contextlib.contextmanager
def running() -> Iterator[Driver]:
    """A driver on a stack of its own, whose processes answer."""
    stack = Stack()
    try:
        stack.start()
        with stack.tending():
            until(lambda: ready(stack), "answer of edge and API")
            driver = Driver(stack)
            try:
                yield driver
            finally:
                driver.close()
    finally:
        stack.stop()


def ready(stack: Stack) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return all(httpx.get(f"{url}/ready", timeout=5).status_code == 200 for url in (stack.edge, stack.api))
    return False


def told(result: Result) -> str:
    """A result in lines."""
    lines = [
        f"seed {result.seed}: {result.deliveries} deliveries, {result.seconds:.1f} s, {'WRONG' if result.wrong else 'ok'}"
    ]
    if result.wrong:
        lines += [f"  {number}. {fault}" for number, fault in enumerate(result.faults, 1)]
        lines += [f"  - {one}" for one in result.wrong[:20]]
        if len(result.wrong) > 20:
            lines.append(f"  - and {len(result.wrong) - 20} more")
        lines.append(f'  again: make test-faults ARGS="--seed {result.seed}"')
    return "\n".join(lines)


def work(seeds: Any, results: Any) -> None:
    """A process that runs the seeds that it takes from a queue, on a stack of its own, until it takes None."""
    _end_soon()
    with running() as driver:
        results.put(driver.stack.disks)
        for seed in iter(seeds.get, None):
            results.put(driver.run(seed))


def _end_soon() -> None:
    """Let a signal end this process, also where it was started with that ignored: it stops what it started, undisturbed by another."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(1)

    for number in numbers:
        signal.signal(number, end)


@contextlib.contextmanager
def shared(seeds: Sequence[int], stacks: int) -> Iterator[Iterator[Result]]:
    """The results of all seeds, as they come, from so many stacks."""
    context = multiprocessing.get_context("spawn")
    left, done = context.Queue(), context.Queue()
    for seed in [*seeds, *[None] * stacks]:
        left.put(seed)
    workers = [context.Process(target=work, args=(left, done)) for _ in range(stacks)]
    for worker in workers:
        worker.start()

    def results() -> Iterator[Result]:
        missing = len(seeds)
        while missing:
            try:
                found = done.get(timeout=1)
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise Stuck("a stack has failed") from None
                continue
            if isinstance(found, Result):
                missing -= 1
                yield found
            elif not found:
                print("no disk is filled: that takes root and the right to mount", flush=True)

    try:
        yield results()
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        left.cancel_join_thread()
        for worker in workers:
            worker.join()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make test-faults ARGS=…", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (200)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--stacks", type=int, default=2, help="how many run at a time, each on servers of its own (2)")
    parser.add_argument("--logs", action="store_true", help="show the end of the processes' logs when a seed is wrong")
    options = parser.parse_args(arguments)
    _end_soon()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began, wrong = time.monotonic(), []
    console = Console(soft_wrap=True, highlight=False, markup=False)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("seeds, {task.fields[wrong]} wrong"),
        TimeRemainingColumn(),
    )
    with (
        shared(seeds, min(options.stacks, len(seeds))) as results,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(seeds), wrong=0)
        for result in results:
            console.print(told(result))
            if options.seed is not None or not result.wrong:
                parts = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in result.parts.items())
                console.print("   ", "; ".join(map(str, result.faults)), f"({parts})")
            if result.wrong:
                wrong.append(result.seed)
                for name, log in result.logs.items() if options.logs else ():
                    console.print(f"--- {name}\n{log}")
            progress.update(task, advance=1, wrong=len(wrong))
    seconds = time.monotonic() - began
    print(f"{len(seeds) - len(wrong)} of {len(seeds)} seeds hold; {seconds:.0f} s; wrong: {sorted(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
