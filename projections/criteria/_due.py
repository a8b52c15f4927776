"""When could the answer change with no new event: the next of the moments at which a comparison with `now` turns.

A membership depends on `now` only through comparisons with moments that the data give: an order's time, the same and the window's length,
a birthday, the end of a consent. It is constant between two neighbours of these, so the earliest of them after `now` is never late. It may
be early, since not every turn of a part turns the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caudal.projections.criteria import tree
from caudal.projections.criteria.fields import FIELDS, Field
from caudal.projections.criteria.tree import duration, field_of

if TYPE_CHECKING:
    from caudal.projections.criteria.compile import Compiler, Shared

__all__ = ["next_moments"]


def next_moments(condition: tree.Condition, compiler: Compiler) -> str:
    """The earliest moment after now at which a part of the condition could turn, as SQL; NULL when none."""
    found = [sql for _, node in tree.walk(condition) for sql in _of(node, compiler)]
    # least() leaves NULLs out
    return f"least({', '.join(found)})" if found else "NULL::timestamptz"


def _of(node: tree.Condition, compiler: Compiler) -> list[str]:
    match node:
        case tree.Compare():
            field, _ = field_of(node.field, FIELDS)
            return [_compared(field, node, compiler)] if field.since else []
        case tree.Fact():
            return [_fact(node, compiler, None)]
        case tree.Sequence():
            following = [*(step.within if step.absent else None for step in node.then), None]
            facts = [node.sequence, *(step.fact for step in node.then)]
            return [_fact(fact, compiler, undecided) for fact, undecided in zip(facts, following, strict=True)]
        case tree.Consent() if node.state == "granted" and not node.lapsed:
            granted = f"{compiler.consents(node.consent)} AND f0.state = 'granted'"
            return [f"(SELECT min(f0.expires_at) {granted} AND f0.expires_at > {compiler.now})"]
        case _:
            return []


def _fact(fact: tree.Fact, compiler: Compiler, undecided: str | None) -> str:
    """When a fact comes, leaves its window, or when it is decided that nothing followed it."""
    fits, shared = compiler.fits(fact), _shared(compiler)
    turns = [shared.total(fact.fact, f"min(f0.at) FILTER (WHERE {fits} AND f0.at > {compiler.now})")]
    for window in (
        duration(d) for d in (fact.within, undecided) if d
    ):  # the first that it still holds is the next to leave
        within = f"min(f0.at) FILTER (WHERE {fits} AND f0.at > {compiler.begin(window)})"
        turns.append(f"{shared.total(fact.fact, within)} + {compiler.value(window, 'interval')}")
    return f"least({', '.join(turns)})"


def _shared(compiler: Compiler) -> Shared:
    assert compiler.shared is not None, "moments are asked for where facts are shared"
    return compiler.shared


def _first(moments: Sequence[str], compiler: Compiler) -> str:
    """The earliest of moments after now; NULL when none is."""
    return f"least({', '.join(f'CASE WHEN {moment} > {compiler.now} THEN {moment} END' for moment in moments)})"


def _compared(field: Field, node: tree.Compare, compiler: Compiler) -> str:
    """When a number of days or an age reaches a value at which the comparison turns."""
    if node.op == "known":
        thresholds = {0} if field.kind == "age" else set()
    else:
        thresholds = _thresholds(node.op, node.value)
        # an age is unknown before birth, which is a turn too
        thresholds |= {0} if field.kind == "age" else set()
    turns = [_reached(field, threshold, compiler) for threshold in sorted(thresholds)]
    return _first(turns, compiler) if turns else "NULL::timestamptz"


def _thresholds(op: str, value: object) -> set[int]:
    """The whole numbers at which a comparison turns while the number grows."""
    match value, op:
        case int(), "<" | ">=":
            return {value}
        case int(), "<=" | ">":
            return {value + 1}
        case [int() as low, int() as high], "between":
            return {low, high + 1}
        case list(), _:
            return {t for v in value for t in (v, v + 1)}
        case int(), _:
            return {value, value + 1}
        case _:
            raise TypeError(op)


def _reached(field: Field, threshold: int, compiler: Compiler) -> str:
    since = field.since
    if field.kind == "days":
        turn = f"{since} + make_interval(hours => 24 * {compiler.value(threshold, 'int')})"
        return _shared(compiler).value(turn, f"{since} {threshold} days")
    # of 29 February, the years later is 1 March where there is no such day; `age` counts so as well
    years = f"make_interval(years => {compiler.value(threshold, 'int')})"
    day = f"greatest({since} + {years}, ({since} - 1 + {years}) + interval '1 day')"
    turn = f"CASE WHEN {since} < DATE '9000-01-01' THEN {day} AT TIME ZONE 'UTC' END"
    return _shared(compiler).value(turn, f"{since} {threshold} years")
