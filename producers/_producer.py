"""librdkafka for asyncio: send a message, await its position in the log.

Delivery reports are collected by one thread and handed to the event loop in one call per poll, so the cost of crossing threads is
shared by all messages that were acknowledged together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from caudal import kafka
from caudal.errors import BrokerUnavailable, CaudalError, Fatal
from caudal.settings import KafkaSettings

__all__ = ["AsyncProducer", "MessageTooLarge", "Position"]

Position = tuple[int, int]
"""Partition and offset of a stored message."""

QUEUE_KB = 64 * 1024
"""Memory for messages that wait for the broker. At 2 KB each this is 6 s of 5,000 a second, longer than anyone waits."""

LEAST_BATCH_BYTES = 1_000
LINGER_MS = 2
"""A request to the broker costs as much as ten messages do; at 5,000 a second this puts ten into one."""

SWEEP_S = 0.05
POLL_S = 0.1


class MessageTooLarge(Fatal):
    """The broker takes no message of this size."""

    code = "message_too_large"


class _Report:
    """The delivery report of one message; librdkafka calls it in the poll thread."""

    __slots__ = ("collected", "future", "size")

    def __init__(
        self, future: asyncio.Future[Position], size: int, collected: list[tuple[asyncio.Future[Position], int, Any]]
    ) -> None:
        self.future = future
        self.size = size
        self.collected = collected

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self.collected.append((self.future, self.size, error or (message.partition(), message.offset())))


class AsyncProducer:
    """One idempotent producer, `acks=all`, bound to the running event loop.

    Args:
        settings: brokers and librdkafka options.
        timeout_s: how long `send` waits for the broker. librdkafka gives up at the same time, so that an outage leaves no queue of messages
            whose senders have long been told to come again.
    """

    def __init__(self, settings: KafkaSettings, *, timeout_s: float) -> None:
        self._settings = settings
        self._batch_bytes = kafka.BATCH_BYTES
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, asyncio.Future[Position]]] = deque()
        self._collected: list[tuple[asyncio.Future[Position], int, Any]] = []
        self._producer = self._connect()
        self._broken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self._thread.start()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def renew(self, batch_bytes: int) -> None:
        """Have the next message taken by another producer, which knows nothing of the topics that there were and fills no batch that is
        larger than so many bytes.
        """
        self._batch_bytes, self._broken = batch_bytes, True

    def send(self, topic: str, partition: int, key: bytes, value: bytes) -> asyncio.Future[Position]:
        """Queue a message; the future ends when all in-sync replicas have it, or as `BrokerUnavailable` or `MessageTooLarge`.

        Raises:
            BrokerUnavailable: the queue is full.
            MessageTooLarge: larger than any topic takes.
        """
        if self._broken:
            # A fatal error ends an idempotent producer for good (its sequence is lost); the next one starts a sequence of its own
            self._producer, self._broken = self._connect(), False
        future: asyncio.Future[Position] = self._loop.create_future()
        try:
            self._producer.produce(
                topic, value, key, partition, on_delivery=_Report(future, len(value), self._collected)
            )
        except BufferError:
            raise BrokerUnavailable("the queue to Kafka is full") from None
        except KafkaException as exc:
            raise self._failed(exc.args[0], len(value)) from exc
        self._waiting.append((self._loop.time() + self._timeout_s, future))
        return future

    async def close(self) -> None:
        """Wait for what is under way, no longer than the timeout, and stop."""
        await asyncio.gather(*(future for _, future in self._waiting), return_exceptions=True)
        self._sweeper.cancel()
        self._stopping = True
        await asyncio.to_thread(self._thread.join)

    def _connect(self) -> Any:
        return kafka.producer(
            self._settings,
            **{
                "batch.size": self._batch_bytes,
                "linger.ms": LINGER_MS,
                "message.timeout.ms": max(1, round(self._timeout_s * 1000)),
                "queue.buffering.max.kbytes": QUEUE_KB,
                "queue.buffering.max.messages": 100_000,
            },
        )

    def _poll(self) -> None:
        while not self._stopping:
            self._producer.poll(POLL_S)
            if self._collected:
                # the callbacks hold this very list, so it is emptied in place
                batch = self._collected[:]
                self._collected.clear()
                self._loop.call_soon_threadsafe(self._resolve, batch)

    def _resolve(self, batch: list[tuple[asyncio.Future[Position], int, Any]]) -> None:
        for future, size, outcome in batch:
            if isinstance(outcome, KafkaError):
                failure = self._failed(outcome, size)
                if not future.done():
                    future.set_exception(failure)
            elif not future.done():
                future.set_result(outcome)

    def _sweep(self) -> None:
        """Time out what has waited too long. All wait equally long, so the oldest stand in front."""
        now = self._loop.time()
        waiting = self._waiting
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now):
            future = waiting.popleft()[1]
            if not future.done():
                future.set_exception(BrokerUnavailable("Kafka did not acknowledge in time"))
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _failed(self, error: KafkaError, size: int) -> CaudalError:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            if size < self._batch_bytes // 2:
                # it shared a batch that was larger than the topic takes; sent again it is in another, and at last alone
                self.renew(max(self._batch_bytes // 2, LEAST_BATCH_BYTES))
                return BrokerUnavailable("Kafka did not take the messages of a moment together")
            return MessageTooLarge("Kafka takes no message of this size", hint="max.message.bytes of the topic")
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._broken = True
        return BrokerUnavailable(f"Kafka did not take the message: {error.name()}")
