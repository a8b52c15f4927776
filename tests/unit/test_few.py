"""Few messages are made ready by rows and many by columns: the batch is the same to the byte, whatever the messages hold. So are the
changes that are published of it.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from caudal.projections import _batch, _few, _publish
from caudal.projections.profiles import FIELDS
from caudal.schemas import EVENT_TYPES, CustomerErased, FieldCorrected, Identifier, ProfileStated, SubjectDeleted
from caudal.schemas.codec import Codec, LocalRegistry
from hypothesis import given, settings
from logs import Record
from record_values import EPOCH, RANDOMS, damaged, event, record

CODEC = Codec(LocalRegistry())
CUSTOMERS = [str(uuid.UUID(int=number)) for number in range(4)]
SUBJECTS = ["", "crm:contact:1", "shop:customer:ção", "shop:customer:2"]
EVENTS = sorted(EVENT_TYPES)


def among_few(rng: Random, name: str) -> Any:
    """An event of one of a few customers and subjects, so that links, partial statements and erasures meet."""
    said = event(rng, name)
    if rng.random() < 0.98:
        said = replace(said, customer_id=rng.choice(CUSTOMERS))
    if rng.random() < 0.8:
        said = replace(
            said, subject=rng.choice(SUBJECTS), source=rng.choice(("crm", "shop")), link_seq=rng.randrange(3)
        )
    if isinstance(said, FieldCorrected) and rng.random() < 0.9:
        said = replace(said, field=rng.choice(list(FIELDS)), value=rng.choice((None, "1", "1980-02-29")))
    if isinstance(said, SubjectDeleted):
        into = (Identifier(kind="email", value="a@x.com"), Identifier(kind="subject", value=rng.choice(SUBJECTS)))
        said = replace(
            said,
            kind=rng.choice(("erased", "deleted", "merged")),
            reason=rng.choice((None, "merged")),
            identifiers=into[rng.randrange(2) :],
        )
    if isinstance(said, CustomerErased):
        said = replace(said, subjects=tuple(rng.choices(SUBJECTS, k=rng.randrange(4))))
    if "cleared" in said.__slots__:
        said = replace(said, cleared=tuple(rng.choices((*said.__slots__, "no field"), k=rng.randrange(3))))
    return said


def storable(rng: Random, name: str) -> bytes:
    while True:
        message = CODEC.encode_event(among_few(rng, name))
        if not _batch.prepare(CODEC, log([message])).bad:
            return message


def log(messages: list[bytes]) -> list[Record]:
    return [Record((place % 3, place), message) for place, message in enumerate(messages)]


def said_of(batch: _batch.Batch) -> dict[str, Any]:
    return vars(batch) | {"bad": [(message, repr(reason)) for message, reason in batch.bad]}


@pytest.mark.parametrize("name", EVENTS)
@settings(max_examples=4, deadline=None)
@given(RANDOMS)
def test_what_can_be_stored_is_made_by_rows_as_by_columns(name: str, rng: Random) -> None:
    names = rng.choices(EVENTS, k=rng.randrange(3))
    messages = log([storable(rng, rng.choice((name, *names))) for _ in range(rng.randint(1, 6))])
    made = _few._by_rows(CODEC, messages)
    assert made is not None
    assert said_of(made) == said_of(_batch.prepare(CODEC, messages))


@settings(max_examples=40, deadline=None)
@given(RANDOMS)
def test_a_message_that_cannot_be_used_is_put_aside_by_both_for_the_same_reason(rng: Random) -> None:
    messages = [CODEC.encode_event(among_few(rng, rng.choice(EVENTS))) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.5:
        messages[0] = damaged(rng, messages[0])
    records = log(messages)
    by_columns = _batch.prepare(CODEC, records)
    assert said_of(_few.prepare(CODEC, records)) == said_of(by_columns)
    made = _few._by_rows(CODEC, records)
    assert made is None or not made.bad
    assert by_columns.bad == [] or made is None


@pytest.mark.parametrize(("count", "size"), [(_few.FEW + 1, 1), (1, _few.FEW_BYTES)])
def test_many_messages_or_bytes_are_left_to_the_columns(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ProfileStated(subject="crm:contact:1", occurred_at=EPOCH, customer_id=CUSTOMERS[0], name="a" * size)
    messages = log([CODEC.encode_event(said)] * count)
    monkeypatch.delattr(_few, "_by_rows")
    assert _few.prepare(CODEC, messages).counts == {"ProfileStated": count}


@pytest.mark.parametrize("name", _publish.RECORDS.values())
def test_changed_rows_are_encoded_alike_whether_they_are_few_or_many(name: str) -> None:
    rng = Random(name)
    rows = [record(rng, name) for _ in range(_publish.FEW + 1)]
    columns = {field: [row[field] for row in rows] for field in rows[0]}
    few = [_publish.encoded(CODEC, "t", name, {f: [value] for f, value in row.items()}) for row in rows]
    assert [message for (message,) in few] == _publish.encoded(CODEC, "t", name, columns)


def test_an_empty_map_is_an_empty_json_object_and_an_empty_array_an_empty_one():
    facts = {fact.name: fact for fact in _batch.FACTS}
    for name, column, type_, values, expected in (
        ("interactions", "properties", pa.map_(pa.string(), pa.string()), [{}, {"a": "b"}], ["{}", '{"a":"b"}']),
        ("feedback", "answers", pa.list_(pa.string()), [[], None], ["[]", None]),
    ):
        given = pa.RecordBatch.from_pydict(
            {
                column: pa.array(
                    [v if v is None else list(v.items()) if isinstance(v, dict) else v for v in values], type_
                )
            }
        )
        assert facts[name].reshape(given).column(column).to_pylist() == expected
        assert [row[column] for v in values for row in facts[name].reshape_one({column: v})] == expected
