"""Feeds an agent with micro-batches: librdkafka reads in a thread of its own, and PostgreSQL says where to begin.

There is no lingering: as soon as the step can take a batch, it gets whatever is waiting, so batches size themselves. At most
`DEPTH` batches are under way, one being applied while the next is prepared; after a small one the next is taken only when that one is
done, for whatever arrives meanwhile costs least in the same batch. Each carries the generation of the assignment that it
was read under and its number in it; the generation moves with every rebalance, so that what is stale is dropped, and a number
that is missing means that a batch was lost on the way, and reading begins again at what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from mode import Service

from caudal import kafka
from caudal.errors import BadSettings, Fatal, LogTruncated, LostPartition, Retryable
from caudal.settings import Settings
from caudal.telemetry import LAG, Log, Seldom, logger

__all__ = ["Feed", "Pump", "Stage"]

DEPTH = 2
SMALL = 100
"""A batch of fewer messages costs little more than one of a single message, and takes a few milliseconds to prepare."""
IDLE_S = 0.2
LAG_S = 1.0
HELD_S = 3.0
"""How often a log that doesn't fit what was read of it is looked at again."""
HOLD_AFTER_S = 30.0
"""A step that is stuck this long has the consumer paused and polled, so that the group doesn't give it up (after 5 minutes)."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0

Partition = tuple[str, int]
B = TypeVar("B")


class Stage(Protocol[B]):
    """A step of the live path. `prepare` may run beside anything else; the other methods never run at the same time."""

    ids: dict[str, str]
    """Kafka's own ids of the topics that `positions` spoke of; when one has another, reading begins anew."""

    def assigned(self, partitions: Sequence[Partition]) -> None:
        """The partitions are given to this worker by the group; `positions` follows, and again whenever reading begins anew."""
        ...

    def positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Take the partitions over, all there are now; where to start each one that was read before.

        Raises:
            LogTruncated: nobody may go on until a human says how; asked again now and then.
        """
        ...

    def prepare(self, messages: Sequence[Message]) -> B:
        """Messages made ready to be applied; touches no database."""
        ...

    def apply(self, batch: B) -> None:
        """Do it, and store how far it is done."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """The partitions go to someone else."""
        ...

    def idle(self) -> None:
        """Nothing has arrived for a moment."""
        ...

    def close(self) -> None:
        """Let go of the servers."""
        ...


@dataclass(frozen=True, slots=True)
class Feed(Generic[B]):
    """A batch on its way to the agent."""

    generation: int
    number: int
    batch: B


class Pump(Service, Generic[B]):
    """Reads topics for one stage and hands batches to `deliver`; whoever gets them calls `run` with each, in a thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        topic: Callable[[], str],
        stage: Stage[B],
        deliver: Callable[[Feed[B]], Awaitable[Any]],
        batch_max: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        """A pump for the consumer group `name`.

        Args:
            settings: Kafka's and the worker's are used.
            name: of the step; the group is called so, after the prefix.
            topic: gives the full name of what is read, or a pattern that begins with `^`; asked whenever reading begins.
            stage: what is done with the messages.
            deliver: gets each batch, on the event loop.
            batch_max: most messages of a batch.
            failed: told of errors that only a human can mend, on the event loop.
        """
        super().__init__()
        self.name = name
        self._settings = settings
        self._topic = topic
        self._stage = stage
        self._deliver = deliver
        self._batch_max = batch_max
        self._failed = failed
        self._applying = threading.Lock()
        self._changed = threading.Condition()
        self._generation = 0
        self._delivered = 0
        self._applied = 0
        self._depth = 1
        """How many batches may be under way."""
        self._attached = False
        self._restart = False
        self._reopen = False
        self._paused = False
        self._at_work = False
        self._stopping = False
        self._unrecoverable: KafkaError | None = None
        self._measured = 0.0
        self._assigned: list[Partition] = []
        self._told = Seldom()
        self._reading: asyncio.Future[None] | None = None

    async def on_start(self) -> None:
        """Begin to read once the agent is attached."""
        self._event_loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}-pump")
        self._reading = self._event_loop.run_in_executor(self._thread, self._read_until_stopped)

    async def on_stop(self) -> None:
        """Finish the batch that is being applied, drop the others, leave the group."""
        self._stopping = True
        self._notify()
        if self._reading is not None:  # else something else failed before this was started
            await self._reading
            self._thread.shutdown()

    def attach(self) -> None:
        """The agent listens from now on; what was on its way to an earlier one is read again."""
        with self._changed:
            self._attached = self._restart = True
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on."""
        if paused != self._paused:
            self._paused = paused
            self._notify()

    def reopen(self) -> None:
        """Ask again which topic is to be read; what is under way is dropped."""
        self._reopen = True
        self._notify()

    def run(self, feed: Feed[B]) -> None:
        """Apply a batch, again and again while the error is one that passes. A stale batch is dropped.

        Raises:
            Fatal: a human is needed.
        """
        self._at_work = True
        try:
            self._run(feed)
        finally:
            self._at_work = False

    def _run(self, feed: Feed[B]) -> None:
        wait_s = BACKOFF_FIRST_S
        while not self._stopping:
            with self._applying:
                if feed.generation != self._generation:
                    return
                if feed.number != self._applied:
                    self._begin_again()
                    return
                try:
                    self._stage.apply(feed.batch)
                except LostPartition as exc:
                    self._told.warning(Log.BATCH_RETRIED, step=self.name, code=exc.code)
                    self._begin_again()
                    return
                except Retryable as exc:
                    self._told.warning(Log.BATCH_RETRIED, step=self.name, code=exc.code, wait_s=wait_s)
                except BaseException:
                    self._begin_again()
                    raise
                else:
                    with self._changed:
                        self._applied += 1
                        self._changed.notify_all()
                    return
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or feed.generation != self._generation, wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MOST_S)

    def _read_until_stopped(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._attached or self._stopping)
        wait_s = BACKOFF_FIRST_S
        while not self._stopping:
            began = time.monotonic()
            try:
                self._read()
            except LogTruncated:  # told by the stage
                wait_s = HELD_S
            except Retryable as exc:
                self._told.warning(Log.PROCESS_RESTARTED, step=self.name, code=exc.code, wait_s=wait_s)
            except Exception as exc:
                self._event_loop.call_soon_threadsafe(self._failed, exc)
                return
            if time.monotonic() - began > HOLD_AFTER_S:
                wait_s = BACKOFF_FIRST_S
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MOST_S)

    def _read(self) -> None:
        """Read with one consumer until stopped."""
        self._reopen = False
        topic = self._topic()
        session_ms = self._settings.worker.session_timeout_ms
        consumer = kafka.consumer(
            self._settings.kafka,
            kafka.topic(self._settings.kafka, f"caudal.{self.name}"),
            **{
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": max(session_ms // 4, 200),
                "partition.assignment.strategy": "roundrobin",
                "topic.metadata.refresh.interval.ms": 1000,  # so soon a new source is seen
                "queued.max.messages.kbytes": 32 * 1024,  # bounds the memory of a backlog
                "fetch.queue.backoff.ms": 10,  # the default of a second would starve a fast reader of a backlog
                "error_cb": self._on_error,
            },
        )
        watch = kafka.Watch(self._settings.kafka)
        try:
            consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
            while not self._stopping and not self._reopen:
                if self._unrecoverable is not None:
                    raise kafka.translate_error(KafkaException(self._unrecoverable))
                self._measure_lag(consumer)
                if watch.replaced(self._stage.ids):
                    self._restart = True
                if self._restart:
                    self._begin_at_stored(consumer, self._assigned)
                elif self._paused or not self._room():
                    self._hold(consumer)
                else:
                    self._take(consumer)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        finally:
            with self._applying:
                self._drop_feeds()
                self._assigned = []
            consumer.close()

    def _take(self, consumer: Consumer) -> None:
        """Take what is waiting, prepare and deliver it."""
        generation = self._generation
        if self._restart:
            return  # the generation is the next one's already, the consumer's place is not
        found = consumer.consume(1, IDLE_S)
        if not found:
            self._idle()
            return
        if self._batch_max > 1:
            found += consumer.consume(self._batch_max - 1, 0)
        if generation != self._generation:
            # reassigned in between: some of these may have been read under the old assignment
            self._restart = True
            return
        messages = [message for message in found if message.error() is None or self._raise_error(message.error())]
        if not messages or self._restart:
            return
        feed = Feed(generation, self._delivered, self._stage.prepare(messages))
        self._delivered += 1
        self._depth = 1 if len(messages) < SMALL else DEPTH
        asyncio.run_coroutine_threadsafe(self._hand_over(feed), self._event_loop)

    async def _hand_over(self, feed: Feed[B]) -> None:
        await self._deliver(feed)

    def _room(self) -> bool:
        """Wait until another batch may be under way; False when that takes too long or something else is to be done."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._full or self._restart or self._paused or self._stopping,
                HOLD_AFTER_S,
            )
            if self._full and not self._at_work:
                self._restart = True  # nobody has what was delivered
            return not self._full or self._restart or self._stopping

    @property
    def _full(self) -> bool:
        """Whether as many batches are under way as may be."""
        return self._delivered - self._applied >= self._depth

    def _hold(self, consumer: Consumer) -> None:
        """Read nothing while paused or stuck, but stay in the group. Reading begins again at what is stored."""
        while not (self._stopping or self._restart or self._reopen) and (self._paused or self._full):
            consumer.pause(consumer.assignment())
            consumer.poll(IDLE_S)  # what slips through here is read again
            if self._unrecoverable is not None:
                return
        self._restart = True

    def _idle(self) -> None:
        # never beside apply: that one is not idle
        if self._delivered == self._applied and self._applying.acquire(blocking=False):
            try:
                self._stage.idle()
            except Retryable as exc:
                self._told.warning(Log.BATCH_RETRIED, step=self.name, code=exc.code, wait_s=IDLE_S)
            finally:
                self._applying.release()

    def _measure_lag(self, consumer: Consumer) -> None:
        """Set the lag metric of what this worker reads. In the reading thread: confluent-kafka 2.16 hangs when another one asks."""
        if time.monotonic() - self._measured < LAG_S:
            return
        self._measured = time.monotonic()
        for at in consumer.position([TopicPartition(*partition) for partition in self._assigned]):
            _, high = consumer.get_watermark_offsets(at, cached=True) or (0, -1)
            if high >= 0 and at.offset >= 0:
                LAG.labels(at.topic, at.partition).set(high - at.offset)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        logger().info(Log.PARTITIONS_ASSIGNED, step=self.name, partitions=len(partitions))
        with self._applying:
            self._stage.assigned([(p.topic, p.partition) for p in partitions])
        self._begin_at_stored(consumer, [(p.topic, p.partition) for p in partitions])

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        with self._applying:
            self._drop_feeds()
            for topic, partition in self._assigned:
                with contextlib.suppress(KeyError):  # never measured
                    LAG.remove(topic, partition)
            self._assigned = []
            self._stage.revoked([(p.topic, p.partition) for p in partitions])
        logger().info(Log.PARTITIONS_REVOKED, step=self.name, partitions=len(partitions))

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._unrecoverable = error
        else:
            kafka.tell_error(error)

    def _raise_error(self, error: KafkaError | None) -> bool:
        """Raise what no waiting helps against; the rest librdkafka tries again by itself.

        An offset that the log doesn't hold is judged by the stage, which is asked again where to read.
        """
        assert error is not None
        if error.code() in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            self._restart = True
            return False
        if error.code() == KafkaError.INVALID_SESSION_TIMEOUT:
            raise BadSettings(
                f"Kafka takes no session of {self._settings.worker.session_timeout_ms} ms",
                hint="CAUDAL_WORKER__SESSION_TIMEOUT_MS; the brokers' group.min.session.timeout.ms is the least",
            )
        refused = {
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.SASL_AUTHENTICATION_FAILED,
        }
        if error.fatal() or error.code() in refused:
            raise Fatal(f"Kafka refused: {error.str()}")
        return False

    def _begin_at_stored(self, consumer: Consumer, partitions: list[Partition]) -> None:
        with self._applying:
            self._drop_feeds()
            self._restart = False
            stored = self._stage.positions(partitions) if partitions else {}
            self._assigned = partitions
            consumer.assign([TopicPartition(*p, stored.get(p, OFFSET_BEGINNING)) for p in partitions])
            consumer.resume(consumer.assignment())  # after a hold

    def _begin_again(self) -> None:
        self._restart = True  # before the generation moves: see _take
        self._drop_feeds()

    def _drop_feeds(self) -> None:
        """Whatever is under way is of no use any more."""
        with self._changed:
            self._generation += 1
            self._delivered = self._applied = 0
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
