"""Reports say what a plain reading of the events says: the numbers, whom they are of, what is refused, how they are written."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from statistics import mean, median
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import report_log
from api_server import running, token_of
from caudal.projections import Runner, criteria
from caudal.projections.reports import REPORTS, Asked, Result
from caudal.projections.reports.feedback import nps, nps_interval
from caudal.schemas import FeedbackStated, OrderStated, TicketStated
from caudal.schemas.codec import Codec, Registry
from caudal.serving._reports import Reports, UnknownReport
from caudal.serving.models import ReportAnswer, ReportsAnswer
from logs import PARTITIONS, apply, records
from programs import environment
from replays import until
from report_log import NOW
from typer.testing import CliRunner

from caudal import _scheduled, postgres, telemetry
from caudal.cli import app
from caudal.settings import Settings

ZONE = "America/Recife"
EVENTS = report_log.events()
FIRST = date(2025, 11, 1)
PAGE = Path(__file__).parents[2] / "docs/reports.md"

Make = Callable[..., Result]


@pytest.fixture(scope="module")
def settings(own_settings, tmp_path_factory) -> Iterator[Settings]:
    """One company for all tests: they only read its events."""
    with own_settings(tmp_path_factory.mktemp("reports")) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def filled(settings: Settings) -> Settings:
    with closing(Registry(settings)) as registry, closing(Runner(settings, codec := Codec(registry))) as runner:
        runner.positions(range(PARTITIONS))
        apply(runner, records(codec, EVENTS))
    return settings


@pytest.fixture(scope="module")
def make(filled: Settings) -> Iterator[Make]:
    with asyncio.Runner() as loop:
        pool = postgres.pool(filled.postgres, role="tests")
        loop.run(pool.open(wait=True, timeout=60))

        def made(name: str, **asked: Any) -> Result:
            asking = Asked(**{"now": NOW, "zone": ZONE, **asked})
            return loop.run(Reports(pool).make(REPORTS[name], asking)).result

        yield made
        loop.run(pool.close())


def day(at: datetime) -> date:
    return at.astimezone(ZoneInfo(ZONE)).date()


def month(at: datetime | date) -> date:
    return (day(at) if isinstance(at, datetime) else at).replace(day=1)


def happened(kind: Any, at: str) -> list[Any]:
    return [e for e in EVENTS if isinstance(e, kind) and getattr(e, at) <= NOW]


def counting() -> list[OrderStated]:
    return [o for o in happened(OrderStated, "placed_at") if o.kind != "checkout" and o.status != "cancelled"]


def paid(order: OrderStated) -> bool:
    return order.status in {"paid", "partially_refunded", "refunded"}


def refunds() -> list[Any]:
    return [r for e in EVENTS if isinstance(e, OrderStated) for r in e.refunds if r.refunded_at <= NOW]


def table(result: Result, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in result.rows]


def test_sales_and_tops_are_those_of_the_events(make, conn):
    for by, start in (("month", month), ("day", day), ("week", lambda at: day(at) - timedelta(days=day(at).weekday()))):
        orders, money = Counter(), Counter()
        for o in counting():
            key = (start(o.placed_at), o.currency)
            orders[key] += 1
            if paid(o):
                money[*key, "gross"] += o.total_minor + (o.discount_minor or 0)
                money[*key, "discounts"] += o.discount_minor or 0
        for r in refunds():
            money[start(r.refunded_at), r.currency, "refunds"] += r.amount_minor
        found = make("sales", by=by, first=FIRST)
        for row in found.rows:
            key = (row["period"], row["currency"])
            assert row["orders"] == orders.pop(key, 0)
            parts = [money.pop((*key, part), 0) for part in ("gross", "discounts", "refunds")]
            assert [row["gross_minor"], row["discounts_minor"], row["refunds_minor"]] == parts
            assert row["net_minor"] == parts[0] - parts[1] - parts[2]
        assert not +orders
        assert not +money
    spend = Counter()
    for (each,) in conn.execute("SELECT spend_minor FROM live.metrics").fetchall():
        spend.update(each)
    later = [o for o in EVENTS if isinstance(o, OrderStated) and o.placed_at > NOW and o.kind != "checkout" and paid(o)]
    for total in found.totals:
        ahead = sum(o.total_minor for o in later if o.currency == total["currency"])
        back = sum(
            r.amount_minor
            for o in EVENTS
            if isinstance(o, OrderStated)
            for r in o.refunds
            if r.refunded_at > NOW and r.currency == total["currency"]
        )
        assert total["net_minor"] == spend[total["currency"]] - ahead + back, "all of it is what the customers spent"

    units, revenue, cities = Counter(), Counter(), defaultdict(list)
    homes = {e.customer_id: e.city for e in EVENTS if hasattr(e, "city")}
    for o in counting():
        if o.currency == "EUR":
            cities[o.shipping_city or homes[o.customer_id]].append(o)
            for line in o.lines:
                units[line.product] += line.quantity
                revenue[line.product] += (line.quantity * line.unit_price_minor - line.discount_minor) * paid(o)
    top = make("products", currency="EUR", limit=2)
    assert table(top, "product", "revenue_minor", "units") == [(p, r, units[p]) for p, r in revenue.most_common(2)]
    assert {row["category"] for row in make("categories").rows} == {"shoes", "hats"}
    assert {(row["city"], row["orders"], row["customers"], row["revenue_minor"]) for row in make("cities", currency="EUR").rows} == {
        (city, len(own), len({o.customer_id for o in own}), sum(o.total_minor for o in own if paid(o))) for city, own in cities.items()
    }  # fmt: skip


def test_who_buys_again_is_read_off_the_events(make):
    orders: dict[str, list[OrderStated]] = defaultdict(list)
    for o in sorted(counting(), key=lambda o: (o.placed_at, o.order_id)):
        orders[o.customer_id].append(o)
    for row in make("customers", by="month", first=FIRST).rows:
        own = {c for c, made in orders.items() if any(month(o.placed_at) == row["period"] for o in made)}
        new = {c for c in own if month(orders[c][0].placed_at) == row["period"]}
        assert (row["active"], row["new"], row["returning"]) == (len(own), len(new), len(own - new))

    found = make("cohorts", first=date(2026, 1, 1))
    for row in found.rows:
        members = [c for c, made in orders.items() if month(made[0].placed_at) == row["cohort"]]
        at = row["cohort"].year * 12 + row["cohort"].month - 1 + row["month"]
        then = date(at // 12, at % 12 + 1, 1)
        active = [c for c in members if any(month(o.placed_at) == then for o in orders[c])]
        assert (row["customers"], row["active"], row["retention"]) == (
            len(members),
            len(active),
            len(active) / len(members),
        )
    assert found.rows[0]["cohort"] >= date(2026, 1, 1)

    for n, row in enumerate(make("repeat").rows, 1):
        own = [made for made in orders.values() if len(made) >= n]
        assert (row["orders"], row["customers"], row["share"]) == (n, len(own), len(own) / len(orders))
        gaps = [(made[n - 1].placed_at - made[n - 2].placed_at) / timedelta(days=1) for made in own] if n > 1 else []
        assert row["days_since_previous"] == (pytest.approx(median(gaps)) if gaps else None)

    spend = {c: sum(o.total_minor for o in made if paid(o) and o.currency == "BRL") for c, made in orders.items()}
    spread = make("spend")
    assert sum(row["customers"] for row in spread.rows) == sum(s > 0 for s in spend.values())
    for row in spread.rows:
        inside = [s for s in spend.values() if row["from_minor"] <= s < row["to_minor"]]
        assert (row["customers"], row["spend_minor"]) == (len(inside), sum(inside))
    assert all(a["to_minor"] == b["from_minor"] for a, b in zip(spread.rows, spread.rows[1:], strict=False))

    def fifths(value: Callable[[str], Any]) -> dict[str, int]:
        return {c: 1 + 5 * sum(value(other) < value(c) for other in orders) // len(orders) for c in orders}

    r, f, m = fifths(lambda c: orders[c][-1].placed_at), fifths(lambda c: len(orders[c])), fifths(spend.__getitem__)
    for row in make("rfm").rows:
        own = [c for c in orders if (r[c], f[c]) == (row["recency"], row["frequency"])]
        assert (row["customers"], row["spend_minor"]) == (len(own), sum(spend[c] for c in own))
        assert row["monetary"] == (pytest.approx(mean(m[c] for c in own)) if own else None)


def test_feedback_and_support_are_those_of_the_events(make):
    answers = [f for f in happened(FeedbackStated, "answered_at") if f.status != "deleted"]

    def scores(kind: str, start: date | None, low: float, high: float, product: str | None = None) -> list[float]:
        return [
            low + (high - low) * (f.score - f.scale_min) / (f.scale_max - f.scale_min) for f in answers
            if f.kind == kind and (start is None or month(f.answered_at) == start) and (product is None or f.product == product)
        ]  # fmt: skip

    def check(row: dict[str, Any], given: list[float]) -> None:
        counts = (sum(s >= 9 for s in given), sum(6 < s < 9 for s in given), sum(s <= 6 for s in given))
        assert (row["promoters"], row["passives"], row["detractors"]) == counts
        assert row["nps"] == (pytest.approx(nps(*counts)) if given else None)
        if given:
            assert (row["low"], row["high"]) == pytest.approx(nps_interval(*counts))

    found = make("nps", by="month", first=FIRST)
    for row in found.rows:
        check(row, scores("nps", row["period"], 0, 10))
    check(found.totals[0], scores("nps", None, 0, 10))
    for row in make("nps-products").rows:
        check(row, scores("nps", None, 0, 10, row["product"]))
    for row in make("reviews", first=FIRST).rows:
        stars = scores("review", row["period"], 1, 5)
        assert (row["reviews"], row["good"], row["bad"]) == (
            len(stars),
            sum(s >= 4 for s in stars),
            sum(s < 3 for s in stars),
        )
        assert row["average"] == (pytest.approx(mean(stars)) if stars else None)
    assert {row["product"]: row["reviews"] for row in make("reviews-products").rows} == {
        product: len(scores("review", None, 1, 5, product)) for product in ("Sandal", "Boot")
    }
    for row in make("satisfaction", first=FIRST).rows:
        csat, ces = scores("csat", row["period"], 1, 5), scores("ces", row["period"], 1, 7)
        assert row["csat"] == (sum(s >= 4 for s in csat) / len(csat) if csat else None)
        assert row["ces"] == (pytest.approx(mean(ces)) if ces else None)

    tickets = [t for t in happened(TicketStated, "opened_at") if t.status != "deleted"]
    for row in make("support", by="week", first=date(2026, 2, 1)).rows:
        begin, end = row["period"], row["period"] + timedelta(days=7)
        opened = [t for t in tickets if begin <= day(t.opened_at) < end]
        ends = [(t.opened_at, t.solved_at if t.solved_at and t.solved_at <= NOW else None) for t in tickets]
        assert row["opened"] == len(opened)
        assert row["solved"] == sum(e is not None and begin <= day(e) < end for _, e in ends)
        assert row["backlog"] == sum(day(o) < end and (e is None or day(e) >= end) for o, e in ends)
        hours = [(t.first_replied_at - t.opened_at) / timedelta(hours=1) for t in opened if t.first_replied_at]
        assert row["first_reply_hours"] == (pytest.approx(median(hours)) if hours else None)


@pytest.fixture
def vip(conn) -> Iterator[int]:
    """A segment whose moves are up to the test."""
    [id_] = conn.execute(
        "INSERT INTO hub.segments (name, state, revision, created_at) VALUES ('vip', 'live', 1, %s) RETURNING id", [NOW - timedelta(days=6)]
    ).fetchone()  # fmt: skip
    yield id_
    for table in ("segment_history", "segment_memberships"):
        conn.execute(f"DELETE FROM hub.{table} WHERE segment_id = %s", [id_])
    conn.execute("DELETE FROM hub.segments WHERE id = %s", [id_])


def test_sizes_of_segments_are_read_back_from_their_history(make, conn, vip):
    members = [row[0] for row in conn.execute("SELECT customer_id FROM live.profiles ORDER BY 1 LIMIT 4").fetchall()]
    moves = [(0, True, 5), (1, True, 4), (2, True, 3), (0, False, 2), (3, True, 1), (0, True, 1), (3, False, 0)]
    for customer, entered, days in moves:
        conn.execute(
            "INSERT INTO hub.segment_history (customer_id, segment_id, version, entered, at, cause) VALUES (%s, %s, 1, %s, %s, 'time')",
            [members[customer], vip, entered, NOW - timedelta(days=days)],
        )  # fmt: skip
    for customer in (0, 1, 2):
        conn.execute("INSERT INTO hub.segment_memberships VALUES (%s, %s, now())", [members[customer], vip])
    found = make("segments", segment="vip")
    assert [row["customers"] for row in found.rows] == [0, 1, 2, 3, 2, 4, 3]
    assert found.rows[-1]["partial"]
    past = make("segments", segment="vip", last=day(NOW) - timedelta(days=2))
    assert [row["customers"] for row in past.rows] == [0, 1, 2, 3, 2]
    assert [row["customers"] for row in make("segments", segment="vip", by="month").rows] == [3]
    conn.execute("DELETE FROM hub.built_in_history")
    for customer, had, has, days in ((0, "{}", "{buyers}", 3), (1, "{buyers}", "{}", 2), (1, "{}", "{buyers}", 1)):
        conn.execute(
            "INSERT INTO hub.built_in_history (customer_id, at, had, has) VALUES (%s, %s, %s, %s)",
            [members[customer], NOW - timedelta(days=days), had, has],
        )
    today = {row["segment"]: row["customers"] for row in make("segments").rows if row["period"] == day(NOW)}
    buyers = conn.execute("SELECT count(*) FROM live.segment_members WHERE segment = 'buyers'").fetchone()
    assert (today["vip"], today["buyers"]) == (3, buyers[0])
    sizes = [row["customers"] for row in make("segments", segment="buyers").rows]
    conn.execute("DELETE FROM hub.built_in_history")  # other tests ask for sizes, too
    assert sizes == [buyers[0], buyers[0] - 1, buyers[0], buyers[0]], "from the first change that was noted"


def test_any_criteria_say_whom_a_report_is_of(make):
    recife = {e.customer_id for e in EVENTS if getattr(e, "city", None) == "Recife"}
    asked = {"criteria": criteria.parse('city = "Recife"'), "first": FIRST}
    own = [o for o in counting() if o.customer_id in recife]
    assert sum(t["orders"] for t in make("sales", by="month", **asked).totals) == len(own)
    assert make("repeat", **asked).rows[0]["customers"] == len({o.customer_id for o in own})
    tickets = [t for t in happened(TicketStated, "opened_at") if t.customer_id in recife and t.status != "deleted"]
    assert make("support", by="month", **asked).totals[0]["opened"] == len(tickets)
    nobody = criteria.parse('city = "Nowhere"')
    for name, report in REPORTS.items():
        rows = make(name, criteria=nobody).rows
        assert all(not row[c] for row in rows for c in report.sums), name
        bought = criteria.parse('bought(times >= 1) and segment("buyers") and spend_minor.BRL > 0')
        assert make(name, criteria=bought).parameters["criteria"]


@pytest.fixture
def http(filled: Settings) -> Iterator[httpx.Client]:
    with running(filled) as address:
        bearer = {"authorization": f"Bearer {token_of(filled, 'reports:read', 'customers:read')}"}
        with httpx.Client(base_url=address, headers=bearer, timeout=60) as client:
            yield client


def test_reports_are_read_over_http(http):
    listed = ReportsAnswer.model_validate_json(http.get("/reports").text)
    assert [r.report for r in listed.reports] == list(REPORTS)
    for name in REPORTS:
        answer = http.get(f"/reports/{name}", params={"from": "2026-01-01", "to": "2026-06-09", "time-zone": ZONE})
        assert answer.status_code == 200, answer.text
        assert ReportAnswer.model_validate_json(answer.text).token == answer.headers["caudal-token"]
    asked = {"from": "2026-01-01", "to": "2026-05-31", "by": "month", "currency": "BRL", "criteria": 'city = "Recife"'}
    body = http.get("/reports/sales", params=asked).json()
    assert body["parameters"] == {
        "criteria": 'city = "Recife"', "from": "2026-01-01", "to": "2026-05-31", "time_zone": "UTC", "by": "month", "currency": "BRL",
    }  # fmt: skip
    assert [row["period"] for row in body["rows"]] == [f"2026-0{n}-01" for n in range(1, 6)]
    rows = list(csv.DictReader(io.StringIO(http.get("/reports/sales", params={**asked, "format": "csv"}).text)))
    assert [row["net_minor"] for row in rows] == [str(row["net_minor"]) for row in body["rows"]]

    page = http.get("/reports/products", params={"format": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "&lt;b&gt;Scarf&lt;/b&gt; &amp; co" in page.text
    assert "<b>" not in page.text
    assert http.get("/reports/products", params={"format": "pdf"}).content.startswith(b"%PDF-")

    def fault(path: str, **asked: str) -> tuple[int, str, str | None]:
        answer = http.get(f"/reports/{path}", params=asked)
        return answer.status_code, answer.json()["code"], answer.json().get("path")

    assert fault("nothing") == (404, "unknown_report", None)
    for path, asked in {
        "time-zone": {"time-zone": "../etc/passwd"}, "by": {"from": "1999-01-01", "by": "day"}, "currency": {"currency": "x'; --"},
        "limit": {"limit": "3"}, "segment": {"segment": "vip"}, "from": {"from": "2026-02-01", "to": "2026-01-01"},
    }.items():  # fmt: skip
        assert fault("sales", **asked) == (422, "bad_report", path)
    assert fault("products", by="day") == (422, "bad_report", "by")
    assert fault("sales", criteria="city = ")[1] == "bad_criteria"
    assert fault("sales", criteria='segment("nobody-made-it")') == (422, "bad_criteria", "segment")
    assert fault("sales", **{"from": "yesterday"})[1] == "invalid_parameters"


def test_the_command_prints_and_writes_reports(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(
        telemetry, "configure_logging", lambda *_, **__: None
    )  # it would log to a stream that ends with the command

    def report(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["report", *arguments], env=environment(filled))

    shown = report("sales", "--by", "month", "--from", "2026-01-01", "--to", "2026-05-31", "--currency", "BRL")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0].split() == [
        "Period",
        "Currency",
        "Orders",
        "Gross",
        "Discounts",
        "Refunds",
        "Net",
    ]
    assert shown.stdout.splitlines()[1].startswith("2026-01-01  BRL")
    assert "In all: Currency BRL, Orders" in shown.stderr
    done = report("cities", "--where", 'city = "Lisboa"', "--format", "json")
    assert {row["currency"] for row in json.loads(done.stdout)["rows"]} == {"BRL"}
    assert report("nps", "--format", "csv", "--out", str(tmp_path / "nps.csv")).exit_code == 0
    assert (tmp_path / "nps.csv").read_text().startswith("period,answers,promoters")
    assert "there are sales" in str(report("salles").exception)
    nowhere = report("nps", "--format", "csv", "--out", str(tmp_path / "nowhere" / "nps.csv"))
    assert (nowhere.exit_code, "No such file" in nowhere.stderr) == (2, True)
    assert isinstance(report("nps", "--where", "").exception, criteria.BadCriteria), (
        "a shell's empty variable doesn't mean everyone"
    )

    shown_in_docs = re.findall(
        r"```console\n\$ caudal report (.*)\n((?:[^$`].*\n)+)```", PAGE.read_text().partition("## The reports")[2]
    )
    assert {arguments.split()[0] for arguments, _ in shown_in_docs} == set(REPORTS)
    for arguments, lines in shown_in_docs:
        printed = report(*arguments.split()).stdout.splitlines()
        for line in lines.splitlines():
            pattern = ".*".join(map(re.escape, line.split("…")))
            assert any(re.fullmatch(pattern, each) for each in printed), (arguments, line, printed)


def test_what_is_scheduled_is_written_once_by_one_of_many(filled, tmp_path):
    settings = filled.model_copy(update={"config_file": tmp_path / "caudal.toml"})
    folder = settings.config_file.parent / "monthly"
    entries = [
        ("sales", "csv", 'by = "day"'),
        ("nothing", "csv", ""),
        ("products", "json", "where = 'city = \"Recife\"'"),
    ]
    settings.config_file.write_text("".join(
        f'[[reports]]\nreport = "{name}"\nevery = "month"\nformat = "{format_}"\nfolder = "monthly"\n{more}\n'
        for name, format_, more in entries
    ))  # fmt: skip
    with postgres.connect(settings.postgres, role="tests") as other:
        other.execute("SELECT pg_advisory_lock(%s)", [_scheduled._LOCK])
        assert _scheduled.run_due(settings, NOW) == []
    with pytest.raises(UnknownReport):
        _scheduled.run_due(settings, NOW)
    assert sorted(path.name for path in folder.iterdir()) == ["products-2026-05.json", "sales-2026-05.csv"], (
        "one fault stops no other"
    )
    rows = csv.DictReader((folder / "sales-2026-05.csv").read_text().splitlines())
    days = [row["period"] for row in rows if row["currency"] == "BRL"]
    assert (days[0], days[-1], len(days)) == ("2026-04-27", "2026-05-31", 35)
    told = json.loads((folder / "products-2026-05.json").read_text())["parameters"]
    assert (told["from"], told["to"], told["criteria"]) == ("2026-05-01", "2026-05-31", 'city = "Recife"')

    settings.config_file.write_text('[[reports]]\nreport = "repeat"\nevery = "day"\nfolder = "daily"\n')
    timers = [_scheduled.Reporting(settings) for _ in range(2)]
    for timer in timers:
        timer.every_s = 0.05
        timer.start()
    try:
        until(lambda: any((settings.config_file.parent / "daily").glob("repeat-*.html")), "file")
    finally:
        for timer in timers:
            timer.stop()
    assert all(page.read_text().endswith("</html>\n") for page in (settings.config_file.parent / "daily").iterdir())
