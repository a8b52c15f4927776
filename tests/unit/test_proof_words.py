"""Times and schema names that a proof takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from caudal.projections.replay import moment, schema_name

from caudal.errors import BadSettings


def test_a_time_has_a_zone():
    assert moment("2026-03-01T12:00-03:00") == datetime(2026, 3, 1, 15, tzinfo=UTC)
    with pytest.raises(BadSettings, match="time zone"):
        moment("2026-03-01T12:00")
    with pytest.raises(BadSettings, match="no time"):
        moment("1 March")


def test_a_date_means_its_end_and_today_means_now():
    assert moment("2026-03-01") == datetime(2026, 3, 1, 23, 59, 59, 999999, UTC)
    now = datetime.now(UTC)
    assert now - timedelta(minutes=5) < moment(now.date().isoformat()) <= datetime.now(UTC)


def test_the_future_is_not_known():
    with pytest.raises(BadSettings, match="future"):
        moment((datetime.now(UTC) + timedelta(days=2)).isoformat())


@pytest.mark.parametrize(
    "name",
    ["live", "hub", "public", "pg_temp", "build_3", "old_1", "verify_2", "identity_2", "Märch", "a b", "", "1a", 'x"y'],
)
def test_a_schema_for_a_point_in_time_takes_no_name_of_something_else(name):
    with pytest.raises(BadSettings):
        schema_name(name)


def test_a_plain_name_is_taken():
    assert schema_name("march_2026") == "march_2026"
