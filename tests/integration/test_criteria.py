"""Criteria in SQL say what a plain reading of the rows says, and never change before the moment that they name."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from caudal.projections import FACTS, VIEWS, criteria, ensure_live, select_sql
from caudal.projections.segments import CRITERIA, SEGMENTS
from criteria_trees import POOLS, WORDS, trees
from criteria_twin import Twin, age
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from logs import connect
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from caudal.settings import Settings

EXAMPLES = 40
"""Each has 20 criteria."""
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CUSTOMERS = [uuid.uuid5(uuid.NAMESPACE_OID, str(n)) for n in range(24)]
SOURCES = ["crm", "shop"]
TYPES = {"text": WORDS, "bigint": [0, 1, 120, 300], "integer": [1, 2, 3], "double precision": [1.0, 6.0, 9.0, 10.0]}
PLACES = {"latitude": [-8.05, -8.1, -23.5, 89.0, -95.0], "longitude": [-34.9, -35.0, -46.6, 200.0]}
OWN = {
    ("orders", "kind"): ["order", "checkout"],
    ("interactions", "kind"): ["email.opened", "email.clicked", "page.viewed", "product.viewed", "cart.abandoned"],
    ("feedback", "kind"): ["nps", "review"],
    ("feedback", "status"): ["published", "deleted"],
    ("consents", "state"): ["granted", "granted", "withdrawn", "pending"],
    ("consents", "purpose"): ["marketing_email", "terms"],
    ("profile_attributes", "name"): ["tier", "my field", "Tier.2"],
    ("profile_attributes", "value"): ["x", "3", "-1.5", "São Paulo"],
}


def _time(rnd: random.Random) -> datetime:
    # often whole days or hours away, so that comparisons meet their very edge
    return NOW - rnd.choice(
        [timedelta(days=rnd.randint(-9, 120)), timedelta(hours=rnd.randint(-90, 900)), timedelta(seconds=rnd.randint(0, 10**6))]
    )  # fmt: skip


def _value(rnd: random.Random, table: str, column: str, type_: str) -> Any:
    if rnd.random() < 0.2 and column not in {"kind", "state"}:
        return None
    pool = OWN.get((table, column)) or PLACES.get(column) or POOLS.get(column)
    if column == "currency":
        pool = ["BRL", "BRL", "EUR"]
    if type_ == "timestamptz":
        return _time(rnd)
    if type_ == "date":
        return rnd.choice([date(2000, 2, 29), date(2001, 3, 1), date(1992, 6, 1), date(1992, 6, 2), date(2026, 6, 3)])
    if type_ == "jsonb":
        return "{}"
    if type_.endswith("[]"):
        inner = pool or TYPES[type_.removesuffix("[]")]
        return [rnd.choice([*inner, None]) for _ in range(rnd.randint(0, 3))]
    return rnd.choice(pool or TYPES[type_])


def _fill(conn: psycopg.Connection[Any], rnd: random.Random) -> None:
    """Random facts, straight into the tables, and the views' own SELECTs over them."""
    subjects = [f"{rnd.choice(SOURCES)}:customer:{n}" for n in range(42)]
    gone = [None] * 8 + [NOW - timedelta(days=30)]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO live.links VALUES (%s, %s, %s, 1, %s, %s)",
            [
                (s, s.partition(":")[0], CUSTOMERS[n % len(CUSTOMERS)], rnd.choice(gone), rnd.choice(gone))
                for n, s in enumerate(subjects)
            ],
        )
        for fact in FACTS:
            rows = {}
            for number in range(100):
                row = {
                    "subject": rnd.choice(subjects), "source": rnd.choice(SOURCES), "occurred_at": _time(rnd),
                    "captured_at": NOW, "event_id": str(number), "stated": 0,
                }  # fmt: skip
                row |= {k: str(number) for k in fact.extra_key}
                if fact.name == "corrections":
                    row["field"] = "city"
                for key in ("purpose", "name"):
                    if key in fact.key:
                        row[key] = rnd.choice(OWN[fact.name, key])
                row |= {c.name: _value(rnd, fact.name, c.name, c.type) for c in fact.columns if c.name not in fact.key}
                rows[tuple(row[k] for k in fact.key)] = row
            names = list(fact.all_columns)
            statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier("live", fact.name),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(", ").join(map(sql.Placeholder, names)),
            )
            cursor.executemany(statement, list(rows.values()))
    for view in VIEWS:
        conn.execute(f"INSERT INTO live.{view.name} ({', '.join(view.columns)}) {select_sql(view, 'live', '0')}")
    kinds: dict[str, list[Any]] = {
        "n": [-1, 0.5, 3, 250, "3"], "t": [*WORDS, 3], "b": [True, False], "at": ["2026-05-20T12:00:00.000000Z", "2026-03-01", "x"],
    }  # fmt: skip
    with conn.cursor() as cursor:
        for customer in CUSTOMERS[:-3]:
            custom = {name: rnd.choice(pool) for name, pool in kinds.items() if rnd.random() < 0.8}
            cursor.execute("UPDATE live.metrics SET custom = %s WHERE customer_id = %s", (Jsonb(custom), customer))
    conn.execute("INSERT INTO hub.rates VALUES ('EUR', '2026-01-02', 6, 6, 'BRL')")
    with conn.cursor() as cursor:
        for customer in CUSTOMERS[::2]:
            score, known = rnd.randint(1, 5), rnd.random() < 0.8
            cursor.execute(
                "INSERT INTO hub.customer_scores VALUES (%s, %s, %s, %s, %s, %s, %s, 'BRL', %s, %s)",
                (
                    customer, score, 6 - score, score if known else None, rnd.choice([0.5, 1.0]) if known else None,
                    rnd.choice([1.0, 3.0]) if known else None, rnd.choice([120, 300]) if known else None,
                    _time(rnd) if known else None, NOW,
                ),
            )  # fmt: skip
    conn.execute("ANALYZE")


@pytest.fixture
def filled(settings: Settings) -> Iterator[tuple[psycopg.Connection[Any], Twin]]:
    with connect(settings) as conn:
        ensure_live(conn)
        _fill(conn, random.Random(6))
        names = ["links", *(f.name for f in FACTS), *(v.name for v in VIEWS)]
        with conn.cursor(row_factory=dict_row) as cursor:
            tables = {name: cursor.execute(f"SELECT * FROM live.{name}").fetchall() for name in names}
            tables["customer_scores"] = cursor.execute("SELECT * FROM hub.customer_scores").fetchall()
        yield conn, Twin(tables)


def _answers(
    conn: psycopg.Connection[Any], asked: list[criteria.Condition], now: datetime
) -> list[tuple[set[Any], dict[Any, tuple[datetime | None, bool]]]]:
    """Of each criterion: who is in it, asked by set, and by customer the next moment and whether it holds."""
    parts: list[str] = []
    parameters: dict[str, Any] = {"now": now}
    for number, condition in enumerate(asked):
        scan = criteria.members(condition, prefix=f"a{number}x")
        seek = criteria.members(condition, shape=criteria.SEEK, prefix=f"b{number}x")
        parts.append(
            f"SELECT {number}, 0, customer_id FROM ({scan.text}) q UNION ALL SELECT {number}, 1, customer_id FROM ({seek.text}) q"
        )
        parameters |= {**scan.parameters, **seek.parameters}
    shapes: list[tuple[set[Any], set[Any]]] = [(set(), set()) for _ in asked]
    for number, shape, customer in conn.execute(" UNION ALL ".join(parts), parameters, prepare=False):
        shapes[number][shape].add(customer)
    assert [scan for scan, _ in shapes] == [seek for _, seek in shapes]
    found: list[Any] = [(scan, {}) for scan, _ in shapes]
    together = criteria.judged(asked)
    given = {**together.parameters, "now": now, "customers": CUSTOMERS}
    for customer, holds, dues in conn.execute(together.text, given, prepare=False):
        for number, (due, held) in enumerate(zip(dues, holds, strict=True)):
            found[number][1][customer] = (due, held)
    return found


@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large,
                           HealthCheck.large_base_example],
)  # fmt: skip
@given(
    asked=st.lists(trees, min_size=20, max_size=20),
    shift=st.integers(-3 * 86400, 3 * 86400),
    seed=st.integers(0, 2**32),
)
def test_sql_and_a_plain_reading_agree_and_nothing_changes_before_it_is_due(
    filled: tuple[psycopg.Connection[Any], Twin], asked: list[Any], shift: int, seed: int
) -> None:
    conn, twin = filled
    rnd = random.Random(seed)
    now = NOW + timedelta(seconds=shift if shift % 3 else 0)
    loaded = [criteria.load(tree) for tree in asked]
    for tree, (scan, each) in zip(asked, _answers(conn, loaded, now), strict=True):
        expected = {c for c in twin.profiles if twin.holds(tree, c, now)}
        assert scan == expected, tree
        assert {c for c, (_, holds) in each.items() if holds} == expected, tree
        for customer in rnd.sample(sorted(each), 3):
            due, holds = each[customer]
            assert due is None or due > now
            last = (due or now + timedelta(days=4000)) - timedelta(microseconds=1)
            moments = [now + (last - now) * rnd.random() for _ in range(3)] + [last]
            for at in moments:
                assert twin.holds(tree, customer, at) is holds, (tree, customer, at, due)


def test_every_part_of_a_criterion_is_explained(filled: tuple[psycopg.Connection[Any], Twin]) -> None:
    conn, twin = filled
    condition = criteria.parse(
        'age >= 30 and (city = "recife" or bought(times >= 2, within = 60d)) and not (consent("terms") or segment("buyers"))'
        ' and not (attributes.tier = "x" or attributes.tier starts with "y" or attributes.tier > 7)'
    )
    nodes = criteria.conditions(condition)
    assert [path for path, _ in nodes][:4] == ["", "all[0]", "all[1]", "all[1].any[0]"]
    made = criteria.explanation(condition)
    rows = conn.execute(made.text, {**made.parameters, "now": NOW, "customers": CUSTOMERS}).fetchall()
    assert {row[0] for row in rows} == set(twin.profiles)
    for customer, holds, dues in rows:
        assert holds == [twin.holds(criteria.dump(node), customer, NOW) for _, node in nodes]
        assert len(dues) == len(nodes)
        assert dues[0] == min((due for due in dues[1:] if due), default=None)


def test_criteria_say_of_built_in_segments_what_their_view_says(filled: tuple[psycopg.Connection[Any], Twin]) -> None:
    conn, _ = filled
    whole = "customer_id NOT IN (SELECT customer_id FROM live.links WHERE erased_at IS NOT NULL)"  # their facts would be gone
    for name, text in CRITERIA.items():
        asked = criteria.members(criteria.parse(text))
        kept = "SELECT customer_id FROM live.segment_members WHERE segment = %(name)s"
        differ = f"(({asked.text}) EXCEPT ({kept})) UNION (({kept}) EXCEPT ({asked.text}))"
        rows = conn.execute(
            f"SELECT customer_id FROM ({differ}) d WHERE {whole}", {**asked.parameters, "now": NOW, "name": name}
        )
        assert rows.fetchall() == [], name
    assert CRITERIA.keys() == SEGMENTS.keys()


def test_an_age_turns_on_the_birthday_in_leap_years_too(settings: Settings) -> None:
    births = [date(1996, 2, 28), date(1996, 2, 29), date(1996, 3, 1), date(1997, 2, 28), date(1997, 3, 1)]
    days = [
        date(2024, 2, 28),
        date(2024, 2, 29),
        date(2024, 3, 1),
        date(2025, 2, 28),
        date(2025, 3, 1),
        date(1996, 2, 29),
    ]
    asked = {
        "age < 28": range(28), "age <= 28": range(29), "age > 28": range(29, 99), "age >= 28": range(28, 99), "age >= 0": range(99),
        "age = 28": [28], "age between 27 and 28": [27, 28], "age between 28 and 27": [], "age != 28": {*range(99)} - {28},
    }  # fmt: skip
    with connect(settings) as conn:
        ensure_live(conn)
        for birth in births:
            conn.execute(
                "INSERT INTO live.profiles (customer_id, sources, birth_date, attributes)"
                " VALUES (gen_random_uuid(), '{}', %s, '{}')",
                (birth,),
            )
        for text, ages in asked.items():
            condition = criteria.parse(text)
            holds = criteria.predicate(condition)
            for day in days:
                now = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
                statement = f"SELECT p.birth_date FROM live.profiles p WHERE {holds.text}"
                found = {row[0] for row in conn.execute(statement, {**holds.parameters, "now": now})}
                assert found == {birth for birth in births if age(birth, day) in ages}, (text, day)
