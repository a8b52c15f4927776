"""Until when what was stated about a subject doesn't count: the one rule that every view and every reader follows.

A deleted or erased subject shows nothing that was stated until then. A vendor's merge is no deletion: the record that went into another
one counts for as long as one of those that it went into is there, behind what these state themselves. Erasing one of those hides
it too.
"""

from __future__ import annotations

__all__ = ["gone_at", "merged_at"]


def gone_at(links: str, row: str) -> str:
    """SQL: what was stated about the subject of `row` up to this time doesn't count; NULL when all does.

    Args:
        links: the table of links.
        row: alias of a row of it. Records that it was merged into are looked for in its own customer only, so that a view's keys
            reach all that it reads.
    """
    return f"""CASE WHEN {row}.merged_into IS NULL THEN greatest({row}.deleted_at, {row}.erased_at) ELSE (
        WITH RECURSIVE record AS (
            SELECT {row}.subject, {row}.customer_id, {row}.deleted_at, {row}.erased_at, {row}.merged_into
            UNION
            SELECT "into".subject, "into".customer_id, "into".deleted_at, "into".erased_at, "into".merged_into
            FROM record JOIN {links} "into" ON "into".subject = ANY (record.merged_into) AND "into".customer_id = record.customer_id
        ) SELECT greatest(max(erased_at), CASE WHEN bool_and(deleted_at IS NOT NULL) THEN max(deleted_at) END) FROM record
    ) END"""


def merged_at(row: str) -> str:
    """SQL: until when what was stated about the subject of `row` counts behind what is stated of others; NULL when it was not merged."""
    return f"CASE WHEN {row}.merged_into IS NOT NULL THEN {row}.deleted_at END"
