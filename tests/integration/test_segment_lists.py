"""Lists as segments: put on, taken off, and what merged, unknown and malformed ids do."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from caudal.projections import ensure_live
from caudal.projections._batch import ALL
from caudal.projections.criteria import parse
from caudal.projections.membership import definitions, lists
from caudal.projections.membership.definitions import BadSegment, Draft, UnknownSegment
from caudal.projections.membership.lists import Listed

ANA, RUI, ZOE, OLD, SPLIT = (UUID(int=n) for n in range(1, 6))
NOBODY = UUID(int=99)


@pytest.fixture
def vips(conn: psycopg.Connection[Any]) -> definitions.Segment:
    ensure_live(conn)
    conn.execute(
        "INSERT INTO live.profiles (customer_id, sources) SELECT unnest(%s::uuid[]), '{crm}'", ([ANA, RUI, ZOE],)
    )
    for subject, before, now in (("a", OLD, ANA), ("b", OLD, ANA), ("c", SPLIT, ANA), ("d", SPLIT, RUI)):
        conn.execute("INSERT INTO hub.former_customers VALUES (%s, %s)", (before, subject))
        conn.execute("INSERT INTO hub.subjects VALUES (%s, %s, 1, 'crm', now(), now(), NULL, 'email')", (subject, now))
    return definitions.create(conn, Draft("vips", None), "ana").segment


def _listed(conn: psycopg.Connection[Any]) -> set[UUID]:
    return {i for (i,) in conn.execute("SELECT customer_id FROM hub.segment_listed")}


def _touched(conn: psycopg.Connection[Any]) -> set[UUID]:
    rows = conn.execute("DELETE FROM hub.segment_touched RETURNING customer_id, facts, cause").fetchall()
    assert {(facts, cause) for _, facts, cause in rows} <= {(ALL, "definition")}
    return {i for i, _, _ in rows}


def test_who_is_put_on_a_list_is_looked_at_again_and_the_rest_is_counted(conn, vips):
    given = [str(ANA), str(ANA), "12345", str(NOBODY), str(SPLIT), str(RUI).upper()]
    assert lists.put(conn, "vips", given, "eva") == Listed(changed=2, unchanged=0, unknown=2, malformed=1)
    assert _listed(conn) == _touched(conn) == {ANA, RUI}
    assert lists.put(conn, "vips", [str(ANA), str(ZOE)], "eva") == Listed(1, 1, 0, 0)
    assert _touched(conn) == {ZOE}
    assert lists.take(conn, "vips", [str(RUI), str(NOBODY), "x"], "eva") == Listed(1, 0, 1, 1)
    assert _listed(conn) == {ANA, ZOE}
    assert _touched(conn) == {RUI}
    assert lists.put(conn, "vips", [str(ANA)], "zoe").changed == 0
    told = conn.execute("SELECT change, customers, changed_by FROM hub.segment_list_changes ORDER BY changed_at")
    assert told.fetchall() == [("put", 2, "eva"), ("put", 1, "eva"), ("taken", 1, "eva")]
    assert definitions.named(conn, "vips").changed_by == "eva"


def test_an_id_that_was_merged_means_the_customer_that_it_went_into(conn, vips):
    assert lists.put(conn, "vips", [str(OLD)], "eva").changed == 1
    assert _listed(conn) == _touched(conn) == {ANA}
    assert lists.take(conn, "vips", [str(OLD)], "eva").changed == 1
    conn.execute("INSERT INTO hub.segment_listed VALUES (%s, %s)", (vips.id, OLD))  # merged after it was put there
    assert _touched(conn) == {ANA}
    assert lists.take(conn, "vips", [str(ANA)], "eva").changed == 1
    assert _listed(conn) == set()
    assert _touched(conn) == {ANA}


def test_only_a_list_that_is_kept_can_change(conn, vips):
    definitions.create(conn, Draft("loyal", parse("orders_count >= 2")), "ana")
    with pytest.raises(BadSegment, match="no list"):
        lists.put(conn, "loyal", [str(ANA)], "eva")
    with pytest.raises(UnknownSegment):
        lists.put(conn, "nothing", [str(ANA)], "eva")
    definitions.archive(conn, "vips", "eva")
    with pytest.raises(BadSegment, match="archived"):
        lists.take(conn, "vips", [str(ANA)], "eva")
