"""The built-in segments: who is a buyer, who is loyal, who needs care, who may be mailed."""

from __future__ import annotations

from caudal.projections._view import View

__all__ = ["SEGMENTS", "segment_members"]

SEGMENTS = {
    "buyers": "m.orders_count >= 1",
    "repeat-buyers": "m.orders_count >= 2",
    "refunded": "m.refunds_count >= 1",
    "open-tickets": "m.open_tickets_count >= 1",
    "unhappy": "m.satisfaction_bad_count >= 1 OR m.last_nps_score <= 6",
    "subscribers": "m.active_subscriptions_count >= 1",
    "multi-source": "cardinality(p.sources) >= 2",
    "mailable": """p.email IS NOT NULL AND EXISTS (
        SELECT FROM {schema}.links l JOIN {schema}.consents c USING (subject)
        WHERE l.customer_id = k.customer_id AND c.purpose = 'marketing_email' AND c.state = 'granted'
          AND (l.deleted_at IS NULL OR c.occurred_at > l.deleted_at)
    ) AND NOT EXISTS (
        SELECT FROM {schema}.links l JOIN {schema}.consents c USING (subject)
        WHERE l.customer_id = k.customer_id AND c.purpose = 'marketing_email' AND c.state = 'withdrawn'
          AND (l.deleted_at IS NULL OR c.occurred_at > l.deleted_at)
    )""",
}
"""Segment → condition over k (the customer), p (profiles) and m (metrics). Mailable: consent in a source, and withdrawn in none."""

segment_members = View(
    name="segment_members",
    key=("customer_id", "segment"),
    columns={"customer_id": "uuid", "segment": "text"},
    reads=("profiles", "metrics", "consents"),
    topic="customer.segments",
    select=f"""
        SELECT k.customer_id, v.segment
        FROM customers k
        LEFT JOIN {{schema}}.profiles p USING (customer_id)
        LEFT JOIN {{schema}}.metrics m USING (customer_id)
        CROSS JOIN LATERAL (VALUES {", ".join(f"('{name}', {sql})" for name, sql in SEGMENTS.items())}) v(segment, holds)
        WHERE v.holds
    """,
)
