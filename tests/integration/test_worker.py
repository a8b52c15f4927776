"""Whole workers, as processes, on real Kafka and PostgreSQL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import captures
import pytest
from captures import capture, events, links_by_log, links_by_table
from caudal.schemas.codec import Codec, Registry

from caudal import access, kafka, postgres, presence
from caudal.settings import Settings, environment

ORDER = json.loads((Path(__file__).parents[1] / "connectors/shopify/orders.create.json").read_text())["delivery"][
    "body"
]


class Workers:
    """Starts worker processes and ends them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *roles: str) -> subprocess.Popen[str]:
        env = environment(self._settings) | {"CAUDAL_LOG_JSON": "true"}
        code = (
            "from caudal import settings, telemetry, worker\n"
            "ready = settings.load()\n"
            "telemetry.configure_logging('debug', json=True)\n"
            f"worker.run(ready, roles={roles or ('translate', 'project')!r})\n"
        )
        log = (self._settings.config_file.parent / f"worker-{len(self.running)}.log").open("w+")
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=log, text=True)
        process.log = log  # type: ignore[attr-defined]
        self.running.append(process)
        return process

    @staticmethod
    def log(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """What a worker has logged so far."""
        process.log.seek(0)  # type: ignore[attr-defined]
        text = process.log.read()  # type: ignore[attr-defined]
        lines = [line for line in text.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    @staticmethod
    def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(60)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait(30)
            process.log.close()  # type: ignore[attr-defined]


@pytest.fixture
def workers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    registry = Registry(settings)  # the one that the processes use
    monkeypatch.setattr(captures, "codec_of", lambda _settings: Codec(registry))
    found = Workers(settings)
    yield found
    found.close()
    registry.close()


def until(holds: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def orders(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            **ORDER,
            "id": n,
            "email": f"p{n}@x.com",
            "contact_email": f"p{n}@x.com",
            "customer": {**ORDER["customer"], "id": n},
        }
        for n in range(first, last)
    ]


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with postgres.connect(settings.postgres, role="tests") as db:
        return db.execute(query).fetchall()


def ordered(settings: Settings) -> int:
    return int(rows(settings, "SELECT count(DISTINCT order_id) FROM live.orders")[0][0])


def translated(settings: Settings) -> int:
    return int(rows(settings, "SELECT coalesce(sum(next_offset), 0) FROM hub.translated")[0][0])


def test_a_source_that_appears_later_is_translated_and_projected_and_the_page_shows_it(settings, workers):
    worker = workers.start()
    until(lambda: any(e["event"] == "process.started" for e in workers.log(worker)), "started")
    capture(settings, "shop", orders(1, 4), connector="shopify", kind="orders/create")
    until(lambda: ordered(settings) == 3, "three orders in the facts")
    address = next(e["web"] for e in workers.log(worker) if e["event"] == "process.started")
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/health/", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok"}

    with postgres.connect(settings.postgres, role="tests") as db:
        scraper, _ = access.create(db, "scraper", ["metrics:read"])
        reader, _ = access.create(db, "reader", ["customers:read"])

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        try:
            request = urllib.request.Request(address + path, headers=headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def page() -> str:
        status, text = ask("/metrics/", Authorization=f"Bearer {scraper}")
        assert status == 200
        return text

    for authorization in ("", "Bearer", f"Bearer {reader}", f"Bearer {scraper}x", f"Basic {scraper}", scraper):
        assert ask("/metrics/", Authorization=authorization)[0] == 401
    assert ask("/metrics/")[0] == 401
    for path in ("/", "/router/", "/table/", "/graph/", "/stats/", "/performance/", "/metrics", "/health/../router/"):
        for method in ("GET", "POST", "TRACE"):
            assert ask(path, method, Authorization=f"Bearer {scraper}")[0] in {404, 405}, path
    for path in ("/health/", "/metrics/"):
        assert ask(path, Host="evil.example", Authorization=f"Bearer {scraper}")[0] == 403
    told = [present for present in presence.alive(settings.home) if present.name == "worker"]
    assert [(one.pid, f"http://{one.host}:{one.port}") for one in told] == [(worker.pid, address)]

    assert 'caudal_events_translated_total{source="shop"} 6.0' in page()
    until(lambda: "caudal_consumer_lag_events{" in page(), "lag")
    assert workers.stop(worker) == 0
    assert workers.log(worker)[-1]["event"] == "process.stopped"
    assert presence.alive(settings.home) == []


def test_a_worker_killed_in_the_middle_leaves_nothing_undone_and_nothing_done_twice(settings, workers):
    capture(settings, "shop", orders(1, 3001), connector="shopify", kind="orders/create")
    dying = workers.start("translate")
    until(lambda: translated(settings) > 0, "some are translated")
    dying.kill()
    dying.wait()
    assert translated(settings) < 3000, "it was too fast to be killed in the middle"
    workers.start("translate")
    until(lambda: translated(settings) == 3000, "all are translated")
    until(lambda: rows(settings, "SELECT count(*) FROM hub.unpublished_links") == [(0,)], "all links are published")
    assert links_by_log(settings) == links_by_table(settings)
    stated = {event["order_id"]: event["event_id"] for event in events(settings, "OrderStated")}
    assert len(stated) == 3000
    assert len({event["event_id"] for event in events(settings, "OrderStated")}) == 3000


def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_stops(settings, workers):
    capture(settings, "shop", orders(1, 101), connector="shopify", kind="orders/create")
    first, second = workers.start("translate"), workers.start("translate")

    def assigned(worker: subprocess.Popen[str]) -> int:
        found = [e["partitions"] for e in workers.log(worker) if e["event"] == "partitions.assigned"]
        return int(found[-1]) if found else 0

    until(lambda: assigned(first) == assigned(second) == settings.kafka.partitions // 2, "half each")
    capture(settings, "shop", orders(101, 201), connector="shopify", kind="orders/create")
    until(lambda: translated(settings) == 200, "both work")
    assert workers.stop(first, signal.SIGINT) == 0
    until(lambda: assigned(second) == settings.kafka.partitions, "all to the other")
    capture(settings, "shop", orders(201, 301), connector="shopify", kind="orders/create")
    until(lambda: translated(settings) == 300, "one works")
    assert links_by_log(settings) == links_by_table(settings)


def test_operators_pause_and_resume_a_step(settings, workers):
    def command(**what: str) -> None:
        producer = kafka.producer(settings.kafka)
        producer.produce(kafka.topic(settings.kafka, kafka.COMMANDS), json.dumps(what))
        producer.flush()

    worker = workers.start("translate")
    capture(settings, "shop", orders(1, 11), connector="shopify", kind="orders/create")
    until(lambda: translated(settings) == 10, "ten are translated")
    command(command="dance")
    command(command="pause", role="translate")
    until(
        lambda: rows(settings, "SELECT key FROM hub.control WHERE value = 'true'") == [("translate.paused",)], "wanted"
    )
    time.sleep(2)
    capture(settings, "shop", orders(11, 21), connector="shopify", kind="orders/create")
    time.sleep(2)
    assert translated(settings) == 10
    command(command="resume")
    until(lambda: translated(settings) == 20, "it goes on")
    commands = [e["command"] for e in workers.log(worker) if e["event"] == "command.received"]
    assert commands == ["unknown", "pause", "resume"]


def test_a_worker_outlives_the_loss_of_its_database_connections(settings, workers):
    worker = workers.start("translate")
    capture(settings, "shop", orders(1, 11), connector="shopify", kind="orders/create")
    until(lambda: translated(settings) == 10, "ten are translated")
    rows(
        settings,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'caudal translate' AND datname = current_database()",
    )
    capture(settings, "shop", orders(11, 21), connector="shopify", kind="orders/create")
    until(lambda: translated(settings) == 20, "it goes on")
    assert worker.poll() is None
