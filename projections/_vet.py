"""Which events hold values that can't be stored: judged from the event alone, so that the live projection and a rebuild leave out the same.

What connectors make is held to these bounds before it is written (connectors/_bounds.py); others may write to the log too. A batch
is looked at by the column; only one that has a fault is halved until the event is found. Of a few events each is looked at, and where
one may have a fault, they are judged by the column, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from functools import cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from caudal.projections.profiles import FIELDS
from caudal.schemas.codec import arrow_schema
from caudal.schemas.events import KEY_MAX_BYTES

__all__ = ["faults", "sound"]

_INDEXED = frozenset(
    {
        "subject",
        "source",
        "order_id",
        "refund_id",
        "ticket_id",
        "subscription_id",
        "feedback_id",
        "interaction_id",
        "purpose",
        "field",
        "subjects",
        "city",  # its folded form is indexed for search
    }
)
_UUID = np.frombuffer(b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", np.uint8)
_CLASS = np.zeros(256, np.uint8)
_CLASS[list(b"0123456789abcdefABCDEF")] = ord("x")
_CLASS[ord("-")] = ord("-")
_SINGLY = 8


def faults(event: str, records: pa.RecordBatch) -> dict[int, str]:
    """What is wrong with each event that can't be stored, by its row. The texts quote no value."""
    if _sound(event, records):
        return {}
    if len(records) > _SINGLY:
        middle = len(records) // 2
        # copies, since a slice shares the buffers that are looked at as a whole
        first = faults(event, records.take(pa.array(np.arange(middle))))
        second = faults(event, records.take(pa.array(np.arange(middle, len(records)))))
        return first | {middle + row: reason for row, reason in second.items()}
    judged = ((row, _fault(event, record)) for row, record in enumerate(records.to_pylist()))
    return {row: reason for row, reason in judged if reason is not None}


def _sound(event: str, records: pa.RecordBatch) -> bool:
    """Whether no event of the batch has a fault; it may say no where there is none."""
    return (
        event != "FieldCorrected"
        and _uuids(records.column("customer_id"))
        and all(_storable(field.name, column) for field, column in zip(records.schema, records.columns, strict=True))
    )


def _uuids(column: pa.Array) -> bool:
    column = pc.unique(column)
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    if lengths["min"] != 36 or lengths["max"] != 36:
        return not len(column)
    _, offsets, data = column.buffers()
    start = int(np.frombuffer(offsets, np.int32, 1, 4 * column.offset)[0])
    text = np.frombuffer(data, np.uint8, 36 * len(column), start).reshape(-1, 36)
    return bool((_CLASS[text] == _UUID).all())


def _storable(name: str, column: pa.Array) -> bool:
    kind = column.type
    if pt.is_string(kind):
        text = column.buffers()[2]
        if text is None:
            return True
        if name in _INDEXED and (pc.max(pc.binary_length(column)).as_py() or 0) > KEY_MAX_BYTES:
            return False
        return b"\0" not in text.to_pybytes()
    if pt.is_floating(kind):
        return bool(pc.all(pc.is_finite(column), min_count=0).as_py())
    if pt.is_map(kind):
        return _storable("subject", column.keys) and _storable(name, column.items)  # a key stands in an index
    if pt.is_list(kind):
        return _storable(name, column.values)
    if pt.is_struct(kind):
        return all(_storable(kind.field(i).name, column.field(i)) for i in range(kind.num_fields))
    return True


@cache
def sound(event: str) -> Callable[[Mapping[str, Any]], bool]:
    """A function that says whether an event, as `Codec.decode_few` gives it, has no fault; it may say no where there is none."""
    checks = [(f.name, check) for f in arrow_schema(event) if (check := _check(f.name, f.type))]
    corrects = event == "FieldCorrected"

    def is_sound(record: Mapping[str, Any]) -> bool:
        return (
            _UUID_TEXT.fullmatch(record["customer_id"]) is not None
            and _NUL_IN_JSON not in orjson.dumps(record)
            and all([check(record[name]) for name, check in checks])
            and (not corrects or _corrects(record["field"], record["value"]))
        )

    return is_sound


_UUID_TEXT = re.compile(r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}", re.ASCII | re.IGNORECASE)
_NUL_IN_JSON = rb"\u0000"
"""JSON writes a NUL so; a text may also hold these six characters, which is no fault."""


def _check(name: str, kind: pa.DataType) -> Callable[[Any], bool] | None:
    """Whether a value of a field is storable; None where nothing but a NUL could be wrong with it."""
    if pt.is_string(kind):
        return _fits_index if name in _INDEXED else None
    if pt.is_floating(kind):
        return lambda value: value is None or math.isfinite(value)
    if pt.is_map(kind):
        item = _check(name, kind.item_type)
        return lambda value: (
            value is None or (all(map(_fits_index, value)) and (item is None or all(map(item, value.values()))))
        )
    if pt.is_list(kind) and (each := _check(name, kind.value_type)):
        return lambda value: value is None or all(map(each, value))
    if pt.is_struct(kind) and (parts := [(f.name, check) for f in kind if (check := _check(f.name, f.type))]):
        return lambda value: value is None or all([check(value[part]) for part, check in parts])
    return None


def _fits_index(text: str | None) -> bool:
    return text is None or len(text.encode()) <= KEY_MAX_BYTES


def _fault(event: str, record: dict[str, Any]) -> str | None:
    """The first fault of one event."""
    customer = record["customer_id"].encode()
    if len(customer) != 36 or not (_CLASS[np.frombuffer(customer, np.uint8)] == _UUID).all():
        return "customer_id is no UUID"
    for name, value in record.items():
        if (reason := _value_fault(name, value)) is not None:
            return f"{name} {reason}"
    if event == "FieldCorrected" and not _corrects(record["field"], record["value"]):
        return f"value can't be one of {record['field']}" if record["field"] in FIELDS else "field is none of a profile"
    return None


def _value_fault(name: str, value: Any) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character"
        if name in _INDEXED and len(value.encode()) > KEY_MAX_BYTES:
            return f"is longer than {KEY_MAX_BYTES} bytes"
    elif isinstance(value, float) and not math.isfinite(value):
        return "is no finite number"
    elif isinstance(value, list | tuple | dict):
        parts = value.items() if isinstance(value, dict) else ((name, part) for part in value)
        if isinstance(value, list) and value and isinstance(value[0], tuple):  # a map comes as its pairs
            parts = (pair for key, item in value for pair in (("subject", key), (name, item)))
        return next((reason for each, part in parts if (reason := _value_fault(each, part)) is not None), None)
    return None


def _corrects(field: str, value: str | None) -> bool:
    """Whether the profile has the field, and the field can take the value: times as ISO 8601, numbers in digits."""
    if field not in FIELDS:
        return False
    if value is None:
        return True
    form = _FORMS.get(FIELDS[field])
    if form is None:
        return field != "city" or len(value.encode()) <= KEY_MAX_BYTES
    pattern, parse = form
    try:
        return pattern.fullmatch(value) is not None and parse(value) is not None
    except ValueError:
        return False


_DAY = r"\d{4}-\d\d-\d\d"
_FORMS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "date": (re.compile(_DAY, re.ASCII), date.fromisoformat),
    "timestamptz": (
        re.compile(_DAY + r"[ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?", re.ASCII),
        datetime.fromisoformat,
    ),
    "double precision": (re.compile(r"-?\d{1,15}(\.\d{1,20})?", re.ASCII), float),
}
