"""Stored offsets that don't fit the log: a topic made again, a log that is shorter than the database says, records deleted unread."""

from __future__ import annotations

import subprocess
import uuid
from contextlib import AbstractContextManager

import httpx
import pytest
from api_server import running, token_of
from captures import capture, events
from caudal.projections import Prover
from caudal.schemas.codec import Codec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions
from test_worker import Workers, ordered, orders, rows, translated, until, workers

from caudal import kafka
from caudal.errors import LogTruncated, ReplayRefused
from caudal.replaying import Replaying
from caudal.settings import Settings
from caudal.standing import standing

__all__ = ["workers"]


def shop(settings: Settings, first: int, last: int, partition: int | None = None) -> None:
    capture(settings, "shop", orders(first, last), connector="shopify", kind="orders/create", partition=partition)


def three_orders(settings: Settings, workers: Workers) -> subprocess.Popen[str]:
    """A worker that has translated and projected them."""
    shop(settings, 1, 4)
    worker = workers.start()
    until(lambda: any(e["event"] == "process.started" for e in workers.log(worker)), "started")
    until(lambda: ordered(settings) == 3, "three orders")
    return worker


def made_again(settings: Settings, name: str) -> None:
    kafka.delete_topics(settings.kafka, [name])
    kafka.ensure_topics(settings.kafka, [name])


def delete_before(settings: Settings, name: str, offsets: dict[int, int]) -> None:
    topic = kafka.topic(settings.kafka, name)
    client = kafka.admin(settings.kafka)
    places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    for done in client.delete_records(places).values():
        done.result()


def told(workers: Workers, process: subprocess.Popen[str], reason: str) -> list[dict[str, object]]:
    return [line for line in workers.log(process) if line["event"] == "log.truncated" and line["reason"] == reason]


def ready(settings: Settings) -> tuple[int, list[str]]:
    with running(settings) as address:
        answer = httpx.get(f"{address}/ready", timeout=10)
        return answer.status_code, answer.json().get("missing", [])


def page(settings: Settings, worker_log: list[dict[str, object]]) -> str:
    address = next(line["web"] for line in worker_log if line["event"] == "process.started")
    authorization = f"Bearer {token_of(settings, 'metrics:read', name=uuid.uuid4().hex)}"
    return httpx.get(f"{address}/metrics/", headers={"Authorization": authorization}, timeout=10).text


@pytest.mark.parametrize("new", [3, 40], ids=["shorter than the one before", "longer than the one before"])
def test_captures_of_a_topic_made_again_are_read_from_its_beginning(settings, workers, new):
    shop(settings, 1, 11, partition=0)
    first = workers.start("translate")
    until(lambda: translated(settings) == 10, "ten captures")
    workers.stop(first)
    made_again(settings, "capture.shop")
    shop(settings, 11, 11 + new, partition=0)
    at = standing(settings)
    assert at["workers"]["translate"] == new, "what waits is what the new topic holds"
    assert at["logs"] == [{"topic": "capture.shop", "fault": "made_again", "unread": 0}]
    second = workers.start("translate")
    until(lambda: len({e["order_id"] for e in events(settings, "OrderStated")}) == 10 + new, "all are translated")
    assert len(told(workers, second, "made_again")) == 1
    assert standing(settings)["logs"] == []
    assert standing(settings)["workers"]["translate"] == 0


def test_a_running_worker_notices_that_a_topic_was_made_again(settings, workers):
    shop(settings, 1, 11, partition=0)
    worker = workers.start("translate")
    until(lambda: translated(settings) == 10, "ten captures")
    made_again(settings, "capture.shop")
    shop(settings, 11, 51, partition=0)  # at once longer than the one before
    until(lambda: len({e["order_id"] for e in events(settings, "OrderStated")}) == 50, "all are translated")
    until(lambda: len(told(workers, worker, "made_again")) == 1, "it is told")
    assert 'caudal_log_truncations_total{reason="made_again"' in page(settings, workers.log(worker))


def test_captures_are_read_again_when_their_log_is_shorter_than_what_was_read_of_it(settings, workers):
    shop(settings, 1, 11, partition=0)
    shop(settings, 11, 16, partition=1)
    first = workers.start("translate")
    until(lambda: translated(settings) == 15, "fifteen captures")
    workers.stop(first)
    # as after Kafka's folder was restored from a time before: partition 1 has grown again since, with other captures
    rows(settings, "UPDATE hub.offsets SET next_offset = 70 WHERE partition = 0 RETURNING 1")
    rows(settings, "UPDATE hub.offsets SET next_offset = 3 WHERE partition = 1 RETURNING 1")
    assert standing(settings)["logs"] == [{"topic": "capture.shop", "fault": "shorter", "unread": 0}]
    before = len(events(settings, "OrderStated"))
    second = workers.start("translate")
    until(lambda: len(events(settings, "OrderStated")) == 2 * before, "all are translated again")
    assert len({e["event_id"] for e in events(settings, "OrderStated")}) == before, "and are the same events"
    assert len(told(workers, second, "shorter")) == 1
    shop(settings, 16, 18, partition=0)
    until(lambda: len({e["order_id"] for e in events(settings, "OrderStated")}) == 17, "it goes on")


def test_captures_that_were_deleted_before_they_were_read_are_counted_and_the_others_read(settings, workers):
    shop(settings, 1, 11, partition=0)
    first = workers.start("translate")
    until(lambda: translated(settings) == 10, "ten captures")
    workers.stop(first)
    shop(settings, 11, 31, partition=0)
    shop(settings, 31, 36, partition=1)  # a partition of which nothing was read yet
    delete_before(settings, "capture.shop", {0: 25, 1: 2})
    assert standing(settings)["workers"]["translate"] == 5 + 3
    second = workers.start("translate")
    found = lambda: {e["order_id"] for e in events(settings, "OrderStated")}  # noqa: E731
    expected = {str(n) for n in (*range(1, 11), *range(26, 31), *range(33, 36))}
    until(lambda: found() == expected, "what is left is translated")
    assert [line["records"] for line in told(workers, second, "unread")] == [15 + 2]
    assert standing(settings)["logs"] == [{"topic": "capture.shop", "fault": None, "unread": 17}]
    workers.stop(second)
    third = workers.start("translate")
    until(lambda: any(e["event"] == "partitions.assigned" for e in workers.log(third)), "another takes over")
    shop(settings, 36, 37, partition=1)
    until(lambda: "36" in found(), "it goes on")
    assert told(workers, third, "unread") == [], "told once"


def test_partitions_that_are_added_are_read(settings, workers):
    shop(settings, 1, 5)
    workers.start("translate")
    until(lambda: translated(settings) == 4, "four captures")
    topic = kafka.capture_topic(settings.kafka, "shop")
    client = kafka.admin(settings.kafka)  # kept: nothing is answered once it is gone
    client.create_partitions([NewPartitions(topic, 6)])[topic].result()
    until(lambda: kafka.topics(settings.kafka)[topic] == 6, "two partitions more")
    shop(settings, 5, 8, partition=5)
    until(lambda: translated(settings) == 7, "what lies in the new ones is read")


def held(settings: Settings, workers: Workers, reason: str, break_: object) -> object:
    """A worker that has projected three orders; the log is broken; gives the worker, which holds."""
    worker = three_orders(settings, workers)
    break_(worker)  # type: ignore[operator]
    until(lambda: bool(told(workers, workers.running[-1], reason)), "it is told")
    assert ready(settings) == (503, ["log"])
    at = standing(settings)
    assert [(log["topic"], log["fault"]) for log in at["logs"]] == [("customer.changes", reason)]
    topic = kafka.topic(settings.kafka, kafka.CHANGES)
    assert f'caudal_log_fault{{topic="{topic}"}} 1.0' in page(settings, workers.log(workers.running[-1]))
    return workers.running[-1]


def replaying(settings: Settings, codec: Codec) -> AbstractContextManager[Replaying]:
    return Replaying.opened(settings, codec, priorities={}, tell=lambda _: None)


@pytest.mark.parametrize("way", ["captures", "log", "keep"])
def test_a_log_made_again_is_not_projected_until_someone_says_how(settings, codec, workers, way):
    held(settings, workers, "made_again", lambda _: made_again(settings, kafka.CHANGES))
    shop(settings, 4, 6)
    until(lambda: translated(settings) == 5, "captures are translated meanwhile")
    assert standing(settings)["workers"]["project"] >= 2
    assert ordered(settings) == 3
    with pytest.raises(LogTruncated):
        Prover(settings, codec)
    with replaying(settings, codec) as work:
        if way == "keep":
            work.keep()
        else:
            work.captures() if way == "captures" else work.full()
            work.swap()
    expected = 2 if way == "log" else 5
    until(lambda: ordered(settings) == expected, "the views follow")
    shop(settings, 6, 7)
    until(lambda: ordered(settings) == expected + 1, "it goes on")
    until(lambda: ready(settings) == (200, []), "it is ready")
    assert standing(settings)["logs"] == []
    with replaying(settings, codec) as work, pytest.raises(ReplayRefused):
        work.keep()


def test_a_log_shorter_than_what_was_projected_of_it_is_not_projected(settings, workers):
    def shorten(worker: object) -> None:
        workers.stop(worker)  # type: ignore[arg-type]
        rows(settings, "UPDATE live.offsets SET next_offset = next_offset + 50 RETURNING 1")
        workers.start()

    held(settings, workers, "shorter", shorten)


def test_events_that_were_deleted_before_they_were_projected_are_counted_and_the_others_projected(settings, workers):
    first = three_orders(settings, workers)
    workers.stop(first)
    translating = workers.start("translate")
    shop(settings, 4, 10)
    until(lambda: translated(settings) == 9, "six more are translated")
    workers.stop(translating)
    ends = kafka.end_offsets(settings.kafka, [topic := kafka.topic(settings.kafka, kafka.CHANGES)])[topic]
    stored = dict(rows(settings, "SELECT partition, next_offset FROM live.offsets"))
    lost = sum(end - stored.get(partition, 0) for partition, end in ends.items())
    delete_before(settings, kafka.CHANGES, ends)
    shop(settings, 10, 11)
    second = workers.start()
    until(lambda: ordered(settings) == 4, "what is left is projected")
    assert sum(int(line["records"]) for line in told(workers, second, "unread")) == lost
    assert [log["unread"] for log in standing(settings)["logs"]] == [lost]
    assert ready(settings) == (200, [])


def test_a_schema_built_of_a_log_that_was_made_again_is_not_swapped_in(settings, codec, workers):
    worker = three_orders(settings, workers)
    with replaying(settings, codec) as work:
        work.full()
    workers.stop(worker)
    made_again(settings, kafka.CHANGES)
    with replaying(settings, codec) as work, pytest.raises(LogTruncated):
        work.swap()


def test_a_hub_from_before_there_were_ids_takes_the_topics_that_there_are(settings, workers, conn):
    worker = three_orders(settings, workers)
    workers.stop(worker)
    conn.execute("DELETE FROM hub.logs")
    worker = workers.start()
    shop(settings, 4, 5)
    until(lambda: ordered(settings) == 4, "it goes on")
    assert [e for e in workers.log(worker) if e["event"] == "log.truncated"] == []
    assert len(rows(settings, "SELECT FROM hub.logs WHERE topic_id <> ''")) == 2
