"""Search and profile reads through the API's own process, over a million customers and five million orders (at scale 1).

Rows are written into facts and views by SQL, as the projection would have left them; metrics follow from the orders.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
from caudal.projections import ROLLUPS, _rollup, search

from benchmarks._machine import figure
from benchmarks._stage import Stage, address, stage, wait_until
from benchmarks.latency import percentile
from caudal import access

__all__ = ["measure"]

CUSTOMERS = 1_000_000
ORDERS_EACH = 5
REQUESTS = 400

_ID = "md5('customer ' || {n})::uuid"
_PICK = "(ARRAY[{words}])[1 + (hashtext('{salt}' || n) & 1048575) %% {count}]"
GIVEN = ["Maria", "José", "Ana", "João", "Antônio", "Francisca", "Carlos", "Paula", "Luís", "Mariana", "Zoraide", "Caetano", "Iná",
         "Otávio"]  # fmt: skip
FAMILY = ["Silva", "Santos", "Oliveira", "Souza", "Lima", "Pereira", "Albuquerque", "Brandão", "Cavalcanti", "Dantas", "Evangelista",
          "Furtado",
          "Guimarães", "Holanda", "Itaboraí", "Jordão", "Kubitschek", "Leitão", "Magalhães", "Nóbrega"]  # fmt: skip
CITIES = ["São Paulo"] * 12 + ["Rio de Janeiro"] * 7 + ["Recife"] * 3 + ["Salvador"] * 3 + [
    "Olinda", "Lisboa", "Porto", "Fortaleza", "Natal"]  # fmt: skip


def _pick(salt: str, words: list[str]) -> str:
    return _PICK.format(words=", ".join(f"'{word}'" for word in words), salt=salt, count=len(words))


_HEADER = "'shop:customer:' || n, 'shop', now() - interval '1 day', now(), n::text, 0"
_NAME = f"{_pick('g', GIVEN)} || ' ' || {_pick('m', FAMILY)} || ' ' || {_pick('f', FAMILY)}"
_FILL = [
    f"""INSERT INTO live.links (subject, source, customer_id, link_seq)
        SELECT 'shop:customer:' || n, 'shop', {_ID.format(n="n")}, 1 FROM generate_series(1, %(customers)s) n""",
    f"""INSERT INTO live.profile_statements (subject, source, occurred_at, captured_at, event_id, stated, name, email, phone, city, country,
                                             gender, birth_date, signed_up_at)
        SELECT {_HEADER}, {_NAME}, 'person' || n || '@example.com', '+55819' || lpad(n::text, 8, '0'), {_pick("c", CITIES)}, 'BR',
               {_pick("x", ["female", "male"])}, DATE '1950-01-01' + (hashtext('b' || n) & 1048575) %% 20000,
               now() - make_interval(days => (hashtext('s' || n) & 1048575) %% 1500)
        FROM generate_series(1, %(customers)s) n""",
    """INSERT INTO live.profiles (customer_id, sources, name, email, phone, city, country, gender, birth_date, signed_up_at, attributes)
        SELECT l.customer_id, ARRAY['shop'], s.name, s.email, s.phone, s.city, s.country, s.gender, s.birth_date, s.signed_up_at, '{}'
        FROM live.profile_statements s JOIN live.links l USING (subject)""",
    """INSERT INTO live.orders (order_id, subject, source, occurred_at, captured_at, event_id, stated, kind, status, currency,
                                total_minor, placed_at, line_ids, line_skus, line_products, line_categories, line_quantities,
                                line_unit_prices_minor)
        SELECT 'o' || n, 'shop:customer:' || 1 + (hashtext('o' || n)::bigint & 2147483647) %% %(customers)s, 'shop',
               t.at, now(), n::text, 0, 'order', 'paid', 'BRL', t.total, t.at, ARRAY['1'],
               ARRAY['sku-' || n %% 500],
               ARRAY['product ' || n %% 500],
               ARRAY[(ARRAY['shoes', 'shirts', 'hats', 'books', 'toys'])[1 + n %% 5]], ARRAY[1], ARRAY[t.total]
        FROM generate_series(1, %(orders)s) n, LATERAL (
            SELECT now() - make_interval(secs => (hashtext('t' || n)::bigint & 2147483647) %% 63072000) AS at,
                   1000 + (hashtext('p' || n) & 1048575) %% 40000 AS total
        ) t""",
    """INSERT INTO live.metrics (customer_id, orders_count, spend_minor, first_order_at, last_order_at, favourite_category)
        SELECT l.customer_id, count(*), jsonb_build_object('BRL', sum(o.total_minor)), min(o.placed_at), max(o.placed_at),
               min(o.line_categories[1])
        FROM live.orders o JOIN live.links l USING (subject) GROUP BY 1""",
    "INSERT INTO live.segment_members SELECT customer_id, 'repeat-buyers' FROM live.metrics WHERE orders_count >= 2",
]
_KEYS = {
    "orders": "order_id, source",
    "profiles": "customer_id",
    "profile_statements": "subject",
    "metrics": "customer_id",
}
"""Put on after the rows: that is several times as fast."""


def fill(stage: Stage, *, customers: int) -> None:
    """Write the customers and their orders."""
    for table in _KEYS:
        stage.conn.execute(f"ALTER TABLE live.{table} DROP CONSTRAINT {table}_pkey")
    stage.conn.execute("DROP INDEX live.orders_subject")
    parameters = {"customers": customers, "orders": customers * ORDERS_EACH}
    with without_triggers(stage.conn):
        for statement in _FILL:
            stage.conn.execute(statement, parameters)
    for table, key in _KEYS.items():
        stage.conn.execute(f"ALTER TABLE live.{table} ADD PRIMARY KEY ({key})")
    stage.conn.execute("CREATE INDEX orders_subject ON live.orders (subject)")
    stage.conn.execute("INSERT INTO live.offsets VALUES (0, 1)")
    stage.conn.execute("VACUUM ANALYZE")


@contextmanager
def without_triggers(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Rows are written as a rebuild does it: without triggers, and the rollups are made in the end."""
    conn.execute("SET session_replication_role = replica")
    yield
    conn.execute("RESET session_replication_role")
    for rollup in ROLLUPS:
        conn.execute(f"TRUNCATE live.{rollup.table}")
        for statement in _rollup.fill("live", rollup):
            conn.execute(statement)


def searches(customers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds of searches that people make, each with other values every time."""
    rnd = random.Random(8)
    while True:
        given, family, city, number = (
            rnd.choice(GIVEN), rnd.choice(FAMILY), rnd.choice(CITIES), rnd.randint(1, customers),
        )  # fmt: skip
        yield "city and spend", {"criteria": f'city = "{city}" and spend > {rnd.randint(200, 1500)} BRL'}
        yield "age, gender, city", {"criteria": f'gender = "female" and age between 25 and 34 and city = "{city}"'}
        yield (
            "bought lately",
            {"criteria": f'city = "{city}" and bought(category = "shoes", within = {rnd.randint(30, 120)}d)'},
        )
        yield (
            "bought twice",
            {"criteria": f'bought(category = "{rnd.choice(["hats", "toys"])}", times >= 2, within = 365d)'},
        )
        yield "name", {"q": f"{given} {family}"}
        yield "name and city", {"q": f"{given} {family} {city}"}
        yield "misspelt name", {"q": f"{given} {family[:-2]}x"}
        yield "e-mail", {"q": f"person{number}@"}
        yield "phone", {"q": f"(81) 9{number:08}"}
        yield (
            "lapsed",
            {"criteria": f"days_since_last_order > {rnd.randint(200, 400)} and spend > 1000 BRL and orders_count >= 4"},
        )
        yield "segment", {"criteria": f'segment("repeat-buyers") and city = "{city}" and not bought(within = 180d)'}


def _timed(http: httpx.Client, path: str, parameters: dict[str, Any]) -> float:
    started = time.perf_counter()
    answer = http.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return (time.perf_counter() - started) * 1000


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """p95 of searches and of reads by id, one after the other over one connection."""
    customers = int(CUSTOMERS * scale)
    found: list[float] = []
    read: list[float] = []
    kinds: dict[str, list[float]] = {}
    with stage() as made:
        fill(made, customers=customers)
        token, _ = access.create(made.conn, "benchmark", ["customers:read"])
        made.start("api")
        wait_until(
            lambda: made.conn.execute(search.READY.format(schema="live")).fetchone() == (True,),
            timeout_s=1200, what="search index", every_s=0.5,
        )  # fmt: skip
        ids = [
            row[0]
            for row in made.conn.execute("SELECT customer_id FROM live.profiles TABLESAMPLE SYSTEM (1) LIMIT 2000")
        ]
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address(made, "api"), headers=headers, timeout=60) as http:
            asked = searches(customers)
            for _ in range(22):  # warm: what is measured is a server that runs
                _timed(http, "/customers/search", next(asked)[1])
            for _ in range(runs):
                times = []
                for _ in range(REQUESTS):
                    kind, parameters = next(asked)
                    times.append(_timed(http, "/customers/search", parameters))
                    kinds.setdefault(kind, []).append(times[-1])
                found.append(percentile(times, 95))
                read.append(
                    percentile([_timed(http, f"/customers/{random.choice(ids)}", {}) for _ in range(REQUESTS)], 95)
                )
    return [
        figure("search_p95_ms", "ms", found),
        figure("profile_read_p95_ms", "ms", read),
        *(
            figure(f"search_{kind.replace(', ', '_').replace(' ', '_')}_p95_ms", "ms", [percentile(t, 95)])
            for kind, t in kinds.items()
        ),
    ]
