"""A schema kept up with the log beside the live one, and the moments at which both stand still at the same offsets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from caudal.projections._runner import Runner
from caudal.projections._schema import LIVE, SWAP_LOCK
from caudal.projections.replay._build import Progress
from caudal.projections.replay._log import Reader
from caudal.schemas.codec import Codec
from psycopg.errors import LockNotAvailable

from caudal import kafka, postgres
from caudal.errors import DatabaseUnavailable
from caudal.settings import Settings

__all__ = ["Beside", "await_live", "offsets", "still"]

NEAR_EVENTS = 500
"""So few events are applied in a moment: the live projection may wait for them."""
CHASE_S = 60.0
"""How long the log is chased when it grows as fast as it is read; then the live projection waits for the rest."""
WAIT_S = 120.0
LIVE_WAIT_S = 10.0
"""How long the live projection may get nowhere until it is no longer waited for."""


def offsets(conn: psycopg.Connection[Any], schema: str) -> dict[int, int]:
    """Where a schema stands."""
    return dict(conn.execute(f"SELECT partition, next_offset FROM {schema}.offsets").fetchall())


def await_live(conn: psycopg.Connection[Any], ends: Mapping[int, int]) -> int:
    """Wait until the live schema stands at `ends`, as long as it gets on; gives how many events it is behind."""

    def behind() -> int:
        stands = offsets(conn, LIVE)
        return sum(max(end - stands.get(partition, 0), 0) for partition, end in ends.items())

    least, since = behind(), time.monotonic()
    while least and time.monotonic() - since < LIVE_WAIT_S:
        time.sleep(0.02)
        if (now := behind()) < least:
            least, since = now, time.monotonic()
    return least


@contextmanager
def still(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Keep the live schema as it is: no batch of the live projection commits meanwhile. Reads go on.

    Raises:
        DatabaseUnavailable: a transaction of the live projection doesn't end.
    """
    deadline = time.monotonic() + WAIT_S
    conn.execute("SET lock_timeout = '1s'")  # whoever waits makes all later batches wait too
    try:
        while True:
            try:
                conn.execute("SELECT pg_advisory_lock(%s)", (SWAP_LOCK,))
                break
            except LockNotAvailable:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(
                        "the live projection doesn't finish its batch", hint="try again"
                    ) from None
                time.sleep(0.1)
    finally:
        if not conn.closed:
            conn.execute("RESET lock_timeout")
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (SWAP_LOCK,))


class Beside:
    """Applies what follows in the log to a built schema, publishing nothing. For one thread."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        *,
        schema: str,
        topic: str,
        priorities: Mapping[str, int] | None = None,
    ) -> None:
        """Go on in `topic` (full name) where the schema stands; it was made by today's definitions.

        Raises:
            Fatal: it was made by others.
        """
        self._most = settings.worker.batch_max_events
        self._runner = Runner(settings, codec, priorities=priorities, schema=schema, feed=False)
        self._settings = settings
        self._topic = topic
        partitions = kafka.end_offsets(settings.kafka, [topic]).get(topic, {})
        self._reader = Reader(settings.kafka, topic, self._runner.positions(list(partitions)))

    @property
    def position(self) -> dict[int, int]:
        """The next offset of each partition."""
        return dict(self._reader.position)

    def touched(self) -> set[str]:
        """The customers that were touched since the last call."""
        found, self._runner.touched = self._runner.touched, set()
        return found

    def to(self, target: Mapping[int, int]) -> None:
        """Apply what lies before `target`; what is beyond it already is left there."""
        for chunk in self._reader.upto(target, most=self._most):
            self._runner.apply(self._runner.decode(chunk))

    def near(self, live: Callable[[], Mapping[int, int]], progress: Callable[[Progress], None]) -> None:
        """Get so near to where `live` says the live schema is that the rest takes a moment."""
        began = time.monotonic()
        first = self._reader.left(self._there(live()))
        while (left := self._reader.left(target := self._there(live()))) > NEAR_EVENTS:
            progress(Progress("catch_up", max(first - left, 0), max(first, left)))
            for chunk in self._reader.upto(target, most=self._most):
                self._runner.apply(self._runner.decode(chunk))
                progress(Progress("catch_up", max(first - self._reader.left(target), 0), max(first, left)))
            if time.monotonic() - began > CHASE_S and first <= self._reader.left(self._there(live())) * 2:
                break
        progress(Progress("catch_up", first, first))

    def level(self, conn: psycopg.Connection[Any]) -> int:
        """With the live schema still: go to where it stands; gives how many events it is behind, if it is."""
        stands = self._there(offsets(conn, LIVE))
        self.to(stands)
        return sum(max(at - stands.get(partition, 0), 0) for partition, at in self.position.items())

    def _there(self, target: Mapping[int, int]) -> dict[int, int]:
        """As much of the target as the log holds: of a log that was made again or restored the live schema may tell more."""
        ends = kafka.end_offsets(self._settings.kafka, [self._topic]).get(self._topic, {})
        return {partition: min(offset, ends.get(partition, 0)) for partition, offset in target.items()}

    def close(self) -> None:
        """Let go of the servers."""
        self._reader.close()
        self._runner.close()


def existing(conn: psycopg.Connection[Any], schema: str) -> bool:
    """Whether there is such a schema."""
    with postgres.translated():
        return conn.execute("SELECT to_regnamespace(%s) IS NOT NULL", (schema,)).fetchone() == (True,)
