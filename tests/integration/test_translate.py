"""The translate step on real Kafka and PostgreSQL."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from captures import (
    T0,
    capture,
    dead_letters,
    events,
    links_by_log,
    links_by_table,
    take_over,
    translate,
    translator,
    with_people,
)
from programs import environment

from caudal import kafka, postgres, telemetry
from caudal.cli import feedback
from caudal.errors import DatabaseUnavailable, LostPartition

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]


def person(n: int, **more: object) -> dict[str, object]:
    return {"subject": f"shop:customer:{n}", "identifiers": [["email", f" P{n}@X.com"]], **more}


def offsets(settings, table: str) -> dict[tuple[str, int], int]:
    with postgres.connect(settings.postgres, role="tests") as db:
        rows = db.execute(f"SELECT topic, partition, next_offset FROM hub.{table}").fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


def test_facts_carry_their_link_and_follow_it_and_identifiers_are_normalised(settings):
    capture(settings, "shop", [person(1)])
    translate(settings, ["shop"])
    link, fact = events(settings)
    assert [link["type"], fact["type"]] == ["SubjectLinked", "ProfileStated"]
    assert link["offset"] < fact["offset"]
    assert (fact["customer_id"], fact["link_seq"]) == (link["customer_id"], 1)
    assert fact["identifiers"] == [{"kind": "email", "value": "p1@x.com"}]
    assert fact["source"] == "shop"


def test_a_moved_subject_is_linked_anew_under_the_key_of_its_new_customer(settings):
    capture(settings, "shop", [person(1)])
    translate(settings, ["shop"])
    capture(settings, "shop", [person(2)])
    translate(settings, ["shop"])
    capture(settings, "shop", [person(2, identifiers=[["email", "p1@x.com"]])])
    translate(settings, ["shop"])
    moved = [e for e in events(settings, "SubjectLinked") if e["link_seq"] == 2]
    (first,) = [e for e in events(settings, "SubjectLinked") if e["subject"] == "shop:customer:1"]
    assert [(e["subject"], e["customer_id"], e["reason"]) for e in moved] == [
        ("shop:customer:2", first["customer_id"], "merge")
    ]
    assert moved[0]["previous_customer_id"] != first["customer_id"]
    assert moved[0]["evidence"] == [{"kind": "email", "value": "p1@x.com", "subject": "shop:customer:1"}]


def test_a_repeated_batch_gives_the_same_events(settings):
    capture(settings, "shop", [person(n) for n in range(5)])
    translate(settings, ["shop"])
    first = events(settings, "ProfileStated")
    with postgres.connect(settings.postgres, role="tests") as db:
        db.execute("TRUNCATE hub.offsets, hub.translated")
    translate(settings, ["shop"])
    again = events(settings, "ProfileStated")
    assert len(again) == 10
    places = {"partition", "offset"}

    def content(found):
        return {e["event_id"]: {k: v for k, v in e.items() if k not in places} for e in found}

    assert content(first) == content(again)
    assert len(events(settings, "SubjectLinked")) == 5, "published links are not repeated"


def test_poison_in_the_middle_of_a_batch_is_put_aside_and_the_rest_goes_on(settings):
    capture(settings, "shop", [person(1), b"{not json", person(2)], partition=0)
    capture(settings, "shop", [person(3)], kind="unheard/of", partition=0)
    capture(settings, "shop", [person(4)], connector="gone-system", partition=0)
    topic = kafka.capture_topic(settings.kafka, "shop")
    producer = kafka.producer(settings.kafka)
    producer.produce(topic, b"no capture at all", partition=0)
    producer.flush()
    translate(settings, ["shop"])
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {"shop:customer:1", "shop:customer:2"}
    found = {letter["offset"]: letter for letter in dead_letters(settings)}
    assert {offset: letter["code"] for offset, letter in found.items()} == {
        1: "invalid_payload",
        3: "unknown_kind",
        4: "uninstalled_connector",
        5: "undecodable_record",
    }
    assert found[1]["source"] == "shop"
    assert found[1]["stage"] == "translate"
    assert found[5]["payload"] == b"no capture at all"
    assert offsets(settings, "offsets")[topic, 0] == 6


def test_what_is_usable_of_a_batched_delivery_goes_on_and_the_delivery_is_put_aside(settings):
    capture(settings, "shop", [orjson.dumps([person(1), {"name": "nobody"}, person(2)])])
    translate(settings, ["shop"])
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {"shop:customer:1", "shop:customer:2"}
    (letter,) = dead_letters(settings)
    assert letter["code"] == "invalid_payload"


def test_a_statement_from_years_ahead_does_not_win_for_years(settings):
    ahead = {**person(1, name="Ahead"), "at": (datetime.now(UTC) + timedelta(days=3650)).isoformat()}
    capture(settings, "shop", [ahead])
    translate(settings, ["shop"])
    (event,) = events(settings, "ProfileStated")
    assert event["occurred_at"] == event["captured_at"]


def test_an_event_too_large_for_its_topic_is_put_aside(settings):
    large = person(2, tags=["x" * 10_000] * 100)
    capture(settings, "shop", [person(1), large, person(3)], partition=0)
    capture(settings, "shop", [[person(4), {**large, "subject": "shop:customer:5"}, person(6)]], partition=0)
    translate(settings, ["shop"])
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {f"shop:customer:{n}" for n in (1, 3, 4, 6)}
    assert [letter["code"] for letter in dead_letters(settings)] == ["unusable_event"] * 2


def test_a_text_that_is_too_long_is_cut_and_costs_nothing_else(settings):
    before = telemetry.LEFT_OUT.labels("shop", "too_long")._value.get()
    capture(settings, "shop", [person(1, name="x" * 1_000_000)])
    translate(settings, ["shop"])
    assert [len(e["name"]) for e in events(settings, "ProfileStated")] == [32_768]
    assert dead_letters(settings) == []
    assert telemetry.LEFT_OUT.labels("shop", "too_long")._value.get() == before + 1


def test_what_the_database_refuses_is_found_and_put_aside(settings):
    capture(settings, "shop", [person(n) for n in (1, 2, 3)], partition=0)
    with postgres.connect(settings.postgres, role="tests") as db:
        db.execute(
            """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN RAISE EXCEPTION USING ERRCODE = 'untranslatable_character'; END $$;
               CREATE TRIGGER refuse BEFORE INSERT ON hub.subjects FOR EACH ROW
               WHEN (NEW.subject = 'shop:customer:2') EXECUTE FUNCTION refuse()"""
        )
    translate(settings, ["shop"])
    assert {e["subject"] for e in events(settings, "ProfileStated")} == {"shop:customer:1", "shop:customer:3"}
    assert [(letter["offset"], letter["code"]) for letter in dead_letters(settings)] == [(1, "unusable_event")]
    assert links_by_log(settings) == links_by_table(settings)


def test_a_batch_that_another_worker_has_done_is_lost_and_changes_no_offset(settings):
    capture(settings, "shop", [person(1), person(2)], partition=0)
    late = translator(settings)
    messages = take_over(settings, late, ["shop"])
    translate(settings, ["shop"])
    before = offsets(settings, "offsets")
    with pytest.raises(LostPartition):
        late.apply(late.prepare(messages[:1]))
    late.close()
    assert offsets(settings, "offsets") == before
    with postgres.connect(settings.postgres, role="tests") as db:
        assert db.execute("SELECT count(*) FROM hub.unpublished_links").fetchone() == (0,)


def test_a_lost_database_connection_is_retried_with_a_new_one(settings):
    capture(settings, "shop", [person(1)])
    step = translator(settings)
    messages = take_over(settings, step, ["shop"])
    batch = step.prepare(messages)
    with postgres.connect(settings.postgres, role="tests") as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'caudal translate' AND datname = current_database()"
        )
    with pytest.raises(DatabaseUnavailable):
        step.apply(batch)
    step.apply(batch)
    step.close()
    assert len(events(settings)) == 2


def test_translated_says_below_which_offsets_the_changes_of_a_capture_lie(settings):
    capture(settings, "shop", [person(n) for n in range(20)])
    capture(settings, "crm", [person(n, subject=f"crm:contact:{n}") for n in range(20)])
    translate(settings, ["shop"], size=3)
    translate(settings, ["crm"], size=3)
    ends: dict[int, int] = {}
    for event in events(settings):
        ends[event["partition"]] = event["offset"] + 1
    with postgres.connect(settings.postgres, role="tests") as db:
        rows = db.execute("SELECT topic, partition, next_offset, changes FROM hub.translated").fetchall()
    assert {(topic, partition): offset for topic, partition, offset, _ in rows} == offsets(settings, "offsets")
    highest: dict[int, int] = {}
    for _, _, _, changes in rows:
        for partition, end in changes.items():
            highest[int(partition)] = max(end, highest.get(int(partition), 0))
    assert highest == ends


def test_deleting_a_whole_source_becomes_one_event_for_each_of_its_subjects(settings):
    capture(settings, "shop", [person(n) for n in range(3)])
    capture(settings, "shop-2", [person(9, subject="shop-2:customer:9")])
    translate(settings, ["shop", "shop-2"])
    gone = {"subject": "shop:shop:1", "kind": "erased", "scope": "source", "at": (T0 + timedelta(days=1)).isoformat()}
    capture(settings, "shop", [gone], kind="gone")
    translate(settings, ["shop"])
    deleted = events(settings, "SubjectDeleted")
    assert {e["subject"] for e in deleted} == {"shop:shop:1", *(f"shop:customer:{n}" for n in range(3))}
    assert {(e["scope"], e["kind"]) for e in deleted} == {("subject", "erased")}
    assert len({e["event_id"] for e in deleted}) == 4
    table = links_by_table(settings)
    assert all((e["link_seq"], e["customer_id"]) == table[e["subject"]] for e in deleted)


def test_an_answer_to_a_signed_link_is_the_customers_own(settings, capsys, monkeypatch):
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_, **__: None)
    capture(settings, "shop", [person(1), person(2)])
    translate(settings, ["shop"])
    customer = next(e["customer_id"] for e in events(settings, "ProfileStated") if e["subject"] == "shop:customer:2")
    settings.config_file.write_text('[sources.feedback]\nconnector = "feedback"\n')
    monkeypatch.setenv("CAUDAL_SECRET_FEEDBACK", "hush")
    for name, value in environment(settings).items():
        if name.startswith("CAUDAL_"):
            monkeypatch.setenv(name, value)
    feedback.link(customer=uuid.UUID(customer), survey="2026-05", kind="nps", product=None, expires="30d")
    link = capsys.readouterr().out.strip().splitlines()[-1]
    token = parse_qs(urlsplit(link).query)["token"][0]
    for score in (9, 3):
        capture(settings, "feedback", [{"token": token, "score": score}], connector="feedback", kind="nps")
        translate(settings, ["feedback"])
    answers = events(settings, "FeedbackStated")
    assert {(e["customer_id"], e["score"]) for e in answers} == {(customer, 9.0), (customer, 3.0)}
    assert len({e["feedback_id"] for e in answers}) == 1
    [own] = [e for e in events(settings, "SubjectLinked") if e["subject"] == f"feedback:customer:{customer}"]
    assert [(e["kind"], e["value"]) for e in own["evidence"]] == [("subject", "shop:customer:2")]
