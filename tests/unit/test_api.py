from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from caudal.schemas import position
from caudal.serving import _read, build
from caudal.serving._positions import _Goal, _Reached
from caudal.serving._problems import Problem
from caudal.serving._read import Cursor, Customers
from fastapi.routing import APIRoute

from caudal import access, kafka
from caudal import settings as caudal_settings
from caudal.access import Grant

ID = "018f0000-0000-7000-8000-000000000001"
TOKEN = "cdl_" + "A" * 43
EVERYTHING = frozenset({"admin"})


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    # nothing listens there: what is answered is answered without servers
    return build(
        caudal_settings.load(
            home=folder,
            config_file=folder / "caudal.toml",
            kafka={
                "bootstrap_servers": "127.0.0.1:1",
                "options": {"log_level": "0"},
            },  # it is no news that nobody answers
            postgres={"dsn": "postgresql://127.0.0.1:1/none"},
            registry={"url": "http://127.0.0.1:1"},
        )
    )


@pytest.fixture
async def http(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield client


@pytest.fixture
def may(monkeypatch):
    """Make TOKEN valid, with the scopes given."""

    def grant(scopes=EVERYTHING):
        async def check(_self, token):
            return Grant("tests", frozenset(scopes), None) if token == TOKEN else None

        monkeypatch.setattr(access.Checker, "check", check)
        return {"authorization": f"Bearer {TOKEN}"}

    return grant


def problem(answer, status, code):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:caudal:problem:{code}"
    assert document["title"]
    assert document["detail"]
    return document


async def test_no_route_but_health_and_ready_answers_without_a_token(app, http):
    routes = [r for r in app.routes if isinstance(r, APIRoute)]
    assert len(routes) >= 17
    for route in routes:
        path, method = route.path, min(route.methods)
        answer = await http.request(method, path.replace("{customer_id}", ID).replace("{id}", "1"))
        if path in {"/health", "/ready"}:
            assert answer.status_code in {200, 503}
        else:
            problem(answer, 401, "no_token")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_health_tells_only_that_the_process_lives(http):
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_wrong_token_is_refused(http, may):
    may()
    answer = await http.get(f"/customers/{ID}", headers={"authorization": "Bearer cdl_nope"})
    problem(answer, 401, "invalid_token")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        (f"/customers/{ID}", "customers:read"),
        (f"/customers/{ID}/timeline", "customers:read"),
        ("/customers?email=a@example.com", "customers:read"),
        ("/customers/search", "customers:read"),
        ("/changes", "changes:read"),
        ("/metrics", "metrics:read"),
        ("/segments", "segments:read"),
        ("/segments/loyal/members", "segments:read"),
        (f"/customers/{ID}/segments/history", "segments:read"),
        ("/reports", "reports:read"),
        ("/reports/sales", "reports:read"),
        ("/replays", "operate"),
        ("/replays/1/diff", "operate"),
    ],
)
async def test_every_scope_is_asked_for(http, may, path, scope):
    headers = may({s.value for s in access.Scope} - {scope, "admin"})
    document = problem(await http.get(path, headers=headers), 403, "insufficient_scope")
    assert scope in document["detail"]


async def test_who_may_only_read_segments_changes_none_and_sees_no_sample_of_customers(http, may):
    headers = may({"segments:read"})
    for method, path in (
        ("PUT", "/segments/a"),
        ("DELETE", "/segments/a"),
        ("POST", "/segments"),
        ("POST", "/segments/a/list"),
    ):
        problem(await http.request(method, path, headers=headers, json={}), 403, "insufficient_scope")
    answer = await http.post("/segments/preview", headers=headers, json={"criteria": "age > 3"})
    assert "customers:read" in problem(answer, 403, "insufficient_scope")["detail"]


async def test_no_answer_is_guessed_at_framed_or_kept(http, may):
    headers = may()
    for method, path, given in (
        ("GET", "/health", {}),
        ("GET", "/nope", {}),
        ("DELETE", "/health", {}),
        ("GET", "/customers", {}),
        ("GET", "/docs", headers),
        ("GET", "/openapi.json", headers),
        ("GET", "/reports", headers),
        ("GET", f"/customers/{ID}", headers),
        ("GET", "/changes", headers),
        ("POST", "/customers/search", headers),
        ("OPTIONS", "/customers", headers),
    ):
        answer = await http.request(method, path, headers=given)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert len(answer.headers.get_list("content-security-policy")) == 1


@pytest.mark.parametrize(
    "view", ["nope", "", "pro\0files", "\ud800", "x" * 3_000_000, "links", "--help", "profiles\n", "Profiles"]
)
async def test_a_replay_of_a_view_that_is_none_is_refused_at_once(http, may, view, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    body = json.dumps({"kind": "view", "view": view}).encode()
    answer = await http.post("/replays", headers=may() | {"content-type": "application/json"}, content=body)
    assert answer.status_code in {413, 422}
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("name", ["fields", "sort", "after", "q", "facets", "criteria"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "name\ud800"])
async def test_half_a_surrogate_pair_is_no_text(http, may, name, text):
    body = json.dumps({name: [text] if name in {"fields", "facets"} else text}).encode()
    answer = await http.post("/customers/search", headers=may() | {"content-type": "application/json"}, content=body)
    problem(answer, 422, "invalid_parameters")


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31", "1969-12-31", "2200-01-01"])
@pytest.mark.parametrize("name", ["from", "to"])
async def test_days_far_away_are_refused_by_name(http, may, name, day):
    for report in ("sales", "customers", "nps", "rfm", "segments"):
        answer = await http.get(f"/reports/{report}", params={name: day}, headers=may())
        assert name in problem(answer, 422, "bad_report")["path"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_parameters"),
        ({"list": True, "criteria": "age > 3"}, "invalid_parameters"),
        ({"criteria": "age > 3", "colour": "red"}, "invalid_parameters"),
        ({"criteria": "agee > 3"}, "bad_criteria"),
        ({"criteria": {"all": []}}, "bad_criteria"),
    ],
)
async def test_a_definition_that_makes_no_sense_is_refused_before_anything_is_stored(http, may, body, code):
    problem(await http.put("/segments/loyal", headers=may({"segments:write"}), json=body), 422, code)


async def test_the_address_may_hold_the_token_only_where_browsers_cannot_set_headers(http, may):
    may()
    assert (await http.get("/docs", params={"token": TOKEN})).status_code == 200
    assert (await http.get("/openapi.json", params={"token": TOKEN})).status_code == 200
    problem(await http.get("/metrics", params={"token": TOKEN}), 401, "no_token")
    problem(await http.get(f"/customers/{ID}", params={"token": TOKEN}), 401, "no_token")


async def test_the_figures_are_in_the_format_of_prometheus(http, may):
    answer = await http.get("/metrics", headers=may({"metrics:read"}))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "caudal_stream_clients" in answer.text


async def test_the_documentation_page_needs_no_other_server_and_holds_no_token(http, may):
    answer = await http.get("/docs", params={"token": TOKEN})
    may()
    answer = await http.get("/docs", params={"token": TOKEN})
    markup = answer.text.split("<script>")[0] + answer.text.rsplit("<script>", 1)[1]
    assert "src=" not in markup
    assert "http" not in markup.split("<style>")[0]
    assert TOKEN not in answer.text
    assert answer.text.count("</script>") == 2
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_openapi_document_lists_what_there_is(http, may):
    document = (await http.get("/openapi.json", headers=may())).json()
    assert set(document["paths"]) == {
        "/health", "/ready", "/metrics", "/customers", "/customers/{customer_id}", "/customers/{customer_id}/timeline", "/changes",
        "/customers/search", "/customers/{customer_id}/segments/history",
        "/decisions", "/decisions/{id}", "/decisions/{id}/undo",
        "/segments", "/segments/preview", "/segments/{name}", "/segments/{name}/versions", "/segments/{name}/members",
        "/segments/{name}/overlap", "/segments/{name}/explain/{customer_id}", "/segments/{name}/list",
        "/reports", "/reports/{name}",
        "/replays", "/replays/{id}", "/replays/{id}/diff", "/replays/{id}/progress", "/replays/{id}/swap", "/replays/{id}/rollback",
        "/replays/{id}/cancel",
    }  # fmt: skip
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "text/event-stream" in document["paths"]["/changes"]["get"]["responses"]["200"]["content"]


async def test_unknown_paths_and_methods_are_problems_too(http):
    problem(await http.get("/nowhere"), 404, "not_found")
    problem(await http.post("/customers"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/customers/not-an-id",
        f"/customers/{ID}/timeline?limit=0",
        f"/customers/{ID}/timeline?limit=501",
        f"/customers/{ID}/timeline?kinds=order,nonsense",
        f"/customers/{ID}/timeline?before=nonsense",
        f"/customers/{ID}/timeline?before=2026-01-01T00:00:00",
        "/customers",
        "/customers?email=a@example.com&cpf=52998224725",
        "/changes?topics=customer.changes",
        "/changes?from=middle",
        "/changes?customer=someone",
        "/segments/No%20Name",
        "/segments/loyal/members?limit=0",
        f"/customers/{ID}/segments/history?before=nonsense",
    ],
)
async def test_parameters_that_do_not_fit_are_named(http, may, path):
    problem(await http.get(path, headers=may()), 422, "invalid_parameters")


@pytest.mark.parametrize(
    ("query", "named"), [("by=fortnight", "by: "), ("from=yesterday", "from: "), ("limit=0", "limit: ")]
)
async def test_the_detail_names_the_parameter_and_what_would_fit(http, may, query, named):
    document = problem(await http.get(f"/reports/sales?{query}", headers=may()), 422, "invalid_parameters")
    assert document["detail"].startswith(named)


@pytest.mark.parametrize("query", ["email=joana", "phone=12", "cpf=11111111111", "cnpj=00", "subject="])
async def test_an_identifier_that_cannot_be_one_is_refused_without_repeating_it(http, may, query):
    answer = await http.get(f"/customers?{query}", headers=may())
    document = problem(answer, 422, "invalid_identifier")
    assert query.split("=")[0] in document["detail"]


async def test_a_faulty_value_is_not_repeated_in_the_answer(http, may):
    answer = await http.get("/customers/joana@example.com", headers=may())
    problem(answer, 422, "invalid_parameters")
    assert "joana" not in answer.text


@pytest.mark.parametrize("token", ["nonsense", position.encode({"some.topic": {0: 1}})])
async def test_a_min_token_that_is_none_is_refused(http, may, token):
    problem(await http.get(f"/customers/{ID}", params={"min-token": token}, headers=may()), 422, "invalid_token_vector")
    problem(await http.get(f"/customers/{ID}", headers={**may(), "min-token": token}), 422, "invalid_token_vector")


async def test_without_postgresql_reads_answer_503_and_ask_to_try_again(http):
    answer = await http.get(f"/customers/{ID}", headers={"authorization": f"Bearer {TOKEN}"})
    problem(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_an_unexpected_error_is_a_problem_that_tells_no_values(http, may, monkeypatch, capsys):
    async def fail(_self, _id):
        raise RuntimeError("joana@example.com")

    monkeypatch.setattr(Customers, "by_id", fail)
    answer = await http.get(f"/customers/{ID}", headers=may())
    problem(answer, 500, "internal_error")
    printed = capsys.readouterr()
    assert "joana" not in answer.text + printed.out + printed.err
    assert "RuntimeError" in printed.out + printed.err


async def test_a_browser_of_another_site_gets_no_permission(http, may):
    answer = await http.get("/openapi.json", headers={**may(), "origin": "https://example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_cursor_survives_its_way_to_the_caller_and_a_time_will_do_as_well():
    at = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert Cursor.decode(Cursor(at, "order:shop:7").encode()) == Cursor(at, "order:shop:7")
    assert Cursor.decode(at.isoformat()) == Cursor(at, "")


def test_the_lines_of_an_order_are_put_together_again():
    item = {
        "data": {
            "number": "1001",
            "line_ids": ["a", "b"],
            "line_skus": ["S1", None],
            "line_categories": ["shoes", "hats"],
            "line_quantities": [1, 2],
            "line_unit_prices_minor": [1000, 250],
        }
    }
    assert _read._item(item)["data"] == {
        "number": "1001",
        "lines": [
            {"line_id": "a", "sku": "S1", "category": "shoes", "quantity": 1, "unit_price_minor": 1000},
            {"line_id": "b", "category": "hats", "quantity": 2, "unit_price_minor": 250},
        ],
    }


def test_a_read_waits_for_every_partition_of_the_asked_changes():
    goal = _Goal({kafka.CHANGES: {0: 5, 3: 2}})
    assert not goal.met(_Reached({0: 9}))
    assert not goal.met(_Reached({0: 4, 3: 2}))
    assert goal.met(_Reached({0: 5, 3: 2}))


def test_a_capture_is_reflected_once_the_changes_made_of_it_are():
    goal = _Goal({"capture.shop": {1: 10}})
    assert not goal.met(_Reached({0: 99}))
    assert not goal.met(_Reached({0: 99}, {("capture.shop", 1): (9, {0: 50})}))
    assert not goal.met(_Reached({0: 51}, {("capture.shop", 1): (10, {0: 60, 2: 1})}))
    # later captures move the vector on; the read waits for the one it saw first
    assert goal.met(_Reached({0: 60, 2: 1}, {("capture.shop", 1): (11, {0: 70, 2: 1})}))


def test_what_was_reached_in_another_generation_of_the_log_is_reached_in_the_live_one():
    goal = _Goal({kafka.CHANGES: {0: 5}, f"{kafka.CHANGES}.2": {0: 2}})
    assert not goal.met(_Reached({0: 4}))
    assert not goal.met(_Reached({0: 1}, generation=2))
    assert goal.met(_Reached({0: 2}, generation=2)), "whatever stood at 5 in the first"
    assert goal.met(_Reached({}, generation=3))


def test_a_position_of_the_stream_is_reflected_by_every_read():
    assert _Goal({kafka.PROFILES: {0: 1000}}).met(_Reached())


def test_a_token_of_foreign_topics_is_no_goal():
    with pytest.raises(Problem, match="invalid_token_vector"):
        _Goal({"other": {0: 1}})


def test_the_docs_name_every_code_scope_topic_and_kind():
    root = Path(__file__).parents[2]
    source = "".join(path.read_text("utf-8") for path in (root / "serving").glob("*.py"))
    codes = set(re.findall(r'Problem\(\s*\d{3},\s*"([a-z_]+)"', source))
    assert {"no_token", "customer_erased", "token_not_reached", "views_missing"} <= codes
    page = (root / "docs" / "api.md").read_text("utf-8")
    for word in [*codes, *access.Scope, *_read.KINDS, kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS]:
        assert f"`{word}`" in page, word
