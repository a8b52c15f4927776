"""A consumer of every topic and a listener of the live stream, as users would write them: what they saw is what the checks go by."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from typing import Any

import httpx
import orjson
from caudal.schemas import position
from caudal.schemas.codec import Codec, Registry
from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

from caudal import kafka
from caudal._demo_data import SOURCES
from caudal.settings import Settings

STATES = (kafka.PROFILES, kafka.METRICS)
FEEDS = (*STATES, kafka.SEGMENTS)
CAPTURES = tuple(f"capture.{name}" for name in SOURCES)

NOISE = b"says nothing"
"""A record that is deleted before anybody who is killed and paused has read it."""
_BEGIN_AGAIN = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError.UNKNOWN_TOPIC_OR_PART}
Change = tuple[int | None, dict[str, Any] | None]
"""Version and value; both None for a tombstone."""


class TopicWatcher:
    """Reads every topic from its beginning to its moving end."""

    def __init__(self, settings: Settings) -> None:
        self.changes: dict[tuple[str, str], list[Change]] = defaultdict(list)
        """Topic and customer → what came, in order."""
        self.captures: dict[str, dict[bytes, int]] = {name: {} for name in CAPTURES}
        """Topic → body → how often."""
        self.letters: list[dict[str, Any]] = []
        self.published = 0
        self.failed: BaseException | None = None
        self._settings = settings
        self._read: dict[tuple[str, int], int] = {}
        self._again: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(60)

    def cut(self) -> bool:
        """Whether a profile came without some of its fields."""
        return any(
            value and value["omitted"]
            for (topic, _), came in self.changes.items()
            if topic == kafka.PROFILES
            for _, value in came
        )

    def reached(self, ends: dict[str, dict[int, int]]) -> bool:
        if self.failed:
            raise self.failed
        return all(self._read.get((topic, p), 0) >= end for topic, parts in ends.items() for p, end in parts.items())

    def begin_again(self, topic: str) -> None:
        """It was made again, or lost its beginning: read what it holds now."""
        for partition in range(self._settings.kafka.partitions):
            self._read[topic, partition] = -1
        self._again.put(topic)

    def _run(self) -> None:
        try:
            registry = Registry(self._settings)
            codec = Codec(registry)
            consumer = kafka.consumer(self._settings.kafka, "watcher", **{"fetch.wait.max.ms": 50})
            topics = (*FEEDS, *CAPTURES, kafka.DEAD_LETTERS)
            partitions = range(self._settings.kafka.partitions)
            consumer.assign([TopicPartition(topic, p, 0) for topic in topics for p in partitions])
            while not self._stopped.is_set():
                if not self._again.empty():
                    topic = self._again.get()
                    for p in partitions:
                        self._read[topic, p] = 0
                    consumer.incremental_unassign([TopicPartition(topic, p) for p in partitions])
                    consumer.incremental_assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
                message = consumer.poll(0.1)
                if message is not None and message.error() is not None and message.error().code() in _BEGIN_AGAIN:
                    self._again.put(message.topic())
                if message is None or message.error() is not None:
                    continue
                self._take(codec, message)
                self._read[message.topic(), message.partition()] = message.offset() + 1
            consumer.close()
            registry.close()
        except BaseException as exc:
            self.failed = exc

    def _take(self, codec: Codec, message: Any) -> None:
        topic, value = message.topic(), message.value()
        if value == NOISE:
            return
        decoded = codec.decode(value)[1] if value else None
        if topic in FEEDS:
            self.changes[topic, (message.key() or b"").decode()].append(((decoded or {}).get("version"), decoded))
            self.published += 1
        elif topic in self.captures:
            assert decoded
            body = decoded["body"]
            self.captures[topic][body] = self.captures[topic].get(body, 0) + 1
        else:
            assert decoded
            capture = codec.decode(decoded["payload"])[1] if decoded["payload"] else {"body": None}
            self.letters.append({**decoded, "capture": capture})


class StreamWatcher:
    """Listens to `GET /changes`; whatever happens to the connection, it goes on behind the last event that it has."""

    def __init__(self, api: str, token: str) -> None:
        self.changes: dict[tuple[str, str], list[Change]] = defaultdict(list)
        self.connections = 0
        self.last = ""
        self._api, self._token = api, token
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(60)

    def reached(self, ends: dict[str, dict[int, int]]) -> bool:
        if not self.last:
            return not any(ends[topic].values() for topic in FEEDS)
        seen = position.decode(self.last)
        return all(seen.get(topic, {}).get(p, 0) >= end for topic in FEEDS for p, end in ends[topic].items())

    def _run(self) -> None:
        client = httpx.Client(timeout=httpx.Timeout(5, read=3), verify=False)  # no certificates to load: all is plain
        while not self._stopped.is_set():
            headers = {"authorization": f"Bearer {self._token}"}
            query = {} if self.last else {"from": "beginning"}
            if self.last:
                headers["last-event-id"] = self.last
            try:
                with client.stream("GET", f"{self._api}/changes", headers=headers, params=query) as answer:
                    if answer.status_code == 200:
                        self.connections += 1
                        self._listen(answer)
                    elif answer.status_code == 422:
                        raise AssertionError(answer.read().decode())
            except httpx.HTTPError:
                pass
            time.sleep(0.05)

    def _listen(self, answer: httpx.Response) -> None:
        event, id_, data = "", "", ""
        for line in answer.iter_lines():
            if self._stopped.is_set():
                return
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                id_ = value
            elif name == "data":
                data = value
            elif not line:
                if event in FEEDS:
                    value_ = orjson.loads(data)
                    gone = "value" in value_ and value_["value"] is None
                    change = (None, None) if gone else (value_.get("version"), value_)
                    self.changes[event, value_["customer_id"]].append(change)
                if id_:
                    self.last = id_
                if event == "closed":
                    return
                event, id_, data = "", "", ""
