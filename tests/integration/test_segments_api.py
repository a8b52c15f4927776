"""Segments over HTTP and by command: define, list, preview, overlap, explain, history. Who is in is written by hand here."""

from __future__ import annotations

import io
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import structlog
from api_server import running, token_of
from caudal.projections import criteria, ensure_live
from caudal.projections.membership.stage import Memberships
from caudal.serving import models
from logs import connect
from programs import environment

from caudal.cli import main
from caudal.settings import Settings

ANA, RUI, ZOE = (uuid.UUID(int=n) for n in range(1, 4))
NOW = datetime.now(UTC)
LOYAL = 'city = "Recife" and bought(within = 30d)'


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(settings) as conn:
        ensure_live(conn)
        for customer, name, city in ((ANA, "Ana", "Recife"), (RUI, "Rui", "Recife"), (ZOE, "Zoë", None)):
            subject = f"shop:customer:{name}"
            conn.execute("INSERT INTO live.links VALUES (%s, 'shop', %s, 1, NULL, NULL)", (subject, customer))
            conn.execute(
                "INSERT INTO live.profiles (customer_id, sources, name, city) VALUES (%s, '{shop}', %s, %s)",
                (customer, name, city),
            )
        conn.execute(
            "INSERT INTO live.orders (subject, source, occurred_at, captured_at, event_id, stated, order_id, status, placed_at, currency)"
            " VALUES ('shop:customer:Ana', 'shop', %(at)s, %(at)s, 'e1', 0, 'o1', 'paid', %(at)s, 'BRL')",
            {"at": NOW - timedelta(days=10)},
        )
        conn.execute("INSERT INTO live.segment_members VALUES (%s, 'buyers'), (%s, 'buyers')", (ANA, RUI))
        conn.execute("INSERT INTO live.offsets VALUES (0, 7)")
        yield conn


@pytest.fixture
def http(settings: Settings, conn: psycopg.Connection[Any]) -> Iterator[httpx.Client]:
    token = token_of(settings, "segments:read", "segments:write", "customers:read", name="ana")
    with (
        running(settings) as address,
        httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60) as client,
    ):
        yield client


def _enter(conn: psycopg.Connection[Any], name: str, *customers: uuid.UUID, at: datetime = NOW) -> None:
    for customer in customers:
        conn.execute(
            "INSERT INTO hub.segment_memberships SELECT %s, id, %s FROM hub.segments WHERE name = %s",
            (customer, at, name),
        )
        conn.execute(
            "INSERT INTO hub.segment_history SELECT %s, id, version, true, %s, 'e1' FROM hub.segments WHERE name = %s",
            (customer, at, name),
        )


def _told(answer: httpx.Response, model: Any, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    model.model_validate_json(answer.content)
    return answer.json()


def _refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return answer.json()


def test_a_segment_is_defined_edited_and_archived(http, conn):
    made = _told(http.post("/segments", json={"name": "loyal", "criteria": LOYAL}), models.SegmentAnswer, 201)
    assert (made["change"], made["state"], made["progress"], made["text"]) == ("created", "filling", 0, LOYAL)
    _refused(http.post("/segments", json={"name": "loyal", "criteria": LOYAL}), 409, "segment_conflict")
    same = _told(http.put("/segments/loyal", json={"criteria": made["criteria"]}), models.SegmentAnswer)
    assert (same["change"], same["version"]) == ("unchanged", 1)
    edited = http.put("/segments/loyal", json={"criteria": "age > 3", "description": "Grown up"})
    assert _told(edited, models.SegmentAnswer)["version"] == 2
    assert _told(http.put("/segments/vips", json={"list": True}), models.SegmentAnswer, 201)["kind"] == "list"
    _enter(conn, "vips", ANA)
    found = _told(http.get("/segments"), models.SegmentsAnswer)["segments"]
    assert {each["name"]: each["size"] for each in found if each["size"] or each["kind"] != "built-in"} == {
        "buyers": 2, "loyal": 0, "vips": 1,
    }  # fmt: skip
    versions = _told(http.get("/segments/loyal/versions"), models.VersionsAnswer)["versions"]
    assert [(v["version"], v["changed_by"], v["description"]) for v in versions] == [
        (2, "ana", "Grown up"),
        (1, "ana", ""),
    ]
    gone = _told(http.delete("/segments/loyal"), models.SegmentAnswer)
    assert (gone["state"], gone["changed_by"]) == ("leaving", "ana")
    assert _told(http.get("/segments/buyers"), models.SegmentAnswer)["size"] == 2
    _refused(http.get("/segments/lloyal"), 404, "unknown_segment")
    _refused(http.delete("/segments/buyers"), 422, "bad_segment")
    _refused(http.put("/segments/buyers", json={"list": True}), 422, "bad_segment")
    asked = {"criteria": 'segment("lloyal")'}
    assert _refused(http.post("/segments/preview", json=asked), 422, "bad_criteria")["path"] == "segment"
    fault = _refused(http.put("/segments/x", json={"criteria": 'age > 3 and segment("loyal")'}), 422, "bad_criteria")
    assert fault["path"] == "all[1].segment"


def test_ids_are_put_on_lists_as_text_csv_or_json(http, conn):
    http.put("/segments/vips", json={"list": True})
    csv = {"content-type": "text/csv"}
    body = f"customer_id,name\n{ANA},Ana\n{RUI},Rui\nx,\n{uuid.UUID(int=9)},\n"
    put = http.post("/segments/vips/list", content=body, headers=csv)
    assert _told(put, models.ListedAnswer) == {"changed": 2, "unchanged": 0, "unknown": 1, "malformed": 1}
    taken = http.request("DELETE", "/segments/vips/list", json=[str(RUI)])
    assert _told(taken, models.ListedAnswer)["changed"] == 1
    assert conn.execute("SELECT customer_id FROM hub.segment_listed").fetchall() == [(ANA,)]
    changes = _told(http.get("/segments/vips/versions"), models.VersionsAnswer)["list_changes"]
    assert [(each["change"], each["customers"]) for each in changes] == [("taken", 1), ("put", 2)]
    assert {each["changed_by"] for each in changes} == {http.get("/segments/vips").json()["changed_by"]}
    _refused(http.post("/segments/vips/list", json={"ids": []}), 422, "invalid_parameters")
    _refused(http.post("/segments/vips/list", content=b"\xff"), 422, "invalid_parameters")
    http.put("/segments/loyal", json={"criteria": LOYAL})
    _refused(http.post("/segments/loyal/list", content=str(ANA)), 409, "segment_conflict")
    told = _told(http.get(f"/segments/vips/explain/{ANA}"), models.ExplainAnswer)
    assert (told["member"], told["holds"], told["would_change"]) == (False, True, "it is taken off the list")


def test_members_history_preview_and_overlap(http, conn):
    http.put("/segments/vips", json={"list": True})
    http.put("/segments/loyal", json={"criteria": LOYAL})
    _enter(conn, "vips", ANA, RUI, ZOE, at=NOW - timedelta(days=2))
    _enter(conn, "loyal", ANA)
    first = _told(http.get("/segments/vips/members", params={"limit": 2}), models.MembersAnswer)
    rest = _told(http.get("/segments/vips/members", params={"after": first["next"]}), models.MembersAnswer)
    assert [m["customer_id"] for m in first["members"] + rest["members"]] == [str(c) for c in (ANA, RUI, ZOE)]
    assert rest["next"] is None
    assert _told(http.get("/segments/buyers/members"), models.MembersAnswer)["members"][0]["entered_at"] is None
    for days, had, has in ((3, [], ["buyers", "unhappy"]), (1, ["buyers", "unhappy"], ["buyers"])):
        conn.execute(
            "INSERT INTO hub.built_in_history VALUES (%s, %s, 'e9', %s, %s)",
            (ANA, NOW - timedelta(days=days), had, has),
        )
    since = _told(http.get("/segments/buyers/members"), models.MembersAnswer)["members"][0]["entered_at"]
    assert datetime.fromisoformat(since) == NOW - timedelta(days=3)
    told = _told(http.get(f"/segments/unhappy/explain/{ANA}"), models.ExplainAnswer)
    assert (told["since"], told["last_change"]["change"], told["last_change"]["version"]) == (None, "left", None)
    told = _told(http.get(f"/segments/buyers/explain/{ANA}"), models.ExplainAnswer)
    assert (told["since"], told["last_change"]["cause"]) == (since, "e9")

    path = f"/customers/{ANA}/segments/history"
    page = _told(http.get(path, params={"limit": 1}), models.HistoryAnswer)
    older = _told(http.get(path, params={"before": page["next"], "limit": 3}), models.HistoryAnswer)
    oldest = _told(http.get(path, params={"before": older["next"]}), models.HistoryAnswer)
    items = page["items"] + older["items"] + oldest["items"]
    assert [(i["segment"], i["change"], i["version"], i["cause"]) for i in items] == [
        ("loyal", "entered", 1, "e1"), ("unhappy", "left", None, "e9"), ("vips", "entered", 1, "e1"),
        ("unhappy", "entered", None, "e9"), ("buyers", "entered", None, "e9"),
    ]  # fmt: skip
    assert oldest["next"] is None
    _refused(http.get(f"/customers/{uuid.UUID(int=9)}/segments/history"), 404, "unknown_customer")

    asked = {"criteria": 'city = "Recife"', "fields": ["name"], "overlap": True}
    tried = _told(http.post("/segments/preview", json=asked), models.PreviewAnswer)
    assert tried["count"] == {"value": 2, "exact": True}
    assert [each["name"] for each in tried["sample"]] == ["Ana", "Rui"]
    assert [(s["segment"], s["count"], s["share"]) for s in tried["overlap"]["segments"]] == [
        ("buyers", 2, 1.0), ("vips", 2, 1.0), ("loyal", 1, 0.5),
    ]  # fmt: skip
    overlap = _told(http.get("/segments/vips/overlap"), models.OverlapAnswer)
    assert (overlap["size"], overlap["exact"]) == (3, True)
    assert [(s["segment"], s["count"]) for s in overlap["segments"]] == [("buyers", 2), ("loyal", 1)]
    assert _told(http.get("/segments/buyers/overlap"), models.OverlapAnswer)["segments"][0]["segment"] == "vips"


def test_an_overlap_of_many_is_estimated_and_says_so(http, conn, monkeypatch):
    monkeypatch.setattr("caudal.serving._segments.SAMPLE", 2)
    http.put("/segments/vips", json={"list": True})
    _enter(conn, "vips", ANA, RUI, ZOE)
    overlap = _told(http.get("/segments/vips/overlap"), models.OverlapAnswer)
    assert overlap == {"size": 3, "exact": False, "segments": [{"segment": "buyers", "count": 3, "share": 1.0}]}
    monkeypatch.setattr("caudal.serving._segments.SLOW_MS", 1)
    conn.execute(
        "INSERT INTO live.profiles (customer_id, sources) SELECT gen_random_uuid(), '{shop}' FROM generate_series(1, 20000)"
    )
    tried = http.post("/segments/preview", json={"criteria": 'bought(sku = "x")', "overlap": True})
    assert _told(tried, models.PreviewAnswer)["overlap"] == {"size": 0, "exact": False, "segments": []}
    conn.execute(
        "INSERT INTO live.segment_members SELECT customer_id, s FROM live.profiles, unnest('{mailable,refunded,unhappy}'::text[]) s"
    )
    conn.execute("ANALYZE live.segment_members")
    monkeypatch.setattr("caudal.serving._segments.COUNTED", 10_000)
    sizes = {s["name"]: s for s in _told(http.get("/segments"), models.SegmentsAnswer)["segments"]}
    assert not sizes["mailable"]["exact"]
    assert 10_000 < sizes["mailable"]["size"] < 30_000


def test_explain_agrees_with_the_criteria_and_says_what_would_change_it(http, conn):
    http.put("/segments/loyal", json={"criteria": LOYAL})
    _enter(conn, "loyal", ANA)
    who = criteria.members(criteria.parse(LOYAL))
    inside = {c for (c,) in conn.execute(who.text, {**who.parameters, "now": datetime.now(UTC)})}
    told = {
        customer: _told(http.get(f"/segments/loyal/explain/{customer}"), models.ExplainAnswer)
        for customer in (ANA, RUI, ZOE)
    }
    assert {customer for customer, each in told.items() if each["holds"]} == inside == {ANA}
    ana, rui, zoe = told.values()
    assert ana["member"]
    assert (ana["last_change"]["change"], ana["last_change"]["cause"]) == ("entered", "e1")
    assert ana["would_change"] == '`city = "Recife"` no longer holds or `bought(within = 30d)` no longer holds'
    assert datetime.fromisoformat(ana["next_look_at"]) == NOW + timedelta(days=20)
    assert [(c["path"], c["condition"], c["holds"]) for c in rui["conditions"]] == [
        ("", LOYAL, False), ("all[0]", 'city = "Recife"', True), ("all[1]", "bought(within = 30d)", False),
    ]  # fmt: skip
    assert [c["because"] and c["because"]["event_id"] for c in ana["conditions"]] == [None, None, "e1"]
    assert (rui["since"], rui["last_change"], rui["would_change"]) == (None, None, "`bought(within = 30d)` holds")
    assert zoe["would_change"] == '`city = "Recife"` holds and `bought(within = 30d)` holds'
    http.delete("/segments/loyal")
    gone = _told(http.get(f"/segments/loyal/explain/{ANA}"), models.ExplainAnswer)
    assert (ana["state"], gone["state"], gone["holds"]) == ("filling", "leaving", True)
    assert gone["would_change"] == "an edit brings the archived segment back"
    conn.execute("DELETE FROM live.metrics")
    conn.execute("INSERT INTO live.metrics (customer_id, last_nps_score) VALUES (%s, 7)", (RUI,))
    unhappy = _told(http.get(f"/segments/unhappy/explain/{RUI}"), models.ExplainAnswer)
    assert [(c["condition"], c["holds"]) for c in unhappy["conditions"][1:]] == [
        ("satisfaction_bad_count >= 1", False), ("last_nps_score <= 6", False),
    ]  # fmt: skip
    assert unhappy["would_change"] == "`satisfaction_bad_count >= 1` holds or `last_nps_score <= 6` holds"
    several = _told(http.get(f"/segments/multi-source/explain/{RUI}"), models.ExplainAnswer)
    assert several["would_change"] == "`sources_count >= 2` holds"
    mailable = _told(http.get(f"/segments/mailable/explain/{RUI}"), models.ExplainAnswer)
    assert [c["condition"] for c in mailable["conditions"][1:]] == [
        "email is known", 'consent("marketing_email", lapsed = true)',
    ]  # fmt: skip


def test_what_the_stage_keeps_is_what_is_explained(http, conn, settings):
    criteria_ = [
        LOYAL, 'city = "Recife" or bought()', 'not city = "Recife"', 'segment("buyers") and not segment("vips")',
        "bought(times = 0, within = 5d) and not bought(within = 20d)", "name is known",
    ]  # fmt: skip
    http.put("/segments/vips", json={"list": True})
    for number, text in enumerate(criteria_):
        assert http.put(f"/segments/s{number}", json={"criteria": text}).status_code == 201
    stage = Memberships(settings)
    try:
        while stage.step():
            pass
        http.post("/segments/vips/list", json=[str(RUI)])
        while stage.step():
            pass
    finally:
        stage.close()
    members = set()
    for name in ("vips", *(f"s{number}" for number in range(len(criteria_)))):
        for customer in (ANA, RUI, ZOE):
            told = _told(http.get(f"/segments/{name}/explain/{customer}"), models.ExplainAnswer)
            assert told["member"] is told["holds"], (name, customer)
            members |= {(name, customer)} if told["member"] else set()
    assert {c for name, c in members if name == "vips"} == {RUI}
    assert {c for name, c in members if name == "s3"} == {ANA}
    items = _told(http.get(f"/customers/{RUI}/segments/history"), models.HistoryAnswer)["items"]
    assert {(i["segment"], i["change"], i["cause"]) for i in items[:2]} == {
        ("vips", "entered", "definition"), ("s3", "left", "definition"),
    }  # fmt: skip


def test_no_request_makes_it_fail(http):
    http.put("/segments/loyal", json={"criteria": LOYAL})
    http.put("/segments/vips", json={"list": True})

    def as_json(value: Any) -> dict[str, Any]:  # httpx refuses to write lone surrogates
        return {"content": json.dumps(value), "headers": {"content-type": "application/json"}}

    odd: list[Any] = [None, [], {}, 3, "", "\0", "x" * 5_000, '"', {"all": []}, {"segment": "\ud800"}, "age > 3 and", True]  # fmt: skip
    requests: list[tuple[str, str, dict[str, Any]]] = [
        *(("PUT", "/segments/loyal", as_json({"criteria": each})) for each in odd),
        *(("PUT", "/segments/vips", as_json({"list": True, "description": each})) for each in odd),
        *(("POST", "/segments", as_json({"name": each, "list": True})) for each in odd),
        *(("POST", "/segments/preview", as_json({"criteria": each, "overlap": True})) for each in odd),
        *(("POST", "/segments/vips/list", as_json(each)) for each in odd),
        *(("POST", "/segments/preview", as_json({"criteria": "age > 3", "fields": [each]})) for each in odd),
        *(("DELETE", "/segments/vips/list", {"content": each}) for each in (b"", b"\0", b"\xff", b",;\t\n" * 50, b"x" * 99_999)),
        *(("GET", f"/customers/{ANA}/segments/history", {"params": {"before": each}}) for each in ("WzEsMl0", "\0", "9" * 5_000)),
        *(("GET", f"/segments/{name}/members", {}) for name in ("%00", "..", "a" * 65, "é", "LOYAL", "a%2Fb")),
    ]  # fmt: skip
    for method, path, sent in requests:
        answer = http.request(method, path, **sent)
        assert answer.status_code < 500, (method, path, answer.text)
    assert _told(http.get("/segments/loyal"), models.SegmentAnswer)["version"] == 1


@pytest.fixture
def caudal(
    settings: Settings,
    conn: psycopg.Connection[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., str]]:
    """Runs `caudal segments …` in this process; gives what it prints, on standard error when it fails."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*words: str, status: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["caudal", "segments", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert int(stopped.value.code or 0) == status, err
        return out if status == 0 else err

    yield run
    structlog.reset_defaults()  # it was told to write to this test's standard error


def test_files_are_applied_all_or_none_and_once(caudal, conn, tmp_path):
    folder = tmp_path / "segments"
    folder.mkdir()
    (folder / "loyal.yaml").write_text(f'description: Near and often\ncriteria: {LOYAL} and not segment("vips")\n')
    (folder / "vips.yaml").write_text("list: true\n")
    changes = ["vips     created  1        filling", "loyal    created  1        filling"]
    assert caudal("apply", "--dry-run").splitlines()[1:] == changes
    assert conn.execute("SELECT count(*) FROM hub.segments").fetchone() == (0,)
    assert caudal("apply").splitlines()[1:] == changes
    assert [each["change"] for each in json.loads(caudal("apply", "--json"))] == ["unchanged", "unchanged"]
    (folder / "vips.yaml").write_text("list: true\ndescription: Chosen by hand\n")
    (folder / "wrong.yaml").write_text('criteria: segment("nobody")\n')
    assert "unknown segment" in caudal("apply", status=65)
    assert conn.execute("SELECT description FROM hub.segments WHERE name = 'vips'").fetchone() == ("",)


def test_the_commands_show_who_is_in_a_segment_and_why(caudal, conn):
    caudal("create", "loyal", "--where", LOYAL)
    assert "loyal    unchanged  1" in caudal("edit", "loyal", "--where", LOYAL)
    _enter(conn, "loyal", ANA)
    assert "loyal: criteria, filling, 1 member\n" in caudal("show", "loyal")
    told = caudal("explain", "loyal", str(ANA))
    assert "in loyal, entered" in told
    assert "yes    bought(within = 30d)" in told
    assert "leaves when `city" in told
    assert "entered  loyal" in caudal("history", str(ANA))
    caudal("create", "vips", "--list")
    assert (
        caudal("put", "vips", "--file", "-", stdin=f"id\n{ANA}\nx\n")
        == "1 put on the list, 0 unchanged, 0 unknown, 1 no ids\n"
    )
    assert caudal("take", "vips", str(ANA)).startswith("1 taken off the list")
    assert "buyers   1          100.0%" in caudal("overlap", "loyal")
    assert str(ANA) in caudal("members", "loyal")
    assert caudal("preview", 'city = "Recife"', "--field", "name").startswith("2 customers")
    assert "loyal    archived  1        leaving" in caudal("archive", "loyal")
    assert "leaving" in caudal("list", "--archived")
    assert "no segment has this name (did you mean vips?)" in caudal("show", "vipss", status=1)
    assert "no customer has the id" in caudal("explain", "loyal", str(uuid.UUID(int=9)), status=1)


def test_criteria_by_personal_data_need_the_scope_of_personal_data(settings, http, conn):
    secret = 'email = "ana@example.com"'
    for name, text in {
        "mail": secret,
        "plain": "orders_count > 1",
        "nested": 'segment("mail") or orders_count > 1',
    }.items():
        _told(http.post("/segments", json={"name": name, "criteria": text}), models.SegmentAnswer, 201)
    _told(http.put("/segments/vips", json={"list": True}), models.SegmentAnswer, 201)
    for name in ("mail", "plain", "nested", "vips"):
        _enter(conn, name, ANA)
    token = token_of(
        settings,
        "segments:read",
        "segments:write",
        "reports:read",
        "changes:read",
        "metrics:read",
        "operate",
        name="eva",
    )
    with httpx.Client(base_url=http.base_url, headers={"authorization": f"Bearer {token}"}, timeout=60) as eva:
        for asked in (
            secret,
            'phone starts with "+55"',
            "age > 3",
            'segment("mail")',
            'not segment("nested")',
            'attributes.x = "y"',
        ):
            body = {"criteria": asked}
            for refused in (
                eva.post("/segments", json={"name": "mine", **body}),
                eva.put("/segments/mine", json=body),
                eva.put("/segments/plain", json=body),
                eva.post("/segments/preview", json=body),
                eva.get("/reports/sales", params=body),
                eva.post("/customers/search", json=body),
                eva.get("/customers/search", params=body),
            ):
                assert "customers:read" in _refused(refused, 403, "insufficient_scope")["detail"]
                assert "ana@example.com" not in refused.text
        for path in ("mail/members", "nested/members", "mail/overlap", f"mail/explain/{ANA}", f"plain/explain/{ANA}"):
            _refused(eva.get(f"/segments/{path}"), 403, "insufficient_scope")
        _refused(eva.get(f"/customers/{ANA}/segments/history"), 403, "insufficient_scope")
        _refused(eva.get(f"/customers/{ANA}"), 403, "insufficient_scope")

        found = {each["name"]: each for each in _told(eva.get("/segments"), models.SegmentsAnswer)["segments"]}
        assert {name for name, each in found.items() if each["kind"] == "criteria" and each["text"] is None} == {
            "mail",
            "nested",
        }
        assert found["mail"]["criteria"] is None
        for answer in (
            eva.get("/segments/mail"),
            eva.get("/segments/mail/versions"),
            eva.get("/segments"),
            eva.delete("/segments/nested"),
            eva.delete("/segments/mail"),
        ):
            assert answer.status_code == 200
            assert "ana@example.com" not in answer.text
        shared = _told(eva.get("/segments/vips/overlap"), models.OverlapAnswer)["segments"]
        assert {each["segment"] for each in shared} == {"buyers", "plain"}

        assert _told(eva.get("/segments/plain/members"), models.MembersAnswer)["members"]
        assert eva.get("/segments/buyers/members").status_code == 200
        assert eva.get("/segments/lloyal/members").json()["code"] == "unknown_segment"
        _told(
            eva.put("/segments/mine", json={"criteria": 'segment("plain") and orders_count > 2'}),
            models.SegmentAnswer,
            201,
        )
        assert eva.get("/reports/sales", params={"criteria": "orders_count > 2"}).status_code == 200
    assert _told(http.get("/segments/mail/versions"), models.VersionsAnswer)["versions"][0]["criteria"]
    assert _told(http.get("/segments/nested/members"), models.MembersAnswer)["members"]
