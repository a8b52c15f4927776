"""Pages and PDFs of reports: the charts show the values, and nothing is fetched or run."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from caudal.projections.reports import REPORTS, Asked, Result, finished, plan
from caudal.serving._charts import COLOURS, ODD, Dot, Rect, Text, drawings
from caudal.serving._report_files import encoded
from caudal.serving._report_html import page
from caudal.serving._report_words import money, summary
from caudal.serving._reports import Made

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SALES = [100, 110, -20, 95, 105, 100, 900, 98, 102, 101]


def sales(values: list[int]) -> Result:
    first = date(2026, 2, 1)
    planned = plan(REPORTS["sales"], Asked(first=first, last=first + timedelta(days=len(values) - 1), now=NOW))
    rows = [(first + timedelta(days=n), "BRL", 1, v * 100, 0, 0, v * 100) for n, v in enumerate(values)]
    return finished(REPORTS["sales"], planned, rows)


def products(name: str) -> Result:
    return finished(REPORTS["products"], plan(REPORTS["products"], Asked(now=NOW)), [(name, "BRL", 1, 1, 1, 1_000)])


def test_bars_are_as_high_as_the_values_and_the_odd_one_stands_out():
    [drawing] = drawings(sales(SALES))
    bars = [shape for shape in drawing.shapes if isinstance(shape, Rect)]
    unit = bars[0].height / 100
    assert [bar.height / unit for bar in bars] == pytest.approx([abs(v) for v in SALES])
    zero = bars[0].y + bars[0].height
    assert [bar.y if v < 0 else bar.y + bar.height for bar, v in zip(bars, SALES, strict=True)] == pytest.approx(
        [zero] * len(SALES)
    )
    assert [bar.colour == ODD for bar in bars] == [v in {900, -20} for v in SALES]
    assert bars[6].about == "2026-02-07: Net 900.00"
    assert all(0 <= bar.x <= bar.x + bar.width <= drawing.width for bar in bars)


def test_a_line_has_a_point_for_every_known_value_and_a_gap_for_others():
    report = REPORTS["nps"]
    planned = plan(report, Asked(first=date(2025, 11, 1), last=date(2026, 2, 28), now=NOW))
    rows = [
        (date(2025, 11, 1), 2, 2, 0, 0, 100.0, 10.0, 100.0), (date(2025, 12, 1), 0, 0, 0, 0, None, None, None),
        (date(2026, 1, 1), 2, 0, 2, 0, 0.0, -34.0, 34.0), (date(2026, 2, 1), 1, 0, 0, 1, -100.0, -100.0, 48.0),
    ]  # fmt: skip
    [drawing] = drawings(finished(report, planned, rows))
    dots = [shape for shape in drawing.shapes if isinstance(shape, Dot)]
    assert len(dots) == 3
    assert dots[1].y - dots[0].y == pytest.approx(dots[2].y - dots[1].y)
    labels = [shape.text for shape in drawing.shapes if isinstance(shape, Text)]
    assert [label for label in labels if label.startswith("20")] == ["2025-11", "2025-12", "2026-01", "2026-02"]


def test_a_page_is_well_formed_whole_in_itself_and_runs_nothing():
    text = page(sales(SALES))
    root = ET.fromstring(re.sub(r"<(meta|link)([^>]*)>", r"<\1\2/>", text.removeprefix("<!doctype html>\n")))
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in names
    assert not {"img", "iframe", "object", "form"} & names
    assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) == {"data:,"}
    assert "default-src 'none'" in text
    svg = next(element for element in root.iter() if element.tag.endswith("svg"))
    assert sum(element.tag.endswith("rect") for element in svg.iter()) == len(SALES)
    body = root.find(".//tbody")
    assert [row.findall("td")[-1].text for row in body] == [money(v * 100, "BRL") for v in SALES]
    assert [row.get("class") for row in body].count("odd") == 2


def test_values_are_escaped_wherever_they_stand():
    text = page(products('<script>alert("1")</script>&'))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 2
    assert encoded(Made(products("=1+1"), ""), "csv").decode().splitlines()[1].startswith("'=1+1,")


def test_every_report_is_drawn_with_and_without_rows():
    for report in REPORTS.values():
        planned = plan(report, Asked(now=NOW))
        row = tuple(
            {"date": date(2026, 2, 1), "text": "BRL" if c.name == "currency" else "São João"}.get(c.type, 1)
            for c in report.columns
        )
        for rows in ([], [row]):
            made = Made(finished(report, planned, rows), "token")
            assert len(drawings(made.result)) == len(rows)
            assert "</html>" in encoded(made, "html").decode()
            assert encoded(made, "pdf").startswith(b"%PDF-")


def test_a_pdf_of_many_rows_has_pages_and_the_same_bytes_each_time():
    result = sales([n % 7 for n in range(28)])
    long = replace(result, rows=result.rows * 10)
    pdf = encoded(Made(long, ""), "pdf")
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 3
    assert encoded(Made(long, ""), "pdf") == pdf


def test_amounts_have_the_digits_of_their_currency():
    assert money(-123_456, "BRL") == "-1,234.56"
    assert money(5, "EUR") == "0.05"
    assert money(1_234, "JPY") == "1,234"
    assert money(1_234, "TND") == "1.234"


def test_what_is_to_be_said_names_totals_trends_and_anomalies():
    lines = list(summary(sales(SALES)))
    assert lines[0].startswith("In all: Currency BRL, Orders 10, Gross 1,691.00")
    assert lines[1] == "Trend of Net (BRL): steady."
    assert lines[3].startswith("2026-02-07: Net (BRL) 900.00 is out of ")
    assert COLOURS[0] != ODD
