"""The docs say what the code is."""

import re
from pathlib import Path

import pytest

from caudal import _reference, settings, telemetry

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TELEMETRY = (ROOT / "docs/reference/telemetry.md").read_text()


@pytest.mark.parametrize("page", _reference.PAGES)
def test_a_reference_page_follows_from_the_code(page):
    written = (ROOT / f"docs/reference/{page}.md").read_text()
    assert written == _reference.PAGES[page](), f"run: python -m caudal._reference {page} > docs/reference/{page}.md"


def _rows(heading: str) -> list[list[str]]:
    section = TELEMETRY.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_log_event_is_documented_with_when_it_happens():
    rows = _rows("Logs")
    assert {row[0].strip("`") for row in rows} == {event.value for event in telemetry.Log}
    assert all(row[1] for row in rows)


def test_every_log_event_is_written_somewhere():
    files = [path for folder in _folders() for path in folder.rglob("*.py") if path.name != "telemetry.py"]
    code = "".join(path.read_text() for path in files)
    assert [event.name for event in telemetry.Log if f"Log.{event.name}" not in code] == []


def test_log_events_are_a_noun_and_what_became_of_it():
    assert [event.value for event in telemetry.Log if not re.fullmatch(r"[a-z]+\.[a-z_]+", event.value)] == []


def test_every_metric_is_documented_with_its_kind_labels_and_meaning():
    documented = {row[0].strip("`"): row[1:] for row in _rows("Metrics")}
    real = {
        metric._name + ("_total" if metric._type == "counter" else ""): [
            metric._type,
            ", ".join(f"`{label}`" for label in metric._labelnames),
            metric._documentation,
        ]
        for metric in telemetry.METRICS
    }
    assert documented == real


def test_metrics_holds_every_metric_of_the_module():
    declared = [value for value in vars(telemetry).values() if hasattr(value, "_documentation")]
    assert set(declared) == set(telemetry.METRICS)


def test_metric_names_carry_the_product_and_base_units():
    for metric in telemetry.METRICS:
        assert metric._name.startswith("caudal_")
        assert not metric._name.endswith(("_ms", "_minutes", "_kb", "_mb"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_named_in_the_docs_exist(page):
    named = set(re.findall(r"\bCAUDAL_[A-Z_]+[A-Z]\b", page.read_text()))
    known = set(settings.names())
    assert [
        name for name in named if name not in known and not name.startswith(settings.SECRET_PREFIX.rstrip("_"))
    ] == []


def test_every_decision_is_listed():
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\((\d{4}-[a-z-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def _folders() -> list[Path]:
    return [
        ROOT / name for name in ("caudal", "connectors", "processors", "producers", "projections", "schemas", "serving")
    ]
