"""What the docs say of measurements is what was measured."""

import re
import tomllib
from pathlib import Path

from benchmarks import __main__, charts, quote

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_performance_page_are_made_from_the_quoted_results():
    page = quote.PAGE.read_text()
    assert quote.written(page, quote.quoted()) == page, "run: python -m benchmarks.quote"
    assert page.count("<!-- table ") == page.count("<!-- end -->") > 0


def test_the_charts_are_drawn_from_the_quoted_results_and_shown():
    page = quote.PAGE.read_text()
    drawn = charts.draw(quote.quoted())
    assert {path.name: path.read_text() for path in quote.CHARTS.glob("*.svg")} == drawn
    assert [name for name in drawn if f"](charts/{name})" not in page] == []


def test_every_benchmark_is_explained():
    explained = (ROOT / "benchmarks" / "README.md").read_text()
    assert [name for name in __main__.NAMES if f"| `{name}` |" not in explained] == []


def test_everything_that_the_race_fetches_is_pinned_by_its_hash():
    race = ROOT / "benchmarks" / "race"
    lock = (race / "requirements.lock").read_text()
    assert [e.split("\n")[0] for e in re.split(r"\n(?=\S)", lock.strip()) if "--hash=sha256:" not in e] == []
    wanted = {re.split(r"[=\[]", line)[0] for line in (race / "requirements.in").read_text().split()}
    assert wanted - set(re.findall(r"^([a-z0-9-]+)==", lock, flags=re.MULTILINE)) == set()
    pins = tomllib.loads((race / "jars.toml").read_text())
    files = [pin for part in pins.values() if isinstance(part, dict) for pin in part.values()]
    assert len(files) > 50
    assert all(re.fullmatch("[0-9a-f]{64}", pin["sha256"]) and pin["size"] > 0 for pin in files)
