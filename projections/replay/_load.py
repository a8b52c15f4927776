"""Loading: partitions of the log into the unlogged load tables, by several processes side by side.

How far a partition is read is stored in the transaction that holds its rows; so a load that was killed goes on where it was, and
nothing is loaded twice. Both lie in unlogged tables, which PostgreSQL empties together when it was killed itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import wait as wait_ready
from typing import Any, Protocol

import psycopg
import pyarrow as pa
from caudal.projections import _copy, _places
from caudal.projections._batch import Message, Tables, decoded, encoded, masks
from caudal.projections._schema import FACTS
from caudal.projections.replay._log import Reader
from caudal.schemas.codec import Codec, Registry
from psycopg import sql

from caudal import postgres
from caudal.errors import LostPartition, ReplayCancelled
from caudal.settings import Settings

__all__ = ["PAUSED_S", "Loader", "Part", "load", "paused"]

CHUNK = 25_000
"""Events of one transaction: enough that its cost is shared by many, few enough that they are small in memory."""
SORTED = 10_000
"""Where the events of so many lie is stored in order; of fewer, as the live projection does, which sorts them in time."""
ALONE = 1_000_000
"""A log shorter than this is loaded by threads of this process, whose work is mostly native code: starting others would take longer."""
GIVE_WAY = 5
"""Niceness of the processes that load: where processors are scarce, the live path on the same machine goes first."""
PAUSED_S = 0.5


class Flag(Protocol):
    """An event that one process sets for others."""

    def is_set(self) -> bool:
        """Whether it was set."""
        ...


@dataclass(frozen=True)
class Part:
    """What one loader reads: partitions of a topic, from where to where.

    Attributes:
        settings: resolved settings.
        topic: full name.
        schema: the load tables are there.
        name: shown for its connection.
        starts: partition → offset.
        ends: partition → offset.
        upto: what was captured later is left out.
    """

    settings: Settings
    topic: str
    schema: str
    name: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]
    upto: datetime | None = None


class Loader:
    """Writes chunks of messages into load tables."""

    def __init__(
        self, settings: Settings, codec: Codec, schema: str, *, name: str, upto: datetime | None = None
    ) -> None:
        self._codec = codec
        self._schema = schema
        self._upto = upto
        self._masks: set[tuple[str, str, int]] = set()
        self._conn = postgres.connect(settings.postgres, role=name)
        for setting in ("synchronous_commit = off", "client_connection_check_interval = '1s'"):
            self._conn.execute(sql.SQL("SET ") + sql.SQL(setting))

    def load(self, messages: Sequence[Message]) -> None:
        """Write what the messages say, and how far they go. A message that can't be used says nothing, as in the live projection.

        Raises:
            LostPartition: someone else has loaded some of them.
        """
        if not messages:
            return
        batch, tables = decoded(self._codec, messages, upto=self._upto)
        try:
            with postgres.translated(), self._conn.transaction(), self._conn.cursor() as cur:
                noted = self._write(cur, tables)
                if len(messages) >= SORTED:
                    _places.sort(cur, self._schema, batch.places)
                elif batch.places[0]:
                    hashes, offsets = batch.places
                    cur.execute(_places.STORE.format(schema=self._schema), {"hashes": hashes, "offsets": offsets})
                self._advance(cur, batch.first_offsets, batch.next_offsets)
        except postgres.REFUSED:
            middle = len(messages) // 2
            if middle:
                self.load(messages[:middle])
                self.load(messages[middle:])
                return
            with postgres.translated(), self._conn.transaction(), self._conn.cursor() as cur:
                self._advance(cur, batch.first_offsets, batch.next_offsets)
        else:
            self._masks |= noted

    def paused(self) -> bool:
        """Whether an operator wants replays to pause."""
        return paused(self._conn)

    def close(self) -> None:
        """Disconnect."""
        self._conn.close()

    def _write(self, cur: psycopg.Cursor[Any], tables: Tables) -> set[tuple[str, str, int]]:
        noted: set[tuple[str, str, int]] = set()
        if tables.subjects:
            stated = pa.concat_tables(tables.subjects).select(["subject", "customer_id", "link_seq"])
            distinct = stated.group_by(["subject", "customer_id", "link_seq"]).aggregate([])
            self._copy(cur, "subjects", distinct.column_names, _copy.encode(distinct))
        for fact in FACTS:
            if fact.name not in tables.rows:
                continue
            table = pa.concat_tables(tables.rows[fact.name]).combine_chunks()
            self._copy(cur, fact.name, table.column_names, encoded(fact, table))
            if fact.partial:
                noted |= {(fact.name, *mask) for mask in masks(table)} - self._masks
        if tables.gone:
            gone = pa.concat_tables(tables.gone).combine_chunks()
            self._copy(cur, "gone", gone.column_names, _copy.encode(gone))
        if noted:
            cur.execute(
                f"""INSERT INTO {self._schema}.stated_sets (fact, source, stated)
                    SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]) ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING""",
                [list(column) for column in zip(*sorted(noted), strict=True)],
            )
        return noted

    def _copy(self, cur: psycopg.Cursor[Any], table: str, columns: Sequence[str], data: bytes) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(self._schema, f"load_{table}"), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with cur.copy(statement) as copy:
            copy.write(data)

    def _advance(self, cur: psycopg.Cursor[Any], first: Mapping[int, int], following: Mapping[int, int]) -> None:
        cur.execute(
            f"""UPDATE {self._schema}.load_offsets o SET next_offset = v.next
                FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) v (partition, first, next)
                WHERE o.partition = v.partition AND o.next_offset <= v.first""",
            (list(first), list(first.values()), [following[p] for p in first]),
        )
        if cur.rowcount != len(first):
            raise LostPartition("another process loads this partition")


def paused(conn: psycopg.Connection[Any]) -> bool:
    """Whether an operator wants replays to pause."""
    with postgres.translated():
        row = conn.execute("SELECT value = 'true' FROM hub.control WHERE key = 'replay.paused'").fetchone()
    return bool(row and row[0])


def load(parts: Sequence[Part], codec: Codec, *, watch: Callable[[], None]) -> None:
    """Load all parts side by side; `watch` is called again and again meanwhile, and ends the load when it raises.

    Raises:
        BrokerUnavailable: Kafka gives nothing more.
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    context = multiprocessing.get_context("spawn")
    pool: ProcessPoolExecutor | ThreadPoolExecutor
    if sum(part.ends[p] - offset for part in parts for p, offset in part.starts.items()) < ALONE:
        stop: Any = threading.Event()
        pool = ThreadPoolExecutor(len(parts), thread_name_prefix="load")
        futures = [pool.submit(_run, part, codec, stop) for part in parts]
    else:
        stop = context.Event()
        pool = ProcessPoolExecutor(len(parts), context, _become_loader, (stop,))
        futures = [pool.submit(_run_in_process, part) for part in parts]
    try:
        waiting: set[Future[None]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, 0.2)
            for future in done:
                future.result()
            watch()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _run(part: Part, codec: Codec, stop: Flag) -> None:
    reader = Reader(part.settings.kafka, part.topic, part.starts)
    loader = Loader(part.settings, codec, part.schema, name=part.name, upto=part.upto)
    try:
        for chunk in reader.upto(part.ends, most=CHUNK):
            while loader.paused() and not stop.is_set():
                time.sleep(PAUSED_S)
            if stop.is_set():
                raise ReplayCancelled("the load was stopped")
            loader.load(chunk)
    finally:
        reader.close()
        loader.close()


_stop: Flag


def _become_loader(stop: Flag) -> None:
    """In a child: stop when told so, and end at once with the parent, however that went."""
    global _stop  # noqa: PLW0603 - an event can't be sent with the work, only given at the start
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    os.nice(GIVE_WAY)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_ready([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _run_in_process(part: Part) -> None:
    registry = Registry(part.settings)
    try:
        _run(part, Codec(registry), _stop)
    finally:
        registry.close()
