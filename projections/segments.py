"""The built-in segments: who is a buyer, who is loyal, who needs care, who may be mailed."""

from __future__ import annotations

from caudal.projections._view import View
from caudal.projections.links import gone_at

__all__ = ["BUILT_IN_MEMBERS", "CRITERIA", "MEMBERS", "MOVES", "SEGMENTS", "segment_members"]

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
        FROM (SELECT x.subject, """
    + gone_at("{schema}.links", "x")
    + """ AS gone_at FROM {schema}.links x WHERE x.customer_id = k.customer_id {fence}) l
        CROSS JOIN LATERAL (SELECT * FROM {schema}.consents x WHERE x.subject = l.subject AND x.purpose = 'marketing_email' {fence}) c
        WHERE c.occurred_at > coalesce(l.gone_at, '-infinity')
    )""",
}
"""Segment → condition over k (the customer), p (profiles) and m (metrics). Mailable: consent in a source, and withdrawn in none."""

CRITERIA = {
    **{name: sql.replace("m.", "").replace(" OR ", " or ") for name, sql in SEGMENTS.items() if "p." not in sql},
    "multi-source": "sources_count >= 2",
    "mailable": 'email is known and consent("marketing_email", lapsed = true)',
}
"""The same as criteria. Nothing of them changes by time alone, which no batch would notice: so a consent that has run out counts."""

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

MOVES = """(
    SELECT h.customer_id, v.segment, v.entered, h.at, coalesce(h.cause, 'links') AS cause
    FROM hub.built_in_history h CROSS JOIN LATERAL (
        SELECT e, true FROM unnest(h.has) e WHERE e <> ALL (h.had)
        UNION ALL
        SELECT e, false FROM unnest(h.had) e WHERE e <> ALL (h.has)
    ) v(segment, entered)
)"""
"""Who entered and left built-in segments: rows (customer_id, segment, entered, at, cause). The cause is an event's id, `rebuild`, or
`links`: the customer got or lost accounts of another one.
"""

BUILT_IN_MEMBERS = """(
    SELECT m.customer_id, m.segment, (
               SELECT max(h.at) FROM hub.built_in_history h
               WHERE h.customer_id = m.customer_id AND m.segment = ANY (h.has) AND m.segment <> ALL (h.had)) AS entered_at
    FROM live.segment_members m
)"""
"""Who is in which built-in segment: rows (customer_id, segment, entered_at), the time null where it was before it was noted."""

MEMBERS = f"""(
    SELECT customer_id, segment, entered_at FROM {BUILT_IN_MEMBERS} b
    UNION ALL
    SELECT m.customer_id, s.name, m.entered_at FROM hub.segment_memberships m JOIN hub.segments s ON s.id = m.segment_id
)"""
"""Who is in which segment, built-in or defined (see membership/): rows (customer_id, segment, entered_at)."""
