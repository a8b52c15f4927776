"""What a proof found: the customers whose rows aren't what the log says, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from caudal.projections._prove import Difference, Prover, Rebuilt

__all__ = ["Findings", "plain", "verify_customers"]

TOLD = 200
"""So many rows that differ are told in full; all are counted."""


@dataclass
class Findings:
    """The sum of a proof.

    Attributes:
        customers: how many were proved.
        events: how many events were read for it.
        rows: rows that differ.
        tables: table → how many rows of it differ.
        differing: how many customers differ.
        differences: the first rows that differ.
    """

    customers: int = 0
    events: int = 0
    rows: int = 0
    tables: Counter[str] = field(default_factory=Counter)
    differing: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, found: Rebuilt) -> None:
        """Count one customer."""
        self.customers += 1
        self.events += found.events
        self.differing += bool(found.differences)
        self.rows += len(found.differences)
        self.tables.update(difference.table for difference in found.differences)
        self.differences += found.differences[: TOLD - len(self.differences)]

    @property
    def named(self) -> list[str]:
        """The customers whose rows are told."""
        return sorted({difference.customer_id for difference in self.differences})

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "equal": not self.rows,
            "customers": self.customers,
            "events": self.events,
            "differing_customers": self.differing,
            "differing_rows": self.rows,
            "tables": dict(sorted(self.tables.items())),
            "differences": [plain(difference) for difference in self.differences],
        }


def plain(difference: Difference) -> dict[str, Any]:
    """A difference as JSON has it."""
    return {
        "customer_id": difference.customer_id,
        "table": difference.table,
        "key": dict(difference.key),
        "what": difference.what,
        "fields": {name: {"live": live, "log": log} for name, (live, log) in difference.fields.items()},
    }


def verify_customers(
    prover: Prover, customers: Iterable[str], *, each: Callable[[Rebuilt], None] = lambda _: None
) -> Findings:
    """Rebuild customers one by one; nothing is changed. `each` is called after every one, and may stop it by raising."""
    findings = Findings()
    for customer in customers:
        found = prover.rebuild(customer)
        findings.add(found)
        each(found)
    return findings
