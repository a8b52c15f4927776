"""A batch of messages made ready for the database: decoded into columns, reshaped into facts, encoded for COPY. No database here.

For a few messages _few.py does the same by rows. This runs in a thread beside the database work of the batch before it; nearly all of it
is native code that frees the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from caudal.projections import _copy, _places, _vet
from caudal.projections._fact import Fact
from caudal.projections._schema import FACTS
from caudal.schemas.codec import Codec
from caudal.schemas.dead_letters import Message

from caudal.errors import UndecodableRecord, UnusableEvent

__all__ = [
    "ALL",
    "LINKED",
    "OF_EVENT",
    "STRIPES",
    "WITHOUT_FACT",
    "Batch",
    "Message",
    "Tables",
    "bit",
    "decoded",
    "encoded",
    "masks",
    "prepare",
    "stripe",
]

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


OF_EVENT: Mapping[str, tuple[Fact, ...]] = {
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
        relinked: whether links of one subject are stated differently in it.
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
    relinked: bool = False

    def pass_over(self, message: Message) -> tuple[int, int]:
        """Note that the batch goes beyond this message; its partition and offset."""
        partition, offset = message.partition() or 0, message.offset() or 0
        self.first_offsets.setdefault(partition, offset)
        self.next_offsets[partition] = offset + 1
        return partition, offset


def prepare(codec: Codec, messages: Sequence[Message]) -> Batch:
    """Decode and reshape; never raises for a bad message (see `Batch.bad`)."""
    batch, tables = decoded(codec, messages)
    if tables.subjects:
        _stage(batch, tables)
    return batch


@dataclass
class Tables:
    """What a batch says, in pieces by event type: the links stated, what is gone, and the rows of each fact."""

    subjects: list[pa.Table] = field(default_factory=list)
    gone: list[pa.Table] = field(default_factory=list)
    rows: dict[str, list[pa.Table]] = field(default_factory=dict)


def decoded(codec: Codec, messages: Sequence[Message], *, upto: datetime | None = None) -> tuple[Batch, Tables]:
    """Messages as columns, not yet encoded for COPY; `upto` leaves out what was captured later."""
    batch, tables = Batch(messages), Tables()
    at = [batch.pass_over(message) for message in messages]
    columns = codec.decode_columns([message.value() or b"" for message in messages])
    for index, reason in columns.bad:
        batch.bad.append((messages[index], reason))
    named: list[_places.Named] = []
    for name, every, places in columns.batches:
        event = name.rpartition(".")[2]
        if event not in OF_EVENT and event not in WITHOUT_FACT:
            batch.bad += [(messages[int(i)], UnusableEvent(f"{event} is no event of customer.changes")) for i in places]
            continue
        records, positions = every, np.array(places)
        if faults := _vet.faults(event, records):
            batch.bad += [(messages[positions[i]], UnusableEvent(f"{event}: {why}")) for i, why in faults.items()]
            kept = np.delete(np.arange(len(positions)), list(faults))
            records, positions = records.take(pa.array(kept)), positions[kept]
        if upto is not None:
            kept = pc.less_equal(every.column("captured_at"), pa.scalar(upto, pa.timestamp("us", "UTC")))
            records, positions = every.filter(kept), positions[kept.to_numpy(zero_copy_only=False)]
        batch.counts[event] = batch.counts.get(event, 0) + records.num_rows
        if not records.num_rows:
            continue
        facts = sum(bit(fact.name) for fact in OF_EVENT.get(event, ())) or LINKED
        tables.subjects.append(_subjects(records, facts))
        named.append((records.column("subject"), positions))
        for fact in OF_EVENT.get(event, ()):
            table = fact.rows(records)
            if table is not None:
                tables.rows.setdefault(fact.name, []).append(table)
        if event in _GONE:
            gone_rows, gone_subjects = _GONE[event](records)
            tables.gone.append(gone_rows)
            tables.subjects.append(gone_subjects)
            if event == "CustomerErased":
                every_one = records.column("subjects")
                named.append((pc.list_flatten(every_one), positions[pc.list_parent_indices(every_one).to_numpy()]))
    if named:
        batch.places = _places.pack(named, at)
    return batch, tables


def _stage(batch: Batch, tables: Tables) -> None:
    stated = _distinct(tables.subjects)
    subjects = stated.column("subject")
    batch.relinked = len(pc.unique(subjects)) < len(subjects)
    batch.stripes = {stripe(c) for c in pc.unique(stated.column("customer_id")).to_pylist()}
    batch.stages["subjects"] = (tuple(stated.column_names), _copy.encode(stated))
    for fact in FACTS:
        if fact.name not in tables.rows:
            continue
        table = pa.concat_tables(tables.rows[fact.name]).combine_chunks()
        batch.stages[fact.name] = (tuple(table.column_names), encoded(fact, table))
        if fact.partial:
            batch.masks[fact.name] = masks(table)
    if tables.gone:
        table = pa.concat_tables(tables.gone).combine_chunks()
        batch.stages["gone"] = (tuple(table.column_names), _copy.encode(table))
        batch.gone = True


def encoded(fact: Fact, table: pa.Table) -> bytes:
    """A fact's rows as a COPY stream."""
    return _copy.encode(table, frozenset(c.name for c in fact.columns if c.type == "jsonb"))


def masks(table: pa.Table) -> set[tuple[str, int]]:
    """The sets of fields that a partial fact's rows state, by source."""
    sources = table.column("source").combine_chunks().dictionary_encode()
    names = sources.dictionary.to_pylist()
    stated, codes = table.column("stated").to_numpy(), sources.indices.to_numpy()
    return {(name, mask) for code, name in enumerate(names) for mask in np.unique(stated[codes == code]).tolist()}


MERGED = "merged"
"""Of `SubjectDeleted`: as a reason, the subject went into another one; as a kind, one of the two went into the other."""
_LINK = ["subject", "customer_id", "link_seq"]


def _subjects(records: pa.RecordBatch, facts: int) -> pa.Table:
    """The link that each event states, which facts of the subject it states, and the event."""
    link = pa.table({name: records.column(name) for name in (*_LINK, "event_id")})
    return link.append_column("facts", pa.array(np.full(records.num_rows, facts, np.int32)))


def _distinct(stated: Sequence[pa.Table]) -> pa.Table:
    """One row per distinct link, with all facts that are stated of the subject and one event that states it."""
    # by hand: Arrow's group_by takes over a millisecond however few the rows are
    every = pa.concat_tables(stated).combine_chunks()
    subjects, customers, seqs = (
        every.column("subject").combine_chunks().dictionary_encode().indices.to_numpy(),
        every.column("customer_id").combine_chunks().dictionary_encode().indices.to_numpy(),
        every.column("link_seq").to_numpy(),
    )
    order = np.lexsort((seqs, customers, subjects))
    changes = np.zeros(len(order), np.bool_)
    changes[:1] = True
    for key in (subjects, customers, seqs):
        changes[1:] |= key[order[1:]] != key[order[:-1]]
    starts = np.flatnonzero(changes)
    facts = np.bitwise_or.reduceat(every.column("facts").to_numpy()[order], starts)
    distinct = every.take(order[starts])
    return distinct.set_column(distinct.schema.get_field_index("facts"), "facts", pa.array(facts, pa.int32()))


def merged_into(kind: str, reason: str | None, identifiers: Sequence[Any]) -> str | None:
    """The subject that a deleted one went into by its vendor's word."""
    if kind != MERGED and (kind == "erased" or reason != MERGED):
        return None
    return next((i["value"] for i in identifiers if i["kind"] == "subject"), None)


def _gone(subjects: Any, kinds: Any, at: Any, into: Sequence[str | None]) -> pa.Table:
    erased = pc.equal(kinds, "erased")
    none = pa.scalar(None, at.type)
    return pa.table(
        {
            "subject": subjects,
            "deleted_at": pc.if_else(pc.or_(erased, pc.equal(kinds, MERGED)), none, at),
            "erased_at": pc.if_else(erased, at, none),
            "merged_into": pa.array(into, pa.string()),
        }
    )


def _subject_deleted(records: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    at = records.column("occurred_at")
    said = (records.column(name).to_pylist() for name in ("kind", "reason", "identifiers"))
    into = [merged_into(*one) for one in zip(*said, strict=True)]
    return _gone(records.column("subject"), records.column("kind"), at, into), _subjects(records, ALL)


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
    at = records.column("occurred_at").take(parents)
    return _gone(named, kinds, at, [None] * len(named)), _subjects(links, ALL)


_GONE = {"SubjectDeleted": _subject_deleted, "CustomerErased": _customer_erased}
WITHOUT_FACT = {"SubjectLinked", "SubjectDeleted", "CustomerErased"}
