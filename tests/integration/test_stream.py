from __future__ import annotations

import json
import socket
import time
import uuid
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from unittest.mock import Mock

import httpx
import psutil
import pytest
from api_server import running, token_of
from caudal.schemas import position
from caudal.schemas.codec import Codec, Registry
from caudal.serving import _stream, _tail
from confluent_kafka import KafkaError

from caudal import access, kafka, postgres
from caudal.telemetry import STREAM_CLIENTS

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PEOPLE = [str(uuid.UUID(int=i)) for i in range(20)]
METRICS = dict.fromkeys(
    ["orders_count", "refunds_count", "tickets_count", "open_tickets_count", "satisfaction_good_count", "satisfaction_bad_count",
     "active_subscriptions_count", "feedback_count", "interactions_count"], 0,
) | {"spend_minor": {}, "refunded_minor": {}}  # fmt: skip


class Feed:
    """Writes to the change topics as the worker does."""

    def __init__(self, settings):
        self.settings = settings
        self.registry = Registry(settings)
        self.codec = Codec(self.registry)
        self.producer = kafka.producer(settings.kafka)
        self.version = 0

    def _send(self, topic, record, customer, **values):
        self.version += 1
        name = kafka.topic(self.settings.kafka, topic)
        values = {"customer_id": customer, "version": self.version, "changed_at": NOW, **values}
        self.producer.produce(name, key=customer, value=self.codec.encode(name, record, values))

    def profile(self, customer, **values):
        self._send(kafka.PROFILES, "CustomerProfile", customer, sources=["crm"], **values)

    def metrics(self, customer):
        self._send(kafka.METRICS, "CustomerMetrics", customer, **METRICS)

    def segment(self, customer, segment, change="entered"):
        self._send(kafka.SEGMENTS, "SegmentChanged", customer, segment=segment, change=change)

    def gone(self, customer):
        self.producer.produce(kafka.topic(self.settings.kafka, kafka.PROFILES), key=customer, value=None)

    def mixed(self, n):
        """`n` changes over all topics and partitions; returns their versions."""
        first = self.version + 1
        for i in range(n):
            customer = PEOPLE[i % len(PEOPLE)]
            [self.profile, self.metrics, lambda c: self.segment(c, "buyers")][i % 3](customer)
        self.flush()
        return list(range(first, self.version + 1))

    def flush(self):
        assert self.producer.flush(20) == 0


class Events:
    """What an EventSource would see."""

    def __init__(self, response):
        self.headers = response.headers
        self.last_id = None
        self._lines = response.iter_lines()

    def __iter__(self):
        fields = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                yield fields["event"], json.loads(fields["data"]), self.last_id
            fields = {}

    def take(self, n):
        found = []
        for event in self:
            found.append(event)
            if len(found) == n:
                break
        return found


@pytest.fixture
def feed(settings):
    feed = Feed(settings)
    yield feed
    feed.registry.close()


@pytest.fixture
def address(settings):
    with running(settings) as address:
        yield address


@pytest.fixture
def listen(settings, address):
    headers = {"authorization": f"Bearer {token_of(settings, 'changes:read', name='listener')}"}

    @contextmanager
    def listen(*, last_id=None, at=address, **params):
        more = {"last-event-id": last_id} if last_id else {}
        with httpx.stream("GET", f"{at}/changes", params=params, headers={**headers, **more}, timeout=60) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(response.text)
            yield Events(response)

    return listen


def versions(events):
    return [data["version"] for _, data, _ in events]


def assert_each_once_in_order(events, expected):
    """Each version once, and rising within every customer and topic (which share a partition)."""
    assert sorted(versions(events)) == expected
    last = {}
    for topic, data, _ in events:
        key = (topic, data["customer_id"])
        assert data["version"] > last.get(key, 0)
        last[key] = data["version"]


def test_a_change_reaches_whoever_listens(feed, listen):
    with listen() as events:
        feed.profile(PEOPLE[0], name="Joana", tags=["vip"])
        feed.flush()
        [(topic, data, id_)] = events.take(1)
    assert topic == kafka.PROFILES
    assert (data["name"], data["tags"], data["changed_at"]) == ("Joana", ["vip"], "2026-03-01T00:00:00+00:00")
    assert set(position.decode(id_)) == {"#", kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS}


def test_a_client_that_comes_back_with_the_last_id_misses_nothing_and_repeats_nothing(feed, listen):
    with listen() as events:
        expected = feed.mixed(60)
        seen = events.take(17)
    expected += feed.mixed(90)
    with listen(last_id=seen[-1][2]) as events:
        seen += events.take(50)
    expected += feed.mixed(30)
    with listen(after=seen[-1][2]) as events:
        seen += events.take(len(expected) - len(seen))
        expected += feed.mixed(1)
        seen += events.take(1)
    assert_each_once_in_order(seen, expected)


def test_a_client_that_comes_back_before_its_first_event_misses_nothing(feed, listen):
    with listen() as events:
        start = events.headers["caudal-token"]
    expected = feed.mixed(5)
    with listen(last_id=start) as events:
        assert sorted(versions(events.take(5))) == expected


def test_a_stream_goes_on_where_it_was_on_another_server(settings, feed, listen):
    with listen() as events:
        expected = feed.mixed(20)
        seen = events.take(20)
    expected += feed.mixed(40)
    with running(settings) as other, listen(last_id=seen[-1][2], at=other) as events:
        seen += events.take(40)
    assert_each_once_in_order(seen, expected)


def test_from_the_beginning_means_all_of_it_also_far_behind_the_ring(feed, listen, monkeypatch):
    monkeypatch.setattr(_tail, "RING_RECORDS", 50)
    monkeypatch.setattr(_tail, "SLICE_RECORDS", 100)
    with listen() as live:  # keeps the tail going, so that its ring moves on
        expected = feed.mixed(900)
        with listen(**{"from": "beginning"}) as events:
            seen = events.take(300)
            expected += feed.mixed(300)
            seen += events.take(900)
        assert_each_once_in_order(seen, expected)
        assert_each_once_in_order(live.take(1200), expected)


def test_filters_by_topic_customer_and_segment(feed, listen):
    with (
        listen(topics=kafka.METRICS) as metrics,
        listen(customer=PEOPLE[1]) as person,
        listen(segment="vip") as vip,
    ):
        feed.profile(PEOPLE[0])
        feed.metrics(PEOPLE[0])
        feed.segment(PEOPLE[0], "buyers")
        feed.segment(PEOPLE[0], "vip", "left")
        feed.profile(PEOPLE[1])
        feed.segment(PEOPLE[1], "vip")
        feed.metrics(PEOPLE[1])
        feed.flush()
        assert [(t, d["customer_id"]) for t, d, _ in metrics.take(2)] == [(kafka.METRICS, p) for p in PEOPLE[:2]]
        assert {t for t, d, _ in person.take(3) if d["customer_id"] == PEOPLE[1]} == {
            kafka.PROFILES,
            kafka.METRICS,
            kafka.SEGMENTS,
        }
        assert {(d["customer_id"], d["segment"], d["change"]) for _, d, _ in vip.take(2)} == {
            (PEOPLE[0], "vip", "left"), (PEOPLE[1], "vip", "entered"),
        }  # fmt: skip


def test_a_customer_who_is_gone_comes_as_a_null(feed, listen):
    with listen() as events:
        feed.gone(PEOPLE[3])
        feed.flush()
        [(topic, data, _)] = events.take(1)
    assert (topic, data) == (kafka.PROFILES, {"customer_id": PEOPLE[3], "value": None})


def test_a_damaged_record_is_passed_over(settings, feed, listen):
    with listen() as events:
        feed.producer.produce(kafka.topic(settings.kafka, kafka.PROFILES), key=PEOPLE[0], value=b"\x00garbage")
        feed.profile(PEOPLE[0], name="after")
        feed.flush()
        assert events.take(1)[0][1]["name"] == "after"


class Unsettled:
    """A consumer whose broker doesn't know the topic at first, as happens for a moment after it was made."""

    def __init__(self, consumer):
        self._consumer = consumer
        self._told = False

    def __getattr__(self, name):
        return getattr(self._consumer, name)

    def poll(self, timeout):
        if self._told:
            return self._consumer.poll(timeout)
        self._told = True
        message = Mock()
        message.error.return_value = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        return message


@pytest.mark.parametrize("start", [{}, {"from": "beginning"}])
def test_a_topic_that_its_broker_does_not_know_yet_is_waited_for(feed, listen, monkeypatch, start):
    make = kafka.consumer
    monkeypatch.setattr(kafka, "consumer", lambda *args, **options: Unsettled(make(*args, **options)))
    if start:
        feed.mixed(5)
    with listen(**start) as events:
        if not start:
            feed.mixed(5)
        assert {data["version"] for _, data, _ in events.take(5)} == {1, 2, 3, 4, 5}


def test_two_hundred_listeners_cost_places_not_threads(feed, listen, address, settings):
    token = token_of(settings, "changes:read", name="crowd")
    process = psutil.Process()
    sockets = []
    request = f"GET /changes HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {token}\r\n\r\n".encode()
    try:
        with listen() as first:
            feed.mixed(1)
            first.take(1)
            before = process.num_threads()
            for _ in range(200):
                sock = socket.create_connection(address.removeprefix("http://").split(":"), timeout=60)
                sock.sendall(request)
                sockets.append(sock)
            for sock in sockets:
                assert b"retry: 1000" in read_until(sock, b"retry: 1000")
            assert process.num_threads() <= before + 40  # the default executor's and librdkafka's, not one each
            feed.profile(PEOPLE[0], name="to all")
            feed.flush()
            for sock in sockets:
                assert b'"name":"to all"' in read_until(sock, b'"to all"')
    finally:
        for sock in sockets:
            sock.close()


def read_until(sock, mark):
    found = b""
    while mark not in found:
        chunk = sock.recv(65536)
        assert chunk, found[-500:]
        found += chunk
    return found


def test_a_client_that_never_reads_is_let_go(settings, feed, address, monkeypatch, listen):
    monkeypatch.setattr(_stream, "STALL_S", 0.5)
    token = token_of(settings, "changes:read", name="sleeper")
    text = "x" * 20_000
    for i in range(600):  # 12 MB: more than the buffers between two sockets hold
        feed.profile(PEOPLE[i % 20], job_title=text)
    feed.flush()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((address.removeprefix("http://").split(":")[0], int(address.rsplit(":", 1)[1])))
        sock.sendall(
            f"GET /changes?from=beginning HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {token}\r\n\r\n".encode()
        )
        read_until(sock, b"retry")
        deadline = time.monotonic() + 60
        while STREAM_CLIENTS._value.get():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with listen(**{"from": "beginning"}) as events:  # and the others are served as before
        assert len(events.take(600)) == 600


def test_a_revoked_token_hears_nothing_more(settings, feed, address, monkeypatch):
    token = token_of(settings, "changes:read", name="leaver")
    with httpx.stream("GET", f"{address}/changes", params={"token": token}, timeout=60) as response:
        events = Events(response)
        feed.mixed(1)
        events.take(1)
        with postgres.connect(settings.postgres, role="tests") as conn:
            access.revoke(conn, "leaver")
        time.sleep(2)
        feed.mixed(1)
        assert [(name, data) for name, data, _ in events] == [("closed", {"reason": "token_revoked"})]


def test_streams_end_with_the_reason_when_the_server_stops(settings, listen):
    with ExitStack() as client:
        with running(settings) as other:
            events = client.enter_context(listen(at=other))
            began = time.monotonic()
        assert time.monotonic() - began < 20
        assert [(name, data) for name, data, _ in events] == [("closed", {"reason": "shutting_down"})]


def test_a_token_without_the_scope_and_an_id_of_another_log_are_refused(settings, address):
    headers = {"authorization": f"Bearer {token_of(settings, 'customers:read', name='reader')}"}
    assert httpx.get(f"{address}/changes", headers=headers).status_code == 403
    headers = {"authorization": f"Bearer {token_of(settings, 'admin', name='admin')}"}
    answer = httpx.get(
        f"{address}/changes", headers={**headers, "last-event-id": position.encode({kafka.PROFILES: {0: 10**9}})}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "position_beyond_end")
