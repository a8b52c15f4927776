"""The figures of each customer: orders, money, support, subscriptions, feedback."""

from __future__ import annotations

from caudal.projections._view import View

__all__ = ["metrics"]

# An order counts when it was placed and stands; checkouts, drafts and deals are not orders.
_COUNTS = "coalesce(o.kind, 'order') = 'order' AND coalesce(o.status, 'open') NOT IN ('cancelled', 'voided', 'deleted', 'abandoned')"
_PAID = "o.status IN ('paid', 'partially_paid', 'partially_refunded', 'refunded')"
_OPEN = "coalesce(t.status, 'open') NOT IN ('solved', 'closed', 'deleted')"


def _within_long(money: str) -> str:
    """A sum of money as far as a long holds it, as the contract says: nonsense that is larger must not stop the stream."""
    return f"least(greatest({money}, {-(2**63)}), {2**63 - 1})"


metrics = View(
    name="metrics",
    key=("customer_id",),
    columns={
        "customer_id": "uuid",
        "orders_count": "bigint",
        "spend_minor": "jsonb",
        "refunded_minor": "jsonb",
        "refunds_count": "bigint",
        "first_order_at": "timestamptz",
        "last_order_at": "timestamptz",
        "favourite_category": "text",
        "tickets_count": "bigint",
        "open_tickets_count": "bigint",
        "last_ticket_at": "timestamptz",
        "satisfaction_good_count": "bigint",
        "satisfaction_bad_count": "bigint",
        "active_subscriptions_count": "bigint",
        "last_nps_score": "double precision",
        "feedback_count": "bigint",
        "interactions_count": "bigint",
        "last_seen_at": "timestamptz",
    },
    reads=("orders", "refunds", "tickets", "subscriptions", "feedback", "interactions"),
    topic="customer.metrics",
    # Every kind of fact gives rows of the same shape, summed by customer at the end; money is summed by currency and lines by category
    # before. Joins of aggregates are avoided on purpose: without statistics on the touched keys the planner may pick a quadratic one.
    select=f"""
        WITH placed AS (
            SELECT s.customer_id, o.*
            FROM subjects s CROSS JOIN LATERAL (
                SELECT currency, total_minor, placed_at, line_categories, line_quantities, ({_COUNTS}) AS counts, ({_PAID}) AS paid
                FROM {{schema}}.orders o WHERE o.subject = s.subject {{fence}}
            ) o
        )
        SELECT customer_id,
               coalesce(sum(orders), 0)::bigint AS orders_count,
               coalesce(jsonb_object_agg(currency, spend) FILTER (WHERE currency IS NOT NULL AND spend IS NOT NULL),
                        '{{{{}}}}') AS spend_minor,
               coalesce(jsonb_object_agg(currency, refunded) FILTER (WHERE currency IS NOT NULL AND refunded IS NOT NULL),
                        '{{{{}}}}') AS refunded_minor,
               coalesce(sum(refunds), 0)::bigint AS refunds_count,
               min(first_order) AS first_order_at, max(last_order) AS last_order_at,
               any_value(category) AS favourite_category,
               coalesce(sum(tickets), 0)::bigint AS tickets_count,
               coalesce(sum(open_tickets), 0)::bigint AS open_tickets_count,
               max(last_ticket) AS last_ticket_at,
               coalesce(sum(good), 0)::bigint AS satisfaction_good_count,
               coalesce(sum(bad), 0)::bigint AS satisfaction_bad_count,
               coalesce(sum(subscriptions), 0)::bigint AS active_subscriptions_count,
               (max(nps))[3] AS last_nps_score,
               coalesce(sum(feedback), 0)::bigint AS feedback_count,
               coalesce(sum(interactions), 0)::bigint AS interactions_count,
               max(seen) AS last_seen_at
        FROM (
            SELECT customer_id, currency, NULL::text AS category, count(*) FILTER (WHERE counts) AS orders,
                   CASE WHEN count(spend) + count(refunded) > 0
                        THEN {_within_long("coalesce(sum(spend), 0) - coalesce(sum(refunded), 0)")} END AS spend,
                   {_within_long("sum(refunded)")} AS refunded, count(*) FILTER (WHERE counts IS NULL) AS refunds,
                   min(at) FILTER (WHERE counts) AS first_order, max(at) FILTER (WHERE counts) AS last_order,
                   NULL::bigint AS tickets, NULL::bigint AS open_tickets, NULL::timestamptz AS last_ticket,
                   NULL::bigint AS good, NULL::bigint AS bad, NULL::bigint AS subscriptions, NULL::float8[] AS nps,
                   NULL::bigint AS feedback, NULL::bigint AS interactions, max(at) AS seen
            FROM (
                SELECT customer_id, currency, counts, CASE WHEN counts AND paid THEN total_minor END AS spend, NULL::bigint AS refunded,
                       placed_at AS at
                FROM placed
                UNION ALL
                SELECT s.customer_id, r.currency, NULL, NULL, r.amount_minor, r.refunded_at
                FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.refunds x WHERE x.subject = s.subject {{fence}}) r
            ) money
            GROUP BY customer_id, currency
            UNION ALL
            SELECT customer_id, NULL, hub.first(category ORDER BY units DESC, category), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                   NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
            FROM (
                SELECT o.customer_id, l.category, sum(l.quantity) AS units
                FROM placed o, unnest(o.line_categories, o.line_quantities) l(category, quantity)
                WHERE o.counts AND l.category IS NOT NULL
                GROUP BY o.customer_id, l.category
            ) categories
            GROUP BY customer_id
            UNION ALL
            SELECT s.customer_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                   (CASE WHEN t.status IS DISTINCT FROM 'deleted' THEN 1 END), (CASE WHEN {_OPEN} THEN 1 END), t.opened_at,
                   (CASE WHEN t.satisfaction = 'good' THEN 1 END), (CASE WHEN t.satisfaction = 'bad' THEN 1 END),
                   NULL, NULL, NULL, NULL, t.opened_at
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.tickets x WHERE x.subject = s.subject {{fence}}) t
            UNION ALL
            SELECT s.customer_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                   (CASE WHEN b.status IN ('trialing', 'active') THEN 1 END), NULL, NULL, NULL, NULL
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.subscriptions x WHERE x.subject = s.subject {{fence}}) b
            UNION ALL
            SELECT s.customer_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                   (CASE WHEN f.kind = 'nps' AND f.score IS NOT NULL
                         THEN ARRAY[extract(epoch FROM f.answered_at), extract(epoch FROM f.occurred_at), f.score]::float8[] END),
                   1, NULL, f.answered_at
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.feedback x WHERE x.subject = s.subject {{fence}}) f
            WHERE f.status IS DISTINCT FROM 'deleted'
            UNION ALL
            SELECT s.customer_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1,
                   i.occurred_at
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.interactions x WHERE x.subject = s.subject {{fence}}) i
        ) facts
        GROUP BY customer_id
    """,
)
