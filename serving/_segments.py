"""What the API and the commands tell of segments. Every answer is a bounded piece of work; what would not be is estimated, and says so."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
from caudal.projections import criteria
from caudal.projections.criteria import Condition
from caudal.projections.membership import definitions
from caudal.projections.membership.definitions import Segment
from caudal.projections.membership.reasons import turns
from caudal.projections.segments import BUILT_IN_MEMBERS, CRITERIA, MEMBERS, MOVES, SEGMENTS
from caudal.serving._read import POSITION, Answer, Cursor, Missing, token_of, went_to
from caudal.serving._search import Search, Searched
from psycopg_pool import AsyncConnectionPool

from caudal.postgres import translated

__all__ = ["Segments", "plain"]

SAMPLE = 10_000
"""So many members of a segment are looked at for its overlap; ids are hashes, so the first ones are a fair sample."""
CANDIDATES = 5_000
"""So many customers are judged by criteria that take longer than `SLOW_MS`."""
SLOW_MS = 1_000
COUNTED = 200_000
"""Of so many memberships sizes are estimated when counting all of them takes longer."""

_SIZES = """
    SELECT s.name, (m.size * {times_defined})::bigint
    FROM (SELECT segment_id, count(*) AS size FROM hub.segment_memberships {of_defined} GROUP BY segment_id) m
    JOIN hub.segments s ON s.id = m.segment_id
    UNION ALL SELECT segment, (count(*) * {times_built_in})::bigint FROM live.segment_members {of_built_in} GROUP BY segment
"""
_ROWS = """
    SELECT greatest(reltuples, 1)::float8 FROM unnest(ARRAY['hub.segment_memberships', 'live.segment_members']) WITH ORDINALITY t(name, n)
    JOIN pg_class ON oid = t.name::regclass ORDER BY n
"""
_VERSIONS = """
    SELECT v.version, v.criteria, v.description, v.changed_at, v.changed_by FROM hub.segment_versions v WHERE segment_id = %s
    ORDER BY version DESC
"""
_DEFINED_MEMBERS = """
    SELECT customer_id, entered_at FROM hub.segment_memberships
    WHERE segment_id = %(segment)s AND customer_id > %(after)s ORDER BY customer_id LIMIT %(limit)s
"""
_BUILT_IN_MEMBERS = f"""
    SELECT customer_id, entered_at FROM {BUILT_IN_MEMBERS} b
    WHERE segment = %(segment)s AND customer_id > %(after)s ORDER BY customer_id LIMIT %(limit)s
"""
_KNOWN = f"""
    SELECT {POSITION}, count(*), bool_and(erased_at IS NOT NULL) AND NOT EXISTS (SELECT FROM live.profiles WHERE customer_id = %(customer)s)
    FROM live.links WHERE customer_id = %(customer)s
"""
_LIST_CHANGES = """
    SELECT change, customers, changed_at, changed_by FROM hub.segment_list_changes WHERE segment_id = %s
    ORDER BY changed_at DESC LIMIT 100
"""
# two changes of one membership never share a moment
_HISTORY = f"""
    SELECT segment, version, entered, at, cause FROM (
        SELECT s.name AS segment, h.version, h.entered, h.at, h.cause
        FROM hub.segment_history h JOIN hub.segments s ON s.id = h.segment_id WHERE h.customer_id = %(customer)s
        UNION ALL
        SELECT m.segment, NULL, m.entered, m.at, m.cause FROM {MOVES} m WHERE m.customer_id = %(customer)s
    ) told WHERE %(at)s::timestamptz IS NULL OR (at, segment COLLATE "C") < (%(at)s, %(name)s)
    ORDER BY at DESC, segment COLLATE "C" DESC LIMIT %(limit)s
"""
_LAST = """
    SELECT (SELECT entered_at FROM hub.segment_memberships WHERE customer_id = %(customer)s AND segment_id = %(segment)s),
           (SELECT jsonb_build_object('entered', h.entered, 'at', h.at, 'version', h.version, 'cause', h.cause) FROM hub.segment_history h
            WHERE h.customer_id = %(customer)s AND h.segment_id = %(segment)s ORDER BY h.at DESC LIMIT 1),
           EXISTS (SELECT FROM hub.segment_listed WHERE segment_id = %(segment)s AND customer_id IN (
               SELECT %(customer)s::uuid UNION ALL
               SELECT f.customer_id FROM hub.subjects s JOIN hub.former_customers f USING (subject) WHERE s.customer_id = %(customer)s))
"""
_BUILT_IN_LAST = f"""
    SELECT EXISTS (SELECT FROM live.segment_members WHERE customer_id = %(customer)s AND segment = %(segment)s),
           (SELECT jsonb_build_object('entered', entered, 'at', at, 'version', NULL, 'cause', cause) FROM {MOVES} m
            WHERE customer_id = %(customer)s AND segment = %(segment)s ORDER BY at DESC LIMIT 1)
"""
# behind a fence memberships are looked up by customer, however many there are
_OVERLAP = f"""
    WITH base AS MATERIALIZED ({{base}})
    SELECT NULL, count(*) FROM base
    UNION ALL SELECT g.segment, count(*) FROM base CROSS JOIN LATERAL (
        SELECT segment FROM {MEMBERS} m WHERE m.customer_id = base.customer_id OFFSET 0
    ) g GROUP BY g.segment
"""


def plain(segment: Segment) -> dict[str, Any]:
    """A defined segment as JSON values."""
    filling = segment.state in {"filling", "leaving"}
    return {
        "name": segment.name,
        "kind": "list" if segment.condition is None else "criteria",
        "description": segment.description,
        "state": segment.state,
        "progress": round(segment.filled.int / 2**128, 4) if filling else None,
        "version": segment.version,
        "criteria": criteria.dump(segment.condition) if segment.condition else None,
        "text": criteria.print_text(segment.condition) if segment.condition else None,
        "created_at": segment.created_at,
        "changed_at": segment.changed_at,
        "changed_by": segment.changed_by,
    }


def _built_in(name: str) -> dict[str, Any]:
    empty = dict.fromkeys(("progress", "version", "created_at", "changed_at", "changed_by"))
    condition = _criteria(name)
    said = {"criteria": criteria.dump(condition), "text": criteria.print_text(condition)}
    return {"name": name, "kind": "built-in", "description": "", "state": "live", **said, **empty}


def _criteria(name: str) -> Condition:
    """Who belongs to a built-in segment."""
    return criteria.parse(CRITERIA[name])


class Segments:
    """Reads segments, built-in and defined ones."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._search = Search(pool)

    async def personal(self, condition: Condition | None) -> bool:
        """Whether criteria speak of personal data, also by segments that they name."""
        if condition is None:
            return False
        return bool(criteria.personal(condition) or criteria.segments_named(condition) & await self.personal_names())

    async def personal_names(self) -> set[str]:
        """The names of the defined segments whose criteria speak of personal data, also by segments that they name."""
        rows = await self._rows(f"SELECT {definitions.COLUMNS} FROM hub.segments")
        defined = [definitions.of_row(row) for row in rows]
        return criteria.personal_segments({s.name: s.condition for s in defined if s.condition is not None})

    async def listed(self, *, archived: bool = False) -> list[dict[str, Any]]:
        """Every segment by name, with its size; `exact` is False where that is an estimate."""
        only = "" if archived else "WHERE state <> 'archived'"
        rows = await self._rows(f"SELECT {definitions.COLUMNS} FROM hub.segments {only}")
        found = [plain(definitions.of_row(row)) for row in rows] + [_built_in(name) for name in SEGMENTS]
        sizes = await self._in_time(_SIZES.format(times_defined=1, of_defined="", times_built_in=1, of_built_in=""))
        exact = sizes is not None
        counts = dict(await self._estimated() if sizes is None else sizes)
        return [
            {**each, "size": counts.get(each["name"], 0), "exact": exact}
            for each in sorted(found, key=lambda each: str(each["name"]))
        ]

    async def _estimated(self) -> list[Any]:
        """Sizes after a sample of the memberships."""
        parts = [min(1.0, COUNTED / rows) for (rows,) in await self._rows(_ROWS)]
        samples = [f"TABLESAMPLE SYSTEM ({100 * part:.6f})" for part in parts]
        return await self._rows(
            _SIZES.format(
                times_defined=1 / parts[0], of_defined=samples[0], times_built_in=1 / parts[1], of_built_in=samples[1]
            )
        )

    async def one(self, name: str) -> dict[str, Any]:
        """A segment with its size.

        Raises:
            UnknownSegment: there is none.
        """
        segment = await self._named(name)
        size = await self._size(segment, name)
        return {**(_built_in(name) if segment is None else plain(segment)), "size": size, "exact": True}

    async def versions(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """What it was, newest first, and the newest changes of who is on a list; none of a built-in segment.

        Raises:
            UnknownSegment: there is none.
        """
        segment = await self._named(name)
        if segment is None:
            return {"versions": [], "list_changes": []}
        names = ("version", "criteria", "description", "changed_at", "changed_by")
        versions = [dict(zip(names, row, strict=True)) for row in await self._rows(_VERSIONS, (segment.id,))]
        told = ("change", "customers", "changed_at", "changed_by")
        changes = [dict(zip(told, row, strict=True)) for row in await self._rows(_LIST_CHANGES, (segment.id,))]
        return {"versions": versions, "list_changes": changes}

    async def members(self, name: str, *, after: uuid.UUID | None, limit: int) -> dict[str, Any]:
        """A page of the members by id; `next` is the last one's id, None at the end.

        Raises:
            UnknownSegment: there is none.
        """
        segment = await self._named(name)
        parameters = {
            "after": after or uuid.UUID(int=0),
            "limit": limit + 1,
            "segment": segment.id if segment else name,
        }
        rows = await self._rows(_DEFINED_MEMBERS if segment else _BUILT_IN_MEMBERS, parameters)
        members = [{"customer_id": customer, "entered_at": at} for customer, at in rows[:limit]]
        return {"members": members, "next": members[-1]["customer_id"] if len(rows) > limit else None}

    async def history(self, customer: uuid.UUID, *, before: Cursor | None, limit: int) -> dict[str, Any] | Missing:
        """When a customer entered and left segments and why, newest first; `before` a time and, at that time, a segment."""
        if gone := await self._missing(customer):
            return gone
        parameters = {
            "customer": customer,
            "at": before and before.at,
            "name": before and before.id,
            "limit": limit + 1,
        }
        rows = await self._rows(_HISTORY, parameters)
        items = [
            {"segment": name, "version": version, "change": "entered" if entered else "left", "at": at, "cause": cause}
            for name, version, entered, at, cause in rows[:limit]
        ]
        following = Cursor(items[-1]["at"], items[-1]["segment"]).encode() if len(rows) > limit else None
        return {"customer_id": customer, "items": items, "next": following}

    async def preview(self, condition: Condition, *, limit: int, fields: tuple[str, ...]) -> Answer:
        """How many customers the criteria hold of now, and some of them.

        Raises:
            BadCriteria: the fields or segments that are named aren't there.
        """
        found = await self._search.page(Searched(criteria=condition, count=True, limit=limit, fields=fields))
        data = {"count": found.data["count"], "sample": found.data["customers"]}
        return Answer(found.token, data | {name: found.data[name] for name in ("hints",) if name in found.data})

    async def overlap(self, of: str | Condition) -> dict[str, Any]:
        """How many of a segment's members, or of whom criteria hold of, are in the other segments too, most first.

        Raises:
            UnknownSegment: there is none.
            BadCriteria: segments that are named aren't there.
        """
        if isinstance(of, str):
            segment = await self._named(of)
            size, exact = await self._size(segment, of), True
            base = _DEFINED_MEMBERS if segment else _BUILT_IN_MEMBERS
            parameters = {"segment": segment.id if segment else of, "after": uuid.UUID(int=0), "limit": SAMPLE}
            rows = await self._rows(_OVERLAP.format(base=base), parameters)
        else:
            found = await self._search.page(Searched(criteria=of, count=True, limit=1, fields=()))
            size, exact = found.data["count"]["value"], found.data["count"]["exact"]
            rows, whole = await self._judged(of)
            exact = exact and whole
        looked = next(count for name, count in rows if name is None)
        others = [(name, count) for name, count in rows if name is not None and name != of]
        exact = exact and looked == size
        return {
            "size": size,
            "exact": exact,
            "segments": [
                {
                    "segment": name,
                    "count": count if exact else round(count / looked * size),
                    "share": round(count / looked, 4),
                }
                for name, count in sorted(others, key=lambda each: (-each[1], each[0]))
            ],
        }

    async def _judged(self, condition: Condition) -> tuple[list[Any], bool]:
        """The overlap of a sample of those whom criteria hold of; and whether all customers were looked at for it."""
        holds = criteria.predicate(condition)
        for candidates in ("live.profiles", f"(SELECT * FROM live.profiles ORDER BY customer_id LIMIT {CANDIDATES})"):
            base = f"""
                SELECT p.customer_id FROM {candidates} p LEFT JOIN live.metrics m ON m.customer_id = p.customer_id
                WHERE {holds.text} ORDER BY p.customer_id LIMIT {SAMPLE}"""
            statement, parameters = _OVERLAP.format(base=base), {**holds.parameters, "now": datetime.now(UTC)}
            whole = candidates == "live.profiles"
            rows = await (self._in_time if whole else self._rows)(statement, parameters)
            if rows is not None:
                break
        assert rows is not None
        return rows, whole

    async def explain(self, name: str, customer: uuid.UUID) -> dict[str, Any] | Missing:
        """Why a customer is in a segment or not, since when, and what would change it.

        Raises:
            UnknownSegment: there is none.
        """
        segment = await self._named(name)
        if gone := await self._missing(customer):
            return gone
        told: dict[str, Any] = {
            "segment": name,
            "customer_id": customer,
            "state": segment.state if segment else "live",
        }
        if segment is None:
            [(member, last)] = await self._rows(_BUILT_IN_LAST, {"customer": customer, "segment": name})
            last = last and _change(last)
            since = last["at"] if member and last and last["change"] == "entered" else None
            told |= {"member": member, "since": since, "last_change": last}
            return told | await self._explained(_criteria(name), customer)
        [(since, last, listed)] = await self._rows(_LAST, {"customer": customer, "segment": segment.id})
        told |= {"member": since is not None, "since": since, "last_change": last and _change(last)}
        if segment.condition is None:
            way = "it is taken off the list" if listed else "it is put on the list"
            told |= {"holds": listed, "next_look_at": None, "would_change": way, "conditions": []}
        else:
            told |= await self._explained(segment.condition, customer)
        if segment.state in {"leaving", "archived"}:
            told |= {"next_look_at": None, "would_change": "an edit brings the archived segment back"}
        return told

    async def _explained(self, condition: Condition, customer: uuid.UUID) -> dict[str, Any]:
        """Which conditions hold of a customer, and what would turn the whole."""
        judged, nodes = criteria.explanation(condition), criteria.conditions(condition)
        asked = {"customer": customer, "customers": [customer], "now": datetime.now(UTC)}
        rows = await self._rows(judged.text, {**judged.parameters, **asked})
        causes = criteria.because([node for _, node in nodes])
        told = await self._rows(causes.text, {**causes.parameters, **asked})
        # nothing is known of a customer whose accounts were all deleted: no profile, so no member
        _, holds, dues = rows[0] if rows else (customer, [False] * len(nodes), [None] * len(nodes))
        return {
            "holds": holds[0],
            "next_look_at": dues[0],
            "would_change": turns(condition, {path: held for (path, _), held in zip(nodes, holds, strict=True)}),
            "conditions": [
                {
                    "path": path,
                    "condition": criteria.print_text(node),
                    "holds": held,
                    "next_look_at": due,
                    "because": cause if held else None,
                }
                for (path, node), held, due, cause in zip(
                    nodes, holds, dues, told[0][0] if told else [None] * len(nodes), strict=True
                )
            ],
        }

    async def _named(self, name: str) -> Segment | None:
        """The segment; None for a built-in one."""
        if name in SEGMENTS:
            return None
        rows = await self._rows(f"SELECT {definitions.COLUMNS} FROM hub.segments WHERE name = %s", (name,))
        if not rows:
            raise definitions.unknown(name, [*await self._known(), *SEGMENTS])
        return definitions.of_row(rows[0])

    async def _known(self) -> list[str]:
        """The names of the defined segments."""
        return [name for (name,) in await self._rows(definitions.KNOWN)]

    async def _size(self, segment: Segment | None, name: str) -> int:
        statement = (
            "SELECT count(*) FROM hub.segment_memberships WHERE segment_id = %s"
            if segment
            else "SELECT count(*) FROM live.segment_members WHERE segment = %s"
        )
        [(size,)] = await self._rows(statement, (segment.id if segment else name,))
        return int(size)

    async def _missing(self, customer: uuid.UUID) -> Missing | None:
        [(at, subjects, erased)] = await self._rows(_KNOWN, {"customer": customer})
        if not subjects:
            return await went_to(self._pool, customer)
        return Missing(token_of(at), erased=True) if erased else None

    async def _rows(self, statement: str, parameters: Any = None) -> list[Any]:
        with translated():
            async with self._pool.connection() as conn:
                rows: list[Any] = await (await conn.execute(statement, parameters, prepare=False)).fetchall()
        return rows

    async def _in_time(self, statement: str, parameters: Any = None) -> list[Any] | None:
        """The rows; None when they take longer than `SLOW_MS`."""
        with translated():
            async with self._pool.connection() as conn:
                try:
                    async with conn.transaction():
                        await conn.execute(f"SET LOCAL statement_timeout = {SLOW_MS}", prepare=False)
                        await conn.execute("SET LOCAL plan_cache_mode = force_custom_plan", prepare=False)
                        rows: list[Any] = await (await conn.execute(statement, parameters, prepare=False)).fetchall()
                except psycopg.errors.QueryCanceled:
                    return None
        return rows


def _change(last: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromisoformat(last["at"])
    return {
        "change": "entered" if last["entered"] else "left",
        "at": at,
        "version": last["version"],
        "cause": last["cause"],
    }
