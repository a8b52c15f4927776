"""Dead letters are seen, and put back once the cause is mended."""

from __future__ import annotations

import pytest
from captures import capture, codec_of, events, people, translate, with_people

from caudal import kafka
from caudal.dead_letters import DeadLetters, Filter

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]


@pytest.fixture
def letters(settings) -> DeadLetters:
    return DeadLetters(settings, codec_of(settings))


def spoil(settings) -> None:
    """Three captures that can't be used, of two sources and for two reasons."""
    capture(settings, "shop", [{"subject": "shop:customer:1"}], kind="renamed")
    capture(settings, "shop", [b"{damaged"])
    capture(settings, "crm", [{"subject": "crm:contact:2"}], kind="renamed")
    translate(settings, ["shop", "crm"])


def test_dead_letters_are_listed_newest_first_and_by_what_they_are(settings, letters):
    assert letters.list() == []
    spoil(settings)
    found = letters.list()
    assert sorted((x.source, x.code) for x in found) == [
        ("crm", "unknown_kind"),
        ("shop", "invalid_payload"),
        ("shop", "unknown_kind"),
    ]
    assert [x.failed_at for x in found] == sorted((x.failed_at for x in found), reverse=True)
    assert len(letters.list(limit=2)) == 2
    assert letters.list(limit=1) == [found[0]]
    assert {x.source for x in letters.list(Filter(code="unknown_kind"))} == {"shop", "crm"}
    assert [x.code for x in letters.list(Filter(source="crm"))] == ["unknown_kind"]
    assert letters.list(Filter(stage="project")) == []


def test_a_dead_letter_is_shown_with_the_delivery_as_it_came(settings, letters):
    spoil(settings)
    (damaged,) = letters.list(Filter(code="invalid_payload"))
    shown = letters.show(damaged.dead_letter_id[:13])
    assert shown == damaged
    assert letters.body(shown)["body"] == "{damaged"
    assert letters.show("no-such-id") is None
    assert letters.show("") is None, "several begin so"


def test_redrive_after_the_fix_makes_the_events_and_is_visible(settings, letters, monkeypatch):
    spoil(settings)
    assert events(settings) == []
    monkeypatch.setitem(people.translators, "renamed", people.translators["person"])
    result = letters.redrive(Filter(code="unknown_kind"))
    assert (result.redriven, result.skipped) == (2, 0)
    translate(settings, ["shop", "crm"])
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {"shop:customer:1", "crm:contact:2"}
    assert len(letters.list()) == 3, "nothing failed again"
    assert {x.code for x in letters.list(Filter(redriven=True))} == {"unknown_kind"}
    assert {x.code for x in letters.list(Filter(redriven=False))} == {"invalid_payload"}


def test_redrive_again_does_nothing_unless_asked(settings, letters):
    spoil(settings)
    assert letters.redrive(Filter(source="shop")).redriven == 2
    result = letters.redrive(Filter())
    assert (result.redriven, result.skipped) == (1, 2)
    assert letters.redrive(Filter()).redriven == 0
    one = letters.list(Filter(source="crm"))[0]
    assert letters.redrive(Filter(ids=frozenset({one.dead_letter_id})), again=True).redriven == 1


def test_an_input_that_fails_again_is_a_dead_letter_of_its_own_that_counts_its_attempts(settings, letters):
    capture(settings, "shop", [b"{damaged"])
    translate(settings, ["shop"])
    letters.redrive(Filter())
    translate(settings, ["shop"])
    assert sorted((x.attempts, x.redriven_at is not None) for x in letters.list()) == [(1, True), (2, False)]
    first, second = sorted(letters.list(), key=lambda x: x.attempts)
    assert first.payload == second.payload
    assert first.key == second.key


def test_an_event_that_could_not_be_projected_goes_back_to_customer_changes(settings, letters):
    codec = codec_of(settings)
    changes, topic = (kafka.topic(settings.kafka, name) for name in (kafka.CHANGES, kafka.DEAD_LETTERS))
    capture(settings, "shop", [{"subject": "shop:customer:1"}])
    translate(settings, ["shop"])
    (event,) = events(settings, "ProfileStated")
    producer = kafka.producer(settings.kafka)
    payload = codec.encode(
        changes, "ProfileStated", {k: v for k, v in event.items() if k not in {"type", "partition", "offset"}}
    )
    row = {
        "dead_letter_id": "2f3d6f0e-52c1-5e0a-8d53-8a2f1a0d9c77",
        "stage": "project",
        "code": "unusable_event",
        "message": "m",
        "topic": changes,
        "partition": 0,
        "offset": 1,
        "key": event["customer_id"].encode(),
        "payload": payload,
        "failed_at": event["captured_at"],
    }
    producer.produce(topic, codec.encode(topic, "DeadLetter", row), row["dead_letter_id"])
    producer.flush()
    assert letters.redrive(Filter(stage="project")).redriven == 1
    again = events(settings, "ProfileStated")
    assert [e["event_id"] for e in again] == [event["event_id"]] * 2
