"""Since which event a condition holds, as far as the facts tell it.

Of facts: the one with which the count or total was reached; where no least number is asked for, the newest that fits. Of a sequence: the
newest with which one began. Of a consent: the newest statement that grants it. Of a profile field: the newest statement of the value, or
the steward's correction. Metrics, places and groups of conditions follow from more than one event; of them nothing is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from caudal.projections.criteria import tree
from caudal.projections.criteria.compile import SEEK, Compiler, Sql
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS
from caudal.projections.criteria.tree import Condition, field_of
from caudal.projections.profiles import FIELDS as STATED
from caudal.projections.segments import MOVES, SEGMENTS

__all__ = ["because"]


def because(nodes: Sequence[Condition], schema: str = "live") -> Sql:
    """An array in the order of the conditions for the parameter `customer`: {event_id, at}, or null. `now` is a parameter too."""
    compiler = Compiler(schema, SEEK, "b")
    found = ", ".join(_of(node, compiler) or "NULL::jsonb" for node in nodes)
    return Sql(
        f"SELECT ARRAY[{found}] FROM {schema}.profiles p WHERE p.customer_id = %(customer)s", compiler.parameters
    )


def _of(node: Condition, compiler: Compiler) -> str | None:
    match node:
        case tree.Fact():
            return _fact(node, compiler)
        case tree.Sequence():
            return _newest(f"f0.event_id, {_at(node.sequence)} AS at {compiler.followed(node)}")
        case tree.Consent():
            return _newest(
                f"f0.event_id, f0.occurred_at AS at {compiler.consents(node.consent)} AND {compiler.valid(node)}"
            )
        case tree.Segment():
            return _segment(node.segment, compiler)
        case tree.Compare() if node.op != "known" or node.value:
            return _profile(field_of(node.field, FIELDS)[0].sql, compiler)
        case _:
            return None


def _at(fact: tree.Fact) -> str:
    return FACT_KINDS[fact.fact].at.replace("f.", "f0.")


def _newest(rows: str, order: str = "at DESC, event_id DESC") -> str:
    return (
        f"(SELECT jsonb_build_object('event_id', event_id, 'at', at) FROM (SELECT {rows}) r ORDER BY {order} LIMIT 1)"
    )


def _fact(node: tree.Fact, compiler: Compiler) -> str:
    source = f"{compiler.facts(FACT_KINDS[node.fact], 'p.customer_id')} AND {compiler.happened(node)}"
    rows = f"f0.event_id, {_at(node)} AS at"
    if any(h.op not in {">", ">="} for h in node.having):
        return _newest(f"{rows} {source}")
    reached = compiler.having(node, over=f"OVER (ORDER BY {_at(node)}, f0.event_id)") if node.having else "true"
    return _newest(f"* FROM (SELECT {rows}, {reached} AS reached {source}) t WHERE reached", "at, event_id")


def _segment(name: str, compiler: Compiler) -> str:
    asked = compiler.value(name, "text")
    if name in SEGMENTS:
        return _newest(
            f"cause AS event_id, at FROM {MOVES} m WHERE customer_id = p.customer_id AND segment = {asked} AND entered"
        )
    return _newest(
        f"h.cause AS event_id, h.at FROM hub.segment_history h JOIN hub.segments s ON s.id = h.segment_id"
        f" WHERE h.customer_id = p.customer_id AND s.name = {asked} AND h.entered"
    )


def _profile(sql: str, compiler: Compiler) -> str | None:
    named = [name for name in re.findall(r"\bp\.([a-z_]+)", sql) if name in STATED]
    if not named:
        return None
    name, schema = named[0], compiler.schema
    tables = f"{schema}.profile_statements", f"{schema}.profile_statements_parts"
    stated = " UNION ALL ".join(
        f"SELECT x.event_id, x.occurred_at AS at, false AS corrected FROM {schema}.links l JOIN {table} x USING (subject)"
        f" WHERE l.customer_id = p.customer_id AND x.{name} = p.{name} AND x.stated >= 0"
        for table in tables
    )
    corrected = (
        f"SELECT x.event_id, x.occurred_at, true FROM {schema}.links l JOIN {schema}.corrections x USING (subject)"
        f" WHERE l.customer_id = p.customer_id AND x.field = '{name}' AND x.value IS NOT NULL"
    )
    return _newest(f"* FROM ({stated} UNION ALL {corrected}) t", "corrected DESC, at DESC, event_id DESC")
