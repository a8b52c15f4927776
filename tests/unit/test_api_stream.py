"""The live stream's bookkeeping, without Kafka: whatever the ring holds and wherever a client stopped, it gets each record once."""

from __future__ import annotations

import asyncio
import random
import threading
import tracemalloc

import orjson
import pytest
from caudal.schemas import position
from caudal.serving import _stream, _tail
from caudal.serving._stream import EventStream, Selection, Streams, _Reader
from caudal.serving._tail import Record, Tail

from caudal import kafka
from caudal.errors import UndecodableRecord
from caudal.settings import KafkaSettings

PLACES = [(topic, p) for topic in (kafka.PROFILES, kafka.SEGMENTS) for p in (0, 1)]


class Codec:
    """Messages are JSON with a byte before; anything else is undecodable."""

    decoded = 0

    def decode(self, value):
        self.decoded += 1
        if value[:1] != b"\x00":
            raise UndecodableRecord("not JSON")
        return "Any", orjson.loads(value[1:])


class Log:
    """The topics: what was produced, in the order of arrival at the tail."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)
        self.records = []
        self.ends = dict.fromkeys(PLACES, 0)

    def produce(self, n, **data):
        made = []
        for _ in range(n):
            place = self.random.choice(PLACES)
            value = b"\x00" + orjson.dumps({"n": len(self.records), **data})
            # compaction leaves gaps
            offset = self.ends[place] + (self.random.random() < 0.2)
            record = (place, offset, f"k{self.random.randrange(3)}", value)
            self.ends[place] = offset + 1
            self.records.append(record)
            made.append(Record(*record))
        return made

    def fetch(self, start, topics, head, limit):
        """As Tail.fetch: a slice after `start`, partition by partition."""
        after, found = dict(start), []
        for place in PLACES:
            if place[0] not in topics:
                continue
            for record in self.records:
                if record[0] == place and start[place] <= record[1] < head[place] and len(found) < limit:
                    found.append(Record(*record))
                    after[place] = record[1] + 1
            if len(found) < limit:
                after[place] = max(after[place], head[place])
        return found, after


@pytest.fixture
async def log(monkeypatch):
    monkeypatch.setattr(_tail, "RING_RECORDS", 20)
    monkeypatch.setattr(_stream, "CHUNK_RECORDS", 3)
    return Log()


@pytest.fixture
async def tail(log, monkeypatch):
    tail = Tail(KafkaSettings(), Codec())
    tail.floor, tail.head = dict.fromkeys(PLACES, 0), dict.fromkeys(PLACES, 0)

    async def fetch(start, topics):
        return log.fetch(start, set(topics), tail.head, 7)

    monkeypatch.setattr(tail, "fetch", fetch)
    return tail


def append(tail, records):
    taken = threading.Event()
    tail._append(records, taken)
    assert taken.is_set()


def parse(parts):
    """Rendered events as (id, data)."""
    events = []
    for block in b"".join(parts).decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields["id"], orjson.loads(fields["data"])))
    return events


def offsets_of(token):
    return {(topic, p): offset for topic, parts in position.decode(token).items() for p, offset in parts.items()}


async def drain(reader):
    parts, more = [], True
    while more:
        got, more = await reader.chunk()
        parts += got
    return parse(parts)


def by_place(log, numbers):
    """Numbers of records by place, in the order given."""
    order = {}
    for n in numbers:
        order.setdefault(log.records[n][0], []).append(n)
    return order


@pytest.mark.parametrize("seed", range(30))
async def test_a_client_that_resumes_anywhere_loses_nothing_and_sees_nothing_twice(log, tail, seed):
    log.random.seed(seed)
    chance = log.random
    seen, token = [], None
    reader = _Reader(tail, Selection(), dict.fromkeys(PLACES, 0))
    for _ in range(12):
        append(tail, log.produce(chance.randrange(0, 30)))
        events = await drain(reader)
        if events and chance.random() < 0.7:
            # the connection broke somewhere in these events: only what came before counts as seen
            events = events[: chance.randrange(1, len(events) + 1)]
            seen += [data["n"] for _, data in events]
            token = events[-1][0]
            append(tail, log.produce(chance.randrange(0, 30)))
            reader = _Reader(tail, Selection(), offsets_of(token))
        else:
            seen += [data["n"] for _, data in events]
    seen += [data["n"] for _, data in await drain(reader)]
    assert sorted(seen) == list(range(len(log.records)))
    for numbers in by_place(log, seen).values():
        assert numbers == sorted(numbers)  # the order of each partition


async def test_a_client_from_now_gets_what_comes_after(log, tail):
    append(tail, log.produce(5))
    reader = _Reader(tail, Selection(), dict(tail.head))
    assert await drain(reader) == []
    append(tail, log.produce(3))
    assert [data["n"] for _, data in await drain(reader)] == [5, 6, 7]


async def test_a_client_ahead_of_a_slow_tail_waits_for_it_without_repeats(log, tail):
    records = log.produce(10)
    append(tail, records[:4])
    reader = _Reader(tail, Selection(), dict(log.ends))  # another process had shown it all ten
    assert await drain(reader) == []
    append(tail, records[4:])
    assert await drain(reader) == []
    append(tail, log.produce(2))
    assert [data["n"] for _, data in await drain(reader)] == [10, 11]


async def test_a_client_that_falls_out_of_the_ring_is_fetched_for(log, tail):
    reader = _Reader(tail, Selection(), dict.fromkeys(PLACES, 0))
    append(tail, log.produce(5))
    assert len(await drain(reader)) == 5
    append(tail, log.produce(100))
    assert len(tail.records) == 20
    assert sorted(data["n"] for _, data in await drain(reader)) == list(range(5, 105))


async def test_a_filter_leaves_out_what_it_names_and_its_place_moves_on_all_the_same(log, tail):
    reader = _Reader(tail, Selection(customer="k1"), dict.fromkeys(PLACES, 0))
    append(tail, log.produce(60))
    wanted = [n for n, r in enumerate(log.records) if r[2] == "k1"]
    assert sorted(data["n"] for _, data in await drain(reader)) == wanted
    assert reader.offsets == log.ends


async def test_topics_left_out_are_neither_sent_nor_fetched(log, tail):
    reader = _Reader(tail, Selection(topics=frozenset({kafka.SEGMENTS})), dict.fromkeys(PLACES, 0))
    append(tail, log.produce(60))
    wanted = [n for n, r in enumerate(log.records) if r[0][0] == kafka.SEGMENTS]
    assert sorted(data["n"] for _, data in await drain(reader)) == wanted
    assert reader.offsets == log.ends


async def test_a_segment_narrows_the_memberships(log, tail):
    reader = _Reader(tail, Selection(frozenset({kafka.SEGMENTS}), segment="vip"), dict.fromkeys(PLACES, 0))
    append(tail, log.produce(8, segment="vip"))
    append(tail, log.produce(8, segment="other"))
    assert {data["segment"] for _, data in await drain(reader)} == {"vip"}


async def test_a_record_is_decoded_and_rendered_once_for_all_who_are_at_the_end(log, tail):
    readers = [_Reader(tail, Selection(), dict(tail.head)) for _ in range(5)]
    append(tail, log.produce(4))
    heads = [[r.head for r in tail.records] for reader in readers if await drain(reader)]
    assert tail.codec.decoded == 4
    assert all(a is b for row in heads for a, b in zip(row, heads[0], strict=True))


async def test_a_record_that_cannot_be_decoded_is_passed_over(log, tail):
    reader = _Reader(tail, Selection(), dict.fromkeys(PLACES, 0))
    append(tail, [Record(PLACES[0], 0, "k", b"garbage"), Record(PLACES[0], 1, "k", b"\x00{}")])
    [(token, data)] = await drain(reader)
    assert data == {}
    assert offsets_of(token)[PLACES[0]] == 2


async def test_a_tombstone_is_a_null_with_its_key(log, tail):
    reader = _Reader(tail, Selection(), dict.fromkeys(PLACES, 0))
    append(tail, [Record(PLACES[0], 0, "k", None)])
    assert [data for _, data in await drain(reader)] == [{"customer_id": "k", "value": None}]


async def test_the_ring_is_bounded_by_bytes_as_well(log, tail, monkeypatch):
    monkeypatch.setattr(_tail, "RING_BYTES", 5_000)
    append(tail, [Record(PLACES[0], i, "k", b"\x00" + b"x" * 400) for i in range(20)])
    assert 0 < len(tail.records) < 5
    assert tail.first == 20 - len(tail.records)


class Client:
    """The other end of an ASGI answer; reads only while told to."""

    def __init__(self):
        self.reads = asyncio.Event()
        self.body = b""
        self.ended = False

    async def send(self, message):
        if message["type"] == "http.response.body":
            await self.reads.wait()
            self.body += message["body"]
            self.ended = not message["more_body"]


async def stream_of(*chunks):
    for chunk in chunks:
        yield chunk


async def test_a_client_that_does_not_read_is_told_so_when_it_wakes_up_and_the_stream_ends(monkeypatch):
    monkeypatch.setattr(_stream, "STALL_S", 0.5)
    client = Client()
    asyncio.get_running_loop().call_later(0.75, client.reads.set)
    await EventStream(stream_of(b"id: x\n\n", b"never sent"), "t").stream_response(client.send)
    assert client.body == b'event: closed\ndata: {"reason":"not_reading"}\n\n'
    assert client.ended


async def test_a_client_that_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(_stream, "STALL_S", 0.05)
    client = Client()
    async with asyncio.timeout(30):
        await EventStream(stream_of(b"a", b"b"), "t").stream_response(client.send)
    assert not client.ended


@pytest.fixture
async def streams(tail, monkeypatch):
    streams = Streams(KafkaSettings(), Codec())
    streams._tail = tail

    async def running():
        return None

    monkeypatch.setattr(tail, "ensure_running", running)
    return streams


async def allowed():
    return None


async def take(stream, n):
    return [await anext(stream.body_iterator) for _ in range(n)]


async def test_a_stream_starts_with_its_position_and_says_it_is_still_here(streams, monkeypatch):
    monkeypatch.setattr(_stream, "HEARTBEAT_S", 0.05)
    stream = await streams.open(Selection(), None, beginning=False, verdict=allowed)
    first, beat = await take(stream, 2)
    assert first.startswith(b"retry: 1000\nid: ")
    assert stream.headers["caudal-token"] in first.decode()
    assert beat.startswith(b": still here\nid: ")
    await stream.body_iterator.aclose()


async def test_a_revoked_token_ends_the_stream_before_more_is_sent(streams, log, tail, monkeypatch):
    monkeypatch.setattr(_stream, "RECHECK_S", 0)

    async def refused():
        return "token_revoked"

    stream = await streams.open(Selection(), None, beginning=False, verdict=refused)
    await take(stream, 1)
    append(tail, log.produce(1))
    assert await take(stream, 1) == [b'event: closed\ndata: {"reason":"token_revoked"}\n\n']
    with pytest.raises(StopAsyncIteration):
        await anext(stream.body_iterator)


async def test_streams_end_with_the_reason_when_the_process_stops(streams):
    stream = await streams.open(Selection(), None, beginning=False, verdict=allowed)
    await take(stream, 1)
    asyncio.get_running_loop().call_later(0.05, streams.close)
    assert await take(stream, 1) == [b'event: closed\ndata: {"reason":"shutting_down"}\n\n']


async def test_an_id_of_another_log_is_refused(streams, log, tail, monkeypatch):
    async def ends():
        return dict(tail.head)

    monkeypatch.setattr(tail, "ends", ends)
    append(tail, log.produce(3))
    for vector, code in (
        ({kafka.PROFILES: {0: 1_000_000}}, "position_beyond_end"),
        ({kafka.CHANGES: {0: 1}}, "invalid_token_vector"),
    ):
        with pytest.raises(_stream.Problem, match=code):
            await streams.open(Selection(), vector, beginning=False, verdict=allowed)


def test_a_decoded_record_holds_no_more_memory_than_its_size_says(log):
    records = log.produce(200, text="x" * 1_500)
    tracemalloc.start()
    try:
        for record in records:
            record.decode(Codec())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < sum(record.size for record in records)
