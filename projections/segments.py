"""The built-in segments: who is a buyer, who is loyal, who needs care, who may be mailed."""

from __future__ import annotations

from caudal.projections._view import View

__all__ = ["CRITERIA", "MEMBERS", "SEGMENTS", "segment_members"]

SEGMENTS = {
    "buyers": "m.orders_count >= 1",
    "repeat-buyers": "m.orders_count >= 2",
    "refunded": "m.refunds_count >= 1",
    "open-tickets": "m.open_tickets_count >= 1",
    "unhappy": "m.satisfaction_bad_count >= 1 OR m.last_nps_score <= 6",
    "subscribers": "m.active_subscriptions_count >= 1",
    "multi-source": "cardinality(p.sources) >= 2",
    # one pass over the customer's consents: granted somewhere, withdrawn nowhere
    "mailable": """p.email IS NOT NULL AND (
        SELECT bool_and(c.state <> 'withdrawn') AND bool_or(c.state = 'granted')
        FROM (SELECT * FROM {schema}.links x WHERE x.customer_id = k.customer_id {fence}) l
        CROSS JOIN LATERAL (SELECT * FROM {schema}.consents x WHERE x.subject = l.subject AND x.purpose = 'marketing_email' {fence}) c
        WHERE l.deleted_at IS NULL OR c.occurred_at > l.deleted_at
    )""",
}
"""Segment → condition over k (the customer), p (profiles) and m (metrics). Mailable: consent in a source, and withdrawn in none."""

CRITERIA = {name: sql.replace("m.", "").replace(" OR ", " or ") for name, sql in SEGMENTS.items() if "p." not in sql}
"""The same as criteria, where they can say it: they don't count sources, and let consents expire."""

segment_members = View(
    name="segment_members",
    key=("customer_id", "segment"),
    columns={"customer_id": "uuid", "segment": "text"},
    reads=("profiles", "metrics", "consents"),
    topic="customer.segments",
    select=f"""
        SELECT k.customer_id, array_remove(ARRAY[
                   {", ".join(f"CASE WHEN {sql} THEN '{name}' END" for name, sql in SEGMENTS.items())}
               ], NULL) AS members
        FROM customers k
        LEFT JOIN LATERAL (SELECT * FROM {{schema}}.profiles x WHERE x.customer_id = k.customer_id {{fence}}) p ON true
        LEFT JOIN LATERAL (SELECT * FROM {{schema}}.metrics x WHERE x.customer_id = k.customer_id {{fence}}) m ON true
    """,
)

MEMBERS = """(
    SELECT customer_id, segment, NULL::timestamptz AS entered_at FROM live.segment_members
    UNION ALL
    SELECT m.customer_id, s.name, m.entered_at FROM hub.segment_memberships m JOIN hub.segments s ON s.id = m.segment_id
)"""
"""Who is in which segment, built-in or defined (see membership/): rows (customer_id, segment, entered_at)."""
