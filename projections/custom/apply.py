"""Which metrics there shall be, after some are made, changed or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from caudal.projections import criteria
from caudal.projections.custom.metric import Metric, defined
from caudal.projections.custom.source import BadMetric
from caudal.projections.membership import definitions

__all__ = ["Change", "Plan", "plan"]

MOST = 50

Change = Literal["created", "changed", "retitled", "unchanged", "removed"]


@dataclass(frozen=True)
class Plan:
    """What shall be.

    Attributes:
        metrics: all of them.
        changes: name → what becomes of it; of those that were asked for.
        rebuilt: whether the view must be made again for it.
    """

    metrics: Sequence[Metric]
    changes: dict[str, Change]

    @property
    def rebuilt(self) -> bool:
        return bool({"created", "changed", "removed"} & set(self.changes.values()))


def plan(conn: psycopg.Connection[Any], *, save: Sequence[Metric] = (), remove: Sequence[str] = ()) -> Plan:
    """Metrics saved or removed; those that aren't named stay.

    Raises:
        BadMetric: two metrics give a value of the same name, one that is to go isn't there or is needed by a segment, or there
            are too many.
    """
    there = {metric.name: metric for metric in defined(conn)}
    if missing := sorted(set(remove) - there.keys()):
        raise BadMetric(f"there is no metric {', '.join(missing)}", hint="`caudal metrics list` shows what there is")
    changes: dict[str, Change] = {metric.name: _change(there.get(metric.name), metric) for metric in save}
    changes |= dict.fromkeys(remove, "removed")
    after = there | {metric.name: metric for metric in save}
    metrics = [metric for name, metric in sorted(after.items()) if changes.get(name) != "removed"]
    if len(metrics) > MOST:
        raise BadMetric(f"there can be {MOST} custom metrics")
    givers: dict[str, str] = {}
    for metric in metrics:
        for value in metric.columns:
            if value in givers:
                raise BadMetric(
                    f"both {givers[value]} and {metric.name} give {value}", hint="name one of them differently"
                )
            givers[value] = metric.name
    for segment in definitions.defined(conn):
        needed = set(criteria.metrics_named(segment.condition)) if segment.condition is not None else set()
        if segment.state in {"filling", "live"} and (lost := sorted(needed - givers.keys())):
            raise BadMetric(f"the segment {segment.name} reads {', '.join(lost)}", hint="edit or archive it first")
    return Plan(metrics, changes)


def _change(before: Metric | None, after: Metric) -> Change:
    if before is None:
        return "created"
    if before.function != after.function:
        return "changed"
    return "unchanged" if before.title == after.title else "retitled"
