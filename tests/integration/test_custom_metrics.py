"""Custom metrics: what may be one, how they come into a database that lives, and what they are good for then."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from caudal.projections import Runner, criteria, ensure_live
from caudal.projections.custom import bound
from caudal.projections.custom import check as check_
from caudal.projections.custom.check import check
from caudal.projections.custom.source import BadMetric, Source
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import Draft
from caudal.projections.membership.stage import Memberships
from caudal.schemas import Event, OrderStated
from caudal.schemas.codec import Codec, LocalRegistry
from confluent_kafka import TopicPartition
from logs import NOTHING, PARTITIONS, apply, connect, fill, rebuilt
from programs import environment
from typer.testing import CliRunner

from benchmarks import _generate
from caudal import kafka, telemetry
from caudal.cli import app
from caudal.errors import Poison
from caudal.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SHOES = """-- title: Orders that were paid
SELECT count(*) AS paid_orders, max(placed_at) AS last_paid_at, bool_or(total_minor > 20000) AS ever_large,
       min(currency) AS first_currency, avg(total_minor) AS mean_minor
FROM orders WHERE status = 'paid';
"""
REFUSED = {
    "DELETE FROM orders": (":1:1", 'syntax error at or near "DELETE"'),
    "SELECT 1 AS a; SELECT 2": (":1:14", "one SELECT"),
    "SELECT count(*) AS a\nFROM orderz": (":2:6", 'relation "orderz" does not exist'),
    "SELECT count(statuss) AS a FROM orders": (":1:14", 'column "statuss" does not exist'),
    "SELECT count(*) FROM live.orders": (":1:27", "orders can't be read here"),
    "SELECT count(*) AS a FROM hub.subjects": (":1:31", "hub.subjects can't be read here"),
    "SELECT rolname::text AS a FROM pg_authid": (":1:32", "pg_authid can't be read"),
    "SELECT count(*) AS a FROM orders WHERE placed_at > now()": (":1:52", "can't tell the time"),
    "SELECT current_date AS a": (":1:8", "can't tell the time"),
    "SELECT age(placed_at) < '1 day' AS a FROM orders": (":1:8", "can't tell the time"),
    "SELECT count(*) AS a FROM orders WHERE placed_at > 'now'": (":1:52", "can't tell the time"),
    "SELECT random() AS a": (":1:8", "random() can't be used"),
    "SELECT pg_sleep(1) IS NULL AS a": (":1:8", "pg_sleep() can't be used"),
    "SELECT current_setting('x') AS a": (":1:8", "current_setting() can't be used"),
    "SELECT table_to_xml('orders', true, true, '')::text AS a": (":1:8", "table_to_xml() can't be used"),
    "WITH a AS (DELETE FROM orders RETURNING 1) SELECT 1 AS a": ("", "data-modifying statements"),
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT max(n) AS a FROM r": (":1:6", "WITH RECURSIVE"),
    "SELECT string_agg(status, ',') AS a FROM orders": (":1:8", "string_agg() needs an order"),
    "SELECT string_agg(status, ',' ORDER BY placed_at) AS a FROM orders": (":1:8", "string_agg() needs an order"),
    "SELECT sum(score) AS a FROM feedback": (":1:8", "floating point"),
    "SELECT status AS a FROM orders LIMIT 1": (":1:32", "LIMIT needs an order"),
    "SELECT status AS a FROM orders\nORDER BY placed_at LIMIT 1": (":2:20", "LIMIT needs an order"),
    "SELECT (SELECT status FROM orders ORDER BY placed_at OFFSET 1) AS a": (":1:54", "OFFSET needs an order"),
    "SELECT DISTINCT ON (customer_id) status AS a FROM orders ORDER BY customer_id, placed_at": (":1:8", "DISTINCT ON needs"),
    "SELECT max(n) AS a FROM (SELECT row_number() OVER () AS n FROM orders) x": (":1:33", "row_number() needs an order"),
    "SELECT max(n) AS a FROM (SELECT rank() OVER (PARTITION BY status) AS n FROM orders) x": (":1:33", "rank() needs an order"),
    "SELECT max(n) AS a FROM (SELECT lag(status) OVER (ORDER BY placed_at) AS n FROM orders) x": (":1:33", "lag() needs an order"),
    "SELECT max(n) AS a FROM (SELECT sum(total_minor) OVER (ORDER BY placed_at ROWS 2 PRECEDING) AS n FROM orders) x":
        (":1:33", "sum() needs an order"),
    "SELECT max(n) AS a FROM (SELECT sum(score) OVER () AS n FROM feedback) x": (":1:33", "floating point"),
    "SELECT max(n) AS a FROM (SELECT first_value(r) OVER (ORDER BY o.subject, o.order_id) AS n FROM orders o, unnest(line_brands) r) x":
        (":1:33", "first_value() needs an order"),
    "SELECT max(value::timestamptz) AS a FROM profile_attributes": (":1:17", "can't be cast to a time"),
    "SELECT count(*), 1 AS a FROM orders FOR UPDATE": ("", "FOR UPDATE"),
    "SELECT line_products AS a FROM orders": (":1:25", "of type text[]"),
    'SELECT count(*) AS "Big" FROM orders': (":1:21", "name in lower case"),
    "SELECT customer_id FROM subjects": ("", "1 to 20 values"),
    "SELECT 1 AS a) m, (SELECT 2": (":1:14", "syntax error"),
    "SELECT pg_stat_get_last_analyze_time(1259) AS a": (":1:8", "pg_stat_get_last_analyze_time() can't be used"),
    "SELECT pg_stat_get_db_stat_reset_time(1) > placed_at AS a FROM orders": (":1:8", "pg_stat_get_db_stat_reset_time() can't be used"),
    "SELECT pg_xact_commit_timestamp('3'::xid) AS a": (":1:8", "pg_xact_commit_timestamp() can't be used"),
    "SELECT pg_postmaster_start_time() AS a": (":1:8", "pg_postmaster_start_time() can't be used"),
    "SELECT pg_conf_load_time() > placed_at AS a FROM orders": (":1:8", "pg_conf_load_time() can't be used"),
    "SELECT pg_relation_size(1259) AS a": (":1:8", "pg_relation_size() can't be used"),
    "SELECT version() AS a": (":1:8", "version() can't be used"),
    "SELECT has_table_privilege('pg_authid', 'select') AS a": (":1:8", "has_table_privilege() can't be used"),
    "SELECT pg_advisory_lock(1) IS NULL AS a": (":1:8", "pg_advisory_lock() can't be used"),
    "SELECT lo_import('/etc/passwd') IS NULL AS a": (":1:8", "lo_import() can't be used"),
    "SELECT hashtext(status) AS a FROM orders": (":1:8", "hashtext() can't be used"),
    "SELECT length(repeat('x', total_minor::int)) AS a FROM orders": (":1:15", "repeat() can't be used"),
    "SELECT length(lpad('x', total_minor::int)) AS a FROM orders": (":1:15", "lpad() can't be used"),
    "SELECT cardinality(array_fill(1, ARRAY[total_minor::int])) AS a FROM orders": (":1:20", "array_fill() can't be used"),
    "SELECT length(format('%*s', total_minor::int, 'x')) AS a FROM orders": (":1:15", "format() can't be used"),
    "SELECT 9::numeric ^ total_minor AS a FROM orders": (":1:19", "hundred thousand digits"),
    "SELECT power(9::numeric, total_minor) AS a FROM orders": (":1:8", "hundred thousand digits"),
    "SELECT factorial(total_minor) AS a FROM orders": (":1:8", "factorial() can't be used"),
    "SELECT 1259::regclass::text AS a": (":1:12", "the catalogue can't be read"),
    "SELECT max(total_minor::oid::regrole::text) AS a FROM orders": (":1:28", "the catalogue can't be read"),
    "SELECT 'pg_class'::regclass::oid::bigint AS a": (":1:18", "the catalogue can't be read"),
    "SELECT 1 / 0 AS a": ("", "DivisionByZero"),
    "SELECT 1 AS a FROM generate_series(1, 2)": ("", "more than one row"),
}  # fmt: skip
GOOD = {
    "SELECT customer_id, count(*) AS a FROM orders GROUP BY customer_id": {"a": "integer"},
    "SELECT s.customer_id, sum(o.total_minor) AS a FROM subjects s JOIN orders o USING (subject) GROUP BY 1": {"a": "number"},
    "WITH r AS (SELECT brand, count(*) AS n FROM orders, unnest(line_brands) brand GROUP BY 1) SELECT count(*) AS a FROM r WHERE n > 1":
        {"a": "integer"},
    "SELECT upper(name) AS a, sources[1] IS NOT NULL AS b FROM profiles": {"a": "text", "b": "boolean"},
    "SELECT string_agg(status, ',' ORDER BY status) AS a, max(date_trunc('month', placed_at)) AS b FROM orders": {"a": "text", "b": "time"},
    "SELECT min((placed_at AT TIME ZONE 'America/Recife')::date) AS a FROM orders -- 'a' -- now()": {"a": "date"},
    "SELECT status AS a FROM orders ORDER BY placed_at DESC, subject, order_id LIMIT 1": {"a": "text"},
    "SELECT status AS a FROM orders ORDER BY placed_at DESC, status LIMIT 1": {"a": "text"},
    "SELECT brand AS a FROM orders, unnest(line_brands) brand GROUP BY 1 ORDER BY count(*) DESC, brand LIMIT 1": {"a": "text"},
    "SELECT (array_agg(status ORDER BY placed_at, subject, order_id))[1] AS a FROM orders": {"a": "text"},
    "SELECT count(*) AS a FROM orders LIMIT 1": {"a": "integer"},
    "SELECT DISTINCT ON (customer_id) status AS a FROM orders ORDER BY customer_id, placed_at, subject, order_id": {"a": "text"},
    """SELECT max(total_minor) FILTER (WHERE n = 1) AS a, max(r) AS b, max(t) AS c FROM (
           SELECT total_minor, row_number() OVER (PARTITION BY subject ORDER BY placed_at, order_id) AS n,
               rank() OVER (ORDER BY placed_at) AS r, sum(total_minor) OVER (ORDER BY placed_at) AS t
           FROM orders) x""": {"a": "integer", "b": "integer", "c": "number"},
    "SELECT max(n) AS a FROM (SELECT lag(count(*)) OVER (ORDER BY status) AS n FROM orders GROUP BY status) x": {"a": "integer"},
    """SELECT sum(round(total_minor * 1.1, 2)) AS a, max(left(upper(btrim(status)), 3)) AS b,
              bool_and(status ~ '^p' OR status LIKE 'x%') AS c,
              max(placed_at + interval '1 day') AS d, min(date_trunc('month', placed_at) - interval '1 month') AS e,
              sqrt(count(*))::float8 AS f, max(total_minor)::float8 ^ 0.5 AS g, count(*) FILTER (WHERE status IN ('a', 'b')) AS h,
              max(extract(isodow FROM placed_at)) AS i, max(replace(split_part(order_id, '-', 1), 'x', '')) AS j,
              max(to_char(placed_at, 'YYYY')) AS k, percentile_cont(0.5) WITHIN GROUP (ORDER BY total_minor::float8) AS l,
              max(cardinality(line_brands)) AS m, bool_or('Shoes' = ANY (line_categories)) AS n FROM orders""":
        {"a": "number", "b": "text", "c": "boolean", "d": "time", "e": "time", "f": "number", "g": "number", "h": "integer", "i": "number",
         "j": "text", "k": "text", "l": "number", "m": "integer", "n": "boolean"},
    "SELECT count(*) FILTER (WHERE hub.fold(status) LIKE '%pai%') AS a FROM orders": {"a": "integer"},
}  # fmt: skip


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(settings) as conn:
        ensure_live(conn)
        yield conn


@pytest.fixture
def live(settings: Settings, conn: psycopg.Connection[Any]) -> Iterator[Runner]:
    runner = Runner(settings, Codec(LocalRegistry(settings.kafka.topic_prefix)))
    runner.positions(range(PARTITIONS))
    yield runner
    runner.close()


@pytest.fixture
def caudal(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    (tmp_path / "metrics").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_, **__: None)  # it would close what pytest captures
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, refused: bool = False) -> Any:
        done = CliRunner().invoke(app, arguments)
        if refused:
            assert isinstance(done.exception, Poison), done.output
            return str(done.exception)
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout.splitlines()[-1])  # behind what is logged

    return call


def published(settings: Settings, codec: Codec) -> Iterator[tuple[str, dict[str, str]]]:
    """What lies on customer.metrics: customer and custom values, in order of each customer."""
    name = kafka.topic(settings.kafka, kafka.METRICS)
    consumer = kafka.consumer(
        settings.kafka, "tests", **{"auto.offset.reset": "earliest", "enable.partition.eof": True}
    )
    partitions = [TopicPartition(name, p, 0) for p in range(kafka.topics(settings.kafka)[name])]
    consumer.assign(partitions)
    ended = 0
    while ended < len(partitions):
        message = consumer.poll(60)
        assert message is not None
        if message.error():
            ended += 1
        elif message.value() is not None:
            yield message.key().decode(), codec.decode(message.value())[1]["custom"]
    consumer.close()


def test_only_a_select_over_a_customers_facts_may_become_a_metric(
    conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(210):
        conn.execute("INSERT INTO live.links VALUES (%s, 's', gen_random_uuid(), 1)", (f"s:c:{n}",))
    said = {}
    for statement in REFUSED:
        with pytest.raises(BadMetric) as refused:
            check(conn, Source("m.sql", "m", "", statement))
        said[statement] = str(refused.value)
    assert [
        (statement, said[statement])
        for statement, (place, message) in REFUSED.items()
        if not said[statement].startswith(f"m.sql{place}: ") or message not in said[statement]
    ] == []
    for statement, columns in GOOD.items():
        assert check(conn, Source("m.sql", "m", "", statement)).metric.columns == columns
    monkeypatch.setattr(check_, "SAMPLE_MS", 100)
    with pytest.raises(BadMetric, match="took longer"):
        check(conn, Source("m.sql", "m", "", "SELECT count(*) AS a FROM generate_series(1, 100000000)"))
    assert conn.execute("SELECT to_regnamespace('metric_check') IS NULL").fetchone() == (True,)


def test_a_metric_comes_into_a_living_database_and_is_kept_by_the_worker_that_runs(
    settings: Settings, conn: psycopg.Connection[Any], live: Runner, caudal: Callable[..., Any], tmp_path: Path
) -> None:
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))
    log = fill(settings, codec, _generate.events(600, 80))
    apply(live, log[:300], [100])
    live.flush()
    file = tmp_path / "metrics" / "paid.sql"
    file.write_text(SHOES)
    [checked] = caudal("metrics", "check", "--json")
    assert checked["values"] == {
        "paid_orders": "integer", "last_paid_at": "time", "ever_large": "boolean", "first_currency": "text", "mean_minor": "number",
    }  # fmt: skip
    assert caudal("metrics", "apply", "--json") == [{"metric": "paid", "change": "created"}]
    assert caudal("metrics", "apply", "--json") == [{"metric": "paid", "change": "unchanged"}]
    assert rebuilt(conn) == NOTHING, "everyone has it"
    apply(live, log[300:], [150])
    assert rebuilt(conn) == NOTHING, "the worker goes on with it"
    expected = dict(
        conn.execute(
            "SELECT customer_id, count(*) FILTER (WHERE status = 'paid') FROM live.links LEFT JOIN live.orders USING (subject) GROUP BY 1"
        ).fetchall()
    )
    kept = conn.execute("SELECT customer_id, custom FROM live.metrics").fetchall()
    assert {customer: custom["paid_orders"] for customer, custom in kept} == expected
    assert {type(custom["ever_large"]) for _, custom in kept if "ever_large" in custom} == {bool}

    live.recover(range(PARTITIONS))
    live.flush()
    newest = dict(published(settings, codec))
    assert {c: int(custom["paid_orders"]) for c, custom in newest.items()} == {str(c): n for c, n in expected.items()}
    assert {custom.get("ever_large") for custom in newest.values()} <= {"true", "false", None}

    # criteria, in each type, by customer and by set; segments are kept by it
    some = 'custom.paid_orders >= 2 and custom.last_paid_at > 2000-01-01 and custom.first_currency = "brl" and custom.ever_large = false'
    holds = {
        customer for customer, c in kept
        if c["paid_orders"] >= 2 and c["first_currency"] == "BRL" and c["ever_large"] is False
    }  # fmt: skip
    for shape in (criteria.SCAN, criteria.SEEK):
        asked = criteria.members(criteria.parse(some), shape=shape)
        assert {c for (c,) in conn.execute(asked.text, {**asked.parameters, "now": None})} == holds
    definitions.save(conn, [Draft("payers", criteria.parse("custom.paid_orders >= 1"))], "tests")
    with pytest.raises(criteria.BadCriteria, match=r"did you mean custom\.paid_orders"):
        definitions.save(conn, [Draft("x", criteria.parse("custom.paid_order >= 1"))], "tests")
    stage = Memberships(settings)
    while stage.step():
        pass
    apply(live, fill(settings, codec, _generate.events(800, 80), begin=600))
    while stage.step():
        pass
    stage.close()
    members = conn.execute("SELECT count(*) FROM hub.segment_memberships").fetchone()
    assert members == conn.execute("SELECT count(*) FROM live.metrics WHERE custom['paid_orders'] >= '1'").fetchone()
    assert members > (0,)

    # search finds, sorts and shows them
    words = (
        "--where",
        "custom.paid_orders >= 1",
        "--sort",
        "-custom.paid_orders",
        "--field",
        "custom.paid_orders,custom",
        "--json",
    )
    found = caudal("customers", "search", *words)
    rows = [row["custom.paid_orders"] for row in found["customers"]]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == max(custom["paid_orders"] for (custom,) in conn.execute("SELECT custom FROM live.metrics"))
    assert found["customers"][0]["custom"]["paid_orders"] == rows[0]
    wrong = caudal("customers", "search", "--where", "custom.paid_order >= 1", refused=True)
    assert "unknown field custom.paid_order; did you mean custom.paid_orders?" in wrong
    shown = caudal("customers", "get", found["customers"][0]["customer_id"], "--json")
    assert shown["metrics"]["custom"] == found["customers"][0]["custom"]

    # what a segment reads stays; a changed one is computed for everyone
    assert "the segment payers reads paid_orders" in caudal("metrics", "remove", "paid", refused=True)
    file.write_text("SELECT count(*) AS paid_orders, 10 / (count(*) - 1) AS odd FROM orders WHERE status = 'paid'")
    assert "metrics/paid.sql: it can't be computed of every customer: DivisionByZero" in caudal(
        "metrics", "apply", refused=True
    )
    file.write_text("SELECT count(*) * 10 AS paid_orders FROM orders WHERE status = 'paid'")
    assert caudal("metrics", "apply", "--json") == [{"metric": "paid", "change": "changed"}]
    assert rebuilt(conn) == NOTHING
    assert conn.execute("SELECT count(*) FROM pg_proc WHERE proname ~ '^metric_'").fetchone() == (1,)
    definitions.archive(conn, "payers", "eva")
    assert caudal("metrics", "remove", "paid", "--json") == [{"metric": "paid", "change": "removed"}]
    assert caudal("metrics", "list", "--json") == []
    apply(live, fill(settings, codec, _generate.events(810, 80), begin=800))
    assert conn.execute("SELECT count(custom) FROM live.metrics").fetchone() == (0,)
    assert rebuilt(conn) == NOTHING


def test_two_workers_take_a_metric_up_and_replay_and_verify_know_it(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any], caudal: Callable[..., Any], tmp_path: Path
) -> None:
    workers = [Runner(settings, codec) for _ in range(2)]
    shares = [range(0, PARTITIONS, 2), range(1, PARTITIONS, 2)]
    try:
        for worker, share in zip(workers, shares, strict=True):
            worker.positions(share)

        def work(log: list[Any]) -> None:
            for worker, share in zip(workers, shares, strict=True):
                apply(worker, [record for record in log if record.partition() in share])
                worker.flush()

        work(fill(settings, codec, _generate.events(200, 40)))
        (tmp_path / "metrics" / "paid.sql").write_text(SHOES)
        caudal("metrics", "apply", "--json")
        work(fill(settings, codec, _generate.events(400, 40), begin=200))
        assert rebuilt(conn) == NOTHING, "each worker computes it"
        before = conn.execute("SELECT customer_id, custom FROM live.metrics ORDER BY 1").fetchall()
        assert any(custom["paid_orders"] for _, custom in before)
        assert caudal("verify", "--json")["equal"]
        caudal("replay", "--json")
        assert conn.execute("SELECT customer_id, custom FROM live.metrics ORDER BY 1").fetchall() == before
        assert [metric["metric"] for metric in caudal("metrics", "list", "--json")] == ["paid"]
        assert caudal("verify", "--sample", "20", "--json")["equal"]
        work(fill(settings, codec, _generate.events(500, 40), begin=400))
        assert rebuilt(conn) == NOTHING
    finally:
        for worker in workers:
            worker.close()


def test_a_text_that_only_looks_like_a_time_stops_no_segment(conn: psycopg.Connection[Any]) -> None:
    texts = [
        "2026-19-39",
        "2026-02-30",
        "2026-01-01T25:61:61.000000Z",
        "2026-01-01T29:59:59.999999Z",
        "0000-00-00",
        "2026-03-01",
    ]
    for number, text in enumerate(texts):
        customer = _generate.customer_id(number)
        conn.execute("INSERT INTO live.profiles (customer_id, attributes) VALUES (%s, '{}')", (customer,))
        conn.execute(
            "INSERT INTO live.metrics (customer_id, custom) VALUES (%s, jsonb_build_object('code', %s::text))",
            (customer, text),
        )
    for shape in (criteria.SCAN, criteria.SEEK):
        asked = criteria.members(criteria.parse("custom.code > 2026-01-01"), shape=shape)
        found = conn.execute(asked.text, {**asked.parameters, "now": T0}).fetchall()
        assert [str(customer) for (customer,) in found] == [_generate.customer_id(5)]


ENDLESS = "SELECT count(*) AS {0}, max(total_minor) AS {0}_top FROM orders, generate_series(1, total_minor)"
BREAKS = """SELECT max(1 / (total_minor - 7)) AS inverse FROM orders"""
FINE = "SELECT count(*) AS orders_seen FROM orders"


def order(customer: int, amount: int, at: int = 0) -> OrderStated:
    return OrderStated(
        event_id=f"{uuid.UUID(int=customer * 1000 + at)}",
        customer_id=_generate.customer_id(customer),
        subject=f"shop:customer:{customer}",
        source="shop",
        order_id=f"o-{customer}-{at}",
        occurred_at=T0 + timedelta(seconds=at),
        captured_at=T0 + timedelta(seconds=at),
        placed_at=T0,
        status="paid",
        currency="BRL",
        total_minor=amount,
    )


def links(customers: int) -> list[Event]:
    return [
        replace(event, subject=f"shop:customer:{number}", source="shop", customer_id=_generate.customer_id(number))
        for number, event in enumerate(_generate.links(customers))
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "STATEMENT_MS", 1_000)
    monkeypatch.setattr(bound, "CUSTOMER_MS", 300)


def test_a_metric_that_data_make_endless_is_given_up_for_a_customer_and_everybody_else_goes_on(
    settings: Settings,
    conn: psycopg.Connection[Any],
    codec: Codec,
    caudal: Callable[..., Any],
    *,
    tmp_path: Path,
    impatient: None,
) -> None:
    live = Runner(settings, codec)
    live.positions(range(PARTITIONS))
    people = 8
    log = fill(settings, codec, [*links(people), *(order(n, n + 1) for n in range(people))])
    apply(live, log)
    for name, statement in {"endless": ENDLESS.format("endless"), "breaks": BREAKS, "fine": FINE}.items():
        (tmp_path / "metrics" / f"{name}.sql").write_text(statement)
    (tmp_path / "metrics" / "breaks.sql").write_text(BREAKS.replace("- 7", "- 77"))
    caudal("metrics", "apply", "--json")

    failures = telemetry.METRIC_FAILURES
    before = {
        code: failures.labels(name, code)._value.get() for name, code in (("endless", "too_long"), ("breaks", "22012"))
    }
    later = [order(n, {0: 10**15, 1: 77, 2: 10**14}.get(n, 5), at=1) for n in range(people)]
    both = fill(
        settings,
        codec,
        [*links(people), *(order(n, n + 1) for n in range(people)), *later],
        begin=2 * people,
    )
    with structlog.testing.capture_logs() as logged:
        apply(live, both)
    values = dict(conn.execute("SELECT customer_id::text, custom FROM live.metrics").fetchall())
    mine = [values[_generate.customer_id(n)] for n in range(people)]
    assert [each["orders_seen"] for each in mine] == [2] * people
    assert [each.get("endless") for each in mine] == [None, 2 + 77, None, *(n + 1 + 5 for n in range(3, people))]
    assert ["inverse" in each for each in mine] == [n != 1 for n in range(people)]
    told = {
        (line["metric"], line["customer"], line["everybody"]) for line in logged if line["event"] == "metric.given_up"
    }
    assert told == {("endless", _generate.customer_id(n), False) for n in (0, 2)}
    assert failures.labels("endless", "too_long")._value.get() - before["too_long"] == 2
    assert failures.labels("breaks", "22012")._value.get() > before["22012"]
    [listed] = [each for each in caudal("metrics", "list", "--json") if each["metric"] == "endless"]
    assert listed["given_up"] == 2

    # the same in every rebuild, and in a proof
    assert rebuilt(conn) == NOTHING
    assert caudal("verify", "--sample", "100", "--json")["equal"]
    caudal("replay", "--json")
    again = dict(conn.execute("SELECT customer_id::text, custom FROM live.metrics").fetchall())
    assert again == values
    # a rebuild has the bound by itself, too
    conn.execute("TRUNCATE hub.metric_unknown")
    caudal("replay", "--json")
    assert dict(conn.execute("SELECT customer_id::text, custom FROM live.metrics").fetchall()) == values
    # the view alone is another try, and ends as well
    caudal("replay", "--view", "metrics", "--json")
    assert dict(conn.execute("SELECT customer_id::text, custom FROM live.metrics").fetchall()) == values
    live.close()


def test_a_metric_that_is_endless_for_many_is_unknown_for_everybody_and_never_taken_up_again(
    settings: Settings,
    conn: psycopg.Connection[Any],
    live: Runner,
    caudal: Callable[..., Any],
    *,
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bound, "MOST_CUSTOMERS", 3)
    codec = Codec(LocalRegistry(settings.kafka.topic_prefix))
    people = 12
    events = [*links(people), *(order(n, n + 1) for n in range(people))]
    apply(live, fill(settings, codec, events))
    (tmp_path / "metrics" / "endless.sql").write_text(ENDLESS.format("endless"))
    (tmp_path / "metrics" / "fine.sql").write_text(FINE)
    caudal("metrics", "apply", "--json")
    more = [*events, *(order(n, 10**15, at=1) for n in range(people))]
    with structlog.testing.capture_logs() as logged:
        apply(live, fill(settings, codec, more, begin=len(events)))
    assert [line["everybody"] for line in logged if line["event"] == "metric.given_up"] == [False, False, True]
    assert conn.execute(
        "SELECT count(*) FROM live.metrics WHERE custom ->> 'orders_seen' = '2' AND NOT custom ? 'endless'"
    ).fetchone() == (people,)
    assert caudal("metrics", "list", "--json")[0]["given_up"] == "everybody"
    (tmp_path / "metrics" / "endless.sql").write_text(ENDLESS.format("anew"))
    refused = caudal("metrics", "apply", refused=True)
    assert "endless" in refused
    assert rebuilt(conn) == NOTHING
