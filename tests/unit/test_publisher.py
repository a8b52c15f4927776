"""The thread that publishes, with producers made up: how a producer ends can't be brought about on a real broker at will."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from caudal.projections import _publish
from caudal.projections._publish import Change, Publisher
from caudal.projections._schema import VIEWS
from caudal.schemas.codec import Codec, LocalRegistry
from caudal.schemas.dead_letters import dead_letter
from confluent_kafka import KafkaError

from caudal.errors import BrokerUnavailable, UndecodableRecord
from caudal.settings import KafkaSettings


class _Producer:
    """Takes what it gets, or has had a fatal error."""

    def __init__(self, *, ended: bool) -> None:
        self.ended = ended
        self.taken: list[bytes] = []
        self.waiting: list[bytes] = []
        """Taken since the last flush: not known to be acknowledged."""

    def produce_batch(self, _topic: str, messages: list[dict[str, Any]], on_delivery: Any) -> None:
        for message in messages:
            if self.ended:
                message["_error"] = KafkaError(KafkaError._FATAL)
            else:
                self.taken.append(message["key"])
                self.waiting.append(message["key"])

    def produce(self, _topic: str, *, key: bytes, on_delivery: Any, **_: Any) -> None:
        if self.ended:
            on_delivery(KafkaError(KafkaError._FATAL), None)
        else:
            self.taken.append(key)

    def flush(self, _timeout_s: float) -> int:
        self.waiting.clear()
        return 0

    def poll(self, _timeout_s: float) -> int:
        return 0


PLACE = SimpleNamespace(
    topic=lambda: "t.x", partition=lambda: 0, offset=lambda: 0, key=lambda: b"1", value=lambda: b"?"
)
LETTERS = [{**dead_letter("project", PLACE, UndecodableRecord("no record")), "dead_letter_id": "1"}]


@pytest.fixture
def made(monkeypatch):
    """The producers that were made: the first one ends, those after it take all."""
    producers: list[_Producer] = []

    def connect(*_: Any, **__: Any) -> _Producer:
        producers.append(_Producer(ended=not producers))
        return producers[-1]

    monkeypatch.setattr(_publish.kafka, "producer", connect)
    return producers


@pytest.fixture
def publisher(made):
    codec = Codec(LocalRegistry("t."))
    one = Publisher(KafkaSettings(topic_prefix="t."), codec, session_ms=60_000)
    yield one
    one.close()


def test_after_a_fatal_error_changes_are_published_by_another_producer(made, publisher):
    gone = [Change(next(view for view in VIEWS if view.topic), 7, list, ["ana"])]
    publisher.publish(gone, made=_publish.time.monotonic())
    with pytest.raises(BrokerUnavailable):
        publisher.confirmed(wait_s=30)
    publisher.publish(gone, made=_publish.time.monotonic())
    assert publisher.confirmed(wait_s=30) == [7]
    assert made[-1].taken == [b"ana"]


def test_after_a_fatal_error_dead_letters_are_written_by_another_producer(made, publisher):
    with pytest.raises(BrokerUnavailable):
        publisher.put_aside(LETTERS)
    publisher.put_aside(LETTERS)
    assert made[-1].taken == [b"1"]


def test_changes_are_acknowledged_by_the_producer_that_took_them_though_dead_letters_get_another_one_meanwhile(
    made, publisher, monkeypatch
):
    asked, exchanged = threading.Event(), threading.Event()
    view = next(view for view in VIEWS if view.topic)

    def rows() -> list[Any]:
        asked.set()
        assert exchanged.wait(60)
        return []

    made[0].ended = False
    connect = _publish.kafka.producer

    def connect_late(*_: Any, **__: Any) -> _Producer:
        changes = [Change(view, 7, list, ["ana"]), Change(view, 8, rows, ["rui"])]
        publisher.publish(changes, made=_publish.time.monotonic())
        assert asked.wait(60)  # the first is with the producer that is about to go
        return connect()

    monkeypatch.setattr(_publish.kafka, "producer", connect_late)
    monkeypatch.setattr(made[0], "produce", lambda *_, on_delivery, **__: on_delivery(KafkaError(1), None))
    with pytest.raises(BrokerUnavailable):
        publisher.put_aside(LETTERS)
    exchanged.set()
    assert publisher.confirmed(wait_s=60) == [7, 8]
    assert made[0].taken == [b"ana", b"rui"]
    assert [one.waiting for one in made] == [[], []]
