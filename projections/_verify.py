"""What a proof found: the customers whose rows aren't what the log says, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from caudal.projections import _rollup
from caudal.projections._prove import Difference, Prover, Rebuilt, difference
from caudal.projections._rollup import Rollup
from caudal.projections._schema import LIVE, ROLLUPS

__all__ = ["Findings", "plain", "verify_customers", "verify_rollups"]

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
        self.tables.update(each.table for each in found.differences)
        self.differences += found.differences[: TOLD - len(self.differences)]

    def add_rollup(self, conn: psycopg.Connection[Any], rollup: Rollup, log: str) -> None:
        """Compare a live rollup with `log`, a SELECT of what it must be."""
        differing = conn.execute(_rollup.differing(rollup, _rollup.stored(LIVE, rollup), log)).fetchall()
        self.rows += len(differing)
        if differing:
            self.tables[rollup.table] += len(differing)
        told = differing[: TOLD - len(self.differences)]
        self.differences += [difference(None, rollup.table, *row) for row in told]

    @property
    def named(self) -> list[str]:
        """The customers whose rows are told."""
        return sorted({each.customer_id for each in self.differences if each.customer_id is not None})

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


def verify_rollups(conn: psycopg.Connection[Any], findings: Findings) -> None:
    """Add to the findings where a live rollup isn't what the live facts say; nothing is changed."""
    for rollup in ROLLUPS:
        findings.add_rollup(conn, rollup, _rollup.computed(LIVE, rollup))


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
