"""Which criteria speak of personal data, after the tags of the event schemas.

Asking for customers by a person's e-mail address is reading it: whoever may see how many there are, or who, finds out whose it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from caudal.projections._fact import personal_fields
from caudal.projections.criteria import tree
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, Field
from caudal.projections.criteria.tree import Condition, field_of

__all__ = ["personal", "personal_segments"]

_EVENTS = {
    "profiles": "ProfileStated", "orders": "OrderStated", "refunds": "OrderStated", "tickets": "TicketStated",
    "subscriptions": "SubscriptionStated", "feedback": "FeedbackStated", "interactions": "InteractionRecorded",
}  # fmt: skip
"""Where a field is of → the event that states it."""
_COLUMN = re.compile(r"\b[pfi]\.([a-z_]+)")


def personal(condition: Condition) -> list[str]:
    """The fields with personal data that a condition speaks of, without those of segments that it names."""
    return sorted({name for _, node in tree.walk(condition) for name in _named(node)})


def personal_segments(conditions: Mapping[str, Condition]) -> set[str]:
    """Of these segments, by name, those whose members are told by personal data, of their own or of a segment within."""
    found = {name for name, condition in conditions.items() if personal(condition)}
    while more := {
        name for name, condition in conditions.items() if name not in found and tree.segments_named(condition) & found
    }:
        found |= more
    return found


def _named(node: Any) -> set[str]:
    match node:
        case tree.Compare():
            return {node.field} if _is_personal(field_of(node.field, FIELDS)[0]) else set()
        case tree.Near():
            return {"near"}
        case tree.Fact():
            return _of_fact(node)
        case tree.Sequence():
            return set().union(*(_of_fact(fact) for fact in (node.sequence, *(step.fact for step in node.then))))
    return set()


def _of_fact(fact: tree.Fact) -> set[str]:
    kind = FACT_KINDS[fact.fact]
    return {
        f"{fact.fact}.{each.field}"
        for each in fact.where
        if _is_personal(field_of(each.field, kind.fields)[0], kind.table)
    }


@cache
def _is_personal(field: Field, table: str = "") -> bool:
    if field.kind in {"attribute", "custom"}:  # whatever a source, or an analyst's SELECT, puts there
        return True
    event = _EVENTS.get(table or field.reads)
    tagged = personal_fields(event) if event else frozenset()
    return any(column in tagged for text in (field.sql, field.since) for column in _COLUMN.findall(text))
