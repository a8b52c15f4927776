"""What no real broker does on demand: a leader that doesn't know yet that it leads."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from caudal import kafka
from caudal.errors import BrokerUnavailable, Fatal
from caudal.settings import KafkaSettings

SETTINGS = KafkaSettings(bootstrap_servers="127.0.0.1:1")


class Leaders:
    """An admin client of one topic whose leaders answer with these errors first."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.asked: list[list[int]] = []

    def list_topics(self, timeout):
        return SimpleNamespace(topics={"t": SimpleNamespace(partitions={0: None, 1: None})})

    def list_offsets(self, wanted, request_timeout):
        self.asked.append([place.partition for place in wanted])
        answers = {place: Future() for place in wanted}
        for place, answer in answers.items():
            if place.partition == 1 and self.errors:
                answer.set_exception(KafkaException(KafkaError(self.errors.pop(0))))
            else:
                answer.set_result(SimpleNamespace(offset=place.partition + 7))
        return answers


def test_a_partition_whose_leader_does_not_know_it_yet_is_asked_again():
    leaders = Leaders(KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_LEADER_EPOCH)
    assert kafka.end_offsets(SETTINGS, ["t", "unknown"], leaders) == {"t": {0: 7, 1: 8}}
    assert leaders.asked == [[0, 1], [1], [1]]


def test_leaders_that_never_know_are_an_error(monkeypatch):
    monkeypatch.setattr(kafka, "LEADERS_S", 0)
    with pytest.raises(BrokerUnavailable, match="can't be reached"):
        kafka.end_offsets(SETTINGS, ["t"], Leaders(*[KafkaError.NOT_LEADER_FOR_PARTITION] * 3))


def test_a_refusal_is_not_asked_again():
    leaders = Leaders(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(Fatal, match="refused"):
        kafka.end_offsets(SETTINGS, ["t"], leaders)
    assert len(leaders.asked) == 1
