"""The report on support."""

from __future__ import annotations

from caudal.projections.reports._report import PERIOD, PERIODS, Chart, Column, Report, truncated

__all__ = ["SUPPORT"]

SUPPORT = (
    Report(
        name="support",
        title="Support load",
        about=(
            "Tickets opened and solved in the period, those open at its end, the median of the hours until the first reply to those"
            " opened in it, and the ratings of those. A ticket that was opened again counts as open."
        ),
        columns=(
            PERIOD,
            Column("opened", "integer", "Opened"),
            Column("solved", "integer", "Solved"),
            Column("backlog", "integer", "Open at the end"),
            Column("first_reply_hours", "hours", "First reply, median"),
            Column("good", "integer", "Rated good"),
            Column("bad", "integer", "Rated bad"),
            Column("good_share", "share", "Share of good"),
        ),
        reads=("periods", "helped", "tickets"),
        select=f"""
            , moved AS (
                SELECT CASE WHEN day >= %(first)s::date THEN {truncated("day")} END AS period, sum(opened) AS opened,
                       sum(solved) AS solved, sum(good) AS good, sum(bad) AS bad
                FROM helped GROUP BY 1
            ),
            before AS (SELECT coalesce(sum(opened - solved), 0) AS backlog FROM moved WHERE period IS NULL),
            replied AS (
                SELECT {truncated("day")} AS period,
                       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM first_replied_at - at)::float8 / 3600) AS hours
                FROM tickets GROUP BY 1
            )
            SELECT p.period, coalesce(m.opened, 0), coalesce(m.solved, 0),
                   (SELECT backlog FROM before) + sum(coalesce(m.opened, 0) - coalesce(m.solved, 0)) OVER (ORDER BY p.period),
                   r.hours, coalesce(m.good, 0), coalesce(m.bad, 0), m.good::float8 / nullif(m.good + m.bad, 0)::float8
            FROM periods p LEFT JOIN moved m USING (period) LEFT JOIN replied r USING (period) ORDER BY 1""",
        chart=Chart("line", "period", ("opened", "solved", "backlog")),
        by=PERIODS,
        sums=("opened", "solved", "good", "bad"),
        rates={"good_share": lambda s: s["good"] / (s["good"] + s["bad"]) if s["good"] + s["bad"] else None},
        marks=("opened", "backlog"),
    ),
)
