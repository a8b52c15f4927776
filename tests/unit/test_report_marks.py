"""Trend, anomalies and the figures of feedback, by worked examples."""

import random

import pytest
from caudal.projections.reports.feedback import nps, nps_interval
from caudal.projections.reports.marks import expected, trend


def test_the_slope_is_the_median_of_all_slopes():
    # Theil-Sen of y = 2x + 1 with one wild value stays 2; least squares would give 5.3
    values = [1, 3, 5, 7, 9, 11, 13, 15, 17, 99]
    line = trend(values)
    assert (line.slope, line.start, line.direction) == (2.0, 1.0, "rising")
    assert trend([-v for v in values]).direction == "falling"


def test_the_direction_is_that_of_the_mann_kendall_test():
    # S = 18 of 28 pairs; variance 8 * 7 * 21 / 18 = 65.33; z = 17 / 8.08 = 2.10
    assert trend([1, 2, 3, 5, 4, 8, 7, 6]).direction == "rising"
    # S = 14: z = 13 / 8.08 = 1.61, which chance gives more often than once in twenty
    assert trend([1, 2, 5, 4, 3, 8, 7, 6]).direction == "steady"
    assert trend([4] * 9).direction == "steady"
    assert trend([1, 2, 3]) is None


def test_a_value_far_from_the_line_is_an_anomaly():
    values = [10.0, 11, 10, 12, 11, 10, 30, 11, 12, 10, 11]
    out = [
        n
        for n, (value, (low, high)) in enumerate(zip(values, expected(values), strict=True))
        if not low <= value <= high
    ]
    assert out == [6]


def test_the_range_is_the_line_and_the_modified_z_score():
    # the line is 10; the distances are 1 eight times, 0 once and 20 once: their median is 1
    values = [9.0, 11, 9, 11, 10, 9, 11, 9, 11, 30]
    line = trend(values)
    low, high = expected(values)[9]
    distances = sorted(abs(v - line.start - line.slope * n) for n, v in enumerate(values))
    median = (distances[4] + distances[5]) / 2
    assert high - low == pytest.approx(2 * 3.5 * 1.482602 * median)


def test_weekdays_have_levels_of_their_own():
    rnd = random.Random(3)
    values = [(400.0 if day % 7 == 5 else 100.0) + rnd.uniform(-9, 9) for day in range(42)]
    values[20] = 400.0  # a Saturday's sales on another day
    flagged = [
        n
        for n, (v, (low, high)) in enumerate(zip(values, expected(values, daily=True), strict=True))
        if not low <= v <= high
    ]
    assert flagged == [20]
    assert (
        len(
            [n for n, (v, (low, high)) in enumerate(zip(values, expected(values), strict=True)) if not low <= v <= high]
        )
        == 7
    )


def test_of_a_series_that_is_mostly_zero_nothing_is_said():
    assert expected([0.0] * 20 + [1.0] * 5) == []
    assert expected([1.0] * 5) == []


def test_the_score_is_percent_of_promoters_less_percent_of_detractors():
    assert nps(70, 20, 10) == 60
    assert nps(0, 0, 3) == -100
    assert nps(0, 0, 0) is None


def test_the_interval_adds_three_answers():
    # 5 promoters, 3 passives, 2 detractors: p = 5.75 / 13, d = 2.75 / 13, score 23.08, error sqrt(0.6006 / 13) = 21.49
    assert nps_interval(5, 3, 2) == pytest.approx((-19.05, 65.20), abs=0.02)
    low, high = nps_interval(5_000, 3_000, 2_000)
    assert low < 30 < high
    assert high - low == pytest.approx(2 * 1.96 * 100 * (0.61 / 10_003) ** 0.5, rel=1e-3)
    assert nps_interval(0, 0, 0) is None
    assert nps_interval(9, 0, 0)[1] == 100
