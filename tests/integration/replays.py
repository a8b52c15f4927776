"""What tests of replays share: a live projection in a thread, events that keep coming, locks, and what is on the change topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from caudal.projections import Runner
from caudal.projections.replay import Replay
from caudal.projections.replay._log import Reader
from caudal.schemas import Event
from caudal.schemas.codec import Codec
from logs import PARTITIONS, connect

from caudal import kafka
from caudal.errors import Retryable
from caudal.settings import Settings


def until(condition: Callable[[], Any], what: str, *, timeout_s: float = 90) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)
    return value


@contextmanager
def holding(settings: Settings, statement: str) -> Iterator[Callable[[], bool]]:
    """Hold what the statement locks; gives whether someone waits for it."""
    with closing(connect(settings)) as holder, closing(connect(settings)) as watcher:
        holder.execute("BEGIN")
        holder.execute(statement)  # type: ignore[arg-type]
        waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid)))"
        pid = holder.info.backend_pid
        yield lambda: watcher.execute(waiting, (pid,)).fetchone() == (True,)


class Projection:
    """The live projection: what a worker does, in a thread of the test."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self.settings = settings
        self.topic = kafka.topic(settings.kafka, kafka.CHANGES)
        self.runner = Runner(settings, codec)
        self.failed: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self.runner.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                reader = Reader(self.settings.kafka, self.topic, self.runner.positions(range(PARTITIONS)))
                self.runner.recover(range(PARTITIONS))
                try:
                    while not self._stop.is_set():
                        ends = kafka.end_offsets(self.settings.kafka, [self.topic])[self.topic]
                        for chunk in reader.upto(ends, most=200):
                            self.runner.apply(self.runner.decode(chunk))
                        self.runner.idle()
                        self._stop.wait(0.02)
                except Retryable:  # a lost partition, too
                    continue
                finally:
                    reader.close()
            self.runner.flush()
        except BaseException as exc:
            self.failed = exc


@contextmanager
def projecting(settings: Settings, codec: Codec) -> Iterator[Projection]:
    projection = Projection(settings, codec)
    projection.start()
    try:
        yield projection
    finally:
        projection.stop()


@contextmanager
def replaying(settings: Settings, codec: Codec, **options: Any) -> Iterator[Replay]:
    with Replay.opened(settings, codec, priorities={}, **options) as replay:
        yield replay


class Source:
    """Events that keep coming while it is open."""

    def __init__(self, settings: Settings, codec: Codec, events: Iterator[Event], *, rate: float) -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._codec, self._events, self._rate = codec, events, rate
        self._producer = kafka.producer(settings.kafka)
        self._topic = kafka.topic(settings.kafka, kafka.CHANGES)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Source:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert self._producer.flush(30) == 0

    def _run(self) -> None:
        for event in self._events:
            self._producer.produce(self._topic, key=event.customer_id.encode(), value=self._codec.encode_event(event))
            self._producer.poll(0)
            self.sent += 1
            if self._stop.wait(1 / self._rate):
                return


def on_topic(settings: Settings, codec: Codec, name: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Everything on a change topic as (key, value), in order within each key."""
    topic = kafka.topic(settings.kafka, name)
    ends = kafka.end_offsets(settings.kafka, [topic])[topic]
    reader = Reader(settings.kafka, topic, dict.fromkeys(ends, 0))
    found = []
    for chunk in reader.upto(ends, most=10_000):
        for message in chunk:
            value = message.value()
            found.append(((message.key() or b"").decode(), codec.decode(value)[1] if value else None))
    reader.close()
    return found
