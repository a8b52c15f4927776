"""Which reports are due, and what `caudal.toml` may say of them."""

from datetime import UTC, date, datetime

import pytest

from caudal import _scheduled
from caudal.errors import BadSettings
from caudal.settings import load


@pytest.fixture
def entries(tmp_path):
    def write(text: str):
        (tmp_path / "caudal.toml").write_text(text)
        return load(config_file=tmp_path / "caudal.toml", home=tmp_path)

    return write


def entry(**more: object) -> str:
    values = {"report": "sales", "every": "month", "folder": "out", **more}
    return "[[reports]]\n" + "".join(f"{k} = {v if isinstance(v, int) else repr(v)}\n" for k, v in values.items())


@pytest.mark.parametrize(
    ("every", "now", "file", "first", "last"),
    [
        ("day", "2026-03-01T00:59", "sales-2026-02-27.html", "2026-02-27", "2026-02-27"),
        ("day", "2026-03-01T01:00", "sales-2026-02-28.html", "2026-02-28", "2026-02-28"),
        ("week", "2026-01-04T12:00", "sales-2025-W52.html", "2025-12-22", "2025-12-28"),
        ("week", "2026-01-05T12:00", "sales-2026-W01.html", "2025-12-29", "2026-01-04"),
        ("month", "2026-01-31T12:00", "sales-2025-12.html", "2025-12-01", "2025-12-31"),
        ("month", "2024-03-01T12:00", "sales-2024-02.html", "2024-02-01", "2024-02-29"),
    ],
)
def test_the_last_period_that_is_over_is_due(entries, tmp_path, *, every, now, file, first, last):
    settings = entries(entry(every=every))
    [found] = _scheduled.due(settings, datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert found.file == tmp_path / "out" / file
    assert (found.first, found.last) == (date.fromisoformat(first), date.fromisoformat(last))


def test_a_day_ends_at_midnight_of_its_time_zone_and_the_hour_is_waited_for(entries):
    settings = entries(entry(every="day", time_zone="America/Recife", hour=6))
    for now, day in (("2026-03-02T08:59", "2026-02-28"), ("2026-03-02T09:00", "2026-03-01")):
        [found] = _scheduled.due(settings, datetime.fromisoformat(now).replace(tzinfo=UTC))
        assert found.file.name == f"sales-{day}.html"


def test_what_is_written_is_not_due(entries, tmp_path):
    settings = entries(entry() + entry(report="nps", format="pdf"))
    now = datetime(2026, 3, 5, tzinfo=UTC)
    assert [each.file.name for each in _scheduled.due(settings, now)] == ["sales-2026-02.html", "nps-2026-02.pdf"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sales-2026-02.html").touch()
    assert [each.file.name for each in _scheduled.due(settings, now)] == ["nps-2026-02.pdf"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[reports]\nx = 1", "not a list"),
        ("reports = [1]", "entry 1"),
        (entry(every="hour"), "entry 1: every"),
        (entry() + entry(report="nps", formt="pdf"), "entry 2: formt"),
        (entry(time_zone="Recife"), "time_zone"),
        (entry() + entry(by="day"), "same files"),
    ],
)
def test_a_fault_is_told_with_its_entry(entries, text, fault):
    with pytest.raises(BadSettings, match=fault):
        _scheduled.load(entries(text))


def test_without_a_file_nothing_is_scheduled(tmp_path):
    assert _scheduled.load(load(config_file=tmp_path / "none.toml", home=tmp_path)) == []
