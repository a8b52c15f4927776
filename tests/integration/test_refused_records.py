"""Records that their topic never takes, too large or against a rule: put aside by name, and everybody else goes on."""

from __future__ import annotations

import random
import string
from contextlib import closing
from typing import Any

import orjson
import pytest
from captures import capture, codec_of, dead_letters, events, read, translate, with_people
from caudal.projections import Runner
from caudal.schemas.codec import Codec
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from logs import PARTITIONS, apply, records
from test_projection import ANA, RUI, stated

from caudal import kafka
from caudal.dead_letters import DeadLetters, Filter
from caudal.settings import Settings

__all__ = ["with_people"]


def noise(length: int) -> str:
    """Text that doesn't get much smaller by compression."""
    return "".join(random.Random(length).choices(string.printable[:90], k=length))


def at_most(settings: Settings, name: str, limit: int) -> None:
    """Have a topic take no larger batches."""
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, kafka.topic(settings.kafka, name), incremental_configs=[entry])
    client = kafka.admin(settings.kafka)
    for done in client.incremental_alter_configs([resource]).values():
        done.result()


def profiles(settings: Settings, codec: Codec) -> dict[str, dict[str, Any]]:
    """The last message of each customer."""
    messages = read(settings, [kafka.topic(settings.kafka, kafka.PROFILES)])
    messages.sort(key=lambda message: (message.partition(), message.offset()))
    return {message.key().decode(): codec.decode(message.value())[1] for message in messages}


@pytest.fixture
def many(codec: Codec) -> list[Any]:
    """A customer whose profile is large, among others."""
    others = [
        stated(f"crm:contact:{n}", f"00000000-0000-0000-0000-{n:012}", name=f"P {n}", company=noise(300))
        for n in range(100)
    ]
    large = stated("crm:contact:ana", ANA, name="Ana", email="ana@x.com", attributes={"a": noise(30_000), "b": "c"})
    return records(codec, [*others[:50], large, *others[50:], stated("crm:contact:rui", RUI, name="Rui")])


def outbox(conn: Any) -> int:
    return int(conn.execute("SELECT count(*) FROM hub.outbox").fetchone()[0])


@pytest.fixture(params=[True, False], ids=["the limit is known", "the limit can't be asked for"])
def asked(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(kafka, "largest", lambda _settings, names, *_: dict.fromkeys(names, kafka.DEFAULT_LARGEST))


@pytest.mark.usefixtures("asked")
def test_a_profile_that_its_topic_does_not_take_is_cut_and_all_others_are_published(settings, codec, conn, many):
    at_most(settings, kafka.PROFILES, 10_000)
    with closing(Runner(settings, codec)) as runner:
        runner.positions(range(PARTITIONS))
        apply(runner, many, [60])
        runner.flush()
        assert outbox(conn) == 0
    found = profiles(settings, codec)
    assert len(found) == 102
    ana = found.pop(ANA)
    assert (ana["name"], ana["email"], ana["attributes"]) == ("Ana", "ana@x.com", {})
    assert ana["omitted"] == ["attributes"]
    assert {profile["omitted"] for profile in found.values()} == {None}
    row = conn.execute("SELECT length(attributes ->> 'a') FROM live.profiles WHERE customer_id = %s", (ANA,)).fetchone()
    assert row == (30_000,), "the view has all of it"


def test_a_change_that_is_never_taken_is_put_aside_by_name_also_after_a_restart_and_can_be_published_again(
    settings, codec, conn
):
    at_most(settings, kafka.PROFILES, 150)
    with closing(Runner(settings, codec)) as runner:
        runner.positions(range(PARTITIONS))
        apply(runner, records(codec, [stated("crm:contact:ana", ANA, name=noise(400))]))
    with closing(Runner(settings, codec)) as runner:
        runner.positions(range(PARTITIONS))
        runner.recover(range(PARTITIONS))
        assert outbox(conn) == 0
        [letter] = {x["dead_letter_id"]: x for x in dead_letters_of(settings, codec)}.values()
        assert (letter["stage"], letter["code"], letter["key"]) == ("publish", "refused_record", ANA.encode())
        assert (letter["payload"], letter["payload_left_out"]) == (b"", True)
        assert letter["topic"] == kafka.topic(settings.kafka, kafka.PROFILES)
        at_most(settings, kafka.PROFILES, 100_000)
        assert DeadLetters(settings, codec).redrive(Filter(stage="publish")).redriven == 1
        runner.recover(range(PARTITIONS))
    assert [*profiles(settings, codec)] == [ANA]


def dead_letters_of(settings: Settings, codec: Codec) -> list[dict[str, Any]]:
    messages = read(settings, [kafka.topic(settings.kafka, kafka.DEAD_LETTERS)])
    return [codec.decode(message.value())[1] for message in messages]


def test_a_dead_letter_that_its_topic_does_not_take_is_written_without_what_it_is_about(settings, codec, conn):
    at_most(settings, kafka.DEAD_LETTERS, 1_000)
    damaged = records(codec, [stated("crm:contact:ana", ANA, name="Ana")])[0]
    bad = type(damaged)((damaged.partition(), 0), b"\x00" + noise(5_000).encode(), ANA)
    with closing(Runner(settings, codec)) as runner:
        runner.positions(range(PARTITIONS))
        apply(runner, [bad])
        apply(runner, records(codec, [stated("crm:contact:rui", RUI, name="Rui")]))
        runner.flush()
    [letter] = dead_letters_of(settings, codec)
    assert (letter["stage"], letter["payload"], letter["payload_left_out"]) == ("project", b"", True)
    assert conn.execute("SELECT name FROM live.profiles").fetchall() == [("Rui",)]


@pytest.fixture
def people(with_people: None) -> None:
    """The made-up connector is installed."""


def person(number: int, name: str = "x") -> dict[str, Any]:
    return {"subject": f"people:person:{number}", "name": name}


@pytest.mark.usefixtures("people")
def test_an_event_that_the_log_does_not_take_is_a_dead_letter_and_all_others_are_on_the_log(settings):
    at_most(settings, kafka.CHANGES, 10_000)
    payloads = [person(n, noise(300)) for n in range(100)]
    capture(
        settings, "people", [*payloads[:50], [person(100), person(101, noise(30_000)), person(102)], *payloads[50:]]
    )
    translate(settings, ["people"])
    expected = {f"people:person:{n}" for n in (*range(101), 102)}
    assert {event["subject"] for event in events(settings, "ProfileStated")} == expected
    [letter] = dead_letters(settings)
    assert letter["code"] == "unusable_event"


@pytest.mark.usefixtures("people")
def test_a_capture_too_large_for_the_dead_letters_is_named_there_and_redriven_from_its_own_topic(settings):
    at_most(settings, kafka.DEAD_LETTERS, 1_000)
    capture(settings, "people", [orjson.dumps(noise(5_000)), person(1)], kind=noise(2_000))
    capture(settings, "people", [person(2)])
    translate(settings, ["people"])
    letters = dead_letters(settings)
    assert all(letter["payload_left_out"] for letter in letters)
    assert {len(letter["kind"]) for letter in letters} == {256}
    assert [event["subject"] for event in events(settings, "ProfileStated")] == ["people:person:2"]
    before = sum(
        kafka.end_offsets(settings.kafka, [topic := kafka.capture_topic(settings.kafka, "people")])[topic].values()
    )
    redriven = DeadLetters(settings, codec_of(settings)).redrive(Filter())
    assert (redriven.redriven, redriven.skipped) == (2, 0)
    messages = read(settings, [topic])
    assert len(messages) == before + 2
    assert len({message.value() for message in messages}) == before, "they are what they were"


@pytest.mark.usefixtures("people")
def test_an_erasure_of_very_many_subjects_is_several_events(settings, monkeypatch):
    from caudal.processors import translate as step

    monkeypatch.setattr(step, "EVENT_MAX_BYTES", 800)
    many = [{"subject": f"people:person:{n}", "identifiers": [["external_id", "same"]]} for n in range(40)]
    capture(settings, "people", many)
    translate(settings, ["people"])
    with closing(step.Translator(settings, codec_of(settings))) as translator:
        [customer] = {event["customer_id"] for event in events(settings, "ProfileStated")[-1:]}
        translator.positions([])
        from datetime import UTC, datetime

        from caudal.schemas import CustomerErased

        at = datetime(2026, 4, 1, tzinfo=UTC)
        erased = CustomerErased(
            subject="people:person:1", source="people", occurred_at=at, captured_at=at, event_id="e", subjects=()
        )
        parts = [codec_of(settings).decode(value)[1] for _, _, value in translator._erasures(erased, customer, 1)]
    assert len(parts) > 1
    assert len({part["event_id"] for part in parts}) == len(parts)
    assert sorted(subject for part in parts for subject in part["subjects"]) == sorted(one["subject"] for one in many)
