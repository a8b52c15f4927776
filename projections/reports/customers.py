"""Reports on who buys: new and returning customers, cohorts, RFM, repeat orders, segments."""

from __future__ import annotations

from caudal.projections.reports._report import CURRENCY, PERIOD, PERIODS, Chart, Column, Report, truncated
from caudal.projections.segments import MOVES, SEGMENTS

__all__ = ["CUSTOMERS"]

_MONTHS = "(extract(year FROM {to}) - extract(year FROM {since})) * 12 + extract(month FROM {to}) - extract(month FROM {since})"

CUSTOMERS = (
    Report(
        name="customers",
        title="New, returning and active customers",
        about="Customers with an order in the period. New are those whose first order ever is in it; returning are the others.",
        columns=(
            PERIOD,
            Column("active", "integer", "Active"),
            Column("new", "integer", "New"),
            Column("returning", "integer", "Returning"),
            Column("new_share", "share", "Share of new"),
        ),
        reads=("periods", "ever"),
        select=f"""
            , firsts AS (SELECT customer_id, {truncated("min(day)")} AS first FROM ever GROUP BY 1),
            seen AS (SELECT DISTINCT {truncated("day")} AS period, customer_id FROM ever WHERE at >= %(begin)s)
            SELECT p.period, count(s.customer_id), count(*) FILTER (WHERE f.first = p.period), count(*) FILTER (WHERE f.first < p.period),
                   count(*) FILTER (WHERE f.first = p.period)::float8 / nullif(count(s.customer_id), 0)
            FROM periods p LEFT JOIN seen s USING (period) LEFT JOIN firsts f USING (customer_id)
            GROUP BY 1 ORDER BY 1""",
        chart=Chart("bars", "period", ("new", "returning")),
        by=PERIODS,
        sums=("new",),
        marks=("active",),
    ),
    Report(
        name="cohorts",
        title="Cohort retention",
        about=(
            "Customers by the month of their first order, and how many of them ordered again in each month after. The first order"
            " itself is month 0. The current month isn't over, so its figures still rise."
        ),
        columns=(
            Column("cohort", "date", "First order"),
            Column("month", "integer", "Months since"),
            Column("customers", "integer", "Customers"),
            Column("active", "integer", "Active"),
            Column("retention", "share", "Retention"),
        ),
        reads=("ever",),
        select=f"""
            , firsts AS (
                SELECT customer_id, date_trunc('month', min(day)::timestamp)::date AS cohort FROM ever GROUP BY 1
                HAVING min(at) >= %(begin)s
            ),
            months AS (SELECT DISTINCT customer_id, date_trunc('month', day::timestamp)::date AS month FROM ever),
            active AS (
                SELECT f.cohort, ({_MONTHS.format(to="m.month", since="f.cohort")})::int AS month, count(*) AS active
                FROM firsts f JOIN months m USING (customer_id) GROUP BY 1, 2
            )
            SELECT c.cohort, n.month, c.customers, coalesce(a.active, 0), coalesce(a.active, 0)::float8 / c.customers
            FROM (SELECT cohort, count(*) AS customers FROM firsts GROUP BY 1) c
            CROSS JOIN LATERAL generate_series(0, ({_MONTHS.format(to="%(last)s::date", since="c.cohort")})::int) n(month)
            LEFT JOIN active a ON a.cohort = c.cohort AND a.month = n.month
            ORDER BY 1, 2""",
        chart=Chart("grid", "month", ("retention",), rows="cohort"),
        by=("month",),
    ),
    Report(
        name="rfm",
        title="RFM grid",
        about=(
            "Customers with orders in fifths by recency, frequency and spend; 5 is the most recent, frequent or valuable fifth. Equal"
            " values are in the same fifth, as in the scores, so that some hold more customers than others. Spend is that on paid orders"
            " in one currency: the most frequent one unless another is asked for."
        ),
        columns=(
            Column("recency", "integer", "Recency"),
            Column("frequency", "integer", "Frequency"),
            Column("customers", "integer", "Customers"),
            Column("monetary", "number", "Monetary, mean score"),
            CURRENCY,
            Column("spend_minor", "money", "Spend"),
        ),
        reads=("placed", "main_of_placed"),
        select="""
            , spent AS (
                SELECT customer_id, max(at) AS last, count(*) AS orders,
                       coalesce(sum(total_minor) FILTER (WHERE paid AND currency = (SELECT currency FROM main_of_placed)), 0) AS spend
                FROM placed GROUP BY 1
            ),
            scored AS (
                SELECT spend, 1 + floor(5 * (rank() OVER (ORDER BY last) - 1)::numeric / count(*) OVER ())::int AS r,
                       1 + floor(5 * (rank() OVER (ORDER BY orders) - 1)::numeric / count(*) OVER ())::int AS f,
                       1 + floor(5 * (rank() OVER (ORDER BY spend) - 1)::numeric / count(*) OVER ())::int AS m
                FROM spent
            )
            SELECT r, f, count(s.m), avg(s.m)::float8, (SELECT currency FROM main_of_placed), coalesce(sum(s.spend), 0)
            FROM generate_series(1, 5) r CROSS JOIN generate_series(1, 5) f LEFT JOIN scored s USING (r, f)
            GROUP BY 1, 2 ORDER BY 1 DESC, 2 DESC""",
        chart=Chart("grid", "frequency", ("customers",), rows="recency"),
        takes=("currency",),
        sums=("customers", "spend_minor"),
    ),
    Report(
        name="repeat",
        title="Repeat orders",
        about=(
            "How many customers made at least so many orders in the time asked about, and the median of the days since the order"
            " before. The repeat rate is the share of those who made a second one."
        ),
        columns=(
            Column("orders", "integer", "Orders, at least"),
            Column("customers", "integer", "Customers"),
            Column("share", "share", "Share"),
            Column("days_since_previous", "number", "Days since the order before, median"),
        ),
        reads=("placed",),
        select="""
            , numbered AS (
                SELECT row_number() OVER w AS n, extract(epoch FROM at - lag(at) OVER w)::float8 / 86400 AS days FROM placed
                WINDOW w AS (PARTITION BY customer_id ORDER BY at, order_id)
            )
            SELECT n, count(*), count(*)::float8 / (SELECT count(*) FROM numbered WHERE n = 1),
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY days)
            FROM numbered WHERE n <= 10 GROUP BY 1 ORDER BY 1""",
        chart=Chart("list", "orders", ("share",)),
    ),
    Report(
        name="segments",
        title="Segment sizes",
        about=(
            "Members at the end of each period. Sizes of the past follow from the history of who entered and left; that of the"
            " built-in segments begins when the first change of one was noted."
        ),
        columns=(PERIOD, Column("segment", "text", "Segment"), Column("customers", "integer", "Customers")),
        reads=("periods",),
        select=f"""
            , chosen AS (
                SELECT id, name, created_at FROM (
                    SELECT id, name, created_at FROM hub.segments WHERE state <> 'archived'
                    UNION ALL
                    SELECT -n, name, (SELECT coalesce(min(at), now()) FROM hub.built_in_history)
                    FROM unnest(ARRAY[{", ".join(f"'{name}'" for name in SEGMENTS)}]) WITH ORDINALITY built_in(name, n)
                ) s WHERE name = coalesce(%(segment)s::text, name) ORDER BY name LIMIT 100
            ),
            moves AS (
                SELECT segment_id, period, sum(step) AS step FROM (
                    SELECT h.segment_id, CASE WHEN h.entered THEN 1 ELSE -1 END AS step,
                           CASE WHEN h.at < %(end)s THEN {truncated("(h.at AT TIME ZONE %(zone)s)::date")} END AS period
                    FROM (
                        SELECT h.customer_id, h.segment_id, h.entered, h.at FROM hub.segment_history h
                        UNION ALL
                        SELECT m.customer_id, c.id, m.entered, m.at FROM {MOVES} m JOIN chosen c ON c.name = m.segment AND c.id < 0
                    ) h JOIN chosen c ON c.id = h.segment_id {{who}} WHERE h.at >= %(begin)s
                ) one GROUP BY 1, 2
            ),
            sizes AS (
                SELECT c.id, count(m.customer_id) AS size FROM chosen c
                LEFT JOIN (
                    SELECT h.customer_id, h.segment_id FROM (
                        SELECT customer_id, segment_id FROM hub.segment_memberships
                        UNION ALL
                        SELECT m.customer_id, c.id FROM live.segment_members m JOIN chosen c ON c.name = m.segment AND c.id < 0
                    ) h {{who}}
                ) m ON m.segment_id = c.id GROUP BY 1
            )
            -- back from today: less what moved in the periods after, and (without a period) after the last day
            SELECT period, name, size - coalesce(after, 0) FROM (
                SELECT p.period, p.ends, c.name, c.created_at, s.size - coalesce(l.step, 0) AS size, sum(m.step) OVER (
                           PARTITION BY c.id ORDER BY p.period DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS after
                FROM periods p CROSS JOIN chosen c JOIN sizes s USING (id)
                LEFT JOIN moves m ON m.segment_id = c.id AND m.period = p.period
                LEFT JOIN moves l ON l.segment_id = c.id AND l.period IS NULL
            ) sized WHERE ends > created_at
            ORDER BY 2, 1""",
        chart=Chart("line", "period", ("customers",), split="segment"),
        by=PERIODS,
        takes=("segment",),
        marks=("customers",),
        parts=("segment",),
    ),
)
