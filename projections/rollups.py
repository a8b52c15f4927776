"""Every rollup: sums of facts by time, for reports and for people who ask in SQL."""

from __future__ import annotations

from caudal.projections._rollup import Part, Rollup
from caudal.projections.criteria.fields import FACT_KINDS
from caudal.projections.metrics import PAID

__all__ = ["ROLLUPS", "sales"]

_BOUGHT, _RETURNED = FACT_KINDS["bought"], FACT_KINDS["returned"]
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
                # the sum of two longs may be more than a long
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

ROLLUPS = (sales,)
