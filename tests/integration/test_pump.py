"""The pump on real Kafka, with a step that only remembers what it got."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from caudal.processors._pump import Feed, Pump
from confluent_kafka import Message

from caudal import kafka
from caudal.errors import DatabaseUnavailable, Fatal, LostPartition
from caudal.settings import Settings


class Step:
    """Remembers messages, and where it stands, as a database would."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int], int] = {}
        self.done: list[bytes] = []
        self.faults: list[Exception] = []
        self.ids: dict[str, str] = {}
        self.taken_over = 0
        self.idled = 0

    def assigned(self, partitions: Sequence[tuple[str, int]]) -> None:
        pass

    def positions(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        self.taken_over += 1
        return {partition: self.stored[partition] for partition in partitions if partition in self.stored}

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages)

    def apply(self, batch: list[Message]) -> None:
        if self.faults:
            raise self.faults.pop()
        for message in batch:
            place = message.topic(), message.partition()
            assert message.offset() == self.stored.get(place, 0), "a gap or a repeat"
            self.stored[place] = message.offset() + 1
            self.done.append(message.value())

    def revoked(self, partitions: Sequence[tuple[str, int]]) -> None: ...

    def idle(self) -> None:
        self.idled += 1

    def close(self) -> None: ...


@asynccontextmanager
async def pumping(
    settings: Settings, step: Step, lose: Callable[[Feed[Any]], bool] = lambda _feed: False
) -> AsyncIterator[tuple[Pump[Any], list[BaseException]]]:
    failures: list[BaseException] = []
    thread = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()

    def work(feed: Feed[Any]) -> None:
        try:
            pump.run(feed)
        except Exception as exc:
            failures.append(exc)

    async def deliver(feed: Feed[Any]) -> None:
        if not lose(feed):
            loop.run_in_executor(thread, work, feed)

    pump = Pump[Any](
        settings,
        name="test",
        topic=lambda: kafka.topic(settings.kafka, kafka.CHANGES),
        stage=step,
        deliver=deliver,
        batch_max=7,
        failed=failures.append,
    )
    await pump.start()
    pump.attach()
    yield pump, failures
    await pump.stop()
    thread.shutdown()


def produce(settings: Settings, first: int, last: int) -> set[bytes]:
    producer = kafka.producer(settings.kafka)
    values = {str(n).encode() for n in range(first, last)}
    for value in values:
        producer.produce(kafka.topic(settings.kafka, kafka.CHANGES), value, value)
    producer.flush()
    return values


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not holds():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.05)


async def test_everything_is_applied_once_in_order_and_then_the_step_is_idle(settings):
    step = Step()
    values = produce(settings, 0, 200)
    async with pumping(settings, step) as (_, failures):
        await until(lambda: len(step.done) == 200)
        await until(lambda: step.idled > 2)
        values |= produce(settings, 200, 210)
        await until(lambda: len(step.done) == 210)
    assert set(step.done) == values
    assert failures == []


async def test_while_a_small_batch_is_applied_what_arrives_gathers_for_the_next(settings, monkeypatch):
    step = Step()
    prepared: list[int] = []
    applied: list[int] = []
    ahead: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def prepare(messages: Sequence[Message]) -> list[Message]:
        prepared.append(len(messages))
        return list(messages)

    def apply(batch: list[Message]) -> None:
        applied.append(len(batch))
        begun.set()
        assert go_on.wait(90)
        ahead.append(len(prepared) - len(applied))
        Step.apply(step, batch)

    monkeypatch.setattr(step, "prepare", prepare)
    monkeypatch.setattr(step, "apply", apply)
    produce(settings, 0, 1)
    async with pumping(settings, step) as (_, failures):
        await until(begun.is_set)
        for number in range(1, 5):
            produce(settings, number, number + 1)
        go_on.set()
        await until(lambda: len(step.done) == 5)
    assert set(ahead) == {0}
    assert failures == []


async def test_an_error_that_passes_has_the_same_batch_applied_again(settings):
    step = Step()
    step.faults = [DatabaseUnavailable("once"), DatabaseUnavailable("twice")]
    values = produce(settings, 0, 50)
    async with pumping(settings, step) as (_, failures):
        await until(lambda: len(step.done) == 50)
    assert set(step.done) == values
    assert failures == []


async def test_a_lost_partition_and_a_broken_step_begin_again_at_what_is_stored(settings, monkeypatch):
    step = Step()
    step.faults = [RuntimeError("a bug"), LostPartition("another has it")] * 4
    values = produce(settings, 0, 50)
    drop = Pump._drop_feeds

    def drop_and_dawdle(pump: Pump[Any]) -> None:
        drop(pump)
        time.sleep(0.1)  # as a thread does that the machine has no time for: the other one goes on

    monkeypatch.setattr(Pump, "_drop_feeds", drop_and_dawdle)
    async with pumping(settings, step) as (_, failures):
        await until(lambda: len(step.done) == 50)
    assert set(step.done) == values
    assert {type(exc) for exc in failures} == {RuntimeError}, "the agent hears of what it does not expect"
    assert step.taken_over >= 3


async def test_a_batch_that_never_arrives_is_read_again(settings):
    step = Step()
    values = produce(settings, 0, 50)
    lost: list[Feed[Any]] = []

    def lose(feed: Feed[Any]) -> bool:
        if feed.number == 2 and not lost:
            lost.append(feed)
            return True
        return False

    async with pumping(settings, step, lose):
        await until(lambda: len(step.done) == 50)
    assert lost
    assert set(step.done) == values


async def test_a_paused_pump_reads_nothing_and_misses_nothing(settings):
    step = Step()
    async with pumping(settings, step) as (pump, _):
        values = produce(settings, 0, 20)
        await until(lambda: len(step.done) == 20)
        pump.pause(True)
        await asyncio.sleep(1)
        values |= produce(settings, 20, 40)
        await asyncio.sleep(2)
        assert len(step.done) == 20
        pump.pause(False)
        await until(lambda: len(step.done) == 40)
    assert set(step.done) == values


async def test_an_error_for_a_human_is_told(settings):
    step = Step()
    step.faults = [Fatal("stop")]
    produce(settings, 0, 5)
    async with pumping(settings, step) as (_, failures):
        await until(lambda: bool(failures))
    assert isinstance(failures[0], Fatal)


async def test_a_broker_that_refuses_the_client_is_told(settings):
    refused = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"options": {"security.protocol": "nonsense"}})}
    )
    async with pumping(refused, Step()) as (_, failures):
        await until(lambda: bool(failures))
    assert failures
