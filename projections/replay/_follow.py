"""What a replay follows: where the events of the new schema come from, and what belongs to it besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import psycopg
from caudal.projections._schema import LIVE
from caudal.projections.replay._beside import Beside, await_live, offsets, still
from caudal.projections.replay._build import Progress

from caudal import kafka
from caudal import offsets as stored_offsets
from caudal.settings import Settings

__all__ = ["Followed", "SameLog"]


class Followed(Protocol):
    """Where the events come from. Its methods are called in this order; all but `prepare` again for the swap."""

    topic: str
    """The full name of the log that the schema is built from."""

    def prepare(self, noting: Callable[[Progress], None]) -> None:
        """Make the log as long as it can be made now."""
        ...

    def near(self, beside: Beside, noting: Callable[[Progress], None]) -> None:
        """Bring the schema so near to the live one that the rest takes a moment."""
        ...

    def standing(self, beside: Beside, *, exactly: bool) -> AbstractContextManager[int]:
        """Nothing is projected while it lasts, and both schemas stand at the same; `exactly`: the live one is waited for, too.

        Gives how many events the live schema is behind.
        """
        ...

    def told(self) -> Mapping[str, Any]:
        """What the report says besides the views."""
        ...

    def refuse(self, diff: Mapping[str, Any]) -> None:
        """Raise `ReplayRefused` when a swap with these differences, not forced, would be wrong."""
        ...

    def touched(self, beside: Beside) -> set[str]:
        """The customers that either schema touched since they were compared."""
        ...

    def take_over(self) -> None:
        """Exchange what belongs to the schema besides, in the transaction of the swap."""
        ...

    def close(self) -> None:
        """Let go of the servers."""
        ...


class SameLog:
    """The log that is live."""

    def __init__(self, settings: Settings, conn: psycopg.Connection[Any], topic: str) -> None:
        self._conn = conn
        self.topic = topic
        self._id = kafka.ids(settings.kafka, [topic]).get(topic, "")

    def prepare(self, noting: Callable[[Progress], None]) -> None:
        """It is there."""

    def near(self, beside: Beside, noting: Callable[[Progress], None]) -> None:
        """Chase the live schema, then let it come to where the built one is: else what it hasn't applied would look like a difference."""
        beside.near(lambda: offsets(self._conn, LIVE), noting)
        await_live(self._conn, beside.position)

    @contextmanager
    def standing(self, beside: Beside, *, exactly: bool) -> Iterator[int]:
        """Both at the same offsets."""
        with still(self._conn):
            yield beside.level(self._conn)

    def told(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def refuse(self, diff: Mapping[str, Any]) -> None:
        """Never."""

    def touched(self, beside: Beside) -> set[str]:
        """What the built one touched: the live one applied the same events."""
        return beside.touched()

    def take_over(self) -> None:
        """The offsets that are live now count in the log as it is, whatever the ones before did."""
        stored_offsets.adopt(self._conn, self.topic, self._id)

    def close(self) -> None:
        """Nothing is open."""
