"""Who is in defined segments: after events, when the time comes, for new definitions, whoever does it and whenever it dies."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zlib import crc32

import psycopg
import pytest
from caudal.projections import Runner, criteria
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import Draft
from caudal.projections.membership.stage import Memberships
from caudal.projections.segments import BUILT_IN_MEMBERS, MOVES
from caudal.schemas import (
    ConsentStated,
    CustomerErased,
    Event,
    OrderLine,
    OrderStated,
    ProfileStated,
    SubjectDeleted,
    SubjectLinked,
    TicketStated,
)
from caudal.schemas.codec import Codec
from logs import PARTITIONS, Record
from replays import on_topic, replaying

from caudal import kafka
from caudal.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
PEOPLE = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(8)]


class World:
    """A runner, the stage, and the clock."""

    def __init__(self, settings: Settings, codec: Codec, conn: psycopg.Connection[Any]) -> None:
        self.settings, self.codec, self.conn = settings, codec, conn
        self.now = START
        self.runner = Runner(settings, codec)
        self.runner.positions(range(PARTITIONS))
        self.stage = self.staged()
        self._ends: dict[int, int] = {}
        self._count = 0

    def staged(self) -> Memberships:
        return Memberships(self.settings, clock=lambda: self.now)

    def happens(self, *events: Event) -> list[Record]:
        """One batch; gives its messages."""
        made = []
        for event in events:
            partition = crc32(event.customer_id.encode()) % PARTITIONS
            offset = self._ends.get(partition, 0)
            self._ends[partition] = offset + 1
            made.append(Record((partition, offset), self.codec.encode_event(event), event.customer_id))
        self.runner.apply(self.runner.decode(made))
        return made

    def header(
        self, person: int, *, subject: int | None = None, at: datetime | None = None, seq: int = 1
    ) -> dict[str, Any]:
        self._count += 1
        when = at or self.now
        return {
            "event_id": f"e{self._count:05}", "source": "shop", "subject": f"shop:customer:{person if subject is None else subject}",
            "customer_id": PEOPLE[person], "link_seq": seq, "occurred_at": when, "captured_at": when,
        }  # fmt: skip

    def profile(self, person: int, **fields: Any) -> ProfileStated:
        return ProfileStated(**self.header(person), **fields)

    def order(self, person: int, *, at: datetime | None = None, category: str = "shoes") -> OrderStated:
        header = self.header(person, at=at)
        lines = (OrderLine(line_id="1", category=category, quantity=1, unit_price_minor=100),)
        return OrderStated(
            **header, order_id=header["event_id"], status="paid", currency="BRL", total_minor=100, placed_at=at or self.now, lines=lines
        )  # fmt: skip

    def define(self, name: str, text: str | None) -> definitions.Saved:
        condition = None if text is None else criteria.parse(text)
        return definitions.save(self.conn, [Draft(name, condition)], "ana")[0]

    def settle(self) -> int:
        """Do all that is to be done; the number of steps."""
        steps = 0
        while self.stage.step():
            steps += 1
            assert steps < 500, "it never ends"
        return steps

    def members(self, name: str) -> set[int]:
        found = self.conn.execute(
            "SELECT customer_id::text FROM hub.segment_memberships m JOIN hub.segments s ON s.id = segment_id WHERE name = %s", (name,)
        )  # fmt: skip
        return {PEOPLE.index(customer) for (customer,) in found}

    def moves(self) -> list[tuple[int, str, bool, str]]:
        """What was noted, in order: person, segment, entered, cause."""
        found = self.conn.execute(
            """SELECT customer_id::text, s.name, entered, cause FROM hub.segment_history JOIN hub.segments s ON s.id = segment_id
               ORDER BY hub.segment_history.ctid"""
        )
        return [(PEOPLE.index(customer), *rest) for customer, *rest in found]

    def built_in(self, person: int) -> list[tuple[str, bool, str]]:
        """What was noted of built-in segments, in order: segment, entered, cause."""
        asked = f"SELECT segment, entered, cause FROM {MOVES} m WHERE customer_id = %s ORDER BY at, segment"
        return [(*row,) for row in self.conn.execute(asked, (PEOPLE[person],))]

    def published(self) -> list[tuple[int, str, str, str]]:
        """What is on the topic, once all is: person, segment, change, cause."""
        self.runner.recover(range(PARTITIONS))
        self.runner.flush()
        found = on_topic(self.settings, self.codec, kafka.SEGMENTS)
        return [
            (PEOPLE.index(v["customer_id"]), v["segment"], v["change"], v["cause"])
            for _, v in found
            if v and v["segment"].startswith("my-")
        ]

    def judged_anew(self, name: str) -> set[int]:
        """Who belongs to it, asked by set over all that is known now."""
        (segment,) = (s for s in definitions.defined(self.conn) if s.name == name)
        assert segment.condition is not None
        asked = criteria.members(segment.condition)
        return {
            PEOPLE.index(str(c))
            for (c,) in self.conn.execute(asked.text, {**asked.parameters, "now": self.now}).fetchall()
        }

    def close(self) -> None:
        self.stage.close()
        self.runner.close()


@pytest.fixture
def world(settings: Settings, codec: Codec, conn: psycopg.Connection[Any]) -> Iterator[World]:
    made = World(settings, codec, conn)
    yield made
    made.close()


def test_who_fits_after_an_event_enters_and_the_event_is_the_cause(world: World) -> None:
    world.define("my-recife", 'city = "Recife"')
    world.settle()
    first = world.profile(0, city="Recife", name="Ana")
    world.happens(first, world.profile(1, city="Olinda"))
    world.settle()
    assert world.members("my-recife") == {0}
    moved = world.profile(0, city="Olinda", name="Ana")
    world.happens(moved)
    world.settle()
    assert world.members("my-recife") == set()
    assert world.moves() == [(0, "my-recife", True, first.event_id), (0, "my-recife", False, moved.event_id)]
    assert world.published() == [
        (0, "my-recife", "entered", first.event_id),
        (0, "my-recife", "left", moved.event_id),
    ]


def test_history_and_topic_say_links_of_whoever_lost_an_account_and_name_the_event_of_whoever_got_it(
    world: World,
) -> None:
    world.define("my-buyers", "bought()")
    world.happens(world.profile(0), world.profile(1))
    order = world.order(0)
    world.happens(order)
    world.settle()
    moved = ProfileStated(**world.header(1, subject=0, seq=2), name="Ana")
    world.happens(moved)
    world.settle()
    told = [("entered", 0, order.event_id), ("left", 0, "links"), ("entered", 1, moved.event_id)]
    assert world.published()
    noted = on_topic(world.settings, world.codec, kafka.SEGMENTS)
    for segment in ("my-buyers", "buyers"):
        heard = [(v["change"], PEOPLE.index(v["customer_id"]), v["cause"]) for _, v in noted if v["segment"] == segment]
        assert sorted(heard) == sorted(told)
    assert sorted((("left", "entered")[entered], who, cause) for who, _, entered, cause in world.moves()) == sorted(
        told
    )
    assert world.built_in(0) == [("buyers", True, order.event_id), ("buyers", False, "links")]


def test_only_segments_that_read_what_was_touched_are_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.define("my-recife", 'city = "Recife"')
    world.define("my-buyers", "bought()")
    world.settle()
    world.happens(world.profile(0, city="Recife"))
    world.settle()
    asked: list[list[str]] = []
    judge = world.stage._judge

    def noting(conn: Any, now: datetime, work: Any) -> Any:
        named = [
            [s.name for s in world.stage._bundles[number].segments] for number, customers in work.items() if customers
        ]
        asked.extend(named)
        return judge(conn, now, work)

    monkeypatch.setattr(world.stage, "_judge", noting)
    world.happens(world.order(0))
    world.settle()
    assert asked == [["my-buyers"]]
    assert world.members("my-buyers") == {0}


def test_people_leave_and_enter_when_the_time_comes_also_after_a_restart(world: World) -> None:
    world.define("my-recent", "bought(within = 30d)")
    world.define("my-lapsed", "bought() and not bought(within = 30d)")
    world.define("my-adults", "age >= 18")
    world.settle()
    order = world.order(0)
    world.happens(world.profile(0, birth_date=date(2008, 3, 20)), order)
    world.settle()
    assert (world.members("my-recent"), world.members("my-adults")) == ({0}, set())
    world.stage.close()
    world.stage = world.staged()
    for moment, recent, lapsed, adults in [
        (datetime(2026, 3, 19, 23, 59, 59, tzinfo=UTC), {0}, set(), set()),
        (datetime(2026, 3, 20, tzinfo=UTC), {0}, set(), {0}),
        (START + timedelta(days=30) - timedelta(microseconds=1), {0}, set(), {0}),
        (START + timedelta(days=30), set(), {0}, {0}),
    ]:
        world.now = moment
        world.settle()
        assert (world.members("my-recent"), world.members("my-lapsed"), world.members("my-adults")) == (
            recent,
            lapsed,
            adults,
        )
    assert sorted(world.moves()[-2:]) == [(0, "my-lapsed", True, "time"), (0, "my-recent", False, "time")]
    assert not world.conn.execute("SELECT FROM hub.segment_due WHERE at <= %s", (world.now,)).fetchall()


def test_a_definition_is_applied_to_everyone_and_an_edit_moves_only_those_that_differ(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caudal.projections.membership.stage.MOST_CUSTOMERS", 3)
    monkeypatch.setattr(Memberships, "_most", staticmethod(lambda _: 3))
    world.happens(*(world.profile(n, city="Recife" if n % 2 else "Olinda", name="X") for n in range(8)))
    world.define("my-city", 'city = "Recife"')
    world.stage.step()
    assert world.conn.execute("SELECT state FROM hub.segments").fetchone() == ("filling",)
    world.happens(world.profile(0, city="Recife", name="X"), world.profile(7, city="Olinda", name="X"))
    world.settle()
    assert world.members("my-city") == {0, 1, 3, 5}
    assert world.conn.execute("SELECT state FROM hub.segments").fetchone() == ("live",)
    before = len(world.moves())
    world.define("my-city", 'city = "Olinda" or city = "Recife"')
    world.settle()
    assert world.members("my-city") == set(range(8))
    assert sorted(world.moves()[before:]) == [(n, "my-city", True, "definition") for n in (2, 4, 6, 7)]
    definitions.archive(world.conn, "my-city", "eva")
    world.settle()
    assert world.members("my-city") == set()
    assert world.conn.execute("SELECT state FROM hub.segments").fetchone() == ("archived",)
    assert world.settle() == 0


def test_a_segment_that_names_others_follows_them(world: World) -> None:
    world.define("my-buyers", "bought(within = 30d)")
    world.define("my-recife", 'city = "Recife"')
    world.define("my-target", 'segment("my-recife") and not segment("my-buyers") and not segment("repeat-buyers")')
    world.define("my-echo", 'segment("my-target")')
    world.happens(world.profile(0, city="Recife"), world.profile(1, city="Recife"), world.order(1))
    world.settle()
    assert (world.members("my-target"), world.members("my-echo")) == ({0}, {0})
    world.now += timedelta(days=30)
    world.settle()
    assert (world.members("my-target"), world.members("my-echo")) == ({0, 1}, {0, 1})
    world.happens(world.order(0), world.order(0))
    world.settle()
    assert (world.members("my-target"), world.members("my-echo")) == ({1}, {1})
    assert world.moves()[-1][:3] == (0, "my-echo", False)
    assert world.moves()[-1][3] not in {"time", "definition"}


def test_a_list_has_who_was_put_on_it_under_the_customer_that_they_became(world: World) -> None:
    world.happens(world.profile(0), world.profile(1), world.profile(2))
    world.define("my-list", None)
    world.conn.execute(
        "INSERT INTO hub.segment_listed SELECT id, unnest(%s::uuid[]) FROM hub.segments", ([PEOPLE[0], PEOPLE[1]],)
    )
    world.settle()
    assert world.members("my-list") == {0, 1}
    world.conn.execute("INSERT INTO hub.former_customers VALUES (%s, 'shop:customer:0')", (PEOPLE[0],))
    world.happens(SubjectLinked(**world.header(2, subject=0, seq=2), reason="merge"))
    world.settle()
    assert world.members("my-list") == {1, 2}


def test_of_who_was_erased_neither_history_nor_place_on_a_list_is_kept(world: World) -> None:
    world.happens(*(world.profile(person, city="Recife") for person in range(3)))
    world.define("my-recife", 'city = "Recife"')
    world.define("my-list", None)
    world.conn.execute(
        "INSERT INTO hub.segment_listed SELECT id, unnest(%s::uuid[]) FROM hub.segments WHERE name = 'my-list'",
        (PEOPLE[:3],),
    )
    world.settle()
    world.conn.execute("INSERT INTO hub.former_customers VALUES (%s, 'shop:customer:0')", (PEOPLE[0],))
    world.happens(SubjectLinked(**world.header(2, subject=0, seq=2), reason="merge"))
    world.settle()
    world.now += timedelta(days=1)
    gone = world.header(2)
    world.happens(CustomerErased(**gone, subjects=(gone["subject"],)))
    world.settle()
    assert {person for person, *_ in world.moves()} == {0, 1, 2}, "one of the two accounts is still there"
    gone = world.header(2, subject=0, seq=2)
    world.happens(CustomerErased(**gone, subjects=(gone["subject"],)))
    world.settle()
    assert world.members("my-recife") == world.members("my-list") == {1}
    assert {person for person, *_ in world.moves()} == {1}
    listed = world.conn.execute("SELECT customer_id::text FROM hub.segment_listed").fetchall()
    assert listed == [(PEOPLE[1],)]
    left = [(person, change) for person, segment, change, _ in world.published() if segment == "my-recife"]
    assert left.count((2, "left")) == 1, "who listens hears it"


def test_built_in_segments_have_a_history_with_causes_which_an_erasure_takes_away(world: World) -> None:
    order = world.order(0)
    world.happens(world.profile(0), world.profile(1), world.order(1))
    world.happens(order)
    ticket = TicketStated(**world.header(0), ticket_id="t1", status="open", opened_at=world.now)
    world.happens(ticket)
    solved = TicketStated(**world.header(0, at=START + timedelta(days=1)), ticket_id="t1", status="solved")
    world.happens(solved)
    assert world.built_in(0) == [
        ("buyers", True, order.event_id), ("open-tickets", True, ticket.event_id), ("open-tickets", False, solved.event_id),
    ]  # fmt: skip
    since = world.conn.execute(
        f"SELECT segment, entered_at = (SELECT min(at) FROM {MOVES} m WHERE m.customer_id = b.customer_id)"
        f" FROM {BUILT_IN_MEMBERS} b WHERE customer_id = %s",
        (PEOPLE[0],),
    ).fetchall()
    assert since == [("buyers", True)]
    world.now += timedelta(days=2)
    gone = world.header(0)
    world.happens(CustomerErased(**gone, subjects=(gone["subject"],)))
    world.settle()  # though nobody has defined a segment
    assert world.built_in(0) == []
    assert [segment for segment, *_ in world.built_in(1)] == ["buyers"]


def test_each_condition_names_the_event_since_which_it_holds(world: World) -> None:
    first = world.profile(0, city="Olinda", name="Ana")
    city = world.profile(0, city="Recife", birth_date=date(1990, 1, 1))
    orders = [world.order(0, at=START + timedelta(days=n)) for n in range(3)]
    granted = ConsentStated(**world.header(0), purpose="terms", state="granted")
    world.now += timedelta(days=4)
    for event in (first, city, *orders, granted):
        world.happens(event)
    (entered, *_) = world.conn.execute(
        "SELECT cause FROM hub.built_in_history WHERE 'buyers' = ANY (has) ORDER BY at"
    ).fetchall()
    expected = {
        'city = "Recife"': city, "age >= 30": city, "bought()": orders[0], "bought(times >= 2)": orders[1],
        "bought(amount >= 2.5 BRL)": orders[2], "bought(times < 9)": orders[2], "bought(units > 1)": orders[1],
        'consent("terms")': granted, "bought() then bought() within 1d": orders[1], "orders_count >= 1": None,
        "bought(times >= 4)": None, 'segment("buyers")': entered[0],
    }  # fmt: skip
    asked = criteria.because([criteria.parse(text) for text in expected])
    [(found,)] = world.conn.execute(
        asked.text, {**asked.parameters, "customer": PEOPLE[0], "now": world.now}
    ).fetchall()
    told = [cause and cause["event_id"] for cause in found]
    assert told == [each.event_id if isinstance(each, Event) else each for each in expected.values()]


def test_everyone_is_judged_again_after_a_swap(world: World) -> None:
    world.define("my-buyers", "bought()")
    log = world.happens(world.profile(0), world.order(0))
    producer = kafka.producer(world.settings.kafka)
    for record in log:
        topic = kafka.topic(world.settings.kafka, kafka.CHANGES)
        producer.produce(topic, key=record.key(), value=record.value(), partition=record.partition())
    assert producer.flush(60) == 0
    world.settle()
    world.conn.execute("DELETE FROM hub.segment_memberships")  # as if other facts had been live before
    world.conn.execute("DELETE FROM live.segment_members")
    with replaying(world.settings, world.codec) as replay:
        replay.swap(replay.full().id)
    world.settle()
    assert world.members("my-buyers") == {0}
    assert world.built_in(0)[1:] == [("buyers", True, "rebuild")], "the log doesn't tell what was told, so it goes on"
    assert world.published()
    told = [v for _, v in on_topic(world.settings, world.codec, kafka.SEGMENTS) if v["segment"] == "buyers"]
    assert (told[-1]["change"], told[-1]["cause"], told[-1]["rebuilt"]) == ("entered", "rebuild", True)


def test_one_stage_does_it_and_another_takes_over(world: World) -> None:
    world.define("my-all", 'sources has "shop"')
    assert world.settle()
    other = world.staged()
    assert other.step() is None
    world.happens(world.profile(0))
    world.stage.close()
    world.stage = other
    world.settle()
    assert world.members("my-all") == {0}


SEGMENTS = {
    "my-recife": 'city = "Recife"',
    "my-recent": "bought(within = 30d)",
    "my-lapsed": "bought() and not bought(within = 45d)",
    "my-often": 'bought(category = "shoes", times >= 2, within = 60d)',
    "my-grown": "age >= 30",
    "my-quiet": "days_since_last_order > 20",
    "my-both": 'segment("my-recife") and segment("my-recent")',
    "my-neither": 'not (segment("my-both") or segment("repeat-buyers"))',
    "my-nobody": 'city = "Nowhere"',
}


@pytest.mark.parametrize("seed", range(2))
def test_members_are_whom_the_criteria_hold_of_whatever_happens_in_which_order(world: World, seed: int) -> None:
    rnd = random.Random(seed)
    for name in rnd.sample(sorted(SEGMENTS), 3):
        if name not in {"my-both", "my-neither"}:
            world.define(name, SEGMENTS[name])
    for turn in range(60):
        match rnd.randrange(8):
            case 0:
                world.now += timedelta(days=rnd.choice([0.1, 1, 9, 30]))
            case 1:
                definitions.save(world.conn, [Draft(n, criteria.parse(t)) for n, t in SEGMENTS.items()], "ana")
            case 2 if definitions.defined(world.conn):
                some = rnd.choice(definitions.defined(world.conn))
                if some.name == "my-nobody" and some.state != "leaving":
                    definitions.archive(world.conn, some.name, "eva")
                elif some.name == "my-recife":
                    world.define("my-recife", f'city = "{rnd.choice(["Recife", "Olinda"])}"')
            case 3:
                world.stage.close()  # its worker died; the next one begins where the last transaction ended
                world.stage = world.staged()
            case 4:
                person, subject = rnd.randrange(8), rnd.randrange(8)
                world.happens(SubjectLinked(**world.header(person, subject=subject, seq=turn + 2), reason="merge"))
            case 5 if rnd.random() < 0.5:
                gone = world.header(rnd.randrange(8))
                forgotten = CustomerErased(**gone, subjects=(gone["subject"],))
                world.happens(rnd.choice([forgotten, SubjectDeleted(**gone, kind="customer")]))
            case _:
                some_time = [world.now - timedelta(days=rnd.uniform(0, 60)) for _ in range(3)]
                people = [rnd.randrange(8) for _ in range(4)]
                world.happens(
                    world.profile(people[0], city=rnd.choice(["Recife", "Olinda"]), birth_date=date(1996, rnd.randint(1, 12), 1)),
                    *(world.order(p, at=at, category=rnd.choice(["shoes", "hats"])) for p, at in zip(people[1:], some_time, strict=True)),
                )  # fmt: skip
        for _ in range(rnd.randrange(3)):
            world.stage.step()
        if turn % 10 == 9:
            world.settle()
            for segment in definitions.defined(world.conn):
                assert world.members(segment.name) == world.judged_anew(segment.name), (turn, segment.name)
    told = world.published()
    noted = world.moves()
    for person in range(8):
        assert [m[1:] for m in noted if m[0] == person] == [
            (segment, change == "entered", cause) for who, segment, change, cause in told if who == person
        ]
    state: dict[tuple[int, str], bool] = {}
    for person, segment, entered, _ in noted:
        assert state.get((person, segment), False) is not entered, "who is in can only leave, who is not can only enter"
        state[person, segment] = entered
    assert {key for key, entered in state.items() if entered} == {
        (person, s.name) for s in definitions.defined(world.conn) for person in world.members(s.name)
    }
