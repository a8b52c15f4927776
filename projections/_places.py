"""Where the events of each subject lie in the log: what makes the rebuild of one customer a matter of milliseconds.

For every event and every subject that it names the table `places` holds the CRC32 of the subject and the event's partition and
offset, packed. A batch adds one row, unsorted, which costs next to nothing; an inverted index (GIN) cost 4 microseconds of
PostgreSQL's time for each key, and stalled for a second whenever it put its pending list in order. So the order is made here, as a
log-structured index makes it: small rows are folded into larger ones, and many keys at once are sorted into buckets of near hashes. A
lookup reads the unsorted rows, which are few, and one row of each sorted run for each subject.

Two subjects may have the same hash: whoever reads an event looks at what it names.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import psycopg
import pyarrow as pa

from caudal.postgres import Lock

__all__ = ["FOLD_ROWS", "SORT_KEYS", "STORE", "Named", "Packed", "find", "pack", "pack_few", "sort", "tables", "tidy"]

SORT_KEYS = 131_072
"""So many keys are sorted at once."""
FOLD_ROWS = 1_000
"""So many small rows are folded into one."""
_BITS = 11
"""A sorted run has 2,048 buckets of some 64 keys: a row of it stays below what PostgreSQL stores apart."""
_NEW, _FOLDED = -1, -2
"""Buckets of the rows that are not sorted yet."""
_PARTITION_SHIFT = 48
_TIDY_LOCK = Lock.PLACES

Packed = tuple[bytes, bytes]
"""Hashes, as little-endian uint32, and places (partition << 48 | offset), as little-endian uint64, of the same keys."""

STORE = "INSERT INTO {schema}.places (bucket, hashes, offsets) VALUES (-1, %(hashes)b, %(offsets)b)"
"""Adds a batch's keys."""


def tables(schema: str) -> list[str]:
    """Statements that make the table. What is packed can't be compressed: it is stored as it is."""
    return [
        f"""CREATE TABLE {schema}.places (
            bucket int NOT NULL, hashes bytea STORAGE EXTERNAL NOT NULL, offsets bytea STORAGE EXTERNAL NOT NULL)""",
        f"CREATE INDEX places_bucket ON {schema}.places (bucket)",
    ]


def hashed(subjects: Iterable[str]) -> list[int]:
    """The hash of each subject."""
    return [crc32(subject.encode()) for subject in subjects]


Named = tuple[Any, Any]
"""An Arrow array of subjects, and a numpy array of the positions of the messages that name them."""


def pack(named: Sequence[Named], at: Sequence[tuple[int, int]]) -> Packed:
    """The keys of a batch.

    Args:
        named: the subjects that the events name.
        at: partition and offset of each message.
    """
    subjects = pa.concat_arrays([each for each, _ in named])
    _, edges, text = subjects.buffers()
    cuts = np.frombuffer(edges, "<i4", len(subjects) + 1).tolist()
    data = text.to_pybytes()
    hashes = np.array([crc32(data[start:stop]) for start, stop in itertools.pairwise(cuts)], "<u4")
    places = np.array([partition << _PARTITION_SHIFT | offset for partition, offset in at], "<u8")
    return hashes.tobytes(), places[np.concatenate([positions for _, positions in named])].tobytes()


def pack_few(subjects: Sequence[str], at: Sequence[tuple[int, int]]) -> Packed:
    """The same key by key: the subjects that the events name, and the partition and offset of the message that names each."""
    places = [partition << _PARTITION_SHIFT | offset for partition, offset in at]
    return struct.pack(f"<{len(subjects)}I", *hashed(subjects)), struct.pack(f"<{len(places)}Q", *places)


def find(conn: psycopg.Connection[Any], schema: str, subjects: Sequence[str]) -> dict[int, list[int]]:
    """Where the events lie that may name these subjects: partition → offsets, ascending."""
    wanted = np.unique(np.array(hashed(subjects), np.uint32))
    buckets = [_NEW, _FOLDED, *np.unique(wanted >> np.uint32(32 - _BITS)).tolist()]
    with conn.cursor(binary=True) as cur:
        cur.execute(
            f"SELECT string_agg(hashes, ''), string_agg(offsets, '') FROM {schema}.places WHERE bucket = ANY(%s)",
            (buckets,),
        )
        row = cur.fetchone()
    if row is None or row[0] is None:
        return {}
    places = np.unique(np.frombuffer(row[1], "<u8")[np.isin(np.frombuffer(row[0], "<u4"), wanted)])
    found: dict[int, list[int]] = {}
    for place in places.tolist():
        found.setdefault(place >> _PARTITION_SHIFT, []).append(place & ((1 << _PARTITION_SHIFT) - 1))
    return found


def tidy(cur: psycopg.Cursor[Any], schema: str) -> None:
    """Fold what is new into one row; once there are many keys, sort them. Within the caller's transaction; one worker at a time."""
    cur.execute("SELECT pg_try_advisory_xact_lock(%s)", (_TIDY_LOCK,))
    if (got := cur.fetchone()) and not got[0]:
        return
    cur.execute(
        f"""WITH taken AS (DELETE FROM {schema}.places WHERE bucket = {_NEW} RETURNING hashes, offsets)
            INSERT INTO {schema}.places (bucket, hashes, offsets)
            SELECT {_FOLDED}, string_agg(hashes, ''), string_agg(offsets, '') FROM taken HAVING count(*) > 0"""
    )
    cur.execute(f"SELECT coalesce(sum(octet_length(hashes)), 0) / 4 FROM {schema}.places WHERE bucket = {_FOLDED}")
    row = cur.fetchone()
    if row and row[0] >= SORT_KEYS:
        cur.execute(f"DELETE FROM {schema}.places WHERE bucket = {_FOLDED} RETURNING hashes, offsets")
        rows = cur.fetchall()
        sort(cur, schema, (b"".join(h for h, _ in rows), b"".join(o for _, o in rows)))


def sort(cur: psycopg.Cursor[Any], schema: str, packed: Packed) -> None:
    """Store keys in order: one run of buckets."""
    hashes, offsets = packed
    words = np.frombuffer(hashes, "<u4")
    order = np.argsort(words, kind="stable")
    words, places = words[order], np.frombuffer(offsets, "<u8")[order]
    edges = np.searchsorted(words, np.arange((1 << _BITS) + 1, dtype=np.uint64) << np.uint64(32 - _BITS)).tolist()
    with cur.copy(f"COPY {schema}.places (bucket, hashes, offsets) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "bytea", "bytea"])
        for bucket, (start, stop) in enumerate(itertools.pairwise(edges)):
            if start < stop:
                copy.write_row((bucket, words[start:stop].tobytes(), places[start:stop].tobytes()))
