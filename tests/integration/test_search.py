"""Search over real views: by criteria, by text, sorted pages, counts, facets, exports; and the index that follows the profiles."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
import pytest
from api_server import running, token_of
from caudal.projections import ensure_live, search
from caudal.serving.models import SearchAnswer
from logs import connect
from programs import environment, until
from psycopg.types.json import Jsonb

from caudal.settings import Settings

PEOPLE = [
    ("João da Silva", "joao@example.com", "+5581999990000", "São Paulo", ["crm", "shop"], 5, 90_000),
    ("Maria Souza", "maria.souza@example.com", "+5581988887777", "Recife", ["crm"], 2, 60_000),
    ("Ana Silva", "ana_100%@example.com", None, "Recife", ["shop"], 0, None),
    ("Zoë O'Neil", None, None, None, ["crm"], 1, 100),
    ("Rui Costa", "rui@example.pt", "+351912345678", "Lisboa", ["shop"], 1, 5_000),
]
IDS = [uuid.UUID(int=n + 1) for n in range(len(PEOPLE))]


def _insert(conn: psycopg.Connection[Any], number: int, customer: uuid.UUID) -> None:
    name, email, phone, city, sources, orders, spend = PEOPLE[number]
    conn.execute(
        "INSERT INTO live.profiles (customer_id, sources, name, email, phone, city, cpf, birth_date, attributes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (customer, sources, name, email, phone, city, f"1234567890{number}", date(1990, 1, 1 + number), Jsonb({"tier": "gold"})),
    )  # fmt: skip
    conn.execute(
        "INSERT INTO live.metrics (customer_id, orders_count, spend_minor, last_order_at, favourite_category)"
        " VALUES (%s, %s, %s, %s, %s)",
        (customer, orders, Jsonb({"BRL": spend} if spend else {}), datetime.now(UTC) - timedelta(days=number) if orders else None,
         "shoes" if orders > 1 else None),
    )  # fmt: skip


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(settings) as conn:
        ensure_live(conn)
        for number, customer in enumerate(IDS):
            _insert(conn, number, customer)
        conn.execute("INSERT INTO live.segment_members VALUES (%s, 'buyers'), (%s, 'buyers')", (IDS[0], IDS[1]))
        conn.execute("INSERT INTO hub.segments (name, revision) VALUES ('vips', 1)")
        conn.execute("INSERT INTO hub.segment_memberships SELECT %s, id, now() FROM hub.segments", (IDS[0],))
        conn.execute("INSERT INTO live.offsets VALUES (0, 7)")
        yield conn


class Api:
    """Searches over HTTP and checks the answers' shape."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def get(self, **asked: Any) -> dict[str, Any]:
        answer = self.http.get("/customers/search", params=asked)
        assert answer.status_code == 200, answer.text
        SearchAnswer.model_validate_json(answer.text)
        assert answer.headers["caudal-token"] == answer.json()["token"]
        return answer.json()

    def names(self, **asked: Any) -> list[str]:
        return [each["name"] for each in self.get(**asked)["customers"]]

    def refused(self, **asked: Any) -> dict[str, Any]:
        answer = self.http.get("/customers/search", params=asked)
        assert answer.status_code == 422, answer.text
        return answer.json()


@pytest.fixture
def api(settings: Settings, conn: psycopg.Connection[Any]) -> Iterator[Api]:
    search.ensure(conn)
    with running(settings) as address:
        bearer = {"authorization": f"Bearer {token_of(settings, 'customers:read')}"}
        with httpx.Client(base_url=address, headers=bearer, timeout=30) as http:
            yield Api(http)


def test_customers_are_found_by_criteria_and_by_text(api):
    assert api.names() == [name for name, *_ in PEOPLE]
    assert api.names(criteria='city = "recife" and orders_count >= 1') == ["Maria Souza"]
    assert api.names(criteria="spend >= 600 BRL", sort="-spend_minor.BRL") == ["João da Silva", "Maria Souza"]
    assert api.names(q="joao") == ["João da Silva"]
    assert api.names(q="SILVA sao") == ["João da Silva"]
    assert set(api.names(q="silva")) == {"João da Silva", "Ana Silva"}
    assert api.names(q="(81) 98888-7777") == ["Maria Souza"]
    assert api.names(q="123.456.789-04") == ["Rui Costa"]
    assert api.names(q="maria.souza@") == ["Maria Souza"]
    assert api.names(q="100%") == ["Ana Silva"]
    assert api.names(q="o'neil") == ["Zoë O'Neil"]
    assert api.names(q="mariah suza") == ["Maria Souza"]
    assert api.names(q="silva", criteria='source("crm")') == ["João da Silva"]
    assert api.names(q="nobody at all") == []
    assert api.names(q="rui@exmaple.pt") == ["Rui Costa"]
    assert api.names(q="sou") == ["Maria Souza"]
    assert api.names(q="souza pau") == []
    assert api.names(q="98888-7777") == api.names(q="+55 81 98888 7777") == ["Maria Souza"]
    assert api.get(q="mariah suza", count=True)["count"] == {"value": 1, "exact": True}


def test_codes_are_found_by_their_names_and_hints_say_what_there_is_instead(api, conn):
    conn.execute(
        "UPDATE live.profiles SET gender = 'female', region = 'PE', country = 'BR', language = 'pt-BR' WHERE customer_id = %s",
        (IDS[1],),
    )
    conn.execute("UPDATE live.profiles SET region = 'Pernambuco', country = 'BR' WHERE customer_id = %s", (IDS[2],))
    conn.execute(
        "INSERT INTO live.links (subject, source, customer_id, link_seq) VALUES ('crm:contact:1', 'crm', %s, 1)",
        (IDS[1],),
    )
    conn.execute(
        "INSERT INTO live.consents (subject, source, purpose, state, occurred_at, captured_at, event_id, stated)"
        " VALUES ('crm:contact:1', 'crm', 'marketing_email', 'granted', now(), now(), gen_random_uuid(), 0)"
    )
    conn.execute(
        "INSERT INTO live.orders (order_id, subject, source, status, line_products, occurred_at, captured_at, event_id, stated)"
        " VALUES ('crm:order:1', 'crm:contact:1', 'crm', 'paid', '{Sandal}', now(), now(), gen_random_uuid(), 0)"
    )
    for text, found in {
        "gender = 'Female'": {IDS[1]},
        "region = 'Pernambuco'": {IDS[1], IDS[2]},
        "region = 'pe'": {IDS[1], IDS[2]},
        "region != 'PE'": set(),
        "country in ['brasil', 'pt']": {IDS[1], IDS[2]},
        "source('CRM') and language = 'pt_br'": {IDS[1]},
        "bought(status = 'Paid')": {IDS[1]},
    }.items():
        assert {uuid.UUID(c["customer_id"]) for c in api.get(criteria=text)["customers"]} == found, text
    for text, hint in {
        "gender = 'x'": 'no gender "x"; there are "female"',
        "consent('marketing')": 'no consent for "marketing"; did you mean "marketing_email"?',
        "city = 'Recif'": 'no city "Recif"; did you mean "Recife"?',
        "attributes.tier = 'golden'": 'no attribute tier "golden"; did you mean "gold"?',
        "attributes.teir = 'gold'": "no attribute teir is known of anybody",
        "bought(product = 'sandals')": 'no product of bought "sandals"; did you mean "Sandal"?',
        "bought(status = 'payed')": 'no status of bought "payed"; did you mean "paid"?',
        "opened_ticket(priority = 'x')": "no priority of opened_ticket is known of anybody",
    }.items():
        assert api.get(criteria=text)["hints"] == [hint], text
    assert api.get(criteria="city = 'Recife' and age > 100")["hints"] == []
    assert "hints" not in api.get(criteria="gender = 'female'")


def test_whole_words_are_found_before_parts_of_words(api, conn):
    conn.execute("UPDATE live.profiles SET name = 'Mariana Costa' WHERE customer_id = %s", (IDS[4],))
    until(lambda: api.names(q="mariana") == ["Mariana Costa"])
    found = api.get(q="ana", count=True)
    assert [each["name"] for each in found["customers"]] == ["Ana Silva"]
    assert found["count"] == {"value": 1, "exact": True}
    assert set(api.names(q="ana", sort="name")) == {"Ana Silva", "Mariana Costa"}


def test_pages_follow_each_other_whatever_they_are_sorted_by(api):
    for sort in (None, "name", "-name", "city", "-spend_minor.BRL", "last_order_at", "-age", "days_since_last_order"):
        asked = {"sort": sort} if sort else {}
        whole = [each["customer_id"] for each in api.get(**asked)["customers"]]
        assert sorted(whole) == sorted(map(str, IDS))
        paged: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = api.get(**asked, **after, limit=2)
            paged += [each["customer_id"] for each in page["customers"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert paged == whole, sort
    assert api.names(sort="city")[-1] == "Zoë O'Neil", "without a value comes last"


def test_counts_facets_and_fields_are_what_was_asked_for(api):
    found = api.get(
        criteria="orders_count >= 1", count=True, facets="city,source,segment,favourite_category", limit=1,
        fields="email,age,segments,attributes,spend_minor,average_order_minor.BRL",
    )  # fmt: skip
    assert found["count"] == {"value": 4, "exact": True}
    assert found["facets"] == {
        "city": [{"value": v, "count": 1} for v in ("Lisboa", "Recife", "São Paulo")],
        "source": [{"value": "crm", "count": 3}, {"value": "shop", "count": 2}],
        "segment": [{"value": "buyers", "count": 2}, {"value": "vips", "count": 1}],
        "favourite_category": [{"value": "shoes", "count": 2}],
    }
    [first] = found["customers"]
    assert first.pop("age") >= 35
    assert first == {
        "customer_id": str(IDS[0]), "email": "joao@example.com", "segments": ["buyers", "vips"], "attributes": {"tier": "gold"},
        "spend_minor": {"BRL": 90_000}, "average_order_minor.BRL": 18_000.0,
    }  # fmt: skip


def test_a_tree_can_be_posted(api):
    tree = {"none": [{"field": "sources", "op": "has", "value": "crm"}]}
    found = api.http.post("/customers/search", json={"criteria": tree, "fields": ["name"], "count": True}).json()
    assert [each["name"] for each in found["customers"]] == ["Ana Silva", "Rui Costa"]
    assert found["count"]["value"] == 2


def test_what_is_wrong_is_said_with_its_place(api):
    assert api.refused(criteria='city = "x" and citty = "y"')["position"] == 15
    wrong = api.http.post("/customers/search", json={"criteria": {"all": [{"field": "age", "op": "=", "value": "x"}]}})
    assert wrong.json()["path"] == "all[0].value"
    assert wrong.json()["code"] == "bad_criteria"
    for asked in (
        {"sort": "citty"}, {"sort": "tags"}, {"fields": "secret"}, {"facets": "email"}, {"q": "ab"}, {"q": "x" * 300}, {"q": "a\0bc"},
        {"after": "!"}, {"after": "W10"}, {"criteria": "bought(within = 99999d)"}, {"fields": "secret", "format": "csv"},
    ):  # fmt: skip
        assert api.refused(**asked)["code"] == "bad_search" or "criteria" in asked
    for more in ({}, {"format": "csv"}, {"count": "true"}):
        unknown = api.refused(criteria='age > 3 or segment("repeat-buyer")', **more)
        assert (unknown["code"], unknown["path"]) == ("bad_criteria", "any[1].segment")
        assert unknown["detail"].endswith("unknown segment repeat-buyer; did you mean repeat-buyers?")
    after = api.get(sort="name", limit=1)["next"]
    assert api.refused(sort="last_order_at", after=after)["path"] == "after"


def test_everyone_found_is_exported_in_each_format(api):
    asked = {"criteria": "orders_count >= 1", "fields": "name,city,spend_minor,last_order_at,sources"}

    def exported(format_: str, **more: str) -> httpx.Response:
        answer = api.http.get("/customers/search", params={**asked, **more, "format": format_})
        assert answer.status_code == 200
        assert f"customers.{format_}" in answer.headers["content-disposition"]
        return answer

    lines = [json.loads(line) for line in exported("ndjson").text.splitlines()]
    assert [line["name"] for line in lines] == ["João da Silva", "Maria Souza", "Zoë O'Neil", "Rui Costa"]
    rows = list(csv.DictReader(io.StringIO(exported("csv").text)))
    assert [(r["name"], r["city"], json.loads(r["spend_minor"])) for r in rows][:2] == [
        ("João da Silva", "São Paulo", {"BRL": 90_000}), ("Maria Souza", "Recife", {"BRL": 60_000}),
    ]  # fmt: skip
    table = pq.read_table(io.BytesIO(exported("parquet").content))
    assert table.column("name").to_pylist() == [line["name"] for line in lines]
    assert table.column("sources").to_pylist()[0] == ["crm", "shop"]
    assert table.column("last_order_at").to_pylist()[0] == datetime.fromisoformat(lines[0]["last_order_at"])
    names = [json.loads(line)["name"] for line in exported("ndjson", sort="-name").text.splitlines()]
    assert names == ["Zoë O'Neil", "Rui Costa", "Maria Souza", "João da Silva"]
    assert api.refused(format="csv", sort="nme")["path"] == "sort"


def test_the_index_follows_the_profiles(conn):
    def texts() -> dict[uuid.UUID, str]:
        return dict(conn.execute("SELECT customer_id, text FROM live.search").fetchall())

    def brought_up_to_date() -> dict[uuid.UUID, str]:
        while search.due(conn):
            assert search.refresh(conn)
        return texts()

    def vocabulary() -> dict[str, int]:
        counted = Counter(
            word for (words,) in conn.execute("SELECT hub.search_words(text) FROM live.search") for word in words
        )
        kept = dict(conn.execute("SELECT word, times FROM live.search_vocabulary").fetchall())
        assert kept == {word: times for word, times in counted.items() if len(word) > 2 and word.isalpha()}
        return kept

    assert not search.due(conn)
    search.ensure(conn)
    assert set(texts()) == set(IDS)
    assert vocabulary()["silva"] == 2
    assert texts()[IDS[0]] == "joao da silva joao@example.com +5581999990000 12345678900 sao paulo"
    new = uuid.UUID(int=99)
    _insert(conn, 1, new)
    conn.execute("UPDATE live.profiles SET name = 'José' WHERE customer_id = %s", (IDS[0],))
    conn.execute("DELETE FROM live.profiles WHERE customer_id IN (%s, %s)", (IDS[1], IDS[3]))
    assert search.due(conn)
    found = brought_up_to_date()
    assert "neil" not in vocabulary(), "an erased name is gone"
    assert vocabulary()["jose"] == 1
    assert found[IDS[0]].startswith("jose joao@")
    assert new in found
    assert IDS[1] not in found
    search.ensure(conn)  # a second time changes nothing
    assert texts() == found


def test_without_the_index_text_is_searched_all_the_same(settings, conn):
    with running(settings) as address:
        bearer = {"authorization": f"Bearer {token_of(settings, 'customers:read')}"}
        answer = httpx.get(f"{address}/customers/search", params={"q": "joao"}, headers=bearer, timeout=30).json()
    assert [each["name"] for each in answer["customers"]] == ["João da Silva"]


def test_the_command_searches_and_exports(settings, conn, tmp_path):
    def caudal(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "caudal.cli", "customers", "search", *arguments],
            env=environment(settings), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    search.ensure(conn)
    found = caudal("silva", "--where", "orders_count >= 1", "--field", "name,city", "--count", "--facet", "city")
    assert found.returncode == 0, found.stderr
    assert re.search(r"city +customers\nSão Paulo +1\n", found.stdout)
    assert "João da Silva  São Paulo" in found.stdout
    assert "1 customer\n" in found.stdout
    assert caudal("--where", 'city = "Recife"', "--export", "some.csv").returncode == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "some.csv").read_text())))
    assert [row["name"] for row in rows] == ["Maria Souza", "Ana Silva"]
    nowhere = caudal("--where", 'city = "Recife"', "--export", "nowhere/some.csv")
    assert (nowhere.returncode, "Traceback" in nowhere.stderr) == (2, False)
    page = caudal("--where", 'city = "Recife"', "--sort", "name", "--limit", "1")
    assert "Ana Silva" in page.stdout
    following = caudal("--where", 'city = "Recife"', "--sort", "name", "--limit", "1", *page.stderr.split()[-2:])
    assert "Maria Souza" in following.stdout
    assert following.stderr == ""
    wrong = caudal("--where", 'citty = "Recife"')
    assert wrong.returncode == 65
    assert "character 1: unknown field" in wrong.stderr
    wrong = caudal("--where", 'segment("buyrs")')
    assert wrong.returncode == 65
    assert "unknown segment buyrs; did you mean buyers?" in wrong.stderr
