"""Reports on what is sold: over time, by product, category and city, by how much people spend."""

from __future__ import annotations

from caudal.projections.reports._report import CURRENCY, PERIOD, PERIODS, Chart, Column, Report, truncated

__all__ = ["SALES"]

_TOP_COLUMNS = (
    CURRENCY,
    Column("orders", "integer", "Orders"),
    Column("customers", "integer", "Customers"),
    Column("units", "integer", "Units"),
    Column("revenue_minor", "money", "Revenue"),
)


def _top(name: str, title: str, column: str) -> Report:
    return Report(
        name=name,
        title=f"Top {title}",
        about=(
            "What brought most: price times quantity of the lines of paid orders, less the discounts on the lines. Orders, customers"
            " and units are those of all orders that count. In one currency: the most frequent one unless another is asked for."
        ),
        columns=(Column(column, "text", column.capitalize()), *_TOP_COLUMNS),
        reads=("lines", "main_of_lines"),
        select=f"""
            SELECT {column}, currency, count(DISTINCT (source, order_id)) AS orders, count(DISTINCT customer_id) AS customers,
                   sum(quantity) AS units, coalesce(sum(amount_minor) FILTER (WHERE paid), 0) AS revenue_minor
            FROM lines WHERE {column} IS NOT NULL AND currency = (SELECT currency FROM main_of_lines)
            GROUP BY 1, 2 ORDER BY revenue_minor DESC, units DESC, 1 LIMIT %(limit)s""",
        chart=Chart("list", column, ("revenue_minor",)),
        takes=("currency", "limit"),
    )


SALES = (
    Report(
        name="sales",
        title="Sales",
        about=(
            "Orders by the day they were placed, and money of the paid ones: gross is the total before discounts; net is gross less"
            " discounts and less the refunds given in the period, whenever the order was placed. Cancelled and deleted orders don't"
            " count."
        ),
        columns=(
            PERIOD,
            CURRENCY,
            Column("orders", "integer", "Orders"),
            Column("gross_minor", "money", "Gross"),
            Column("discounts_minor", "money", "Discounts"),
            Column("refunds_minor", "money", "Refunds"),
            Column("net_minor", "money", "Net"),
        ),
        reads=("periods", "sold"),
        select=f"""
            , moved AS (
                SELECT {truncated("day")} AS period, currency, sum(orders) AS orders, sum(gross_minor) AS gross,
                       sum(discounts_minor) AS discounts, sum(refunds_minor) AS refunds
                FROM sold GROUP BY 1, 2
            ),
            currencies AS (SELECT DISTINCT currency FROM moved WHERE currency = coalesce(%(currency)s::text, currency))
            SELECT p.period, c.currency, coalesce(orders, 0), coalesce(gross, 0), coalesce(discounts, 0), coalesce(refunds, 0),
                   coalesce(gross, 0) - coalesce(discounts, 0) - coalesce(refunds, 0)
            FROM periods p CROSS JOIN currencies c LEFT JOIN moved m ON m.period = p.period AND m.currency = c.currency
            ORDER BY 1, 2""",
        chart=Chart("bars", "period", ("net_minor",), split="currency"),
        by=PERIODS,
        takes=("currency",),
        sums=("orders", "gross_minor", "discounts_minor", "refunds_minor", "net_minor"),
        marks=("net_minor",),
        parts=("currency",),
    ),
    _top("products", "products", "product"),
    _top("categories", "categories", "category"),
    Report(
        name="cities",
        title="Top cities",
        about=(
            "Where orders go: the city shipped to, or else the customer's. Revenue is the total of paid orders, refunds not taken off."
            " In one currency: the most frequent one unless another is asked for."
        ),
        columns=(
            Column("city", "text", "City"),
            CURRENCY,
            Column("orders", "integer", "Orders"),
            Column("customers", "integer", "Customers"),
            Column("revenue_minor", "money", "Revenue"),
        ),
        reads=("placed", "main_of_placed"),
        select="""
            SELECT coalesce(o.shipping_city, p.city) AS city, o.currency, count(*) AS orders, count(DISTINCT o.customer_id) AS customers,
                   coalesce(sum(o.total_minor) FILTER (WHERE o.paid), 0) AS revenue_minor
            FROM placed o LEFT JOIN live.profiles p USING (customer_id)
            WHERE coalesce(o.shipping_city, p.city) IS NOT NULL AND o.currency = (SELECT currency FROM main_of_placed)
            GROUP BY 1, 2 ORDER BY revenue_minor DESC, orders DESC, 1 LIMIT %(limit)s""",
        chart=Chart("list", "city", ("revenue_minor",)),
        takes=("currency", "limit"),
    ),
    Report(
        name="spend",
        title="Spend distribution",
        about=(
            "How many customers spent how much on paid orders, refunds not taken off. The steps go up by 1, 2, 5, 10, 20, 50, … so"
            " that small and large spenders both show. In one currency: the most frequent one unless another is asked for."
        ),
        columns=(
            Column("from_minor", "money", "From"),
            Column("to_minor", "money", "To less than"),
            CURRENCY,
            Column("customers", "integer", "Customers"),
            Column("share", "share", "Share"),
            Column("spend_minor", "money", "Spend"),
        ),
        reads=("placed", "main_of_placed"),
        # an amount's step is 3 x (its digits - 1) and 0, 1 or 2 by its first digit: exact, where a logarithm would round
        select="""
            , spent AS (
                SELECT customer_id, sum(total_minor) AS spend FROM placed
                WHERE paid AND currency = (SELECT currency FROM main_of_placed) GROUP BY 1 HAVING sum(total_minor) > 0
            ),
            stepped AS (
                SELECT spend, 3 * (length(spend::text) - 1)
                              + CASE WHEN left(spend::text, 1) < '2' THEN 0 WHEN left(spend::text, 1) < '5' THEN 1 ELSE 2 END AS step
                FROM spent
            ),
            steps AS (
                SELECT n AS step, (ARRAY[1, 2, 5])[mod(n, 3) + 1] * power(10::numeric, n / 3) AS low,
                       (ARRAY[2, 5, 10])[mod(n, 3) + 1] * power(10::numeric, n / 3) AS high
                FROM generate_series((SELECT min(step) FROM stepped), (SELECT max(step) FROM stepped)) n
            )
            SELECT e.low::numeric(40, 0), e.high::numeric(40, 0), (SELECT currency FROM main_of_placed), count(s.spend),
                   count(s.spend)::float8 / (SELECT count(*) FROM spent), coalesce(sum(s.spend), 0)
            FROM steps e LEFT JOIN stepped s USING (step) GROUP BY e.step, e.low, e.high ORDER BY e.step""",
        chart=Chart("bars", "from_minor", ("customers",)),
        takes=("currency",),
        sums=("customers", "spend_minor"),
    ),
)
