"""The profile of each customer: for every field the value of the source that counts most, then the newest.

Within one subject the newest statement of a field wins, even when it states the field to be empty. Between subjects an empty field does
not compete: a record of the person comes before what an order or a ticket says of them, then the source's priority decides, then the
statement version. What was stated of a record before it was merged into another one comes behind everything else of that priority. A
steward's correction wins over every source.
"""

from __future__ import annotations

from caudal.projections._fact import avro_fields, sql_type
from caudal.projections._view import View
from caudal.projections.links import gone_at, merged_at

__all__ = ["FIELDS", "PROVENANCE", "profiles"]

FIELDS = {
    name: sql_type(avro)
    for name, avro in avro_fields("ProfileStated").items()
    if name not in {"cleared", "attributes", "status"}
}
"""Profile field → SQL type."""

_RANK = "2 * ({{priority}})::bigint - ({at} <= s.merged_at IS TRUE)::int"
"""Of a statement made at `at` about a subject `s`."""
_MOST = 2**63 - 1
_VERSION = "occurred_at DESC, captured_at DESC, event_id DESC"


def _corrected(name: str, sql: str) -> str:
    value = "string_to_array(c.value, ',')" if sql.endswith("[]") else f"c.value::{sql}"
    return f"CASE WHEN c.field = '{name}' THEN {value} END"


_STATEMENTS = f"""
    SELECT s.customer_id, s.source, s.subject, {_RANK.format(at="p.occurred_at")} AS priority, p.occurred_at, p.captured_at, p.event_id,
           {", ".join(f"p.{name}" for name in FIELDS)}, NULL::text AS attribute, NULL::text AS value
    FROM subjects s LEFT JOIN LATERAL (
        SELECT * FROM {{schema}}.profile_statements x
        WHERE x.subject = s.subject AND (s.deleted_at IS NULL OR x.occurred_at > s.deleted_at) {{fence}}
    ) p ON true
    WHERE s.deleted_at IS NULL OR p.subject IS NOT NULL
    UNION ALL
    SELECT s.customer_id, NULL, s.subject, {_MOST}, c.occurred_at, c.captured_at, c.event_id,
           {", ".join(_corrected(name, sql) for name, sql in FIELDS.items())}, NULL, NULL
    FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.corrections x WHERE x.subject = s.subject {{fence}}) c
    WHERE c.value IS NOT NULL
"""

profiles = View(
    name="profiles",
    key=("customer_id",),
    columns={"customer_id": "uuid", "sources": "text[]", **FIELDS, "attributes": "jsonb"},
    reads=("links", "profile_statements", "profile_attributes", "corrections"),
    topic="customer.profiles",
    select=f"""
        SELECT customer_id, array_agg(DISTINCT source ORDER BY source) FILTER (WHERE source IS NOT NULL) AS sources,
               {", ".join(f"hub.first({name} ORDER BY priority DESC, {_VERSION}) AS {name}" for name in FIELDS)},
               coalesce(jsonb_object_agg(attribute, value ORDER BY priority, occurred_at, captured_at, event_id)
                        FILTER (WHERE value IS NOT NULL), '{{{{}}}}') AS attributes
        FROM (
            {_STATEMENTS}
            UNION ALL
            SELECT s.customer_id, NULL, s.subject, {_RANK.format(at="a.occurred_at")}, a.occurred_at, a.captured_at, a.event_id,
                   {", ".join(f"NULL::{sql}" for sql in FIELDS.values())}, a.name, a.value
            FROM subjects s CROSS JOIN LATERAL (SELECT * FROM {{schema}}.profile_attributes x WHERE x.subject = s.subject {{fence}}) a
            WHERE s.deleted_at IS NULL OR a.occurred_at > s.deleted_at
        ) statements
        GROUP BY customer_id
        HAVING count(source) > 0
    """,
)

PROVENANCE = f"""
    WITH subjects AS (
        SELECT customer_id, subject, source, {gone_at("{schema}.links", "l")} AS deleted_at, {merged_at("l")} AS merged_at
        FROM {{schema}}.links l WHERE customer_id = %(customer_id)s
    ), statements AS ({_STATEMENTS.replace("{fence}", "")})
    SELECT DISTINCT ON (field) field, coalesce(source, 'correction') AS source, subject, occurred_at AS since
    FROM statements CROSS JOIN LATERAL (VALUES {", ".join(f"('{name}', {name} IS NOT NULL)" for name in FIELDS)}) v(field, present)
    WHERE present
    ORDER BY field, priority DESC, {_VERSION}
"""
"""Which statement each field of one customer's profile came from: rows (field, source, subject, since) for %(customer_id)s.
Format with `schema` and `priority` (`caudal.projections.priority_sql`)."""
