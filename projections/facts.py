"""Every fact: what is known, one row per thing stated, each from one event type.

`links` (subject → customer) is the exception: every event repeats its link, so it is written from all of them; see _sql.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from caudal.projections._fact import HEADER, Column, Fact, Record

__all__ = ["FACTS"]


def _header(batch: pa.RecordBatch, parents: pa.Array) -> dict[str, pa.Array]:
    """The header columns repeated for the rows that came of each event."""
    return {name: batch.column(name).take(parents) for name in HEADER}


def _header_of(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in HEADER}


def _attributes(batch: pa.RecordBatch) -> pa.RecordBatch | None:
    entries = batch.column("attributes").cast(pa.map_(pa.string(), pa.string()))
    if len(entries.keys) == 0:
        return None
    # a map is a list of (key, value): its offsets say which event each entry came from
    lengths = np.diff(entries.offsets.to_numpy())
    parents = pa.array(np.repeat(np.arange(len(entries)), lengths))
    start, stop = entries.offsets[0].as_py(), entries.offsets[-1].as_py()
    names, values = entries.keys[start:stop], entries.items[start:stop]
    return pa.RecordBatch.from_pydict({**_header(batch, parents), "name": names, "value": values})


def _attributes_of(record: Record) -> list[Record]:
    return [{**_header_of(record), "name": name, "value": value} for name, value in record["attributes"].items()]


def _refunds(batch: pa.RecordBatch) -> pa.RecordBatch | None:
    refunds = batch.column("refunds")
    entries = pc.list_flatten(refunds)
    if len(entries) == 0:
        return None
    parents = pc.list_parent_indices(refunds)
    own = {
        name: pc.struct_field(entries, name)
        for name in ("refund_id", "refunded_at", "amount_minor", "currency", "reason")
    }
    return pa.RecordBatch.from_pydict(
        {**_header(batch, parents), "order_id": batch.column("order_id").take(parents), **own}
    )


def _refunds_of(record: Record) -> list[Record]:
    return [{**_header_of(record), "order_id": record["order_id"], **refund} for refund in record["refunds"]]


_LINE = {
    "line_ids": ("line_id", "text[]"),
    "line_skus": ("sku", "text[]"),
    "line_product_ids": ("product_id", "text[]"),
    "line_products": ("product", "text[]"),
    "line_variants": ("variant", "text[]"),
    "line_categories": ("category", "text[]"),
    "line_brands": ("brand", "text[]"),
    "line_quantities": ("quantity", "integer[]"),
    "line_unit_prices_minor": ("unit_price_minor", "bigint[]"),
    "line_discounts_minor": ("discount_minor", "bigint[]"),
    "line_taxes_minor": ("tax_minor", "bigint[]"),
}


def _orders(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Lines become one array column per field: they are stated, and replaced, as a whole."""
    lines = batch.column("lines")
    entries = pc.list_flatten(lines)
    lengths = pc.fill_null(pc.list_value_length(lines), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    absent = lines.is_null()
    arrays = {
        column: pa.ListArray.from_arrays(offsets, pc.struct_field(entries, name), mask=absent)
        for column, (name, _) in _LINE.items()
    }
    return pa.RecordBatch.from_pydict({**{n: batch.column(n) for n in batch.schema.names}, **arrays})


def _order_of(record: Record) -> list[Record]:
    lines = record["lines"]
    arrays = {column: None if lines is None else [line[name] for line in lines] for column, (name, _) in _LINE.items()}
    return [{**record, **arrays}]


def _json(column: str, kind: type[dict[str, Any]] | type[list[Any]]) -> dict[str, Any]:
    """The options of a fact that keeps a field, a map or an array, as JSON."""

    def text(value: Any) -> str | None:
        return None if value is None else orjson.dumps(kind(value)).decode()

    def reshape(batch: pa.RecordBatch) -> pa.RecordBatch:
        values = [text(value) for value in batch.column(column).to_pylist()]  # of a map, a list of (key, value)
        return batch.set_column(batch.schema.get_field_index(column), column, pa.array(values, pa.string()))

    def reshape_one(record: Record) -> list[Record]:
        return [{**record, column: text(record[column])}]

    return {"reshape": reshape, "reshape_one": reshape_one, "more": (Column(column, "jsonb", column),)}


FACTS = (
    Fact.of("profile_statements", "ProfileStated", ("subject",), partial=True),
    Fact(
        "profile_attributes",
        "ProfileStated",
        ("subject", "name"),
        (Column("value", "text", "value"),),
        reshape=_attributes,
        reshape_one=_attributes_of,
    ),
    Fact.of(
        "orders",
        "OrderStated",
        ("order_id", "source"),
        partial=True,
        reshape=_orders,
        reshape_one=_order_of,
        indexes=("subject",),
        more=tuple(Column(name, type_, "lines") for name, (_, type_) in _LINE.items()),
    ),
    Fact(
        "refunds",
        "OrderStated",
        ("refund_id", "source"),
        (
            Column("order_id", "text", "order_id"),
            Column("refunded_at", "timestamptz", "refunded_at"),
            Column("amount_minor", "bigint", "amount_minor"),
            Column("currency", "text", "currency"),
            Column("reason", "text", "reason"),
        ),
        reshape=_refunds,
        reshape_one=_refunds_of,
        indexes=("subject",),
    ),
    Fact.of("tickets", "TicketStated", ("ticket_id", "source"), partial=True, indexes=("subject",)),
    Fact.of("subscriptions", "SubscriptionStated", ("subscription_id", "source"), partial=True, indexes=("subject",)),
    Fact.of("consents", "ConsentStated", ("subject", "purpose")),
    Fact.of(
        "feedback",
        "FeedbackStated",
        ("feedback_id", "source"),
        **_json("answers", list),
        indexes=("subject",),
    ),
    Fact.of(
        "interactions",
        "InteractionRecorded",
        ("interaction_id", "source"),
        **_json("properties", dict),
        indexes=("subject",),
    ),
    Fact.of("corrections", "FieldCorrected", ("subject", "field")),
)
"""Every fact, in the order in which they are written (a fixed order, so that two workers never wait for each other in a circle)."""
