"""Every rollup: sums of facts by time, for reports and for people who ask in SQL."""

from __future__ import annotations

from caudal.projections._rollup import Part, Rollup
from caudal.projections.criteria.fields import FACT_KINDS
from caudal.projections.metrics import PAID

__all__ = ["ROLLUPS", "feedback", "sales", "support"]

_BOUGHT, _RETURNED, _ANSWERED, _OPENED = (
    FACT_KINDS[kind] for kind in ("bought", "returned", "answered", "opened_ticket")
)
_PAID = PAID.replace("o.", "f.")

sales = Rollup(
    name="sales",
    keys={"currency": "text"},
    sums=("orders", "gross_minor", "discounts_minor", "refunds", "refunds_minor"),
    parts=(
        Part(
            _BOUGHT.table,
            _BOUGHT.at,
            _BOUGHT.holds,
            {"currency": "f.currency"},
            {
                "orders": "1",
                # two longs together may be more than a long
                "gross_minor": f"CASE WHEN {_PAID} THEN f.total_minor::numeric + coalesce(f.discount_minor, 0) ELSE 0 END",
                "discounts_minor": f"CASE WHEN {_PAID} AND f.total_minor IS NOT NULL THEN f.discount_minor ELSE 0 END",
            },
        ),
        Part(
            _RETURNED.table,
            _RETURNED.at,
            _RETURNED.holds,
            {"currency": "f.currency"},
            {"refunds": "1", "refunds_minor": "f.amount_minor"},
        ),
    ),
)
"""Orders that count by when they were placed, with the money of the paid ones; refunds by when they were given."""

feedback = Rollup(
    name="feedback",
    keys={
        "kind": "text",
        "score": "double precision",
        "scale_min": "double precision",
        "scale_max": "double precision",
        "product": "text",
    },
    sums=("answers",),
    parts=(
        Part(
            _ANSWERED.table,
            _ANSWERED.at,
            f"{_ANSWERED.holds} AND f.score IS NOT NULL",
            {name: f"f.{name}" for name in ("kind", "score", "scale_min", "scale_max", "product")},
            {"answers": "1"},
        ),
    ),
)
"""Answers and reviews with a score, by score: every figure that is made of scores follows from it."""

support = Rollup(
    name="support",
    keys={"source": "text"},
    sums=("opened", "solved", "good", "bad", "replied", "first_reply_s"),
    parts=(
        Part(
            _OPENED.table,
            _OPENED.at,
            _OPENED.holds,
            {"source": "f.source"},
            {
                "opened": "1",
                "good": "(f.satisfaction IS NOT DISTINCT FROM 'good')::int",
                "bad": "(f.satisfaction IS NOT DISTINCT FROM 'bad')::int",
                "replied": "(f.first_replied_at IS NOT NULL)::int",
                "first_reply_s": f"extract(epoch FROM f.first_replied_at - {_OPENED.at})",
            },
        ),
        Part(
            _OPENED.table,
            # whatever clocks say, a ticket isn't solved before it is opened: else it would be missing among the open ones
            f"greatest(coalesce(f.solved_at, f.closed_at, f.occurred_at), {_OPENED.at})",
            "f.status IN ('solved', 'closed')",
            {"source": "f.source"},
            {"solved": "1"},
        ),
    ),
)
"""Tickets by when they were opened, with their ratings and first replies; and by when they were solved."""

ROLLUPS = (sales, feedback, support)
