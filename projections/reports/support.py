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
        reads=("periods", "tickets"),
        select=f"""
            , ended AS (SELECT {truncated("(ended_at AT TIME ZONE %(zone)s)::date")} AS period, count(*) AS n FROM tickets
                        WHERE ended_at >= %(begin)s AND ended_at < %(end)s AND ended_at <= %(now)s GROUP BY 1),
            opened AS (
                SELECT {truncated("day")} AS period, count(*) AS n, count(*) FILTER (WHERE satisfaction = 'good') AS good,
                       count(*) FILTER (WHERE satisfaction = 'bad') AS bad,
                       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM first_replied_at - at)::float8 / 3600) AS hours
                FROM tickets WHERE at >= %(begin)s GROUP BY 1
            ),
            before AS (
                SELECT count(*) FILTER (WHERE at < %(begin)s) - count(*) FILTER (WHERE ended_at < %(begin)s) AS backlog FROM tickets
            )
            SELECT p.period, coalesce(o.n, 0), coalesce(e.n, 0),
                   (SELECT backlog FROM before) + sum(coalesce(o.n, 0) - coalesce(e.n, 0)) OVER (ORDER BY p.period),
                   o.hours, coalesce(o.good, 0), coalesce(o.bad, 0), o.good::float8 / nullif(o.good + o.bad, 0)
            FROM periods p LEFT JOIN opened o USING (period) LEFT JOIN ended e USING (period) ORDER BY 1""",
        chart=Chart("line", "period", ("opened", "solved", "backlog")),
        by=PERIODS,
        sums=("opened", "solved", "good", "bad"),
        rates={"good_share": lambda s: s["good"] / (s["good"] + s["bad"]) if s["good"] + s["bad"] else None},
        marks=("opened", "backlog"),
    ),
)
