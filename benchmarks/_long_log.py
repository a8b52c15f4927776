"""A log of millions of events, made by columns: `_generate` makes an event at a time, which would take longer than all that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from caudal.schemas.codec import Codec

from benchmarks import _generate
from caudal import kafka
from caudal.settings import Settings

__all__ = ["messages"]

BLOCK = 50_000
_KEY = {"OrderStated": "order_id", "TicketStated": "ticket_id"}


def messages(settings: Settings, codec: Codec, begin: int, end: int, customers: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the events `begin` to `end` of a mixed log, as `_generate.events` makes them.

    A block of these is made once. What follows says the same of other customers, drawn anew for each event, of their orders and
    tickets, at later times; names, lines and refunds are those of the block.
    """
    topic = kafka.topic(settings.kafka, kafka.CHANGES)
    block = codec.decode_columns([codec.encode_event(e) for e in _generate.events(BLOCK, customers, seed=begin)])
    ids = pa.array([_generate.customer_id(number) for number in range(customers)])
    draw = np.random.default_rng(begin)
    for first in range(begin, end, BLOCK):
        made: list[tuple[bytes, bytes]] = [(b"", b"")] * BLOCK
        for name, batch, places in block.batches:
            who = draw.integers(0, customers, batch.num_rows)
            of_whom = ids.take(pa.array(who))
            record = name.rpartition(".")[2]
            columns = _said_of(batch, first + places.to_numpy(), who, of_whom, key=_KEY.get(record), draw=draw)
            values = codec.encode_columns(topic, record, columns)
            for place, key, value in zip(places.to_pylist(), of_whom.to_pylist(), values, strict=True):
                made[place] = (key.encode(), value)
        yield from made[: end - first]


def _said_of(
    batch: pa.RecordBatch, positions: Any, who: Any, of_whom: pa.Array, *, key: str | None, draw: np.random.Generator
) -> pa.RecordBatch:
    start = np.datetime64(_generate.START.replace(tzinfo=None), "us")
    times = pa.array(start + positions.astype("timedelta64[ms]"), pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    said = {
        "event_id": _text("018f3c2e-7b1a-7000-8000-", pc.utf8_lpad(pa.array(positions).cast(pa.string()), 12, "0")),
        "subject": _text("shop-br:customer:", pa.array(who)),
        "customer_id": of_whom,
        "occurred_at": times,
        "captured_at": times,
    }
    if key == "order_id":
        orders = pa.array(who * 4 + draw.integers(0, 4, len(who)))
        said |= {"order_id": orders.cast(pa.string()), "number": _text("#", orders), "placed_at": times}
    elif key is not None:
        said |= {key: pa.array(who).cast(pa.string())}
    return pa.RecordBatch.from_arrays(
        [said.get(f.name, batch.column(f.name)) for f in batch.schema], schema=batch.schema
    )


def _text(prefix: str, values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(prefix, values.cast(pa.string()), "")
