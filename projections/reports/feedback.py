"""Reports on what customers say: NPS, CSAT, CES, reviews. Each formula stands here twice, as SQL and in Python; a test holds them equal.

- NPS: the share of 9 and 10 less the share of 0 to 6, times 100 (Reichheld, The One Number You Need to Grow, Harvard Business Review,
  December 2003). Its interval is the adjusted Wald interval at 95 %: 3 answers are added, 3/4 promoters and 3/4 detractors among them
  (Rocks, Interval Estimation for the Net Promoter Score, The American Statistician 70 (4), 2016).
- CSAT: the share of the two best answers of five (top-two-box). On another scale, of those in its upper quarter: 4 and 5 of 1 to 5, 6 and
  7 of 1 to 7, 1 of 0 to 1.
- CES: the mean on a scale of 1 (hard) to 7 (easy) (Dixon, Freeman and Toman, Stop Trying to Delight Your Customers, Harvard Business
  Review, July 2010; as CES 2.0, 2013). Other scales are stretched onto it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from caudal.projections.reports._report import PERIOD, Chart, Column, Report, ratio, truncated

__all__ = ["FEEDBACK", "nps", "nps_interval"]

Z95 = 1.959964
"""Quantile of the normal distribution for an interval of 95 %."""


def nps(promoters: int, passives: int, detractors: int) -> float | None:
    """The Net Promoter Score, -100 to 100; None without answers."""
    n = promoters + passives + detractors
    return 100 * (promoters - detractors) / n if n else None


def nps_interval(promoters: int, passives: int, detractors: int) -> tuple[float, float] | None:
    """The adjusted Wald interval of the score at 95 %; None without answers."""
    n = promoters + passives + detractors
    if not n:
        return None
    p, d = (promoters + 0.75) / (n + 3), (detractors + 0.75) / (n + 3)
    half = Z95 * math.sqrt((p + d - (p - d) ** 2) / (n + 3))
    return max(100 * (p - d - half), -100.0), min(100 * (p - d + half), 100.0)


_P, _D = "(promoters + 0.75)::float8 / (answers + 3)", "(detractors + 0.75)::float8 / (answers + 3)"
_HALF = f"{Z95} * sqrt(({_P} + {_D} - power({_P} - {_D}, 2)) / (answers + 3))"
_NPS = f"""answers, promoters, answers - promoters - detractors AS passives, detractors,
    100 * (promoters - detractors)::float8 / nullif(answers, 0) AS nps,
    CASE WHEN answers > 0 THEN greatest(100 * ({_P} - {_D} - {_HALF}), -100) END AS low,
    CASE WHEN answers > 0 THEN least(100 * ({_P} - {_D} + {_HALF}), 100) END AS high"""


def _number(condition: str = "true") -> str:
    """How many answers there are; a row of `answers` stands for several."""
    return f"coalesce(sum(answers) FILTER (WHERE {condition}), 0)::bigint"


def _mean(value: str, condition: str = "true") -> str:
    """The mean of the answers' values; of exact numbers, so that it is the same in any order."""
    held = f"FILTER (WHERE {condition})"
    return f"(sum(({value})::numeric * answers) {held} / nullif(sum(answers) {held}, 0))::float8"


_NPS_COUNTS = f"{_number()} AS answers, {_number('score >= 9')} AS promoters, {_number('score <= 6')} AS detractors"
_NPS_ANSWERS = "(SELECT * FROM answers WHERE kind = 'nps' AND score BETWEEN 0 AND 10)"
_NPS_COLUMNS = (
    Column("answers", "integer", "Answers"),
    Column("promoters", "integer", "Promoters"),
    Column("passives", "integer", "Passives"),
    Column("detractors", "integer", "Detractors"),
    Column("nps", "number", "NPS"),
    Column("low", "number", "95 % from"),
    Column("high", "number", "95 % to"),
)
_NPS_SUMS = ("answers", "promoters", "passives", "detractors")


def _counts(sums: Mapping[str, Any]) -> tuple[int, int, int]:
    return sums["promoters"], sums["passives"], sums["detractors"]


def _bound(which: int) -> Callable[[Mapping[str, Any]], float | None]:
    def bound(sums: Mapping[str, Any]) -> float | None:
        found = nps_interval(*_counts(sums))
        return found[which] if found else None

    return bound


_NPS_RATES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "nps": lambda sums: nps(*_counts(sums)), "low": _bound(0), "high": _bound(1),
}  # fmt: skip
_NPS_ABOUT = (
    "Net Promoter Score: percent of answers of 9 and 10 less percent of 0 to 6, with the adjusted Wald interval at 95 % (Rocks 2016): where"
    " two intervals overlap widely, the difference may be chance."
)


def _stretched(low: int, high: int) -> str:
    """A score on a scale of ours; one without a scale of its own is taken as it is."""
    return f"CASE WHEN scale_max > scale_min THEN {low} + {high - low} * (score - scale_min) / (scale_max - scale_min) ELSE score END"


_STARS = f"(SELECT *, {_stretched(1, 5)} AS stars FROM answers WHERE kind = 'review')"
_BAD = _number("stars < 3")
_STAR_COUNTS = (
    f"{_number()}, {_mean('stars')}, {_number('stars >= 4')}, {_BAD}, {_BAD}::float8 / nullif({_number()}, 0)"
)
_STAR_COLUMNS = (
    Column("reviews", "integer", "Reviews"),
    Column("average", "number", "Stars, mean"),
    Column("good", "integer", "4 stars and more"),
    Column("bad", "integer", "Less than 3"),
    Column("bad_share", "share", "Share of bad"),
)
_STAR_ABOUT = "Reviews with a score, on a scale of 1 to 5; other scales are stretched onto it."
_SATISFIED = _number(f"kind = 'csat' AND {_stretched(1, 5)} >= 4")
_PRODUCT = Column("product", "text", "Product")

FEEDBACK = (
    Report(
        name="nps",
        title="NPS",
        about=_NPS_ABOUT,
        columns=(PERIOD, *_NPS_COLUMNS),
        reads=("periods", "answers"),
        select=f"""
            SELECT period, {_NPS} FROM (
                SELECT p.period, {_NPS_COUNTS} FROM periods p LEFT JOIN {_NPS_ANSWERS} a ON {truncated("a.day")} = p.period GROUP BY 1
            ) counted ORDER BY 1""",
        chart=Chart("line", "period", ("nps",), band=("low", "high")),
        by=("month", "week", "day"),
        sums=_NPS_SUMS,
        rates=_NPS_RATES,
        marks=("nps",),
    ),
    Report(
        name="nps-products",
        title="NPS by product",
        about=_NPS_ABOUT,
        columns=(_PRODUCT, *_NPS_COLUMNS),
        reads=("answers",),
        select=f"""
            SELECT product, {_NPS} FROM (
                SELECT product, {_NPS_COUNTS} FROM {_NPS_ANSWERS} a WHERE product IS NOT NULL GROUP BY 1
            ) counted ORDER BY answers DESC, product LIMIT %(limit)s""",
        chart=Chart("list", "product", ("nps",)),
        takes=("limit",),
    ),
    Report(
        name="reviews",
        title="Reviews",
        about=_STAR_ABOUT,
        columns=(PERIOD, *_STAR_COLUMNS),
        reads=("periods", "answers"),
        select=f"""
            SELECT p.period, {_STAR_COUNTS} FROM periods p LEFT JOIN {_STARS} a ON {truncated("a.day")} = p.period GROUP BY 1 ORDER BY 1""",
        chart=Chart("line", "period", ("average",)),
        by=("month", "week", "day"),
        sums=("reviews", "good", "bad"),
        rates={"bad_share": ratio("bad", "reviews")},
        marks=("average",),
    ),
    Report(
        name="reviews-products",
        title="Reviews by product",
        about=_STAR_ABOUT,
        columns=(_PRODUCT, *_STAR_COLUMNS),
        reads=("answers",),
        select=f"""
            SELECT product, {_STAR_COUNTS} FROM {_STARS} a WHERE product IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(limit)s""",
        chart=Chart("list", "product", ("average",)),
        takes=("limit",),
    ),
    Report(
        name="satisfaction",
        title="CSAT and CES",
        about=(
            "CSAT: the share of answers in the upper quarter of their scale, which of 1 to 5 are 4 and 5. CES: the mean on a scale of"
            " 1 (hard) to 7 (easy); other scales are stretched onto it."
        ),
        columns=(
            PERIOD,
            Column("csat_answers", "integer", "CSAT answers"),
            Column("satisfied", "integer", "Satisfied"),
            Column("csat", "share", "CSAT"),
            Column("ces_answers", "integer", "CES answers"),
            Column("ces", "number", "CES"),
        ),
        reads=("periods", "answers"),
        select=f"""
            SELECT p.period, {_number("kind = 'csat'")}, {_SATISFIED},
                   {_SATISFIED}::float8 / nullif({_number("kind = 'csat'")}, 0), {_number("kind = 'ces'")},
                   {_mean(_stretched(1, 7), "kind = 'ces'")}
            FROM periods p LEFT JOIN answers a ON {truncated("a.day")} = p.period
            GROUP BY 1 ORDER BY 1""",
        chart=Chart("line", "period", ("csat",)),
        by=("month", "week", "day"),
        sums=("csat_answers", "satisfied", "ces_answers"),
        rates={"csat": ratio("satisfied", "csat_answers")},
        marks=("csat", "ces"),
    ),
)
