"""The figures of each customer: orders, money, support, subscriptions, feedback, e-mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caudal.projections import _crowd
from caudal.projections._view import View

__all__ = ["COUNTS", "PAID", "PLACED", "metrics", "metrics_with"]

# An order counts when it was placed and stands; checkouts, drafts and deals are not orders.
COUNTS = "coalesce(o.kind, 'order') = 'order' AND coalesce(o.status, 'open') NOT IN ('cancelled', 'voided', 'deleted', 'abandoned')"
PAID = "o.status IN ('paid', 'partially_paid', 'partially_refunded', 'refunded')"
PLACED = f"""currency, total_minor, discount_minor, coalesce(subtotal_minor, total_minor) AS net_minor,
    coalesce(placed_at, occurred_at) AS placed_at, channel,
    line_categories, line_products, line_quantities, ({COUNTS}) AS counts, ({PAID}) AS paid"""
"""What of an order `o` the metrics are made of."""
_OPEN = "coalesce(t.status, 'open') NOT IN ('solved', 'closed', 'deleted')"


def _within_long(money: str) -> str:
    """A sum of money as far as a long holds it, as the contract says: nonsense that is larger must not stop the stream."""
    return f"least(greatest({money}, {-(2**63)}), {2**63 - 1})"


_WEEKDAYS = range(1, 8)
# What the facts are summed by, with types; a row of one kind of fact leaves out the others. Counts are integers because those are summed
# in place, while a sum of bigint or numeric allocates for every customer.
_SUMMED = {
    "currency": "text", "orders": "int", "spend": "numeric", "refunded": "numeric", "discount": "float8[]", "refunds": "int",
    "first_order": "timestamptz", "last_order": "timestamptz", **{f"weekday{day}": "int" for day in _WEEKDAYS},
    "category": "text", "product": "text", "channel": "text",
    "tickets": "int", "open_tickets": "int", "solved_tickets": "int", "last_ticket": "timestamptz", "response_s": "int",
    "good": "int", "bad": "int", "subscriptions": "int",
    "nps": "float8[]", "csat": "float8[]", "ces": "float8[]", "reviews": "int", "rating_thousandths": "int", "feedback": "int",
    "interactions": "int", "sent": "int", "delivered": "int", "opened": "int", "clicked": "int", "bounced": "int",
    "last_opened": "timestamptz", "seen": "timestamptz",
}  # fmt: skip


def _rows(source: str, customer: str = "customer_id", **given: str) -> str:
    """Rows of the one shape that all facts are summed in."""
    columns = ", ".join(f"{given.pop(name, 'NULL')}::{type_} AS {name}" for name, type_ in _SUMMED.items())
    assert not given, given
    return f"SELECT {customer}, {columns} {source}"


def _facts(table: str, alias: str) -> str:
    return f"FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.{table} x WHERE x.subject = s.subject {{fence}}) {alias}"


def _one(condition: str) -> str:
    return f"(CASE WHEN {condition} THEN 1 END)"


def _last_score(kind: str) -> str:
    """The score with its time before it, so that the greatest is the newest."""
    return (
        f"(CASE WHEN f.kind = '{kind}' AND f.score IS NOT NULL"
        " THEN ARRAY[extract(epoch FROM f.answered_at), extract(epoch FROM f.occurred_at), f.score]::float8[] END)"
    )


def _sum(name: str) -> str:
    return f"coalesce(sum({name}), 0)"


def _by_currency(name: str) -> str:
    return f"coalesce(jsonb_object_agg(currency, {name}) FILTER (WHERE currency IS NOT NULL AND {name} IS NOT NULL), '{{{{}}}}')"


def _plus(name: str) -> str:
    """The sum of a column of single rows and of that of sums of crowded subjects; null where both have nothing."""
    kept = f"sum(kept_{name}) FILTER (WHERE kept_{name} IS NOT NULL)"
    return f"coalesce(sum({name}) + {kept}, sum({name}), {kept})"


def _kept(name: str) -> str:
    return f"CASE c.what WHEN '{name}' THEN c.amount END"


_MONEY = _rows(
    f"""FROM (
            SELECT customer_id, currency, counts, 1 AS n, CASE WHEN counts AND paid THEN total_minor END AS spend, NULL::bigint AS refunded,
                   CASE WHEN counts THEN coalesce(discount_minor, 0) END AS discount, CASE WHEN counts THEN net_minor END AS net,
                   placed_at AS at, CASE WHEN counts THEN extract(isodow FROM placed_at AT TIME ZONE 'UTC')::int END AS weekday,
                   NULL::numeric AS kept_spend, NULL::numeric AS kept_discount, NULL::numeric AS kept_net
            FROM placed
            UNION ALL
            SELECT s.customer_id, r.currency, NULL, 1, NULL, r.amount_minor, NULL, NULL, r.refunded_at, NULL, NULL, NULL, NULL
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.refunds x WHERE x.subject = s.subject {{fence}}) r
            UNION ALL
            SELECT s.customer_id, CASE WHEN c.what IN ('order', 'spend', 'discount', 'net') THEN c.value END,
                   c.what IN ('order', 'order without currency'), c.n::int, NULL, NULL, NULL, NULL, NULL,
                   CASE c.what WHEN 'weekday' THEN c.value::int END, {_kept("spend")}, {_kept("discount")}, {_kept("net")}
            {_crowd.lines(*_crowd.MONEY)}
            UNION ALL
            SELECT s.customer_id, NULL, t.counts, 0, NULL, NULL, NULL, NULL, t.at, NULL, NULL, NULL, NULL
            FROM subjects s CROSS JOIN LATERAL ({_crowd.TIMES}) t WHERE s.crowded
        ) money GROUP BY customer_id, currency""",
    currency="currency",
    orders="sum(n) FILTER (WHERE counts)",
    spend=f"""(CASE WHEN count(spend) + count(kept_spend) + count(refunded) > 0
              THEN {_within_long(f"coalesce({_plus('spend')}, 0) - coalesce(sum(refunded), 0)")} END)""",
    refunded=f"(CASE WHEN count(refunded) > 0 THEN {_within_long('sum(refunded)')} END)",
    discount=f"""(CASE WHEN currency IS NOT NULL AND {_plus("discount")} + {_plus("net")} > 0
                 THEN ARRAY[sum(n) FILTER (WHERE counts), {_plus("discount")} / ({_plus("discount")} + {_plus("net")})] END)""",
    refunds="count(*) FILTER (WHERE counts IS NULL)",
    first_order="min(at) FILTER (WHERE counts)",
    last_order="max(at) FILTER (WHERE counts)",
    seen="max(at)",
    **{f"weekday{day}": f"sum(n) FILTER (WHERE weekday = {day})" for day in _WEEKDAYS},
)


def _favourite(what: str) -> str:
    return f"hub.first(value ORDER BY weight DESC, value) FILTER (WHERE what = '{what}')"


_FAVOURITES = _rows(
    f"""FROM (
            SELECT customer_id, CASE WHEN grouping(category) = 0 THEN 'category' ELSE 'product' END AS what,
                   coalesce(category, product) AS value,
                   coalesce(sum(quantity), 0) + coalesce(sum(kept) FILTER (WHERE kept IS NOT NULL), 0)::bigint AS weight
            FROM (
                SELECT customer_id, unnest(line_categories) AS category, unnest(line_products) AS product,
                       unnest(line_quantities) AS quantity,
                       NULL::numeric AS kept
                FROM placed WHERE counts
                UNION ALL
                SELECT s.customer_id, CASE c.what WHEN 'category' THEN c.value END, CASE c.what WHEN 'product' THEN c.value END, NULL,
                       c.amount
                {_crowd.lines("category", "product")}
            ) lines
            GROUP BY GROUPING SETS ((customer_id, category), (customer_id, product))
            UNION ALL
            SELECT customer_id, 'channel', channel, sum(n) FROM (
                SELECT customer_id, channel, 1 AS n FROM placed WHERE counts
                UNION ALL
                SELECT s.customer_id, c.value, c.n::int {_crowd.lines("channel")}
            ) channels GROUP BY customer_id, channel
        ) weighed WHERE value IS NOT NULL GROUP BY customer_id""",
    category=_favourite("category"),
    product=_favourite("product"),
    channel=_favourite("channel"),
)
_WEEKDAY = f"""CASE greatest({", ".join(f"sum(weekday{day})" for day in _WEEKDAYS)})
    WHEN 0 THEN NULL {" ".join(f"WHEN sum(weekday{day}) THEN {day}" for day in _WEEKDAYS)} END"""
_TICKETS = _rows(
    _facts("tickets", "t"),
    "s.customer_id",
    tickets=_one("t.status IS DISTINCT FROM 'deleted'"),
    open_tickets=_one(_OPEN),
    solved_tickets=_one("t.status IN ('solved', 'closed')"),
    last_ticket="t.opened_at",
    response_s=f"""(CASE WHEN t.first_replied_at >= t.opened_at
                   THEN least(extract(epoch FROM t.first_replied_at - t.opened_at), {2**31 - 1}) END)""",
    good=_one("t.satisfaction = 'good'"),
    bad=_one("t.satisfaction = 'bad'"),
    seen="t.opened_at",
)
_SUBSCRIPTIONS = _rows(
    _facts("subscriptions", "b"), "s.customer_id", subscriptions=_one("b.status IN ('trialing', 'active')")
)
# Stretched to 1 to 5 where the source states its scale; nonsense is no rating.
_SCALED = (
    "(f.scale_min BETWEEN -1000 AND 1000 AND f.scale_max BETWEEN -1000 AND 1000 AND f.scale_max - f.scale_min >= 1)"
)
_STARS = f"""CASE
    WHEN {_SCALED} AND f.score BETWEEN f.scale_min AND f.scale_max
        THEN 1 + 4 * (f.score::numeric - f.scale_min::numeric) / (f.scale_max::numeric - f.scale_min::numeric)
    WHEN {_SCALED} IS NOT TRUE AND f.score BETWEEN 0 AND 5 THEN f.score::numeric END"""
_FEEDBACK = _rows(
    f"{_facts('feedback', 'f')} WHERE f.status IS DISTINCT FROM 'deleted'",
    "s.customer_id",
    nps=_last_score("nps"),
    csat=_last_score("csat"),
    ces=_last_score("ces"),
    reviews=_one("f.kind = 'review'"),
    # in thousandths of a star: a sum of floats would hang on the order of the rows
    rating_thousandths=f"(CASE WHEN f.kind = 'review' THEN 1000 * ({_STARS}) END)",
    feedback="1",
    seen="f.answered_at",
)
_INTERACTIONS = _rows(
    _facts("interactions", "i"),
    "s.customer_id",
    interactions="1",
    sent=_one("i.kind = 'email.sent'"),
    delivered=_one("i.kind = 'email.delivered'"),
    opened=_one("i.kind = 'email.opened'"),
    clicked=_one("i.kind = 'email.clicked'"),
    bounced=_one("i.kind = 'email.bounced'"),
    last_opened="(CASE WHEN i.kind = 'email.opened' THEN i.occurred_at END)",
    seen="i.occurred_at",
)

_FACTS = (_MONEY, _FAVOURITES, _TICKETS, _SUBSCRIPTIONS, _FEEDBACK, _INTERACTIONS)

# Column → its type and what it is over the summed rows.
_COLUMNS = {
    "orders_count": ("bigint", _sum("orders")),
    "spend_minor": ("jsonb", _by_currency("spend")),
    "refunded_minor": ("jsonb", _by_currency("refunded")),
    "discount_share": ("double precision", "(max(discount))[2]"),
    "refunds_count": ("bigint", _sum("refunds")),
    "first_order_at": ("timestamptz", "min(first_order)"),
    "last_order_at": ("timestamptz", "max(last_order)"),
    "favourite_category": ("text", "any_value(category)"),
    "favourite_product": ("text", "any_value(product)"),
    "favourite_channel": ("text", "any_value(channel)"),
    "favourite_weekday": ("bigint", _WEEKDAY),
    "tickets_count": ("bigint", "count(tickets)"),
    "open_tickets_count": ("bigint", "count(open_tickets)"),
    "solved_tickets_count": ("bigint", "count(solved_tickets)"),
    "last_ticket_at": ("timestamptz", "max(last_ticket)"),
    "mean_first_response_s": ("double precision", "sum(response_s)::float8 / nullif(count(response_s), 0)"),
    "satisfaction_good_count": ("bigint", "count(good)"),
    "satisfaction_bad_count": ("bigint", "count(bad)"),
    "active_subscriptions_count": ("bigint", "count(subscriptions)"),
    "last_nps_score": ("double precision", "(max(nps))[3]"),
    "last_csat_score": ("double precision", "(max(csat))[3]"),
    "last_ces_score": ("double precision", "(max(ces))[3]"),
    "reviews_count": ("bigint", "count(reviews)"),
    "mean_review_rating": (
        "double precision",
        "sum(rating_thousandths)::float8 / 1000 / nullif(count(rating_thousandths), 0)",
    ),
    "feedback_count": ("bigint", "count(feedback)"),
    "interactions_count": ("bigint", "count(interactions)"),
    "emails_sent_count": ("bigint", "count(sent)"),
    "emails_delivered_count": ("bigint", "count(delivered)"),
    "emails_opened_count": ("bigint", "count(opened)"),
    "emails_clicked_count": ("bigint", "count(clicked)"),
    "emails_bounced_count": ("bigint", "count(bounced)"),
    "last_email_opened_at": ("timestamptz", "max(last_opened)"),
    "last_seen_at": ("timestamptz", "max(seen)"),
}

_READS = ("orders", "refunds", "tickets", "subscriptions", "feedback", "interactions")


def _select(facts: str, custom: str) -> str:
    # Every kind of fact gives rows of the same shape, summed by customer at the end; money is summed by currency, and what may be a
    # favourite by its value, before. Joins of aggregates are avoided on purpose: without statistics on the touched keys the planner may
    # pick a quadratic one.
    return f"""
        WITH placed AS (
            SELECT s.customer_id, o.*
            FROM subjects s CROSS JOIN LATERAL (
                SELECT {PLACED} FROM {{schema}}.orders o WHERE o.subject = s.subject {{fence}}
            ) o WHERE NOT s.crowded
        )
        SELECT customer_id, {", ".join(f"{sql} AS {name}" for name, (_, sql) in _COLUMNS.items())}, {custom} AS custom
        FROM ({facts}) facts
        GROUP BY customer_id
    """


metrics = View(
    name="metrics",
    key=("customer_id",),
    columns={"customer_id": "uuid", **{name: type_ for name, (type_, _) in _COLUMNS.items()}, "custom": "jsonb"},
    reads=_READS,
    topic="customer.metrics",
    select=_select(" UNION ALL ".join(_FACTS), "NULL::jsonb"),
)


def metrics_with(functions: Sequence[str], reads: Sequence[str]) -> View:
    """The view with custom metrics in its column `custom`.

    Args:
        functions: each gives, of a customer and the schema, an object of values, or NULL; see custom/metric.py.
        reads: the facts and views that these read.
    """
    values = " || ".join(f"coalesce({name}(k.customer_id, '{{schema}}'), '{{{{}}}}')" for name in functions)
    nothing = ", ".join(f"NULL::{type_} AS {name}" for name, type_ in _SUMMED.items())
    facts = f"""SELECT summed.*, NULL::jsonb AS custom FROM ({" UNION ALL ".join(_FACTS)}) summed
        UNION ALL
        SELECT customer_id, {nothing}, custom
        FROM (SELECT k.customer_id, {values} AS custom FROM customers k OFFSET 0) computed WHERE custom <> '{{{{}}}}'"""
    return replace(
        metrics,
        reads=tuple(dict.fromkeys([*_READS, *("links" if name == "subjects" else name for name in reads)])),
        select=_select(facts, "any_value(custom)"),
    )
