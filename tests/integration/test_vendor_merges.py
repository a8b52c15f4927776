"""What a vendor's merge does to the record that is gone: nothing that it stated is lost while one of the merged is there."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
from caudal.connectors import Delivery, get
from caudal.projections import Runner
from caudal.schemas import Event
from caudal.schemas.codec import Codec
from logs import NOTHING, PARTITIONS, apply, clear, connect, rebuilt, records

from caudal.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
ANA = str(uuid.uuid5(uuid.NAMESPACE_OID, "ana"))


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(settings) as connection:
        yield connection


@pytest.fixture
def runner(settings: Settings, codec: Codec) -> Iterator[Runner]:
    made = Runner(settings, codec)
    made.positions(list(range(PARTITIONS)))
    yield made
    made.close()


def said(connector: str, at: int, body: Any, *, topic: str | None = None) -> list[Event]:
    """The events of a delivery at that hour, all about one customer."""
    when = START + timedelta(hours=at)
    headers = {"x-shopify-topic": topic, "x-shopify-triggered-at": when.isoformat()} if topic else {}
    delivery = Delivery(
        source=connector, kind=topic, headers=headers, body=orjson.dumps(body), delivery_id=f"{at}", captured_at=when
    )
    events = get(connector).translate(delivery)
    for event in events:
        object.__setattr__(event, "customer_id", ANA)
        object.__setattr__(event, "link_seq", 1)
    return events


def hubspot(at: int, kind: str, id_: int, **more: Any) -> list[Event]:
    ms = int((START + timedelta(hours=at)).timestamp() * 1000)
    notice = {
        "eventId": at,
        "subscriptionId": 1,
        "portalId": 1,
        "occurredAt": ms,
        "subscriptionType": kind,
        "objectId": id_,
    }
    return said("hubspot", at, [{**notice, **more}])


def stated(at: int, id_: int, name: str, value: str) -> list[Event]:
    return hubspot(at, "contact.propertyChange", id_, propertyName=name, propertyValue=value)


def merged(at: int, primary: int, gone: Sequence[int], new: int | None = None) -> list[Event]:
    more = {"newObjectId": new} if new else {}
    return hubspot(at, "contact.merge", primary, primaryObjectId=primary, mergedObjectIds=list(gone), **more)


def zendesk(at: int, kind: str, id_: int, event: dict[str, Any], **detail: Any) -> list[Event]:
    when = (START + timedelta(hours=at)).isoformat()
    body = {
        "type": f"zen:event-type:user.{kind}", "id": f"e{at}", "time": when, "subject": f"zen:user:{id_}",
        "detail": {"id": str(id_), "role": "end-user", **detail}, "event": event,
    }  # fmt: skip
    return said("zendesk", at, body)


def profile(conn: psycopg.Connection[Any], *fields: str) -> tuple[Any, ...] | None:
    return conn.execute(f"SELECT {', '.join(fields)} FROM live.profiles").fetchone()


ONE = [*stated(1, 1, "firstname", "Ana"), *stated(2, 1, "email", "ana@x.com"), *stated(3, 1, "city", "Recife")]


def test_what_only_the_merged_record_stated_stays_in_the_profile(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [*ONE, *stated(4, 2, "lastname", "Lima"), *merged(5, 1, [2], new=3)]
    apply(runner, records(codec, log), [1])
    assert profile(conn, "given_name", "family_name", "email", "city") == ("Ana", "Lima", "ana@x.com", "Recife")
    assert rebuilt(conn) == NOTHING


def test_what_the_survivor_states_counts_before_what_the_merged_one_stated_later(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [
        *stated(1, 1, "city", "Olinda"), *stated(2, 2, "city", "Recife"), *stated(2, 2, "jobtitle", "Chef"),
        *stated(2, 2, "favourite", "blue"), *merged(5, 1, [2]),
    ]  # fmt: skip
    apply(runner, records(codec, log), [1])
    assert profile(conn, "city", "job_title", "attributes ->> 'favourite'") == ("Olinda", "Chef", "blue")


def test_merges_in_a_chain_and_in_any_order_of_arrival_give_the_same(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [
        stated(1, 1, "city", "Recife"), stated(2, 2, "jobtitle", "Chef"), merged(5, 1, [2], new=3),
        merged(7, 3, [4], new=5), hubspot(8, "contact.deletion", 2),
    ]  # fmt: skip
    for order in itertools.permutations(log):
        clear(conn)
        apply(runner, records(codec, [*itertools.chain.from_iterable(order)]), [2])
        assert profile(conn, "city", "job_title") == ("Recife", "Chef")
        assert rebuilt(conn) == NOTHING


@pytest.mark.parametrize("kind", ["contact.deletion", "contact.privacyDeletion"])
def test_the_end_of_the_survivor_is_the_end_of_those_merged_into_it(
    kind: str, runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [ONE, merged(5, 1, [2], new=3), hubspot(6, kind, 3)]
    for order in itertools.permutations(log):
        clear(conn)
        apply(runner, records(codec, [*itertools.chain.from_iterable(order)]), [2])
        assert profile(conn, "given_name") is None
        assert rebuilt(conn) == NOTHING


def test_a_record_that_was_deleted_and_not_merged_stays_hidden(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [*ONE, *stated(4, 2, "lastname", "Lima"), *hubspot(5, "contact.deletion", 1)]
    apply(runner, records(codec, log), [1])
    assert profile(conn, "given_name", "family_name", "email") == (None, "Lima", None)


def test_a_merge_that_only_the_record_itself_tells_hides_nothing_either(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [*ONE, *stated(5, 3, "hs_merged_object_ids", "1;2"), *hubspot(6, "contact.deletion", 1)]
    apply(runner, records(codec, log), [1])
    assert profile(conn, "given_name", "email", "city") == ("Ana", "ana@x.com", "Recife")


@pytest.mark.parametrize("gone", [1, 2])
def test_of_two_zendesk_users_the_deleted_one_counts_behind_the_other(
    gone: int, runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    log = [
        *zendesk(1, "name_changed", 1, {"current": "Ana"}, email="ana@x.com"),
        *zendesk(2, "name_changed", 2, {"current": "Ana Lima"}, email="ana@y.com"),
        *zendesk(3, "merged", 1, {"user": {"id": "2"}}),
        *zendesk(4, "deleted", gone, {}),
    ]
    for events in (log, log[::-1]):
        clear(conn)
        apply(runner, records(codec, events), [1])
        assert profile(conn, "email") == ("ana@y.com" if gone == 1 else "ana@x.com",)
    apply(runner, records(codec, zendesk(5, "deleted", 3 - gone, {}), start=dict.fromkeys(range(PARTITIONS), 99)))
    assert profile(conn, "email") is None


def test_a_shop_customer_that_was_merged_keeps_what_the_kept_one_does_not_state(
    runner: Runner, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    body = {"id": 2, "first_name": "Ana", "phone": "+5581988887777", "updated_at": START.isoformat()}
    gid = "gid://shopify/Customer/"
    log = [
        *said("shopify", 1, body, topic="customers/update"),
        *said("shopify", 2, {
            "admin_graphql_api_customer_kept_id": f"{gid}1", "admin_graphql_api_customer_deleted_id": f"{gid}2",
            "status": "completed", "errors": [],
        }, topic="customers/merge"),
        *said("shopify", 3, {"id": 2}, topic="customers/delete"),
    ]  # fmt: skip
    apply(runner, records(codec, log), [1])
    assert profile(conn, "given_name", "phone") == ("Ana", "+5581988887777")
