"""A batch of few messages made ready for the database, in plain Python: the equal twin of _batch.py, which goes by the column.

The columns take some hundred calls into Arrow however few the rows are: several milliseconds for ten events, where a row takes about a
twentieth of one. So the rows are made one by one here, and give the same batch to the byte. What is damaged, unusual or can't be
stored is not judged here: a batch that has such a message is left to the columns, so that a message's fate never hangs on the company
in which it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caudal.projections import _batch, _copy, _places, _vet
from caudal.projections._batch import ALL, LINKED, OF_EVENT, WITHOUT_FACT, Batch, bit, stripe
from caudal.projections._schema import FACTS
from caudal.schemas.codec import Codec
from caudal.schemas.dead_letters import Message

__all__ = ["FEW", "FEW_BYTES", "prepare"]

FEW = 100
"""Up to so many messages are made ready by rows. Rows and columns cost the processor the same at some 200 mixed events; columns free
the interpreter meanwhile, so that they are taken somewhat earlier.
"""
FEW_BYTES = 1 << 18
"""And no more bytes: an array of small records takes a hundred times as much memory in Python as on the log."""

_BITS = {event: sum(bit(fact.name) for fact in facts) for event, facts in OF_EVENT.items()}
_PACK = {fact.name: _copy.packer(fact.types) for fact in FACTS}
_SUBJECTS = {"subject": "text", "customer_id": "text", "link_seq": "bigint", "event_id": "text", "facts": "integer"}
_GONE = {"subject": "text", "deleted_at": "timestamptz", "erased_at": "timestamptz", "merged_into": "text"}
_NOT_DELETED = {"erased", _batch.MERGED}
_PACK_SUBJECT, _PACK_GONE = _copy.packer([*_SUBJECTS.values()]), _copy.packer([*_GONE.values()])


def prepare(codec: Codec, messages: Sequence[Message]) -> Batch:
    """Decode and reshape, by rows or by columns; never raises for a bad message (see `Batch.bad`)."""
    few = len(messages) <= FEW and sum(len(message.value() or b"") for message in messages) <= FEW_BYTES
    made = _by_rows(codec, messages) if few else None
    return made or _batch.prepare(codec, messages)


def _by_rows(codec: Codec, messages: Sequence[Message]) -> Batch | None:
    """The batch, if nothing about it is suspicious."""
    decoded = codec.decode_few([message.value() or b"" for message in messages])
    if decoded is None:
        return None
    batch, said = Batch(messages), _Said()
    for name, records, positions in decoded:
        event = name.rpartition(".")[2]
        if (event not in OF_EVENT and event not in WITHOUT_FACT) or not all(map(_vet.sound(event), records)):
            return None
        batch.counts[event] = batch.counts.get(event, 0) + len(records)
        said.take(event, records, positions)
    places = [batch.pass_over(message) for message in messages]
    batch.places = _places.pack_few(said.named, [places[position] for position in said.positions])
    batch.masks = said.masks
    if said.links:
        said.stage(batch)
    return batch


class _Said:
    """What the events of a batch say, packed as far as it can be before all of them are known."""

    def __init__(self) -> None:
        self.links: dict[tuple[str, str, int], tuple[str, int]] = {}
        """Subject, customer and seq of a link → one event that states it, and all facts that are stated of the subject."""
        self.named: list[str] = []
        self.positions: list[int] = []
        self.masks: dict[str, set[tuple[str, int]]] = {}
        self._rows: dict[str, list[bytes]] = {}
        self._gone: list[bytes] | None = None

    def take(self, event: str, records: list[dict[str, Any]], positions: list[int]) -> None:
        """Take in events of one type, in the order in which the columns hold them."""
        self.named += [record["subject"] for record in records]
        self.positions += positions
        facts = _BITS.get(event, LINKED)
        for record in records:
            self._link(record["subject"], record["customer_id"], record["link_seq"], record["event_id"], facts)
        for fact in OF_EVENT.get(event, ()):
            for record in records:
                rows, stated = fact.rows_of(record)
                if rows:
                    self._rows.setdefault(fact.name, []).extend(map(_PACK[fact.name], rows))
                if fact.partial:
                    self.masks.setdefault(fact.name, set()).add((record["source"], stated))
        if event == "SubjectDeleted":
            for record in records:
                kind, at = record["kind"], record["occurred_at"]
                into = _batch.merged_into(kind, record["reason"], record["identifiers"])
                self._lose(
                    record["subject"], at if kind not in _NOT_DELETED else None, at if kind == "erased" else None, into
                )
                self._link(record["subject"], record["customer_id"], record["link_seq"], record["event_id"], ALL)
        elif event == "CustomerErased":
            self._gone = self._gone or []
            for record, position in zip(records, positions, strict=True):
                for subject in record["subjects"]:
                    self.named.append(subject)
                    self.positions.append(position)
                    self._lose(subject, None, record["occurred_at"], None)
                    self._link(subject, record["customer_id"], 0, record["event_id"], ALL)

    def stage(self, batch: Batch) -> None:
        """Put what was said into the batch's streams."""
        subjects: dict[str, int] = {}
        customers: dict[str, int] = {}
        for subject, customer, _ in self.links:
            subjects.setdefault(subject, len(subjects))
            customers.setdefault(customer, len(customers))
        batch.relinked = len(subjects) < len(self.links)
        batch.stripes = {stripe(customer) for customer in customers}
        ordered = sorted((subjects[s], customers[c], seq, s, c) for s, c, seq in self.links)
        rows = ((s, c, seq, *self.links[s, c, seq]) for _, _, seq, s, c in ordered)
        batch.stages["subjects"] = (tuple(_SUBJECTS), _copy.stream(map(_PACK_SUBJECT, rows)))
        for fact in FACTS:
            if fact.name in self._rows:
                batch.stages[fact.name] = (fact.all_columns, _copy.stream(self._rows[fact.name]))
        if self._gone is not None:
            batch.stages["gone"] = (tuple(_GONE), _copy.stream(self._gone))
            batch.gone = True

    def _link(self, subject: str, customer: str, seq: int, event_id: str, facts: int) -> None:
        first, before = self.links.get((subject, customer, seq), (event_id, 0))
        self.links[subject, customer, seq] = (first, before | facts)

    def _lose(self, subject: str, deleted_at: int | None, erased_at: int | None, into: str | None) -> None:
        self._gone = self._gone or []
        self._gone.append(_PACK_GONE((subject, deleted_at, erased_at, into)))
