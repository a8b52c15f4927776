"""Codecs: events and records to Kafka messages and back, one by one and by the batch.

Messages are in Confluent's wire format: a zero byte, the schema's id in four bytes, the Avro record. A message written with an
older or newer version of a schema is read into today's fields, new ones by their default.
"""

from __future__ import annotations

import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from caudal.schemas._columns import Decoder, Encoder
from caudal.schemas._plain import plain_reader
from caudal.schemas._registry import Ids, LocalRegistry, Registry, records_on, subject_of
from caudal.schemas._rows import reader, to_event
from caudal.schemas._types import RECORDS, Type, parse, schema_of
from caudal.schemas._write import record_writer
from caudal.schemas.events import Event

from caudal.errors import BadSchema, UndecodableRecord

__all__ = [
    "RECORDS",
    "Codec",
    "Columns",
    "Ids",
    "LocalRegistry",
    "Registry",
    "arrow_schema",
    "records_on",
    "subject_of",
    "to_event",
]

_HEADER = struct.Struct(">bI")


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of messages as columns.

    Attributes:
        batches: for each schema id in the batch, the record's name, its rows in today's columns, and for each row the index of
            its message. The order of the messages is kept within a batch. A record can occur more than once, when messages of
            several versions of its schema are mixed.
        bad: the messages that are no records, by index, each with the reason.
    """

    batches: list[tuple[str, pa.RecordBatch, pa.Int64Array]] = field(default_factory=list)
    bad: list[tuple[int, UndecodableRecord]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a schema id."""

    record: str
    read: Callable[[bytes], dict[str, Any]]
    plain: Callable[[bytes, int], dict[str, Any]]
    columns: Decoder


def arrow_schema(record: str) -> pa.Schema:
    """Today's columns of a record: `timestamp[us, UTC]`, `date32`, lists, maps and structs; nullable as the contract says."""
    return pa.schema(schema_of(record).arrow_fields())


class Codec:
    """Encodes and decodes messages. Safe to share by threads."""

    def __init__(self, registry: Ids, *, fast: bool = True) -> None:
        """Codec over the ids of `registry`; `fast=False` takes the slower twin of the columnar decoder."""
        self._registry = registry
        self._fast = fast
        self._known: dict[int, _Known | UndecodableRecord] = {}
        self._writers: dict[tuple[str, str], tuple[bytes, Callable[[Any], bytes]]] = {}
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.Lock()

    def encode_event(self, event: Event) -> bytes:
        """An event as a message on `customer.changes`.

        Raises:
            UnusableEvent: a value that the schema can't hold.
            RegistryUnavailable: the schema's id isn't known yet and the registry can't be reached.
        """
        header, write = self._writer(self._registry.changes, type(event).__name__)
        return header + write(event)

    def encode(self, topic: str, record: str, values: Mapping[str, Any]) -> bytes:
        """A record as a message on `topic` (full name); missing values take the schema's defaults.

        Raises:
            UnusableEvent: a value that the schema can't hold, or none where there is no default.
            RegistryUnavailable: the schema's id isn't known yet and the registry can't be reached.
        """
        header, write = self._writer(topic, record)
        return header + write(dict(values))

    def encode_columns(self, topic: str, record: str, batch: pa.RecordBatch) -> list[bytes]:
        """Each row as a message on `topic` (full name). The batch has the record's columns, in any order.

        Raises:
            KeyError: a column is missing.
            pa.ArrowInvalid: a column doesn't fit the schema.
            RegistryUnavailable: the schema's id isn't known yet and the registry can't be reached.
        """
        encoder = self._encoders.get(record)
        if encoder is None:
            encoder = self._encoders[record] = Encoder(schema_of(record), fast=self._fast)
        header = _HEADER.pack(0, self._registry.id_of(topic, record))
        return [header + row for row in encoder(batch)]

    def decode(self, value: bytes) -> tuple[str, dict[str, Any]]:
        """One message: the record's name and its values in today's fields; times are aware UTC datetimes.

        Raises:
            UndecodableRecord: the message is no record of ours.
            RegistryUnavailable: the schema's id isn't known yet and the registry can't be reached.
        """
        known = self._schema_of(value[: _HEADER.size] if value else b"")
        if isinstance(known, UndecodableRecord):
            raise known
        try:
            return known.record, known.read(value[_HEADER.size :])
        except ValueError as exc:
            raise UndecodableRecord(f"not a {known.record}: {exc}") from None

    def decode_columns(self, values: Sequence[bytes]) -> Columns:
        """Messages as columns, grouped by schema. Damaged ones are put aside, whatever they hold.

        Raises:
            RegistryUnavailable: a schema's id isn't known yet and the registry can't be reached.
        """
        size = _HEADER.size
        if None in values:  # tombstones
            values = [value or b"" for value in values]
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for index, header in enumerate([value[:size] for value in values]):
            groups[header].append(index)
        columns = Columns()
        for header, positions in groups.items():
            known = self._schema_of(header)
            if isinstance(known, UndecodableRecord):
                columns.bad.extend((position, known) for position in positions)
                continue
            batch, bad = known.columns([values[position][size:] for position in positions])
            if bad:
                faults = [
                    (positions[i], UndecodableRecord(f"not a {known.record}: {reason}")) for i, reason in bad.items()
                ]
                columns.bad.extend(faults)
            if batch.num_rows:
                kept = [position for i, position in enumerate(positions) if i not in bad] if bad else positions
                columns.batches.append((known.record, batch, pa.array(kept, pa.int64())))
        columns.bad.sort(key=lambda fault: fault[0])
        return columns

    def decode_few(self, values: Sequence[bytes]) -> list[tuple[str, list[dict[str, Any]], list[int]]] | None:
        """The same by rows, for which few messages are cheaper: for each schema id the record's name, its rows, and the indexes.

        Times are microseconds since 1970, dates are days. None when a message is damaged, or only written in an unusual way: then
        `decode_columns` tells.

        Raises:
            RegistryUnavailable: a schema's id isn't known yet and the registry can't be reached.
        """
        size = _HEADER.size
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for index, value in enumerate(values):
            groups[value[:size]].append(index)
        found = []
        for header, positions in groups.items():
            known = self._schema_of(header)
            if isinstance(known, UndecodableRecord):
                return None
            try:
                rows = [known.plain(values[position], size) for position in positions]
            except ValueError:
                return None
            found.append((known.record, rows, positions))
        return found

    def _writer(self, topic: str, record: str) -> tuple[bytes, Callable[[Any], bytes]]:
        found = self._writers.get((topic, record))
        if found is None:
            header = _HEADER.pack(0, self._registry.id_of(topic, record))
            found = self._writers[topic, record] = (header, record_writer(schema_of(record)))
        return found

    def _schema_of(self, header: bytes) -> _Known | UndecodableRecord:
        if len(header) < _HEADER.size or header[0] != 0:
            return UndecodableRecord("not in Confluent's wire format")
        (_, schema_id) = _HEADER.unpack(header)
        known = self._known.get(schema_id)
        if known is None:
            schema = self._registry.schema(schema_id)
            if schema is None:  # not remembered: it may be registered later
                return UndecodableRecord(f"the registry knows no schema {schema_id}")
            with self._lock:
                known = self._known[schema_id] = self._resolve(schema_id, schema)
        return known

    def _resolve(self, schema_id: int, schema: Mapping[str, Any]) -> _Known | UndecodableRecord:
        try:
            writer = parse(schema)
            today: Type = schema_of(writer.name)
            columns = Decoder(
                writer, today, fast=self._fast
            )  # the first, since it says whether the schemas can be resolved
            return _Known(writer.name, reader(writer, today), plain_reader(writer, today), columns)
        except (BadSchema, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            return UndecodableRecord(f"schema {schema_id} is none of ours or can't be read as today's: {exc}")
