"""Trend and anomalies of a series, by robust methods: a few wild values change neither.

- Slope: Theil-Sen, the median of the slopes between all pairs (Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, Journal
  of the American Statistical Association 63, 1968). It is called rising or falling when the Mann-Kendall test, with its correction for
  ties, refuses "no trend" at 5 % (Mann, Nonparametric Tests Against Trend, Econometrica 13, 1945; Kendall, Rank Correlation Methods, 1975).
- Anomalies: what is left when the line is taken off, and of days the median of the other days of the same weekday, is compared with its
  median absolute deviation: a modified z-score above 3.5 is an anomaly (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993).
  Where that deviation is zero, the mean absolute deviation takes its place, as they propose. Of a series that is zero half of the time
  nothing is said: a single order would be an anomaly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEAST", "Trend", "expected", "trend"]

LEAST = 8
"""Fewer values are no series: nothing is said of them."""
WEEKDAYS_FROM = 28
"""So many days are needed before weekdays are told apart: four of each."""
_SCORE = 3.5
_MAD, _MEAN = 1.482602, 1.253314
"""Times the median (mean) absolute deviation is the standard deviation of a normal distribution."""


@dataclass(frozen=True)
class Trend:
    """A line through a series.

    Attributes:
        slope: by period.
        start: the line at the first period.
        direction: rising, falling or steady.
    """

    slope: float
    start: float
    direction: str


def trend(values: Sequence[float]) -> Trend | None:
    """The trend of evenly spaced values; None when they are too few."""
    if len(values) < LEAST:
        return None
    y, x = np.asarray(values, float), np.arange(len(values), dtype=float)
    first, second = np.triu_indices(len(y), 1)
    rises = y[second] - y[first]
    slope = float(np.median(rises / (x[second] - x[first])))
    start = float(np.median(y - slope * x))
    score, n = float(np.sign(rises).sum()), len(y)
    ties = np.unique(y, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    z = (score - math.copysign(1, score)) / math.sqrt(variance) if score and variance else 0.0
    return Trend(slope, start, "steady" if abs(z) < 1.959964 else "rising" if z > 0 else "falling")


def expected(values: Sequence[float], *, daily: bool = False) -> list[tuple[float, float]]:
    """The range that each value should lie in; nothing when they are too few, or mostly zero.

    Args:
        values: evenly spaced.
        daily: they are of consecutive days, so that each weekday has a level of its own.
    """
    line = trend(values)
    y = np.asarray(values, float)
    if line is None or 2 * np.count_nonzero(y) <= len(y):
        return []
    level = line.start + line.slope * np.arange(len(y))
    if daily and len(y) >= WEEKDAYS_FROM:
        rest = y - level
        for weekday in range(7):
            own = rest[weekday::7]
            # of the others: a median that a value is part of lies too near to it
            level[weekday::7] += [np.median(np.delete(own, n)) for n in range(len(own))]
    distance = np.abs(y - level)
    spread = _MAD * float(np.median(distance))
    if spread <= 1e-9 * float(np.abs(y).max()):
        spread = _MEAN * float(distance.mean())
    half = _SCORE * spread
    return [(float(middle - half), float(middle + half)) for middle in level]
