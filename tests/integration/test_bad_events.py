"""Events that are valid Avro and hold what can't be stored, among good ones: they are put aside, and live views and a rebuild agree."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from caudal.projections import Runner, search
from caudal.projections.replay import Build
from caudal.schemas import (
    EVENT_TYPES,
    CustomerErased,
    Event,
    FeedbackStated,
    FieldCorrected,
    InteractionRecorded,
    OrderStated,
    ProfileStated,
    SubjectLinked,
)
from caudal.schemas.codec import Codec, Registry
from caudal.schemas.dead_letters import dead_letter
from logs import PARTITIONS, apply, connect, contents, fill, rebuilt
from record_values import event as any_event
from replays import on_topic

from caudal import kafka
from caudal.errors import UnusableEvent
from caudal.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
UNPACKABLE = "".join(chr(Random(number).randrange(0x4E00, 0x9FFF)) for number in range(3_000))
"""PostgreSQL packs long texts before it looks whether they fit an index; this one stays long."""


def customer(name: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(name)))


def said(cls: Any, it: str, **fields: Any) -> Any:
    common = {"source": "x", "subject": f"x:c:{it}", "customer_id": customer(it), "link_seq": 1, "event_id": it,
              "occurred_at": START, "captured_at": START}  # fmt: skip
    return cls(**{**common, **fields})


def profile(it: str, **fields: Any) -> ProfileStated:
    return said(ProfileStated, it, **fields)  # type: ignore[no-any-return]


def order(it: str, **fields: Any) -> OrderStated:
    given = {"order_id": it, "status": "paid", "currency": "BRL", "placed_at": START, **fields}
    return said(OrderStated, it, **given)  # type: ignore[no-any-return]


def corrected(it: str, field: str, value: str | None) -> FieldCorrected:
    return said(FieldCorrected, it, field=field, value=value, actor="ana")  # type: ignore[no-any-return]


UNUSABLE: dict[str, Event] = {
    "a NUL character": profile("nul", name="a\0b"),
    "a NUL character in JSON": said(InteractionRecorded, "j", interaction_id="j", kind="k", properties={"a": "b\0"}),
    "a customer that is no UUID": profile("who", customer_id="nobody"),
    "a customer in braces": profile("braces", customer_id="{" + customer("braces") + "}"),
    "a link to no UUID": said(SubjectLinked, "link", customer_id="", reason="r"),
    "a subject too long for an index": profile("subject", subject=f"x:c:{UNPACKABLE}"),
    "an order id too long": order("order", order_id=UNPACKABLE),
    "an attribute's name too long": profile("attribute", attributes={UNPACKABLE: "x"}),
    "a city too long": profile("city", city=UNPACKABLE),
    "an erased subject too long": said(CustomerErased, "erased", subjects=("x:c:1", UNPACKABLE)),
    "a score that is no number": said(FeedbackStated, "nan", feedback_id="1", kind="nps", score=float("nan")),
    "an endless score": said(FeedbackStated, "inf", feedback_id="2", kind="nps", score=float("inf")),
    "a correction to no date": corrected("day", "birth_date", "yesterday"),
    "a correction to no number": corrected("number", "latitude", "1_0"),
    "a correction to a day that never comes": corrected("never", "signed_up_at", "infinity"),
    "a correction of no field": corrected("field", "shoe_size", "43"),
}
USABLE: list[Event] = [
    order("sum-1", subject="x:c:sum", customer_id=customer("sum"), total_minor=2**63 - 1),
    order("sum-2", subject="x:c:sum", customer_id=customer("sum"), total_minor=2**63 - 1),
    order("debt", total_minor=-(2**63)),
    profile("upper", customer_id=customer("upper").upper()),
    profile("early", occurred_at=datetime(1, 1, 1, tzinfo=UTC)),
    profile("late", occurred_at=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    profile("before", link_seq=-(2**63)),
    profile("behind", link_seq=2**63 - 1),
    profile("no-subject", subject="", source=""),
    profile("long", name=UNPACKABLE * 10, tags=tuple(map(str, range(10_000)))),
    order("no-currency", currency="", total_minor=1),
    said(CustomerErased, "nobody", subjects=()),
    corrected("right", "birth_date", "1980-02-29"),
    corrected("cleared", "latitude", None),
]


@pytest.fixture
def codec(settings: Settings) -> Iterator[Codec]:
    registry = Registry(settings)
    yield Codec(registry)
    registry.close()


def test_what_cannot_be_stored_is_put_aside_alone_and_a_rebuild_gives_the_same(
    settings: Settings, codec: Codec
) -> None:
    rng = Random(5)
    odd = [replace(any_event(rng, rng.choice(sorted(EVENT_TYPES))), subject=f"x:r:{i}") for i in range(30)]
    odd = [e if rng.random() < 0.1 else replace(e, customer_id=customer(i)) for i, e in enumerate(odd)]
    bad = [*UNUSABLE.values(), *odd]
    good = [profile(f"good-{i}", name="Ana", occurred_at=START + timedelta(hours=i)) for i in range(len(bad))]
    events = [event for pair in zip(good, bad, strict=True) for event in pair] + USABLE
    log = fill(settings, codec, events)
    with connect(settings) as conn:
        runner = Runner(settings, codec)
        runner.positions(range(PARTITIONS))
        search.ensure(conn)  # its indexes take part
        apply(runner, log, [7, 30, 1, 50])
        runner.flush()
        runner.close()
        found = {s for (s,) in conn.execute("SELECT subject FROM live.profile_statements").fetchall()}
        assert {e.subject for e in (*good, *USABLE) if isinstance(e, ProfileStated)} <= found
        spent = conn.execute(
            "SELECT spend_minor FROM live.metrics WHERE customer_id = %s", [customer("sum")]
        ).fetchone()
        assert spent == ({"BRL": 2**63 - 1},)
        letters = [letter for _, letter in on_topic(settings, codec, kafka.DEAD_LETTERS) if letter is not None]
        buried = {letter["dead_letter_id"]: letter for letter in letters}
        wanted = {
            kind: dead_letter("project", message, UnusableEvent(""))["dead_letter_id"]
            for kind, message in zip(UNUSABLE, log[1::2], strict=False)
        }
        assert {kind: buried[id_]["code"] for kind, id_ in wanted.items()} == dict.fromkeys(UNUSABLE, "unusable_event")
        assert len(letters) == len(buried)  # none was found only by trying again
        assert rebuilt(conn) == dict.fromkeys(rebuilt(conn), ([], []))
        Build(settings, codec, schema="build_1", processes=1).run()
        assert contents(conn, "build_1") == contents(conn)
