"""What rollups take for granted."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

from caudal.projections._rollup import QUARTER, ZONES_SINCE
from caudal.projections.reports import REPORTS, Asked, plan

MONTHS = [
    datetime(year, month, 1, tzinfo=UTC) for year in range(ZONES_SINCE.year, datetime.now(UTC).year + 2) for month in range(1, 13)
]  # fmt: skip


def test_every_time_zone_is_whole_quarters_of_an_hour_from_utc_since_rollups_are_asked() -> None:
    for name in available_timezones():
        zone = ZoneInfo(name)
        assert not any(at.astimezone(zone).utcoffset() % QUARTER for at in MONTHS), name


def test_facts_are_read_where_a_rollup_would_not_be_exact() -> None:
    def rolled(report: str = "sales", **asked: object) -> bool:
        return "rollup" in plan(REPORTS[report], Asked(**asked)).statement

    assert rolled()
    assert rolled(zone="Asia/Kathmandu")
    assert not rolled(now=datetime.now(UTC) - timedelta(minutes=5)), "of a moment that is past"
    assert not rolled(first=date(1979, 12, 1), by="month"), "when zones were no whole quarters"
    assert rolled("nps-products"), "of all time, not cut into days"
    begin = datetime.combine(date(1970, 1, 1), time.min, ZoneInfo("Africa/Monrovia"))
    assert begin.utcoffset() % QUARTER
    assert not rolled("nps-products", zone="Africa/Monrovia")
    assert not rolled("customers"), "customers don't add up"
