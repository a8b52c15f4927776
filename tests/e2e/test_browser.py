"""What people open in a browser, in a real one: pages of reports without a network, and the form that asks for feedback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, browser, tab
from caudal.connectors import Delivery
from caudal.connectors.feedback import connector
from caudal.projections.reports import REPORTS, Asked, Report, finished, plan
from caudal.schemas import FeedbackStated
from caudal.schemas.codec import Codec
from caudal.serving._report_html import page as report_page
from playwright.sync_api import Browser
from programs import address, environment, running
from replays import on_topic
from typer.testing import CliRunner

from caudal import postgres, sources, standing, telemetry
from caudal.cli import app
from caudal.settings import Settings

ANA = "4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
WORDS = ("Sandálias de couro com fivela dourada", "São João", "<b>Scarf</b> & co", "Boot", "Hat")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


def rows(report: Report) -> list[tuple[Any, ...]]:
    """Some rows of every kind of value: small and large, negative, missing."""
    chart = report.chart
    made = []
    for n in range(36):
        values = {
            "date": date(2023, 3, 1) + timedelta(days=31 * n), "text": WORDS[n % len(WORDS)], "integer": 7**(n % 6), "number": n - 9.5,
            "money": (-1) ** n * 1_234_567 * n, "share": n / 35, "hours": None if n % 5 == 0 else 1.5 * n,
        }  # fmt: skip
        row = {c.name: values[c.type] for c in report.columns}
        row |= {name: value for name, value in (("currency", "BRL"), ("segment", WORDS[n % 3])) if name in row}
        if chart.kind == "grid":
            side = next(c for c in report.columns if c.name == chart.rows)
            row[side.name] = date(2025, 1 + n // 6, 1) if side.type == "date" else 1 + n // 6
            row[chart.x] = n % 6
        made.append(tuple(row.values()))
    return made


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_of_every_report_shows_its_charts_with_no_network(
    chromium: Browser, tmp_path: Path, window: dict[str, int]
) -> None:
    faults = {}
    with tab(chromium, offline=True, viewport=window, color_scheme="dark" if window is PHONE else "light") as opened:
        for report in REPORTS.values():
            file = tmp_path / f"{report.name}.html"
            file.write_text(report_page(finished(report, plan(report, Asked(now=NOW)), rows(report))), encoding="utf-8")
            opened.page.goto(file.as_uri())
            found = opened.faults()
            if not opened.page.locator("svg").count():
                found.append("no chart")
            if others := set(opened.requests) - {file.as_uri(), "data:,"}:
                found.append(f"asked for {others}")
            opened.requests.clear()
            if found:
                faults[report.name] = found
    assert faults == {}, json.dumps(faults, indent=1, ensure_ascii=False)


@pytest.fixture
def form(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """Where an edge with a source of feedback listens; there is one customer."""
    sources.add(settings, sources.Source(name="feedback", connector="feedback", secrets=("feedback",)))
    sources.store_secret(settings, "feedback", "hush")
    standing.prepare(settings)
    with postgres.connect(settings.postgres, role="tests") as conn:
        conn.execute(
            """INSERT INTO hub.subjects (subject, customer_id, link_seq, source, created_at, linked_at, reason)
               VALUES ('shop:customer:1', %s, 1, 'shop', now(), now(), 'new')""",
            [ANA],
        )
    log = tmp_path / "edge.log"
    with running(["run", "--role", "edge"], environment(settings), log):
        yield address(settings, "edge", log)


def answers(settings: Settings, codec: Codec) -> list[FeedbackStated]:
    """What has arrived, as the connector reads it."""
    found = [capture for _, capture in on_topic(settings, codec, "capture.feedback") if capture]
    names = ("source", "body", "headers", "kind", "delivery_id", "captured_at")
    return [event for one in found for event in connector.translate(Delivery(**{name: one[name] for name in names}))]


def test_the_form_of_a_link_is_filled_in_and_sent_in_the_language_of_the_browser(
    chromium: Browser, form: str, settings: Settings, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_, **__: None)  # its stream would end with the command

    def link(kind: str) -> str:
        arguments = [
            "feedback",
            "link",
            "--customer",
            ANA,
            "--survey",
            "2026-05",
            "--kind",
            kind,
            "--product",
            "Sandal",
        ]
        done = CliRunner().invoke(app, arguments, env=environment(settings, CAUDAL_EDGE__PUBLIC_URL=form))
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    for kind, locale, window, score, text, send, thanks in (
        ("nps", "pt-BR", PHONE, "9", "Ótimo & <rápido>", "Enviar", "Obrigado"),
        ("csat", "en-GB", DESKTOP, "2", "", "Send", "Thank you"),
    ):
        with tab(chromium, locale=locale, viewport=window) as opened:
            page = opened.page
            page.goto(link(kind))
            assert opened.faults() == []
            assert page.locator("html").get_attribute("lang") == locale[:2]
            assert page.get_by_text("Sandal").is_visible()
            page.get_by_role("button", name=send).click()
            assert page.get_by_role("button", name=send).is_visible(), "nothing is sent without a score"
            page.get_by_label(score, exact=True).check()
            page.get_by_role("textbox").fill(text)
            page.get_by_role("button", name=send).click()
            page.get_by_text(thanks).wait_for()
            assert opened.complaints == []
            assert {url.partition("/feedback")[0] for url in opened.requests} <= {form}, "nobody else is asked"
    arrived = {
        a.kind: (a.subject, a.identifiers[0].value, a.score, a.text, a.product) for a in answers(settings, codec)
    }
    who = (f"feedback:customer:{ANA}", "shop:customer:1")
    assert arrived == {"nps": (*who, 9.0, "Ótimo & <rápido>", "Sandal"), "csat": (*who, 2.0, None, "Sandal")}
