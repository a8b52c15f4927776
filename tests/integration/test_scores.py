"""Scores of everybody: quintiles by their definition, predictions with their error, refreshed by one worker at a time."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from caudal.projections import ensure_live, select_sql
from caudal.projections.criteria import members, parse
from caudal.projections.membership.definitions import Draft, create
from caudal.projections.membership.stage import Memberships
from caudal.projections.metrics import metrics
from logs import connect
from psycopg.rows import dict_row

from caudal import scores
from caudal.settings import Settings

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MANY = 1_200


def _orders(rnd: random.Random, n: int) -> Iterator[tuple[datetime, int]]:
    """A customer's orders over two years: some come back, and some of those stay away from then on."""
    at = NOW - timedelta(days=rnd.uniform(100, 700))
    rate = rnd.gammavariate(0.8, 1 / 60)  # a day
    worth = rnd.choice([4_000, 9_000, 15_000])
    while at <= NOW:
        yield at, worth + rnd.randrange(-500, 500)
        if rnd.random() < 0.15:
            return
        at += timedelta(days=rnd.expovariate(max(rate, 1e-6)) + 1)


@pytest.fixture(scope="module")
def settings(own_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One shop for all tests; the last two change its scores."""
    with own_settings(tmp_path_factory.mktemp("scores")) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def shop(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    rnd = random.Random(4)
    with connect(settings) as conn:
        ensure_live(conn)
        with conn.cursor() as cursor, conn.transaction():
            with cursor.copy("COPY live.links (subject, source, customer_id, link_seq) FROM STDIN") as copy:
                for n in range(MANY):
                    copy.write_row((f"shop:customer:{n}", "shop", str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))), 1))
            with cursor.copy(
                "COPY live.orders (order_id, source, subject, occurred_at, captured_at, event_id, stated, status, currency, total_minor,"
                " placed_at) FROM STDIN"
            ) as copy:
                for n in range(MANY):
                    for k, (at, total) in enumerate(_orders(rnd, n)):
                        copy.write_row(
                            (f"{n}-{k}", "shop", f"shop:customer:{n}", at, at, "e", 0, "paid", "BRL", total, at)
                        )
        conn.execute(
            "INSERT INTO live.profiles (customer_id, sources, attributes) SELECT customer_id, '{shop}', '{}' FROM live.links"
        )
        conn.execute(f"INSERT INTO live.metrics ({', '.join(metrics.columns)}) {select_sql(metrics, 'live', '0')}")
        conn.execute("ANALYZE")
        yield conn


@pytest.fixture(scope="module")
def scored(shop: psycopg.Connection[Any]) -> tuple[Any, dict[Any, dict[str, Any]]]:
    found = scores.refresh(shop, NOW)
    with shop.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT s.*, m.orders_count, m.last_order_at, m.spend_minor FROM hub.customer_scores s JOIN live.metrics m USING (customer_id)"
        ).fetchall()
    return found, {row["customer_id"]: row for row in rows}


def _fifths(values: dict[Any, Any]) -> dict[Any, int]:
    """By how many of all are less: five equal parts, equal values in the same one."""
    return {
        key: 1 + 5 * sum(other < value for other in values.values()) // len(values) for key, value in values.items()
    }


def test_quintiles_are_shares_of_those_below_and_equal_customers_have_equal_scores(scored: Any) -> None:
    _, rows = scored
    assert len(rows) == MANY
    for score, column in (
        ("rfm_recency", "last_order_at"),
        ("rfm_frequency", "orders_count"),
        ("rfm_monetary", "spend_minor"),
    ):
        values = {
            customer: row[column]["BRL"] if column == "spend_minor" else row[column] for customer, row in rows.items()
        }
        expected = _fifths(values)
        assert {customer: row[score] for customer, row in rows.items()} == expected
        assert max(expected.values()) == 5


def test_predictions_are_probabilities_and_sums_and_their_error_is_told(scored: Any) -> None:
    run, rows = scored
    assert run["purchasing"] is not None
    assert run["spending"] is not None
    for row in rows.values():
        assert 0 <= row["probability_alive"] <= 1
        assert row["expected_orders_90d"] >= 0
        assert row["predicted_value_minor"] >= 0
        assert row["expected_next_order_at"] is None or row["expected_next_order_at"] > NOW
    calibration = run["calibration"]
    assert calibration["until"] == "2026-03-03"
    assert calibration["actual_orders"] > 100
    assert abs(calibration["error"]) < 0.25
    lately = [r for r in rows.values() if r["orders_count"] >= 3 and r["last_order_at"] > NOW - timedelta(days=15)]
    gone = [r for r in rows.values() if r["orders_count"] >= 3 and r["last_order_at"] < NOW - timedelta(days=300)]
    assert min(r["probability_alive"] for r in lately) > max(r["probability_alive"] for r in gone)


def test_criteria_ask_for_scores(shop: psycopg.Connection[Any], scored: Any) -> None:
    _, rows = scored
    asked = members(parse("rfm_recency = 5 and probability_alive > 0.5 and predicted_value_minor >= 1000"))
    found = {customer for (customer,) in shop.execute(asked.text, {**asked.parameters, "now": NOW})}
    assert found == {
        customer
        for customer, row in rows.items()
        if row["rfm_recency"] == 5 and row["probability_alive"] > 0.5 and row["predicted_value_minor"] >= 1000
    }
    assert found


def test_segments_that_read_scores_are_judged_again_and_others_are_not(
    shop: psycopg.Connection[Any], settings: Settings, scored: Any
) -> None:
    create(shop, Draft("champions", parse("rfm_recency = 5 and rfm_frequency = 5")), by="tests")
    create(shop, Draft("locals", parse('city = "Recife"')), by="tests")
    shop.execute("UPDATE hub.segments SET state = 'live'")
    scores.refresh(shop, NOW + timedelta(hours=1))
    assert dict(shop.execute("SELECT name, state FROM hub.segments")) == {"champions": "filling", "locals": "live"}
    stage = Memberships(settings, clock=lambda: NOW)
    while stage.step():
        pass
    stage.close()
    asked = members(parse("rfm_recency = 5 and rfm_frequency = 5"))
    expected = shop.execute(asked.text, {**asked.parameters, "now": NOW}).fetchall()
    found = shop.execute("SELECT customer_id FROM hub.segment_memberships").fetchall()
    assert sorted(found) == sorted(expected) != []


def test_one_computes_at_a_time_and_only_when_it_is_time(
    shop: psycopg.Connection[Any], settings: Settings, scored: Any
) -> None:
    scoring = scores.Scoring(settings)
    assert not scoring.look(NOW + timedelta(hours=20))
    with connect(settings) as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (0x6361_7568,))
        assert not scoring.look(NOW + timedelta(hours=30))
    shop.execute("DELETE FROM live.metrics WHERE customer_id = %s", (uuid.uuid5(uuid.NAMESPACE_OID, "0"),))
    later = NOW + timedelta(hours=30)
    assert scoring.look(later)
    left = shop.execute("SELECT count(*), min(computed_at) FROM hub.customer_scores").fetchone()
    assert left == (MANY - 1, later), "who has no metrics any more has no scores"
