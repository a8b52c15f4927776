"""Where the time of a delivery goes: sent → captured → translated → row visible → published → pushed to a listener.

At a rate so low that nothing waits for what came before, a hop takes what its batch of one takes; at a higher one also the wait for the
processors. The times are those that Kafka's messages (whole milliseconds) and the row's commit carry; the clocks are one machine's.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from caudal.schemas.codec import Codec, Registry
from confluent_kafka import TopicPartition

from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from benchmarks.latency import Delivering, percentile
from caudal import kafka

__all__ = ["measure"]

RATES = (5, 50, 250)
SECONDS = 6
HOPS = ("capture", "translate", "project", "publish", "push")


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`hop_<name>_p50_ms` and `hop_<name>_p99_ms` at each `rate`, and `hop_all_…` from sent to pushed."""
    with stage() as one:
        return asyncio.run(_measured(one, runs, SECONDS * scale))


async def _measured(one: Stage, runs: int, seconds: float) -> list[dict[str, Any]]:
    delivering = Delivering(one)
    listener = await delivering.listen()
    try:
        for rate in RATES:
            for run in range(runs):
                await delivering.run(f"hop{rate}x{run}", rate, seconds, patient=True)
    finally:
        listener.cancel()
    marks = _marks(one, delivering)
    figures = []
    for rate in RATES:
        of_runs = [
            list(zip(*[at for name, at in marks.items() if name.startswith(f"hop{rate}x{run}-")], strict=True))
            for run in range(runs)
        ]
        for number, hop in enumerate((*HOPS, "all")):
            first, last = (number, number + 1) if number < len(HOPS) else (0, len(HOPS))
            took = [[b - a for a, b in zip(run[first], run[last], strict=True)] for run in of_runs]
            figures += [
                figure(f"hop_{hop}_p{p}_ms", "ms", [percentile(each, p) for each in took]) | {"rate": rate}
                for p in (50, 99)
            ]
    return figures


def _marks(one: Stage, delivering: Delivering) -> dict[str, tuple[float, ...]]:
    """Of each delivery when it was sent, captured, translated, visible, published and pushed, in milliseconds."""
    epoch = time.time() - time.perf_counter()
    captured = {orjson.loads(row["body"])["first_name"]: at for at, row in _read(one, "capture.shop")}
    translated = {row["given_name"]: at for at, row in _read(one, kafka.CHANGES) if "given_name" in row}
    published = {row["given_name"]: at for at, row in _read(one, kafka.PROFILES)}
    visible = dict(
        one.conn.execute(
            "SELECT given_name, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 * 1000 FROM live.profiles"
        ).fetchall()
    )
    return {
        name: (
            1000 * (sent + epoch), captured[name], translated[name], visible[name], published[name],
            1000 * (delivering.received[name] + epoch),
        )
        for name, sent in delivering.sent.items()
    }  # fmt: skip


def _read(one: Stage, topic: str) -> list[tuple[float, dict[str, Any]]]:
    """When each record of a topic was produced, and the record."""
    name = kafka.topic(one.settings.kafka, topic)
    registry = Registry(one.settings)
    codec = Codec(registry)
    consumer = kafka.consumer(one.settings.kafka, "benchmark")
    ends = kafka.end_offsets(one.settings.kafka, [name])[name]
    left = {partition: end for partition, end in ends.items() if end}
    consumer.assign([TopicPartition(name, partition, 0) for partition in left])
    found = []
    until = time.monotonic() + 60
    while left:
        if time.monotonic() > until:
            raise TimeoutError(f"{name} could not be read within 60 s")
        for message in consumer.consume(5_000, 0.2):
            partition, offset, value = message.partition() or 0, message.offset() or 0, message.value()
            if value:
                found.append((float(message.timestamp()[1]), codec.decode(value)[1]))
            if offset + 1 >= left.get(partition, 0):
                left.pop(partition, None)
    consumer.close()
    registry.close()
    return found
