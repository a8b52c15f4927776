"""Run seeds: each sends what a story tells to the edge while faults happen, then checks everything. `make test-faults` comes here."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import checks
import httpx
from caudal.projections import Prover
from caudal.schemas.codec import Codec, Registry
from schedule import Fault, draw, strike
from stack import PATIENCE_S, PROCESSES, SECRET, Stack, Stuck, until
from story import Sent, Story
from watchers import StreamWatcher, TopicWatcher

from caudal._demo_data import signed

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
                strike(self.stack, fault)
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
        except AssertionError as exc:
            result.wrong += [*sending.wrong, str(exc), *getattr(exc, "__notes__", ())]
        finally:
            sending.stop()
            self.stack.settle()
        result.seconds = time.monotonic() - began
        return result

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
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

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
        with httpx.Client(timeout=httpx.Timeout(10)) as client:
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
            with contextlib.suppress(httpx.HTTPError):
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make test-faults ARGS=…", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (200)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--logs", action="store_true", help="show the end of the processes' logs when a seed is wrong")
    options = parser.parse_args(arguments)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where it was started with the former ignored: it stops what it started
        signal.signal(number, lambda *_: sys.exit(1))
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began, wrong = time.monotonic(), []
    with running() as driver:
        print(f"started in {time.monotonic() - began:.1f} s", flush=True)
        if not driver.stack.disks:
            print("no disk is filled: that takes root and the right to mount", flush=True)
        for seed in seeds:
            result = driver.run(seed)
            print(told(result), flush=True)
            if options.seed is not None or not result.wrong:
                print(
                    "   ",
                    "; ".join(map(str, result.faults)),
                    {k: round(v, 1) for k, v in result.parts.items()},
                    flush=True,
                )
            if result.wrong:
                wrong.append(seed)
                if options.logs:
                    for name in PROCESSES:
                        print(f"--- {name}\n{driver.stack.log(name).read_text()[-3000:]}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds) - len(wrong)} of {len(seeds)} seeds hold; {seconds:.0f} s; wrong: {wrong or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
