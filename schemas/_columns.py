"""Records by the batch, between Avro and Arrow: never a Python object per event.

Two equal twins do the work, chosen by what is installed: `pyruhvro` (fast) and `fastavro` (everywhere). Neither is trusted with
damaged bytes. A decoded batch is accepted when the sizes of its values, computed from the columns, add up to the sizes of the
messages: an encoding is never shorter than the minimal one, so equal sums mean that every message was used to its last byte.
Strings are validated by Arrow. Only a batch that fails is looked at record by record (`_strict`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.compute as pc
from caudal.schemas._strict import check, walker
from caudal.schemas._types import INTEGERS, RANGES, SCALARS, Field, Type

try:
    import pyruhvro
except ImportError:  # no wheel for this platform
    pyruhvro = None

__all__ = ["Decoder", "Encoder"]

Decode = Callable[[Sequence[bytes]], pa.RecordBatch]
Convert = Callable[[pa.Array], pa.Array]

_LONG_OF_TEN_BYTES = 1 << 62
_JUDGED_SINGLY = 32
"""So few records are walked one by one: computing sizes takes some hundred calls into Arrow, however few the records are."""


class Decoder:
    """Decodes records of one writer schema into the reader's columns.

    Raises:
        ValueError: the schemas can't be resolved (at construction).
    """

    def __init__(self, writer: Type, reader: Type, *, fast: bool = True) -> None:
        self.schema = pa.schema(reader.arrow_fields())
        self._writer = writer
        self._walk = walker(writer)
        self._read = _pyruhvro(writer) if fast and pyruhvro is not None and writer.columnar else _fastavro(writer)
        self._convert = _record_converter(writer, reader)

    def __call__(self, payloads: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """The good records as columns, in order, and what is wrong with each bad one by its index."""
        raw = self._sound(payloads) if len(payloads) > _JUDGED_SINGLY else None
        bad: dict[int, str] = {}
        if raw is None:
            bad = self._judge(payloads, range(len(payloads)))
            good = [payload for index, payload in enumerate(payloads) if index not in bad]
            raw = self._read_judged(good)
        columns = self._convert(pa.StructArray.from_arrays(raw.columns, fields=list(raw.schema))).flatten()
        return pa.RecordBatch.from_arrays(columns, schema=self.schema), bad

    def _sound(self, payloads: Sequence[bytes]) -> pa.RecordBatch | None:
        """The batch if nothing about it is suspicious."""
        try:
            batch = self._read(payloads)
            batch.validate(full=True)
            size = sum(
                _size(f.type, column, len(column)) for f, column in zip(self._writer.fields, batch.columns, strict=True)
            )
        except ValueError:
            return None
        return batch if size == sum(map(len, payloads)) else None

    def _read_judged(self, payloads: Sequence[bytes]) -> pa.RecordBatch:
        try:
            return self._read(payloads)
        except ValueError:
            return _fastavro(self._writer)(payloads)  # pyruhvro refuses what is a record: the slower twin takes over

    def _judge(self, payloads: Sequence[bytes], span: range) -> dict[int, str]:
        if len(span) > _JUDGED_SINGLY:
            middle = len(span) // 2
            halves = [
                half for half in (span[:middle], span[middle:]) if self._sound(payloads[half.start : half.stop]) is None
            ]
            return {index: reason for half in halves for index, reason in self._judge(payloads, half).items()}
        return {index: reason for index in span if (reason := check(self._walk, payloads[index])) is not None}


class Encoder:
    """Encodes columns of one schema, each row as one record."""

    def __init__(self, tree: Type, *, fast: bool = True) -> None:
        self._raw = pa.schema(tree.arrow_fields(raw=True))
        self._fast = fast and pyruhvro is not None and tree.columnar
        self._json = json.dumps(tree.raw_avro())
        self._parsed = fastavro.parse_schema(tree.raw_avro())

    def __call__(self, batch: pa.RecordBatch) -> list[bytes]:
        """The records.

        Raises:
            KeyError: a column is missing.
            pa.ArrowInvalid: a column doesn't fit the schema.
        """
        raw = pa.RecordBatch.from_arrays([_as_raw(batch.column(f.name), f) for f in self._raw], schema=self._raw)
        if not self._fast:
            return [_write(self._parsed, row) for row in raw.to_pylist(maps_as_pydicts="strict")]
        rows: list[bytes] = pyruhvro.serialize_record_batch(raw, self._json, 1)[0].to_pylist()
        return rows


def _as_raw(column: pa.Array, wanted: pa.Field) -> pa.Array:
    if column.null_count and not wanted.nullable:
        raise pa.ArrowInvalid(f"{wanted.name} may not be null")
    if pa.types.is_date(column.type):
        column = column.cast(pa.int32())  # Arrow knows no way from a date to a long
    return column.cast(wanted.type)


def _pyruhvro(tree: Type) -> Decode:
    schema = json.dumps(tree.raw_avro())

    def decode(payloads: Sequence[bytes]) -> pa.RecordBatch:
        try:
            return pyruhvro.deserialize_array(payloads, schema)
        except BaseException as exc:
            # a Rust panic is a BaseException that can't be imported
            if type(exc).__name__ == "PanicException":
                raise ValueError("the decoder panicked") from exc
            raise

    return decode


def _fastavro(tree: Type) -> Decode:
    parsed = fastavro.parse_schema(tree.raw_avro())
    schema = pa.schema(tree.arrow_fields(raw=True))
    walk = walker(tree)

    def decode(payloads: Sequence[bytes]) -> pa.RecordBatch:
        rows = []
        for payload in payloads:
            try:
                row = fastavro.schemaless_reader(io.BytesIO(payload), parsed)
            except (ValueError, EOFError, IndexError, OverflowError) as exc:
                raise ValueError("not a record") from exc
            # fastavro takes any byte for a boolean and counts union branches from the end
            if _write(parsed, row) != payload and check(walk, payload) is not None:
                raise ValueError("not a record")
            rows.append(row)
        return pa.RecordBatch.from_pylist(rows, schema=schema)

    return decode


def _write(schema: Any, row: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, row)
    return out.getvalue()


# --- the minimal encoded size of a column ------------------------------------------------------------------------------------


def _size(tree: Type, array: pa.Array, present: int) -> int:
    """Bytes that `array` takes in Avro at least; `present` of its slots are not hidden by a null above.

    Raises:
        ValueError: a value is out of its type's range, or a map names a key twice.
    """
    if tree.nullable:
        return present + _size_present(tree, array, len(array) - array.null_count)
    return _size_present(tree, array, present)


def _size_present(tree: Type, array: pa.Array, present: int) -> int:
    kind = tree.kind
    if present == 0:
        return 0
    if kind in ("string", "bytes"):
        lengths = pc.binary_length(array)
        return int(pc.sum(lengths).as_py()) + _varints(lengths, present, *_bounds(lengths))
    if kind in INTEGERS:
        low, high = _bounds(array)
        if low < RANGES[kind][0] or high > RANGES[kind][1]:
            raise ValueError("out of range")
        if low < -_LONG_OF_TEN_BYTES or high >= _LONG_OF_TEN_BYTES:
            raise ValueError("suspicious")  # pyruhvro drops what the tenth byte holds beyond 64 bits
        return _varints(array, present, low, high)
    if kind in SCALARS:
        return present * {"double": 8, "float": 4, "boolean": 1}[kind]
    if kind == "record":
        return sum(_size(f.type, array.field(i), present) for i, f in enumerate(tree.fields))
    assert tree.items is not None
    if kind == "array":
        items, total = array.values, 0
    else:
        _no_repeated_keys(array)
        items, total = array.items, _size_present(Type("string"), array.keys, len(array.keys))
    lengths = _as_list(array).value_lengths()
    low, high = _bounds(lengths)
    # a zero ends the blocks; an empty array is the zero alone
    counts = _varints(lengths, present, low, high) + present - (pc.sum(pc.equal(lengths, 0)).as_py() if low == 0 else 0)
    return int(counts + total + _size(tree.items, items, len(items)))


def _bounds(array: pa.Array) -> tuple[int, int]:
    found = pc.min_max(array)
    return found["min"].as_py(), found["max"].as_py()


def _varints(array: pa.Array, count: int, low: int, high: int) -> int:
    """Bytes of `count` zigzag varints: one, and one more for each 7 bits that the value needs beyond the first."""
    total = count
    for bits in range(6, 63, 7):
        bound = 1 << bits
        if low >= bound or high < -bound:
            total += count
            continue
        if high >= bound:
            total += pc.sum(pc.greater_equal(array, bound)).as_py()
        if low < -bound:
            total += pc.sum(pc.less(array, -bound)).as_py()
        if -bound <= low and high < bound:
            break
    return total


def _as_list(array: pa.Array) -> pa.ListArray:
    if not pa.types.is_map(array.type):
        return array
    kind = pa.list_(pa.struct([pa.field("key", array.type.key_type), pa.field("value", array.type.item_type)]))
    pairs = pa.StructArray.from_arrays([array.keys, array.items], names=["key", "value"])
    return pa.Array.from_buffers(kind, len(array), array.buffers()[:2], children=[pairs])


def _no_repeated_keys(array: pa.MapArray) -> None:
    as_list = _as_list(array)
    if (pc.max(as_list.value_lengths()).as_py() or 0) < 2:
        return
    pairs = pa.table({"row": as_list.value_parent_indices(), "key": array.keys})
    if pairs.group_by(["row", "key"], use_threads=False).aggregate([]).num_rows != pairs.num_rows:
        raise ValueError("a map names a key twice")


# --- from the writer's raw columns to the reader's ---------------------------------------------------------------------------


def _converter(writer: Type, reader: Type) -> Convert:
    if writer.nullable and not reader.nullable:
        raise ValueError("a field that may be null became one that may not")
    if writer.kind == reader.kind == "record":
        return _record_converter(writer, reader)
    target = reader.arrow()
    if writer.items is not None and reader.items is not None and writer.kind == reader.kind:
        item = _converter(writer.items, reader.items)
        if writer.kind == "array":
            return lambda array: pa.Array.from_buffers(
                target, len(array), array.buffers()[:2], children=[item(array.values)]
            )
        entries = pa.struct([pa.field("key", pa.string(), nullable=False), target.item_field])

        def convert_map(array: pa.MapArray) -> pa.Array:
            pairs = pa.Array.from_buffers(entries, len(array.keys), [None], children=[array.keys, item(array.items)])
            return pa.Array.from_buffers(target, len(array), array.buffers()[:2], children=[pairs])

        return convert_map
    if (writer.kind, reader.kind) not in _PROMOTIONS and writer.kind != reader.kind:
        raise ValueError(f"{writer.kind} can't be read as {reader.kind}")
    if writer.arrow(raw=True) == target:
        return lambda array: array
    if reader.kind == "timestamp":
        return lambda array: array.view(target)
    if reader.kind == "date":
        return lambda array: array.cast(pa.int32()).view(target)
    return lambda array: array.cast(target, safe=reader.kind not in ("float", "double"))


_PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
}


def _record_converter(writer: Type, reader: Type) -> Convert:
    written = {f.name: (i, f.type) for i, f in enumerate(writer.fields)}
    takes: list[Callable[[pa.StructArray], pa.Array]] = []
    for wanted in reader.fields:
        if wanted.name not in written:
            takes.append(_default(wanted))
            continue
        position, kind = written[wanted.name]
        takes.append(_taken(position, _converter(kind, wanted.type)))
    target = reader.arrow()

    def convert(array: pa.StructArray) -> pa.Array:
        children = [take(array) for take in takes]
        return pa.Array.from_buffers(target, len(array), array.buffers()[:1], children=children)

    return convert


def _taken(position: int, convert: Convert) -> Convert:
    return lambda array: convert(array.field(position))


def _default(wanted: Field) -> Convert:
    if not wanted.has_default:
        raise ValueError(f"{wanted.name} is missing and has no default")
    kind = wanted.type.arrow()
    value = (
        list(wanted.default.items())
        if isinstance(wanted.default, dict) and wanted.type.kind == "map"
        else wanted.default
    )
    return lambda array: pa.array([value] * len(array), kind)
