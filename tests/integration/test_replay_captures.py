"""`caudal replay --from captures` on real servers: what changes, what stays, who is let in meanwhile, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import captures as made_up
import pytest
from captures import Person, capture, dead_letters, people, read, translate, with_people
from caudal.connectors import Delivery
from caudal.processors import _generation
from caudal.processors.retranslate import Retranslation
from caudal.processors.translate import Translator
from caudal.projections import Runner
from caudal.projections.replay import Build
from caudal.schemas import CustomerErased, Identifier, ProfileStated
from caudal.schemas.codec import Codec, Registry
from caudal.serving._positions import Positions
from caudal.serving._problems import Problem
from programs import caudal
from test_worker import Workers, ordered, orders, until

from caudal import generations, kafka, postgres
from caudal.errors import BrokerUnavailable, MissingField, ReplayRefused
from caudal.replaying import Replaying
from caudal.settings import Settings

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]

SOURCES = ("shop", "crm")


@pytest.fixture
def codec(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Codec]:
    registry = Registry(settings)  # the one that the loaders use
    found = Codec(registry)
    monkeypatch.setattr(made_up, "codec_of", lambda _settings: found)
    yield found
    registry.close()


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    found = Workers(settings)
    yield found
    found.close()


@pytest.fixture
def replay(settings: Settings, codec: Codec) -> Iterator[Replaying]:
    with Replaying.opened(settings, codec, priorities={}) as opened:
        yield opened


def person(source: str, n: int, *identifiers: tuple[str, str], **fields: object) -> dict[str, object]:
    return {"subject": f"{source}:person:{n}", "identifiers": identifiers, **fields}


def project(settings: Settings, codec: Codec) -> None:
    """What a worker does: project the live log as far as it goes."""
    runner = Runner(settings, codec)
    stored = runner.positions(range(settings.kafka.partitions))
    messages = read(settings, [generations.topic(settings.kafka, runner.generation)])
    messages.sort(key=lambda m: (m.partition(), m.offset()))
    runner.apply(runner.decode([m for m in messages if m.offset() >= stored[m.partition()]]))
    runner.flush()
    runner.close()


def live(settings: Settings, codec: Codec, sources: tuple[str, ...] = SOURCES) -> dict[str, dict[str, Any]]:
    """Translate and project what there is; the profiles by customer."""
    translate(settings, sources)
    project(settings, codec)
    return profiles(settings)


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with postgres.connect(settings.postgres, role="tests") as db:
        return db.execute(query).fetchall()


def profiles(settings: Settings) -> dict[str, dict[str, Any]]:
    return dict(rows(settings, "SELECT customer_id::text, to_jsonb(p) - 'customer_id' FROM live.profiles p"))


def customers(settings: Settings) -> dict[str, str]:
    """Customer of each subject by the views, which identity agrees with."""
    found = dict(rows(settings, "SELECT subject, customer_id::text FROM live.links"))
    assert found == dict(rows(settings, "SELECT subject, customer_id::text FROM hub.subjects"))
    return found


@pytest.fixture
def mend(monkeypatch: pytest.MonkeyPatch):
    """The connector mapped e-mails as if they were ids of another system; now it doesn't."""

    def mended(stated: Person, _source: str, _delivery: Delivery) -> Iterator[ProfileStated]:
        values = tuple(Identifier(kind="email", value=value) for _, value in stated.identifiers)
        yield ProfileStated(subject=stated.subject, occurred_at=stated.at, name=stated.name, identifiers=values)

    def now() -> None:
        monkeypatch.setitem(people.translators, "person", (Person, mended))

    return now


def captured_wrongly(settings: Settings) -> None:
    """Three people in two systems that nobody sees to be the same, and one that is known to one system only."""
    capture(settings, "shop", [person("shop", n, ("email", f"p{n}@x.com"), name=f"Shop {n}") for n in range(4)])
    capture(settings, "crm", [person("crm", n, ("external_id", f"p{n}@x.com"), name=f"Crm {n}") for n in range(3)])
    capture(settings, "crm", [b"{damaged"])


def test_a_mended_connector_changes_exactly_whom_it_should_and_back(settings, codec, replay, mend):
    captured_wrongly(settings)
    before = live(settings, codec)
    ids = customers(settings)
    assert len(before) == 7
    mend()
    built = replay.captures()
    assert profiles(settings) == before, "nothing is live before the swap"
    diff = built.diff
    assert diff["customers"]["merges"] == 3
    assert diff["customers"]["unchanged"] == 1
    assert diff["customers"]["splits"] == diff["customers"]["renames"] == 0
    assert diff["dead_letters"] == {"still": 1, "recovered": 0, "new": 0, "recovered_examples": [], "new_examples": []}
    # these come while the operator reads the report
    capture(
        settings, "crm", [person("crm", 3, ("external_id", "p3@x.com"), name="Crm 3"), person("crm", 9, name="Late")]
    )
    live(settings, codec)
    swapped = replay.swap(built.id)
    assert swapped.state == "swapped"
    assert generations.current_topic(settings).endswith("customer.changes.2")
    found = customers(settings)
    assert {found[f"shop:person:{n}"] for n in range(4)} == {ids[f"shop:person:{n}"] for n in range(4)}
    assert all(found[f"shop:person:{n}"] == found[f"crm:person:{n}"] for n in range(4))
    assert len(profiles(settings)) == 5
    told = dict(rows(settings, "SELECT topic, sum(cardinality(customer_ids)) FROM hub.outbox WHERE rebuilt GROUP BY 1"))
    assert told["customer.profiles"] == 6, "three that changed and three that are gone; the others did not change"
    # the log goes on where the new generation ends
    capture(settings, "shop", [person("shop", 9, ("email", "late@x.com"), name="Nine")])
    capture(settings, "crm", [person("crm", 10, ("email", "late@x.com"))])
    after = live(settings, codec)
    assert len(after) == 6
    assert customers(settings)["shop:person:9"] == customers(settings)["crm:person:10"]
    assert len(dead_letters(settings)) == 1

    back = replay.rollback()
    assert back.state == "rolled_back"
    assert generations.current_topic(settings).endswith("customer.changes")
    again = customers(settings)
    assert {subject: again[subject] for subject in ids} == ids
    assert {"shop:person:9", "crm:person:10", "crm:person:3"} <= again.keys(), "what came since is there, too"


def _dies(*_args: object, **_kwargs: object) -> None:
    raise BrokerUnavailable("killed here")


def test_wherever_it_stops_what_is_live_stays_and_it_can_be_gone_on_with(settings, codec, mend, monkeypatch):
    captured_wrongly(settings)
    before = live(settings, codec)
    ids = customers(settings)
    mend()
    steps = [(Translator, "_store"), (Retranslation, "settle"), (Build, "run"), (Replaying, "_compare")]
    for turn, (owner, name) in enumerate(steps):
        with monkeypatch.context() as patch, Replaying.opened(settings, codec, priorities={}) as replay:
            patch.setattr(owner, name, _dies)
            with pytest.raises(BrokerUnavailable):
                replay.resume() if turn else replay.captures()
        assert profiles(settings) == before
        capture(settings, "shop", [person("shop", 20 + turn, name="While it was down")])
        before = live(settings, codec)
    with Replaying.opened(settings, codec, priorities={}) as replay:
        built = replay.resume()
        assert built.state == "built"
        assert built.diff["customers"]["merges"] == 3
        for owner, name in ((_generation, "exchange"), (Retranslation, "bury")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _dies)
                with pytest.raises(BrokerUnavailable):
                    replay.swap()
            assert customers(settings) == customers(settings) | ids
            capture(settings, "crm", [person("crm", 30, ("external_id", "p3@x.com"))])
            before = live(settings, codec)  # nothing holds the live step up
        assert generations.current_topic(settings).endswith("customer.changes")
        replay.swap()
        found = customers(settings)
        assert all(found[f"crm:person:{n}"] == found[f"shop:person:{n}"] == ids[f"shop:person:{n}"] for n in range(3))
        assert {f"shop:person:{20 + turn}" for turn in range(len(steps))} <= found.keys()
        statements = rows(settings, "SELECT count(*), count(DISTINCT subject) FROM live.profile_statements")
        assert statements == [(12, 12)]


def test_what_could_not_be_used_is_told_apart_and_what_no_longer_can_becomes_a_dead_letter(
    settings, codec, replay, monkeypatch
):
    capture(settings, "shop", [person("shop", 1, name="Ana"), person("shop", 2, name="Unlucky"), b"{damaged"])
    capture(settings, "shop", [person("shop", 3, name="Rui")], kind="renamed")
    live(settings, codec, ("shop",))
    assert sorted(letter["code"] for letter in dead_letters(settings)) == ["invalid_payload", "unknown_kind"]

    def pickier(stated: Person, _source: str, _delivery: Delivery) -> Iterator[ProfileStated]:
        if stated.name == "Unlucky":
            raise MissingField("no luck")
        yield ProfileStated(subject=stated.subject, occurred_at=stated.at, name=stated.name)

    monkeypatch.setitem(people.translators, "renamed", people.translators["person"])
    monkeypatch.setitem(people.translators, "person", (Person, pickier))
    told = replay.captures().diff["dead_letters"]
    assert (told["still"], told["recovered"], told["new"]) == (1, 1, 1)
    assert [one["code"] for one in told["recovered_examples"]] == ["unknown_kind"]
    assert [one["code"] for one in told["new_examples"]] == ["missing_field"]
    assert len(dead_letters(settings)) == 2, "not before the swap"
    replay.swap()
    assert sorted(letter["code"] for letter in dead_letters(settings)) == [
        "invalid_payload",
        "missing_field",
        "unknown_kind",
    ]
    assert {p["name"] for p in profiles(settings).values()} == {"Ana", "Rui"}


def test_who_was_erased_stays_erased_and_no_swap_brings_a_renamed_one_back_unforced(
    settings, codec, replay, monkeypatch
):
    capture(settings, "shop", [person("shop", 1, ("email", "a@x.com"), name="Ana"), person("shop", 2, name="Rui")])
    live(settings, codec, ("shop",))
    ids, now = customers(settings), datetime.now(UTC)
    erased = CustomerErased(
        event_id="5c1e6f2a-0000-5000-8000-000000000001", source="steward", subject="shop:person:1",
        customer_id=ids["shop:person:1"], link_seq=1, occurred_at=now, captured_at=now, subjects=("shop:person:1",),
    )  # fmt: skip
    producer = kafka.producer(settings.kafka)
    log = generations.current_topic(settings)
    producer.produce(log, codec.encode_event(erased), erased.customer_id, headers=[("event_type", "CustomerErased")])
    assert producer.flush(30) == 0
    assert {p["name"] for p in live(settings, codec, ("shop",)).values()} == {"Rui"}
    replay.captures()
    assert replay.swap().diff["differences"] == 0
    assert customers(settings) == ids
    assert {p["name"] for p in profiles(settings).values()} == {"Rui"}

    def renamed(stated: Person, _source: str, _delivery: Delivery) -> Iterator[ProfileStated]:
        yield ProfileStated(subject=stated.subject.replace("person", "client"), occurred_at=stated.at, name=stated.name)

    monkeypatch.setitem(people.translators, "person", (Person, renamed))
    built = replay.captures()
    assert built.diff["unmatched"] == [{"type": "CustomerErased", "subject": "shop:person:1"}]
    with pytest.raises(ReplayRefused, match="erased"):
        replay.swap()
    assert customers(settings) == ids
    assert replay.drop(topics=True)[-4:] == ["identity_1", "identity_3", "customer.changes", "customer.changes.3"]
    names = {name.removeprefix(settings.kafka.topic_prefix) for name in kafka.topics(settings.kafka)}
    assert {name for name in names if generations.number_of(name)} == {"customer.changes.2"}
    with pytest.raises(ReplayRefused):
        replay.rollback()
    assert replay.captures().params["generation"] == 4, "no number is used twice"


def test_positions_given_out_before_the_cut_over_are_reached_after_it(settings, codec, replay):
    capture(
        settings, "shop", [person("shop", n) for n in range(5)] * 4
    )  # repeated: the new log is as long, the next one isn't
    live(settings, codec, ("shop",))
    stood = dict(rows(settings, "SELECT partition, next_offset + 100 FROM live.offsets"))
    captured = {0: rows(settings, "SELECT next_offset FROM hub.translated WHERE partition = 0")[0][0]}

    async def reads(*positions: dict[str, dict[int, int]]) -> None:
        async with postgres.opened(settings.postgres, role="tests") as pool:
            waiting = Positions(pool, settings.kafka, 0.3)
            for position in positions:
                await waiting.wait(position)

    with pytest.raises(Problem, match="token_not_reached"):
        asyncio.run(reads({kafka.CHANGES: stood}))
    replay.captures()
    replay.swap()
    asyncio.run(reads({kafka.CHANGES: stood}, {"capture.shop": captured}))
    with pytest.raises(Problem, match="token_not_reached"):
        asyncio.run(reads({"customer.changes.2": stood}))


def place(settings: Settings, first: int, last: int) -> None:
    """Orders of as many people, who share nothing: where limits of the rules bite, identity depends on the batches."""
    nobodys = {"phone": None, "default_address": None}
    made = [
        {**order, "customer": {**order["customer"], **nobodys, "email": order["email"]}}
        for order in orders(first, last)
    ]
    capture(settings, "shop", made, connector="shopify", kind="orders/create")


def test_what_comes_while_workers_run_and_the_log_is_exchanged_is_neither_lost_nor_doubled(settings, codec, workers):
    place(settings, 1, 101)
    worker = workers.start()
    until(lambda: rows(settings, "SELECT to_regclass('live.orders')") != [(None,)], "the views are there")
    until(lambda: ordered(settings) == 100, "a hundred orders in the facts")
    enough, sent = threading.Event(), [100]

    def keep_sending() -> None:
        while not enough.wait(0.05):
            place(settings, sent[0] + 1, sent[0] + 4)
            sent[0] += 3

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(keep_sending)
        try:
            with Replaying.opened(settings, codec, priorities={}) as replay:
                built = replay.captures()
                assert built.diff["customers"]["merges"] == built.diff["customers"]["splits"] == 0
                at_swap = sent[0]
                swapped = replay.swap(built.id)
            until(lambda: ordered(settings) > at_swap + 20, "orders that came after the cut-over")
        finally:
            enough.set()
            sending.result(60)
    assert swapped.diff["differences"] == 0
    until(lambda: ordered(settings) == sent[0], "all orders in the facts")
    new = generations.topic(settings.kafka, 2)
    ends = kafka.end_offsets(settings.kafka, [new])[new]
    until(
        lambda: dict(rows(settings, "SELECT * FROM live.offsets")) == {p: e for p, e in ends.items() if e},
        "all projected",
    )
    assert rows(settings, "SELECT count(*), count(DISTINCT order_id) FROM live.orders") == [(sent[0], sent[0])]
    assert rows(settings, "SELECT count(*) FROM live.metrics") == [(sent[0],)]
    customers(settings)  # the views and identity say the same
    assert worker.poll() is None
    assert not [e for e in workers.log(worker) if e["event"] in {"process.failed", "process.stopped"}]
    with Replaying.opened(settings, codec, priorities={}) as replay:
        assert replay.rollback().diff["differences"] == 0
    place(settings, sent[0] + 1, sent[0] + 11)
    until(lambda: ordered(settings) == sent[0] + 10, "and back again")
    assert generations.current_topic(settings).endswith("customer.changes")

    command(settings, b'{"command": "pause", "role": "replay"}')
    until(lambda: (True,) in rows(settings, _PAUSED), "pause")
    words = ("replay", "--from", "captures", "--dry-run", "--json")
    with ThreadPoolExecutor(1) as pool:
        process = pool.submit(caudal, settings, *words)
        told = "SELECT updated_at FROM hub.replays WHERE id = 2 AND progress ->> 'stage' = 'translate'"
        until(lambda: rows(settings, told), "translation")
        seen = set(rows(settings, told))
        until(lambda: len(seen) > 3 or process.done() or seen.update(rows(settings, told)), "signs that it waits")
        assert not process.done(), process.result()
        assert rows(settings, "SELECT count(*) FROM identity_3.translated") == [(0,)], "nothing is translated meanwhile"
        command(settings, b'{"command": "resume", "role": "replay"}')
        done = process.result(120)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert (built["kind"], built["state"], built["diff"]["differences"]) == ("captures", "built", 0)


_PAUSED = "SELECT value = 'true' FROM hub.control WHERE key = 'replay.paused'"


def command(settings: Settings, record: bytes) -> None:
    producer = kafka.producer(settings.kafka)
    producer.produce(kafka.topic(settings.kafka, kafka.COMMANDS), record)
    assert producer.flush(30) == 0
