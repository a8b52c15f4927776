from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from api_server import running, token_of
from caudal.projections import ensure_live
from caudal.schemas import position
from caudal.serving.models import CustomerAnswer, CustomersAnswer, TimelineAnswer
from psycopg.types.json import Jsonb

from caudal import access, kafka, postgres, serving
from caudal.errors import BadSettings

JOANA = uuid.UUID("018f0000-0000-7000-8000-00000000000a")
RUI = uuid.UUID("018f0000-0000-7000-8000-00000000000b")
ERASED = uuid.UUID("018f0000-0000-7000-8000-00000000000c")
HIDDEN = uuid.UUID("018f0000-0000-7000-8000-00000000000d")
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(hours):
    return T0 + timedelta(hours=hours)


class World:
    """Rows as the projection and the identity step would have written them."""

    def __init__(self, settings, conn):
        self.settings = settings
        self.conn = conn
        self.seq = 0

    def insert(self, table, **values):
        names = ", ".join(values)
        marks = ", ".join(f"%({name})s" for name in values)
        self.conn.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)

    def link(self, subject, customer, **more):
        self.seq += 1
        source = subject.split(":")[0]
        self.insert("live.links", subject=subject, source=source, customer_id=customer, link_seq=self.seq, **more)
        self.insert(
            "hub.subjects", subject=subject, customer_id=customer, link_seq=self.seq, source=source, created_at=T0,
            linked_at=at(self.seq / 100), reason="email",
        )  # fmt: skip

    def state(self, fact, subject, hour, **values):
        header = {
            "subject": subject, "source": subject.split(":")[0], "occurred_at": at(hour), "captured_at": at(hour),
            "event_id": str(uuid.uuid4()), "stated": 0,
        }  # fmt: skip
        self.insert(f"live.{fact}", **header, **values)

    def identify(self, subject, kind, value):
        self.insert("hub.identifiers", kind=kind, value=value, subject=subject)

    def project(self, **offsets):
        for partition, offset in offsets.items():
            self.conn.execute(
                "INSERT INTO live.offsets VALUES (%s, %s) "
                " ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset",
                (int(partition.removeprefix("p")), offset),
            )

    def move(self, subject, customer):
        self.seq += 1
        for table in ("live.links", "hub.subjects"):
            self.conn.execute(
                f"UPDATE {table} SET customer_id = %s, link_seq = %s WHERE subject = %s", (customer, self.seq, subject)
            )


@pytest.fixture
def conn(settings):
    with postgres.connect(settings.postgres, role="tests") as conn:
        ensure_live(conn)
        yield conn


@pytest.fixture
def world(settings, conn):
    world = World(settings, conn)
    world.link("shop:customer:1", JOANA)
    world.link("crm:contact:9", JOANA)
    world.link("shop:customer:2", RUI)
    world.link("crm:contact:3", ERASED, erased_at=at(9))
    world.link("crm:contact:4", HIDDEN, deleted_at=at(9))
    world.state("profile_statements", "shop:customer:1", 1, name="Joana", email="joana@example.com", city="Recife")
    world.state("profile_statements", "crm:contact:9", 2, name="Joana Prado", phone="+5581999990000", tags=["vip"])
    world.state("profile_attributes", "crm:contact:9", 2, name="plan", value="gold")
    world.state("profile_statements", "shop:customer:2", 1, name="Rui")
    world.state("profile_statements", "crm:contact:4", 1, name="Gone")
    world.state(
        "orders", "shop:customer:1", 3, order_id="o1", number="1001", status="paid", currency="BRL", total_minor=19990,
        placed_at=at(3), line_ids=["a"], line_skus=["S1"], line_quantities=[2], line_unit_prices_minor=[9995],
        line_categories=["shoes"],
    )  # fmt: skip
    world.state(
        "refunds",
        "shop:customer:1",
        4,
        order_id="o1",
        refund_id="r1",
        refunded_at=at(4),
        amount_minor=990,
        currency="BRL",
    )
    world.state("tickets", "crm:contact:9", 5, ticket_id="t1", title="Late", status="open", opened_at=at(5))
    world.state("subscriptions", "shop:customer:1", 5.5, subscription_id="s1", plan="club", status="active")
    world.state("consents", "crm:contact:9", 6, purpose="marketing_email", state="granted")
    world.state("consents", "shop:customer:1", 7, purpose="marketing_email", state="withdrawn")
    world.state("feedback", "crm:contact:9", 8, feedback_id="f1", kind="nps", score=9.0, answers=Jsonb([]))
    world.state(
        "interactions", "crm:contact:9", 9, interaction_id="i1", kind="email_opened", properties=Jsonb({"a": "b"})
    )
    world.identify("shop:customer:1", "email", "joana@example.com")
    world.identify("crm:contact:9", "email", "joana@example.com")
    world.identify("crm:contact:9", "phone", "+5581999990000")
    world.identify("shop:customer:2", "email", "rui@example.com")
    world.identify("shop:customer:2", "phone", "+5581999990000")
    world.identify("shop:customer:2", "cpf", "52998224725")
    world.insert(
        "live.profiles", customer_id=JOANA, sources=["crm", "shop"], name="Joana Prado", email="joana@example.com",
        phone="+5581999990000", city="Recife", tags=["vip"], attributes=Jsonb({"plan": "gold"}),
    )  # fmt: skip
    world.insert("live.profiles", customer_id=RUI, sources=["shop"], name="Rui", attributes=Jsonb({}))
    world.insert(
        "live.metrics", customer_id=JOANA, orders_count=1, spend_minor=Jsonb({"BRL": 19000}), open_tickets_count=1
    )
    world.insert("live.segment_members", customer_id=JOANA, segment="buyers")
    world.insert("hub.segments", name="vips", revision=1)
    world.conn.execute(
        "INSERT INTO hub.segment_memberships SELECT %s, id, %s FROM hub.segments WHERE name = 'vips'", (JOANA, at(7))
    )
    world.project(p0=12, p3=4)
    return world


@pytest.fixture
def http(world, settings):
    with running(settings) as address:
        headers = {"authorization": f"Bearer {token_of(settings, 'customers:read', 'metrics:read')}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            yield client


def test_a_customer_is_told_with_the_source_of_every_value(http):
    answer = http.get(f"/customers/{JOANA}")
    assert answer.status_code == 200
    CustomerAnswer.model_validate_json(answer.content)
    customer = answer.json()
    assert customer["sources"] == ["crm", "shop"]
    profile = customer["profile"]
    assert profile["name"] == {
        "value": "Joana Prado", "source": "crm", "subject": "crm:contact:9", "since": "2026-03-01T14:00:00+00:00",
    }  # fmt: skip
    assert profile["city"]["source"] == "shop"
    assert profile["tags"]["value"] == ["vip"]
    assert profile["attributes"]["plan"] == {
        "value": "gold", "source": "crm", "subject": "crm:contact:9", "since": "2026-03-01T14:00:00+00:00",
    }  # fmt: skip
    assert customer["metrics"]["orders_count"] == 1
    assert customer["metrics"]["spend_minor"] == {"BRL": 19000}
    assert customer["metrics"]["open_tickets_count"] == 1
    assert customer["segments"] == [
        {"segment": "buyers"},
        {"segment": "vips", "entered_at": "2026-03-01T19:00:00+00:00"},
    ]
    assert [(c["state"], c["source"]) for c in customer["consents"]] == [("withdrawn", "shop"), ("granted", "crm")]
    assert [s["subject"] for s in customer["subjects"]] == ["crm:contact:9", "shop:customer:1"]
    assert not any(s["deleted"] for s in customer["subjects"])
    assert {
        "kind": "email",
        "value": "joana@example.com",
        "subjects": ["crm:contact:9", "shop:customer:1"],
    } in customer["identifiers"]


def test_every_answer_carries_the_token_that_it_reflects(http):
    for path in (
        f"/customers/{JOANA}",
        f"/customers/{JOANA}/timeline",
        "/customers?email=joana@example.com",
        f"/customers/{uuid.uuid4()}",
    ):
        answer = http.get(path)
        assert position.decode(answer.json()["token"]) == {kafka.CHANGES: {0: 12, 3: 4}}
        assert answer.headers["caudal-token"] == answer.json()["token"]


def test_unknown_and_erased_customers_are_told_apart(http):
    assert http.get(f"/customers/{uuid.uuid4()}").status_code == 404
    for rest in ("", "/timeline"):
        answer = http.get(f"/customers/{ERASED}{rest}")
        assert (answer.status_code, answer.json()["code"]) == (410, "customer_erased")
    assert http.get(f"/customers/{uuid.uuid4()}/timeline").json()["code"] == "unknown_customer"


def test_a_customer_whose_subjects_are_all_deleted_shows_no_profile(http):
    customer = http.get(f"/customers/{HIDDEN}").json()
    assert customer["profile"] is None
    assert [s["deleted"] for s in customer["subjects"]] == [True]
    assert http.get(f"/customers/{HIDDEN}/timeline?kinds=profile").json()["items"] == []


def test_a_customer_is_found_by_any_identifier_however_it_is_written(http):
    for query, found in (
        ({"email": " Joana@Example.COM "}, [JOANA]),
        ({"phone": "(81) 99999-0000"}, [JOANA, RUI]),
        ({"cpf": "529.982.247-25"}, [RUI]),
        ({"subject": "shop:customer:2"}, [RUI]),
        ({"email": "nobody@example.com"}, []),
        ({"external_id": "x"}, []),
        ({"subject": "shop:customer:999"}, []),
    ):
        answer = http.get("/customers", params=query)
        CustomersAnswer.model_validate_json(answer.content)
        assert [c["customer_id"] for c in answer.json()["customers"]] == [str(i) for i in found], query


def test_the_old_id_of_a_merged_customer_leads_to_the_new_one_also_after_another_merge(world, http):
    world.move("shop:customer:2", JOANA)
    answer = http.get(f"/customers/{RUI}")
    assert (answer.status_code, answer.headers["location"], answer.json()["merged_into"]) == (
        308,
        f"/customers/{JOANA}",
        str(JOANA),
    )
    assert http.get(f"/customers/{RUI}", follow_redirects=True).json()["customer_id"] == str(JOANA)
    assert http.get(f"/customers/{RUI}/timeline").headers["location"] == f"/customers/{JOANA}/timeline"
    world.move("shop:customer:2", HIDDEN)
    assert http.get(f"/customers/{RUI}").json()["merged_into"] == str(HIDDEN)
    world.move("shop:customer:2", RUI)  # undone
    assert http.get(f"/customers/{RUI}").status_code == 200


def test_a_customer_whose_subjects_went_to_several_names_them(world, http):
    world.move("shop:customer:1", RUI)
    world.move("crm:contact:9", HIDDEN)
    answer = http.get(f"/customers/{JOANA}")
    assert (answer.status_code, answer.json()["code"]) == (404, "customer_split")
    assert answer.json()["split_into"] == sorted([str(RUI), str(HIDDEN)])


def test_the_timeline_holds_every_kind_newest_first(http):
    answer = http.get(f"/customers/{JOANA}/timeline")
    TimelineAnswer.model_validate_json(answer.content)
    items = answer.json()["items"]
    assert [i["kind"] for i in items] == [
        "interaction", "feedback", "consent", "consent", "subscription", "ticket", "refund", "order", "profile", "profile",
        "link", "link",
    ]  # fmt: skip
    assert answer.json()["next"] is None
    order = next(i for i in items if i["kind"] == "order")
    assert order["id"] == "order:shop:o1"
    assert order["data"]["lines"] == [
        {"line_id": "a", "sku": "S1", "category": "shoes", "quantity": 2, "unit_price_minor": 9995}
    ]
    assert "stated" not in order["data"]


def test_pages_of_a_timeline_fit_together_even_where_times_are_equal(world, http):
    for i in range(7):
        world.state(
            "interactions", "crm:contact:9", 20, interaction_id=f"same-{i}", kind="page_viewed", properties=Jsonb({})
        )
    whole = [i["id"] for i in http.get(f"/customers/{JOANA}/timeline?limit=500").json()["items"]]
    pieces, before = [], None
    while True:
        page = http.get(
            f"/customers/{JOANA}/timeline", params={"limit": 2, **({"before": before} if before else {})}
        ).json()
        pieces += [i["id"] for i in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert pieces == whole
    assert len(whole) == len(set(whole)) == 19


def test_a_timeline_can_be_narrowed_by_kind_and_time(http):
    items = http.get(f"/customers/{JOANA}/timeline?kinds=order,ticket").json()["items"]
    assert [i["kind"] for i in items] == ["ticket", "order"]
    items = http.get(
        f"/customers/{JOANA}/timeline", params={"kinds": "order,ticket", "before": at(5).isoformat()}
    ).json()["items"]
    assert [i["kind"] for i in items] == ["order"]


def test_a_read_with_a_min_token_waits_until_it_is_reached(world, http):
    ahead = position.encode({kafka.CHANGES: {0: 13}})
    done = threading.Timer(0.3, world.project, kwargs={"p0": 13})
    done.start()
    began = time.monotonic()
    answer = http.get(f"/customers/{JOANA}", params={"min-token": ahead})
    assert answer.status_code == 200
    assert time.monotonic() - began >= 0.25
    assert position.decode(answer.json()["token"])[kafka.CHANGES][0] == 13
    assert http.get(f"/customers/{JOANA}", headers={"min-token": ahead}).status_code == 200
    done.join()


def test_a_read_waits_for_the_changes_made_of_a_capture(world, http, settings):
    topic = kafka.capture_topic(settings.kafka, "shop")
    world.conn.execute("INSERT INTO hub.translated VALUES (%s, 1, 7, %s)", (topic, Jsonb({"0": 14})))
    token = position.encode({"capture.shop": {1: 7}})
    done = threading.Timer(0.3, world.project, kwargs={"p0": 14})
    done.start()
    answer = http.get(f"/customers/{JOANA}", params={"min-token": token})
    assert position.decode(answer.json()["token"])[kafka.CHANGES][0] == 14
    done.join()


def test_a_min_token_that_is_not_reached_in_time_says_what_was(world, settings):
    patient = settings.model_copy(update={"serving": settings.serving.model_copy(update={"min_token_wait_s": 0.2})})
    headers = {"authorization": f"Bearer {token_of(settings, 'admin')}"}
    with running(patient) as address:
        answer = httpx.get(
            f"{address}/customers/{JOANA}",
            params={"min-token": position.encode({kafka.CHANGES: {0: 99}})},
            headers=headers,
        )
    assert (answer.status_code, answer.json()["code"]) == (409, "token_not_reached")
    assert position.decode(answer.json()["token"]) == {kafka.CHANGES: {0: 12, 3: 4}}


def test_a_revoked_token_stops_working_soon(world, http, settings):
    token = token_of(settings, "customers:read", name="leaver")
    headers = {"authorization": f"Bearer {token}"}
    assert http.get(f"/customers/{JOANA}", headers=headers).status_code == 200
    assert access.revoke(world.conn, "leaver")
    assert not access.revoke(world.conn, "leaver")
    deadline = time.monotonic() + 10
    while (status := http.get(f"/customers/{JOANA}", headers=headers).status_code) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert status == 401


def test_tokens_are_stored_as_hashes_only_and_shown_in_lists_without_them(world, settings):
    token = token_of(settings, "customers:read", "metrics:read", name="listed")
    with pytest.raises(access.BadAccess, match="listed already"):
        token_of(settings, "admin", name="listed")
    stored = str(world.conn.execute("SELECT t::text FROM hub.tokens t").fetchall())
    assert token not in stored
    assert token.removeprefix("cdl_") not in stored
    info = next(t for t in access.list_tokens(world.conn) if t.name == "listed")
    assert (info.scopes, info.revoked_at, info.last_used_at) == (["customers:read", "metrics:read"], None, None)
    access.revoke(world.conn, "listed")
    assert token_of(settings, "admin", name="listed") != token


def test_a_use_of_a_token_is_noted(world, http):
    http.get(f"/customers/{JOANA}")
    assert next(t for t in access.list_tokens(world.conn) if t.name == "tests").last_used_at is not None


def test_ready_looks_at_postgresql_kafka_and_the_views(world, http):
    assert http.get("/ready", headers={"authorization": ""}).json() == {"status": "ready"}
    world.conn.execute("DROP SCHEMA live CASCADE")
    time.sleep(1.1)
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["views"])
    answer = http.get(f"/customers/{JOANA}")
    assert (answer.status_code, answer.json()["code"]) == (503, "views_missing")


def test_the_run_file_says_where_the_api_listens_while_it_does(world, settings):
    file = settings.home / "run" / "api.json"
    with running(settings) as address:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # the address answers a moment before the file says so
        found = json.loads(file.read_text())
        assert address == f"http://{found['host']}:{found['port']}"
        assert found["pid"] == os.getpid()
    assert not file.exists()


def test_a_taken_port_is_told_with_what_to_do(settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = settings.serving.model_copy(update={"port": other.getsockname()[1]})
        with pytest.raises(BadSettings, match="CAUDAL_SERVING__PORT"):
            serving.server(settings.model_copy(update={"serving": taken}))


def test_lost_connections_are_replaced_before_a_request_notices(world, http):
    assert http.get(f"/customers/{JOANA}").status_code == 200
    time.sleep(1.1)
    lost = world.conn.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'caudal api' AND datname = current_database()"
    ).fetchone()
    assert lost[0] >= 1
    assert http.get(f"/customers/{JOANA}").status_code == 200
