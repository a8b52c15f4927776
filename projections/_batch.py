"""A batch of messages made ready for the database: decoded into columns, reshaped into facts, encoded for COPY. No database here.

This runs in a thread beside the database work of the batch before it; nearly all of it is native code that frees the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from caudal.projections import _copy, _places
from caudal.projections._fact import Fact
from caudal.projections._schema import FACTS
from caudal.schemas.codec import Codec
from caudal.schemas.dead_letters import Message

from caudal.errors import UndecodableRecord, UnusableEvent

__all__ = ["ALL", "LINKED", "Batch", "Message", "bit", "prepare", "stripe"]

LINKED = 1 << len(FACTS)
"""Bit of `facts` in the staging tables that says that a customer's links were stated."""
ALL = (LINKED << 1) - 1
STRIPES = 64


def bit(name: str) -> int:
    """The bit of a fact, or of the links, in the `facts` masks."""
    return LINKED if name == "links" else 1 << next(i for i, fact in enumerate(FACTS) if fact.name == name)


def stripe(customer_id: str) -> int:
    """The lock stripe of a customer: CRC32, as librdkafka's default partitioner, so a partition's customers lie in few stripes."""
    return crc32(customer_id.encode()) & (STRIPES - 1)


_OF_EVENT: Mapping[str, tuple[Fact, ...]] = {
    event: tuple(f for f in FACTS if f.event == event) for event in {fact.event for fact in FACTS}
}


@dataclass
class Batch:
    """Messages in order, and what was made of them.

    Attributes:
        messages: as consumed.
        next_offsets: partition → offset after the batch.
        first_offsets: partition → offset of the batch's first message.
        stages: staging table → (columns, COPY stream).
        masks: fact → set of (source, stated) masks, for facts with partial statements.
        places: where in the log each named subject is spoken of, see _places.py; a rebuild stores them as the runner does.
        stripes: lock stripes of the customers named in the events.
        bad: messages that can't be used, with the reason.
        counts: record name → events.
        gone: whether subjects are deleted or erased in it.
    """

    messages: Sequence[Message]
    next_offsets: dict[int, int] = field(default_factory=dict)
    first_offsets: dict[int, int] = field(default_factory=dict)
    stages: dict[str, tuple[tuple[str, ...], bytes]] = field(default_factory=dict)
    masks: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    places: _places.Packed = (b"", b"")
    stripes: set[int] = field(default_factory=set)
    bad: list[tuple[Message, UndecodableRecord | UnusableEvent]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    gone: bool = False


def prepare(codec: Codec, messages: Sequence[Message]) -> Batch:
    """Decode and reshape; never raises for a bad message (see `Batch.bad`)."""
    batch = Batch(messages)
    values, partitions, offsets = [], [], []
    for message in messages:
        partition, offset = message.partition() or 0, message.offset() or 0
        partitions.append(partition)
        offsets.append(offset)
        batch.first_offsets.setdefault(partition, offset)
        batch.next_offsets[partition] = offset + 1
        values.append(message.value() or b"")
    columns = codec.decode_columns(values)
    for index, reason in columns.bad:
        batch.bad.append((messages[index], reason))
    subjects: list[pa.Table] = []
    gone: list[pa.Table] = []
    rows: dict[str, list[pa.Table]] = {}
    named: list[_places.Named] = []
    for name, records, positions in columns.batches:
        event = name.rpartition(".")[2]
        if event not in _OF_EVENT and event not in _WITHOUT_FACT:
            batch.bad += [
                (messages[int(i)], UnusableEvent(f"{event} is no event of customer.changes")) for i in positions
            ]
            continue
        batch.counts[event] = batch.counts.get(event, 0) + records.num_rows
        facts = sum(bit(fact.name) for fact in _OF_EVENT.get(event, ())) or LINKED
        subjects.append(_subjects(records, facts))
        named.append((records.column("subject"), np.array(positions)))
        for fact in _OF_EVENT.get(event, ()):
            table = fact.rows(records)
            if table is not None:
                rows.setdefault(fact.name, []).append(table)
        if event in _GONE:
            gone_rows, gone_subjects = _GONE[event](records)
            gone.append(gone_rows)
            subjects.append(gone_subjects)
            if event == "CustomerErased":
                every = records.column("subjects")
                named.append((pc.list_flatten(every), np.array(positions)[pc.list_parent_indices(every).to_numpy()]))
    if subjects:
        batch.places = _places.pack(named, partitions, offsets)
        _stage(batch, subjects, gone, rows)
    return batch


def _stage(batch: Batch, subjects: list[pa.Table], gone: list[pa.Table], rows: dict[str, list[pa.Table]]) -> None:
    stated = pa.concat_tables(subjects)
    batch.stripes = {stripe(c) for c in pc.unique(stated.column("customer_id")).to_pylist()}
    batch.stages["subjects"] = (tuple(stated.column_names), _copy.encode(stated.combine_chunks()))
    for fact in FACTS:
        if fact.name not in rows:
            continue
        table = pa.concat_tables(rows[fact.name]).combine_chunks()
        jsonb = frozenset(c.name for c in fact.columns if c.type == "jsonb")
        batch.stages[fact.name] = (tuple(table.column_names), _copy.encode(table, jsonb))
        if fact.partial:
            masks = table.select(["source", "stated"]).group_by(["source", "stated"]).aggregate([])
            batch.masks[fact.name] = set(zip(masks["source"].to_pylist(), masks["stated"].to_pylist(), strict=True))
    if gone:
        table = pa.concat_tables(gone).combine_chunks()
        batch.stages["gone"] = (tuple(table.column_names), _copy.encode(table))
        batch.gone = True


def _subjects(records: pa.RecordBatch, facts: int) -> pa.Table:
    """One row per distinct link stated, with which facts of the subject are stated and one event that did."""
    link = pa.table({name: records.column(name) for name in ("subject", "customer_id", "link_seq", "event_id")})
    # `last` needs the order of the rows, so one thread
    distinct = link.group_by(["subject", "customer_id", "link_seq"], use_threads=False).aggregate(
        [("event_id", "last")]
    )
    return pa.table(
        {
            "subject": distinct["subject"],
            "customer_id": distinct["customer_id"],
            "link_seq": distinct["link_seq"],
            "event_id": distinct["event_id_last"],
            "facts": pa.array(np.full(distinct.num_rows, facts, np.int32)),
        }
    )


def _gone(subjects: Any, kinds: Any, at: Any) -> pa.Table:
    erased = pc.equal(kinds, "erased")
    none = pa.scalar(None, at.type)
    return pa.table(
        {
            "subject": subjects,
            "deleted_at": pc.if_else(erased, none, at),
            "erased_at": pc.if_else(erased, at, none),
        }
    )


def _subject_deleted(records: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    at = records.column("occurred_at")
    return _gone(records.column("subject"), records.column("kind"), at), _subjects(records, ALL)


def _customer_erased(records: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    """An erasure speaks of every subject it names; the link it gives them has seq 0, so that any real link wins."""
    parents = pc.list_parent_indices(records.column("subjects"))
    named = pc.list_flatten(records.column("subjects"))
    links = pa.RecordBatch.from_pydict(
        {
            "subject": named,
            "customer_id": records.column("customer_id").take(parents),
            "link_seq": pa.array(np.zeros(len(named), np.int64)),
            "event_id": records.column("event_id").take(parents),
        }
    )
    kinds = pa.array(["erased"] * len(named), pa.string())
    return _gone(named, kinds, records.column("occurred_at").take(parents)), _subjects(links, ALL)


_GONE = {"SubjectDeleted": _subject_deleted, "CustomerErased": _customer_erased}
_WITHOUT_FACT = {"SubjectLinked", "SubjectDeleted", "CustomerErased"}
