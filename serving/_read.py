"""What the API reads: SQL, and the shape of the answers. Each answer is one statement, so its token is of the same snapshot."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from caudal.projections import PROVENANCE
from caudal.projections.criteria.fields import SPEND_BASE
from caudal.projections.links import gone_at, merged_at
from caudal.projections.profiles import FIELDS
from caudal.projections.segments import MEMBERS
from caudal.schemas import position
from psycopg_pool import AsyncConnectionPool

from caudal import generations
from caudal.postgres import translated

__all__ = ["KINDS", "POSITION", "Answer", "Cursor", "Customers", "Missing", "Timeline", "token_of"]

LOOKUP_LIMIT = 50
"""Most customers that one lookup returns."""

# The customer is a column here, so that one text serves a read by id and a lookup that finds several.
_PROVENANCE = PROVENANCE.replace("%(customer_id)s", "ids.customer_id")

POSITION = """
    (SELECT jsonb_build_object('generation', (SELECT number FROM hub.generation),
                               'offsets', jsonb_object_agg(partition, next_offset)) FROM live.offsets)
"""


_GONE_AT, _MERGED_AT = gone_at("live.links", "s"), merged_at("s")
_ATTRIBUTES = f"""
    SELECT DISTINCT ON (a.name) a.name, s.source, s.subject, a.occurred_at AS since
    FROM live.links s JOIN live.profile_attributes a USING (subject)
    WHERE s.customer_id = ids.customer_id AND a.value IS NOT NULL AND a.occurred_at > coalesce({_GONE_AT}, '-infinity')
    ORDER BY a.name, {{priority}} DESC, a.occurred_at <= {_MERGED_AT} IS TRUE, a.occurred_at DESC, a.captured_at DESC,
             a.event_id DESC
"""

_SPEND_BASE = f"""jsonb_build_object(
    'currency', (SELECT base FROM hub.rates LIMIT 1), 'spend_minor', {SPEND_BASE.format(spend="m.spend_minor")},
    'missing', ARRAY(SELECT c FROM jsonb_object_keys(m.spend_minor) c WHERE c NOT IN (SELECT currency FROM hub.rates) ORDER BY c))"""

_CUSTOMERS = """
    WITH ids AS ({ids})
    SELECT ids.customer_id, {position},
        (SELECT to_jsonb(p) FROM live.profiles p WHERE p.customer_id = ids.customer_id),
        (SELECT jsonb_object_agg(v.field, to_jsonb(v) - 'field') FROM ({provenance}) v),
        (SELECT jsonb_object_agg(v.name, to_jsonb(v) - 'name') FROM ({attributes}) v),
        (SELECT to_jsonb(m) - 'customer_id' || jsonb_build_object('spend_base', {spend_base})
         FROM live.metrics m WHERE m.customer_id = ids.customer_id),
        (SELECT to_jsonb(s) - 'customer_id' FROM hub.customer_scores s WHERE s.customer_id = ids.customer_id),
        (SELECT jsonb_agg(jsonb_strip_nulls(to_jsonb(g) - 'customer_id') ORDER BY g.segment)
         FROM {members} g WHERE g.customer_id = ids.customer_id),
        (SELECT jsonb_agg(to_jsonb(c) - '{{event_id,captured_at,stated}}'::text[]
                          ORDER BY c.purpose, c.occurred_at DESC, c.captured_at DESC, c.event_id DESC)
         FROM live.links s JOIN live.consents c USING (subject)
         WHERE s.customer_id = ids.customer_id AND c.occurred_at > coalesce({gone_at}, '-infinity')),
        (SELECT jsonb_agg(jsonb_build_object('subject', l.subject, 'source', l.source, 'link_seq', l.link_seq,
                              'deleted', l.deleted_at IS NOT NULL, 'deleted_at', l.deleted_at,
                              'erased', l.erased_at IS NOT NULL, 'erased_at', l.erased_at,
                              'merged_into', coalesce(l.merged_into, '{{}}')) ORDER BY l.subject)
         FROM live.links l WHERE l.customer_id = ids.customer_id),
        (SELECT jsonb_agg(jsonb_build_object('kind', i.kind, 'value', i.value, 'subjects', i.subjects) ORDER BY i.kind, i.value)
         FROM (SELECT i.kind, i.value, array_agg(i.subject ORDER BY i.subject) AS subjects
               FROM live.links l JOIN hub.identifiers i USING (subject)
               WHERE l.customer_id = ids.customer_id AND NOT i.withdrawn
               GROUP BY i.kind, i.value) i)
    FROM (SELECT) nothing LEFT JOIN ids ON true
"""

_BY_ID = "SELECT %(customer_id)s::uuid AS customer_id"
_BY_SUBJECT = "SELECT customer_id FROM live.links WHERE subject = %(value)s"
_BY_IDENTIFIER = f"""
    SELECT DISTINCT l.customer_id FROM hub.identifiers i JOIN live.links l USING (subject)
    WHERE i.kind = %(kind)s AND i.value = %(value)s AND NOT i.withdrawn ORDER BY l.customer_id LIMIT {LOOKUP_LIMIT}
"""

_WENT_TO = f"""
    SELECT {POSITION}, array_agg(DISTINCT s.customer_id)
    FROM hub.former_customers f JOIN hub.subjects s USING (subject)
    WHERE f.customer_id = %(customer_id)s AND s.customer_id <> f.customer_id
"""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of timeline item: its fact, what names an item within its source, and when it happened."""

    fact: str
    id: str
    at: str = "t.occurred_at"


_FACTS: Mapping[str, _Kind] = {
    "profile": _Kind("profile_statements", "t.subject"),
    "order": _Kind("orders", "t.source || ':' || t.order_id"),
    "refund": _Kind("refunds", "t.source || ':' || t.refund_id", "t.refunded_at"),
    "ticket": _Kind("tickets", "t.source || ':' || t.ticket_id"),
    "subscription": _Kind("subscriptions", "t.source || ':' || t.subscription_id"),
    "consent": _Kind("consents", "t.subject || ':' || t.purpose"),
    "feedback": _Kind("feedback", "t.source || ':' || t.feedback_id"),
    "interaction": _Kind("interactions", "t.source || ':' || t.interaction_id"),
}

KINDS = (*_FACTS, "link")
"""Kinds of timeline items."""

_HIDDEN = (
    "source",
    "subject",
    "occurred_at",
    "captured_at",
    "event_id",
    "stated",
    "customer_id",
    "link_seq",
    "contacts",
)
"""Columns that an item shows elsewhere, or not at all."""

_LINKS = f"""
    SELECT subject, source, customer_id, link_seq, erased_at, {_GONE_AT} AS gone_at FROM live.links s
"""


def _branch(kind: str) -> str:
    """The newest items of one kind, as rows (kind, id, at, source, subject, data)."""
    if kind == "link":
        item, at = "'link:' || t.subject", "t.linked_at"
        tables = "links s JOIN hub.subjects t USING (subject, customer_id, link_seq)"
        source, where = "s.source", "(s.erased_at IS NULL OR t.linked_at > s.erased_at)"
    else:
        fact = _FACTS[kind]
        item, at = f"'{kind}:' || {fact.id}", fact.at
        tables = f"links s JOIN live.{fact.fact} t USING (subject)"
        source, where = "t.source", "(s.gone_at IS NULL OR t.occurred_at > s.gone_at)"
        if kind not in {"profile", "consent"}:
            where = (
                "true"  # an order stays an order when the account that placed it is deleted; erasing removes the rows
            )
    return f"""
        (SELECT '{kind}' AS kind, {item} COLLATE "C" AS id, {at} AS at, {source} AS source, t.subject,
                jsonb_strip_nulls(to_jsonb(t) - %(hidden)s::text[]) AS data
         FROM {tables}
         WHERE {where} AND (%(at)s::timestamptz IS NULL OR ({at}, {item} COLLATE "C") < (%(at)s, %(id)s))
         ORDER BY 3 DESC, 2 DESC LIMIT %(limit)s)"""


def _timeline(kinds: Collection[str]) -> str:
    branches = " UNION ALL ".join(_branch(kind) for kind in KINDS if kind in kinds)
    return f"""
        WITH links AS MATERIALIZED ({_LINKS} WHERE customer_id = %(customer_id)s), items AS ({branches})
        SELECT {POSITION}, (SELECT count(*) FROM links), (SELECT bool_and(erased_at IS NOT NULL) FROM links)
                   AND NOT EXISTS (SELECT FROM live.profiles WHERE customer_id = %(customer_id)s),
               (SELECT jsonb_agg(to_jsonb(i) ORDER BY i.at DESC, i.id DESC)
                FROM (SELECT * FROM items ORDER BY at DESC, id DESC LIMIT %(limit)s) i)"""


@dataclass(frozen=True, slots=True)
class Answer:
    """Data and the token that they reflect."""

    token: str
    data: Any


@dataclass(frozen=True, slots=True)
class Missing:
    """No customer under this id: erased, gone into others, or never known."""

    token: str
    erased: bool = False
    went_to: tuple[uuid.UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of a timeline ends: everything before `at`, and at that time whatever sorts before `id`."""

    at: datetime
    id: str

    def encode(self) -> str:
        """As an opaque word."""
        raw = orjson.dumps([self.at.isoformat(), self.id])
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """From that word, or from a time: then everything before it.

        Raises:
            ValueError: it is neither.
        """
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            try:
                when, item = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
                at, item = datetime.fromisoformat(when), str(item)
            except (binascii.Error, TypeError, ValueError) as exc:
                raise ValueError("neither a cursor nor a time") from exc
        else:
            item = ""
        if at.tzinfo is None:
            raise ValueError("a time needs its zone")
        return cls(at, item)


class Customers:
    """Reads customers by id or by identifier."""

    def __init__(self, pool: AsyncConnectionPool[Any], priority: str) -> None:
        self._pool = pool
        names = {"schema": "live", "priority": priority, "fence": ""}  # one customer: no plan needs a fence
        parts = {
            "position": POSITION,
            "spend_base": _SPEND_BASE,
            "members": MEMBERS,
            "provenance": _PROVENANCE.format(**names),
            "attributes": _ATTRIBUTES.format(**names),
        }
        self._statements = {
            ids: _CUSTOMERS.format(ids=ids, gone_at=_GONE_AT, **parts) for ids in (_BY_ID, _BY_SUBJECT, _BY_IDENTIFIER)
        }

    async def by_id(self, customer_id: uuid.UUID) -> Answer | Missing:
        """The customer, or why there is none."""
        rows = await self._read(_BY_ID, {"customer_id": customer_id})
        answer = _customer(rows[0])
        if answer.data is None:
            return await went_to(self._pool, customer_id)
        if answer.data["profile"] is None and all(s["erased"] for s in answer.data["subjects"]):
            return Missing(answer.token, erased=True)
        return answer

    async def by_subject(self, subject: str) -> Answer:
        """The customer that the subject belongs to, as a list of one or none."""
        return _listed(await self._read(_BY_SUBJECT, {"value": subject}))

    async def by_identifier(self, kind: str, value: str) -> Answer:
        """The customers with the (normalised) identifier."""
        return _listed(await self._read(_BY_IDENTIFIER, {"kind": kind, "value": value}))

    async def _read(self, ids: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        with translated():
            async with self._pool.connection() as conn:
                cursor = await conn.execute(self._statements[ids], parameters)
                rows: list[tuple[Any, ...]] = await cursor.fetchall()
        return rows


class Timeline:
    """Reads what happened to a customer, newest first."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def page(
        self, customer_id: uuid.UUID, *, before: Cursor | None, limit: int, kinds: Collection[str]
    ) -> Answer | Missing:
        """Up to `limit` items before the cursor; `next` is the cursor of the following page, None at the end."""
        parameters = {
            "customer_id": customer_id,
            "at": before and before.at,
            "id": before.id if before else "",
            "limit": limit + 1,  # one more tells whether there is another page
            "hidden": list(_HIDDEN),
        }
        with translated():
            async with self._pool.connection() as conn:
                row = await (await conn.execute(_timeline(kinds), parameters)).fetchone()
        assert row is not None
        at, subjects, erased, found = row
        if not subjects:
            return await went_to(self._pool, customer_id)
        if erased:
            return Missing(token_of(at), erased=True)
        items = [_item(i) for i in (found or [])[:limit]]
        more = len(found or []) > limit
        following = Cursor(datetime.fromisoformat(items[-1]["at"]), items[-1]["id"]).encode() if more else None
        return Answer(token_of(at), {"items": items, "next": following})


async def went_to(pool: AsyncConnectionPool[Any], customer_id: uuid.UUID) -> Missing:
    """Where the subjects of an id that has none any more went."""
    with translated():
        async with pool.connection() as conn:
            row = await (await conn.execute(_WENT_TO, {"customer_id": customer_id})).fetchone()
    assert row is not None
    return Missing(token_of(row[0]), went_to=tuple(row[1] or ()))


def token_of(found: Mapping[str, Any]) -> str:
    offsets = {int(partition): offset for partition, offset in (found["offsets"] or {}).items()}
    return position.encode({generations.name(found["generation"]): offsets})


def _listed(rows: list[tuple[Any, ...]]) -> Answer:
    answers = [_customer(row) for row in rows]
    return Answer(answers[0].token, [a.data for a in answers if a.data is not None])


def _customer(row: tuple[Any, ...]) -> Answer:
    """The row of `_CUSTOMERS` as the API shows it; no data when nothing is known under the id."""
    customer_id, at, profile, provenance, attributes, metrics, scores, segments, consents, subjects, identifiers = row
    token = token_of(at)
    if not subjects:
        return Answer(token, None)
    fields: dict[str, Any] | None = None
    sources: list[str] = []
    if profile is not None:
        sources = profile["sources"]
        unknown = {"source": None, "subject": None, "since": None}
        fields = {
            name: {"value": value, **(provenance or {}).get(name, unknown)}
            for name in FIELDS
            if (value := profile[name]) is not None
        }
        fields["attributes"] = {
            name: {"value": value, **(attributes or {}).get(name, unknown)}
            for name, value in (profile["attributes"] or {}).items()
        }
    data = {
        "customer_id": customer_id,
        "sources": sources,
        "profile": fields,
        "metrics": metrics,
        "scores": scores,
        "segments": segments or [],
        "consents": consents or [],
        "subjects": subjects,
        "identifiers": identifiers or [],
    }
    return Answer(token, data)


def _item(row: dict[str, Any]) -> dict[str, Any]:
    """A timeline item; the parallel line_* arrays of an order become one list of lines."""
    data = row["data"]
    columns = {name: data.pop(name) for name in list(data) if name.startswith("line_") and isinstance(data[name], list)}
    if "line_ids" in columns:
        fields = {
            _LINE.get(name, name.removeprefix("line_").removesuffix("s")): values for name, values in columns.items()
        }
        data["lines"] = [
            {name: values[i] for name, values in fields.items() if values[i] is not None}
            for i in range(len(columns["line_ids"]))
        ]
    return row


_LINE = {
    "line_ids": "line_id",
    "line_categories": "category",
    "line_quantities": "quantity",
    "line_unit_prices_minor": "unit_price_minor",
    "line_discounts_minor": "discount_minor",
    "line_taxes_minor": "tax_minor",
}
"""Line columns whose field isn't just the name without `line_` and the plural s."""
