"""Segments as people define them: made, edited, archived, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from caudal.projections.criteria import BadCriteria, parse, print_text
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import BadSegment, Draft, UnknownSegment
from logs import connect


def _draft(name: str, text: str | None = "orders_count >= 1", description: str | None = None) -> Draft:
    return Draft(name, None if text is None else parse(text), description)


def _revisions(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return {segment.name: segment.revision for segment in definitions.defined(conn, archived=True)}


def test_an_edit_makes_a_version_that_is_applied_anew_and_one_that_changes_nothing_doesnt(conn):
    made = definitions.create(conn, _draft("loyal", "orders_count >= 2", "Often here"), "ana")
    assert (made.change, made.segment.version, made.segment.state) == ("created", 1, "filling")
    conn.execute("UPDATE hub.segments SET state = 'live', filled = gen_random_uuid()")
    before = _revisions(conn)
    same = definitions.save(conn, [_draft("loyal", "orders_count >= 2")], "ana")[0]
    assert (same.change, same.segment.description, _revisions(conn)) == ("unchanged", "Often here", before)
    told = definitions.edit(conn, "loyal", "ana", description="Twice or more")
    assert (told.change, told.segment.version, told.segment.state) == ("described", 1, "live")
    assert told.segment.revision > before["loyal"]
    changed = definitions.edit(conn, "loyal", "rui", condition=parse("orders_count >= 3")).segment
    assert (changed.version, changed.state, changed.filled) == (2, "filling", UUID(int=0))
    assert changed.condition is not None
    assert print_text(changed.condition) == "orders_count >= 3"
    assert changed.description == "Twice or more"
    kept = conn.execute(
        "SELECT version, criteria->'value', description, changed_by FROM hub.segment_versions ORDER BY 1"
    )
    assert kept.fetchall() == [(1, 2, "Often here", "ana"), (2, 3, "Twice or more", "rui")]


def test_archiving_lets_members_leave_and_editing_brings_it_back(conn):
    definitions.create(conn, _draft("inner"), "ana")
    definitions.create(conn, _draft("outer", 'segment("inner") and city = "Recife"'), "ana")
    with pytest.raises(BadSegment, match="inner is read by outer"):
        definitions.archive(conn, "inner", "eva")
    assert definitions.archive(conn, "outer", "eva").segment.state == "leaving"
    assert definitions.archive(conn, "outer", "eva").change == "unchanged"
    assert definitions.archive(conn, "inner", "eva").change == "archived"
    assert definitions.named(conn, "inner").changed_by == "eva"
    with pytest.raises(BadCriteria, match="unknown segment"):
        definitions.edit(conn, "outer", "ana")
    back = definitions.create(conn, _draft("inner"), "ana")
    assert (back.change, back.segment.version, back.segment.state) == ("restored", 2, "filling")


def test_what_cant_be_is_refused_and_leaves_nothing(conn):
    definitions.create(conn, _draft("loyal"), "ana")
    definitions.create(conn, _draft("vips", None), "ana")
    before = _revisions(conn)
    for drafts, error, message in (
        ([_draft("Loyal")], BadSegment, "bad segment name"),
        ([_draft("buyers")], BadSegment, "buyers is built in"),
        ([_draft("new", description="x" * 1_001)], BadSegment, "description"),
        ([_draft("new"), _draft("new")], BadSegment, "new: defined twice"),
        ([_draft("new"), _draft("vips")], BadSegment, "vips has a list and can't get criteria"),
        ([_draft("new", None), _draft("loyal", None)], BadSegment, "loyal has criteria and can't get a list"),
        (
            [_draft("new"), _draft("x", 'segment("loyl")')],
            BadCriteria,
            "segment: unknown segment loyl; did you mean loyal",
        ),
        ([_draft("new", 'segment("new")')], BadCriteria, "contain each other"),
        ([_draft("loyal", 'segment("b")'), _draft("b", 'not segment("loyal")')], BadCriteria, "contain each other"),
    ):
        with pytest.raises(error, match=message):
            definitions.save(conn, drafts, "ana")
    with pytest.raises(BadSegment, match="there is a segment loyal already"):
        definitions.create(conn, _draft("loyal"), "ana")
    with pytest.raises(UnknownSegment, match="did you mean loyal"):
        definitions.edit(conn, "loyall", "ana")
    with pytest.raises(BadSegment, match="buyers is built in"):
        definitions.archive(conn, "buyers", "eva")
    assert _revisions(conn) == before


def test_several_that_name_each_other_are_saved_in_the_order_of_their_dependence(conn):
    drafts = [
        _draft("a", 'segment("b") or segment("vips")'), _draft("b", 'segment("buyers")'), _draft("c", 'segment("a")'),
        _draft("vips", None),
    ]  # fmt: skip
    saved = definitions.save(conn, drafts, "ana")
    order = [each.segment.name for each in saved]
    assert order.index("c") > order.index("a") > max(order.index("b"), order.index("vips"))
    assert [each.segment.revision for each in saved] == [1, 2, 3, 4]
    assert {each.change for each in definitions.save(conn, drafts, "ana")} == {"unchanged"}


def test_those_who_change_definitions_at_once_come_one_after_another(settings):
    def make(number: int) -> int:
        with connect(settings) as own:
            return definitions.create(own, _draft(f"s{number}"), "ana").segment.revision

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(12))) == list(range(1, 13))
