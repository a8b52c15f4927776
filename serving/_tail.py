"""The change topics as the live stream reads them: one consumer at the end for everybody, a few that fetch what lies further back.

The tail keeps its newest records in a ring. A client inside the ring costs no thread and no queue, just its place; one that is behind
the ring is brought forward slice by slice by one of a few shared consumers. So memory is bounded whatever clients do.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from zlib import crc32

import orjson
from caudal.schemas.codec import Codec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from caudal import kafka
from caudal.errors import BrokerUnavailable, CaudalError, LogTruncated, UndecodableRecord
from caudal.settings import KafkaSettings
from caudal.telemetry import Log, Seldom, logger

__all__ = ["TOPICS", "Place", "Record", "Tail"]

TOPICS = (kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS)

RING_RECORDS = 10_000
RING_BYTES = 32 * 1024 * 1024
SLICE_RECORDS = 500
RETRY_S = 0.2
FETCHERS = 4
"""Consumers that fetch what lies behind the ring; more clients than that take turns."""

Place = tuple[str, int]
"""Topic (without the prefix) and partition."""

Offsets = dict[Place, int]
"""Next offset per place."""

_BOUNDS = {"queued.min.messages": 1000, "queued.max.messages.kbytes": 8192, "fetch.max.bytes": 4 * 1024 * 1024}


class Record:
    """One message of a change topic. It is decoded when the first client wants it, and once."""

    __slots__ = ("_value", "head", "json", "key", "offset", "place", "segment", "size")

    def __init__(self, place: Place, offset: int, key: str, value: bytes | None) -> None:
        self.place = place
        self.offset = offset
        self.key = key
        self._value = value
        self.size = 3 * len(value or b"") + 300  # as JSON it takes about three times as much
        self.segment: str | None = None
        self.json: bytes | None = None
        """The value on one line; for a tombstone its key and a null value; empty when it can't be decoded. None until `decode`."""
        self.head: bytes | None = None
        """The rendered lines before the data, for clients whose position after the record is the tail's."""

    def decode(self, codec: Codec) -> None:
        """Fill in `json` and `segment`."""
        if self.json is not None:
            return
        if self._value is None:
            self.json = orjson.dumps({"customer_id": self.key, "value": None})
            return
        try:
            data = codec.decode(self._value)[1]
        except UndecodableRecord as exc:
            topic, partition = self.place
            logger().warning(
                Log.STREAM_RECORD_SKIPPED, topic=topic, partition=partition, offset=self.offset, code=exc.code
            )
            self.json = b""
        else:
            self.segment = data.get("segment")
            # copied: what orjson gives keeps the whole buffer it was written in, several times its length
            self.json = bytes(memoryview(orjson.dumps(data)))
        self._value = None

    def schema(self) -> bytes:
        """What tells values of one writer schema from those of another: the wire format's first five bytes."""
        return (self._value or b"")[:5]


class Tail:
    """Follows the end of the change topics while there are clients. All state is touched by the event loop only."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self._settings = settings
        self.codec = codec
        self.records: deque[Record] = deque()
        self.first = 0
        """Sequence number of the ring's oldest record."""
        self.floor: Offsets = {}
        """Offsets just before the ring's oldest record."""
        self.head: Offsets = {}
        """Offsets just after the ring's newest record."""
        self.marks: dict[int, int] = {}
        """Of each topic by its place in `TOPICS` a hash of Kafka's own id of it: offsets count in that one."""
        self.failed: CaudalError | None = None
        self._bytes = 0
        self._changed = asyncio.Event()
        self._paused = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(FETCHERS, "caudal-stream-fetch")
        self._idle: SimpleQueue[Consumer] = SimpleQueue()
        self._fetchers: list[Consumer] = []
        self._starting = asyncio.Lock()
        self._told = Seldom()

    @property
    def next(self) -> int:
        """Sequence number of the record to come."""
        return self.first + len(self.records)

    async def ensure_running(self) -> None:
        """Follow the end, if that isn't done already. After a break the ring is empty and begins at the end as it is now.

        Raises:
            BrokerUnavailable: Kafka can't be reached, or the change topics don't exist yet.
        """
        async with self._starting:
            if self._thread is not None and self._thread.is_alive() and not self._paused.is_set():
                return
            loop = asyncio.get_running_loop()
            if self._thread is not None:
                await loop.run_in_executor(None, self._thread.join)
            ends, ids = await loop.run_in_executor(None, self._extents)
            of = [ids[kafka.topic(self._settings, topic)] for topic in TOPICS]
            self.marks = {number: crc32(id_.encode()) for number, id_ in enumerate(of)}
            self.first = (
                self.next
            )  # sequence numbers go on, so that a reader of the old ring sees that it has lost its place
            self.records.clear()
            self._bytes = 0
            self.failed = None
            self.floor, self.head = dict(ends), dict(ends)
            self._paused = threading.Event()
            self._thread = threading.Thread(
                target=self._follow, args=(loop, self._paused, dict(ends), ids), name="caudal-stream", daemon=True
            )
            self._thread.start()

    def pause(self) -> None:
        """Stop following until `ensure_running`."""
        self._paused.set()

    async def stop(self) -> None:
        """Leave the brokers for good; streams must be closed before."""
        self._paused.set()
        self._stopped.set()
        loop = asyncio.get_running_loop()
        if self._thread is not None:
            await loop.run_in_executor(None, self._thread.join, 5)
        await loop.run_in_executor(None, self._pool.shutdown)
        for consumer in self._fetchers:
            await loop.run_in_executor(None, consumer.close)

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Return when the ring has a record after `seen`, the tail fails, somebody called `wake`, or the time is over."""
        changed = self._changed
        if self.next > seen or self.failed:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass

    def wake(self) -> None:
        """Let everyone who waits look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def ends(self) -> Offsets:
        """Where the topics end now, asked from the brokers.

        Raises:
            BrokerUnavailable: Kafka can't be reached.
        """
        return await asyncio.get_running_loop().run_in_executor(None, self._ends)

    async def fetch(self, start: Offsets, topics: Iterable[str]) -> tuple[list[Record], Offsets]:
        """The next records after `start`, at most a slice, up to where the tail stands; and the position after them.

        Raises:
            BrokerUnavailable: nothing came for a while.
        """
        wanted = set(topics)
        goal = {place: end for place, end in self.head.items() if place[0] in wanted and start[place] < end}
        if not goal:
            return [], start
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._slice, start, goal)

    # what follows runs in threads

    def _ends(self) -> Offsets:
        return self._extents()[0]

    def _extents(self) -> tuple[Offsets, dict[str, str]]:
        """Where the topics end now, and Kafka's own ids of them by full name."""
        names = {kafka.topic(self._settings, topic): topic for topic in TOPICS}
        found = kafka.extents(self._settings, names)
        if len(found) < len(names):
            raise BrokerUnavailable("the change topics don't exist yet", hint="a worker makes them")
        ends = {
            (names[full], partition): end for full, extent in found.items() for partition, end in extent.ends.items()
        }
        return ends, {full: extent.id for full, extent in found.items()}

    def _partitions(self, offsets: Mapping[Place, int]) -> list[TopicPartition]:
        return [TopicPartition(kafka.topic(self._settings, t), p, offset) for (t, p), offset in offsets.items()]

    def _place(self, message: Message) -> tuple[Place, int]:
        """Where a message, or the error about a partition, stands."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        return (topic.removeprefix(self._settings.topic_prefix), partition), offset or 0

    def _record(self, message: Message) -> Record:
        place, offset = self._place(message)
        key = message.key()
        return Record(place, offset, key.decode(errors="replace") if key else "", message.value())

    def _follow(
        self, loop: asyncio.AbstractEventLoop, paused: threading.Event, offsets: Offsets, ids: Mapping[str, str]
    ) -> None:
        consumer = kafka.consumer(self._settings, kafka.topic(self._settings, "caudal-stream"), **_BOUNDS)
        watch = kafka.Watch(self._settings)
        warmed: set[bytes] = set()
        failed: CaudalError | None = None
        try:
            consumer.assign(self._partitions(offsets))
            while not paused.is_set():
                if watch.replaced(ids):
                    raise LogTruncated("a change topic was deleted and made again")
                # poll returns with the first message at once; consume then takes what is there already and never lingers
                first = consumer.poll(0.2)
                if first is None:
                    continue
                records = []
                for message in (first, *consumer.consume(SLICE_RECORDS, 0)):
                    if (error := message.error()) is not None:
                        if self._lost(error):
                            consumer.assign(self._partitions(offsets))
                            break  # what came with it is read again
                        continue
                    record = self._record(message)
                    offsets[record.place] = record.offset + 1
                    schema = record.schema()
                    if schema not in warmed:
                        record.decode(self.codec)  # a schema not seen yet is fetched here, never on the event loop
                        warmed.add(schema)
                    records.append(record)
                taken = threading.Event()
                loop.call_soon_threadsafe(self._append, records, taken)
                while not taken.wait(0.5) and not paused.is_set():
                    pass
        except CaudalError as exc:
            failed = exc
        except KafkaException as exc:
            failed = kafka.translate_error(exc)
        finally:
            consumer.close()
            if not paused.is_set():
                loop.call_soon_threadsafe(self._fail, failed or BrokerUnavailable("the stream's consumer stopped"))

    def _lost(self, error: KafkaError) -> bool:
        """Whether reading must begin again: the broker doesn't know a topic that is there, as happens just after it was made.

        Librdkafka gets over most errors by itself; one that it doesn't ends the tail, and the next client starts another.
        """
        gone = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
        if error.fatal() or error.code() in gone:
            raise KafkaException(error)
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            return False
        self._ends()  # raises when the topic is really gone
        self._stopped.wait(RETRY_S)
        return True

    def _slice(self, start: Offsets, goal: Offsets) -> tuple[list[Record], Offsets]:
        consumer = self._idle.get() if not self._idle.empty() else self._fetcher()
        after, left, records = dict(start), set(goal), list[Record]()
        silent = 0
        try:
            consumer.assign(self._partitions({place: start[place] for place in goal}))
            while left and len(records) < SLICE_RECORDS and not self._stopped.is_set():
                message = consumer.poll(0.5)
                if message is None:
                    silent += 1
                elif message.error() is None:
                    silent = 0
                if silent == 10:
                    raise BrokerUnavailable("Kafka doesn't answer")
                if message is None:
                    continue
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        place, end = self._place(message)
                        after[place] = max(after[place], end)
                        left.discard(place)
                    elif self._lost(error):
                        silent += 1
                        consumer.assign(self._partitions({place: after[place] for place in left}))
                    continue
                record = self._record(message)
                record.decode(self.codec)
                records.append(record)
                after[record.place] = record.offset + 1
                if after[record.place] >= goal[record.place]:
                    left.discard(record.place)
        except KafkaException as exc:
            raise kafka.translate_error(exc) from exc
        finally:
            consumer.unassign()
            self._idle.put(consumer)
        return records, after

    def _fetcher(self) -> Consumer:
        # auto.offset.reset is earliest: where compaction or retention took the beginning, reading starts at what is left
        consumer = kafka.consumer(
            self._settings,
            kafka.topic(self._settings, "caudal-stream"),
            **_BOUNDS,
            **{"enable.partition.eof": True, "auto.offset.reset": "earliest"},
        )
        self._fetchers.append(consumer)
        return consumer

    # back on the event loop

    def _append(self, records: list[Record], taken: threading.Event) -> None:
        for record in records:
            self.head[record.place] = record.offset + 1
            self.records.append(record)
            self._bytes += record.size
        while len(self.records) > RING_RECORDS or self._bytes > RING_BYTES:
            gone = self.records.popleft()
            self._bytes -= gone.size
            self.floor[gone.place] = gone.offset + 1
            self.first += 1
        taken.set()
        self.wake()

    def _fail(self, error: CaudalError) -> None:
        self.failed = error
        self._told.warning(Log.SERVER_UNREACHABLE, server="kafka", code=error.code)
        self.wake()
