"""Read positions: which part of the log an answer reflects, and waiting until it reflects a given one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from caudal.schemas import position
from caudal.serving._problems import Problem
from psycopg_pool import AsyncConnectionPool

from caudal import generations, kafka
from caudal.errors import CaudalError
from caudal.postgres import translated
from caudal.settings import KafkaSettings

__all__ = ["Positions", "decode"]

MARKS = "#"
"""In the id of an event of the live stream, the topic whose offsets are marks of the topics that the others count in."""
STREAMED = (kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS)
"""Change topics. A row is committed before it is published, so every read reflects a position on them already."""

_READ = """
    SELECT 'generation' AS what, NULL AS topic, number AS partition, NULL::bigint AS next_offset, NULL::jsonb AS changes
    FROM hub.generation
    UNION ALL SELECT 'projected', NULL, partition, next_offset, NULL FROM live.offsets
    UNION ALL SELECT 'translated', topic, partition, next_offset, changes FROM hub.translated
"""


def decode(token: str) -> position.Position:
    """The vector of a token that a caller gave.

    Raises:
        Problem: 422, it is none.
    """
    try:
        return position.decode(token)
    except position.BadToken as exc:
        raise Problem(422, "invalid_token_vector", str(exc)) from exc


@dataclass
class _Reached:
    """What the projection and the translation have done."""

    projected: dict[int, int] = field(default_factory=dict)
    translated: dict[tuple[str, int], tuple[int, dict[int, int]]] = field(default_factory=dict)
    generation: int = 1


class _Goal:
    """What a read waits for. A capture counts as reflected once the changes made of it are.

    Positions in a generation of the log that isn't live are reached: one becomes live only with all captures that the one before it
    had translated.
    """

    def __init__(self, vector: position.Position) -> None:
        self.changes = {number: dict(vector[topic]) for topic in vector if (number := generations.number_of(topic))}
        self.captures = {
            (topic, partition): offset
            for topic, partitions in vector.items()
            if topic.startswith("capture.")
            for partition, offset in partitions.items()
        }
        known = {*map(generations.name, self.changes), *STREAMED, MARKS}
        unknown = [topic for topic in vector if topic not in known and not topic.startswith("capture.")]
        if unknown:
            raise Problem(422, "invalid_token_vector", "the token names topics that no read reflects")

    def met(self, reached: _Reached) -> bool:
        wanted = self.changes.setdefault(reached.generation, {})
        for capture, offset in list(self.captures.items()):
            next_offset, changes = reached.translated.get(capture, (0, {}))
            if next_offset >= offset:
                # fixed at the first sight: the vector grows with every later capture, and chasing it might never end
                for partition, change in changes.items():
                    wanted[partition] = max(change, wanted.get(partition, 0))
                del self.captures[capture]
        return not self.captures and all(reached.projected.get(p, 0) >= o for p, o in wanted.items())


class Positions:
    """Waits for positions; any number of waiting reads cost one query at a time."""

    def __init__(self, pool: AsyncConnectionPool[Any], settings: KafkaSettings, wait_s: float) -> None:
        self._pool = pool
        self._settings = settings
        self._prefix = settings.topic_prefix
        self._wait_s = wait_s
        self._reading: asyncio.Task[_Reached] | None = None

    async def wait(self, minimum: position.Position) -> None:
        """Return once a read that starts now reflects `minimum`.

        Raises:
            Problem: 409, it was not reached in time; the token reached is in the document.
            DatabaseUnavailable: PostgreSQL can't be reached.
        """
        goal = _Goal(minimum)
        deadline = asyncio.get_running_loop().time() + self._wait_s
        pause_s = 0.002
        while True:
            reached = await self._read()
            if goal.met(reached):
                return
            if asyncio.get_running_loop().time() + pause_s > deadline:
                beyond = await asyncio.to_thread(self._beyond_end, minimum, reached.generation)
                why = "it lies beyond the end of the log, so it is of another one" if beyond else "ask again"
                token = position.encode({generations.name(reached.generation): reached.projected})
                raise Problem(
                    409,
                    "token_not_reached",
                    f"the views didn't reach the asked token within {self._wait_s:g} s; {why}, or read without it",
                    headers={"caudal-token": token, "retry-after": "1"},
                    token=token,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.02)

    def _beyond_end(self, minimum: position.Position, generation: int) -> bool:
        """Whether the log doesn't hold what is waited for: it was made again, or restored from a time before."""
        names = [name for name in minimum if name == generations.name(generation) or name.startswith("capture.")]
        try:
            ends = kafka.end_offsets(self._settings, [self._prefix + name for name in names])
        except CaudalError:
            return False
        return any(
            offset > ends.get(self._prefix + name, {}).get(partition, 0)
            for name in names
            for partition, offset in minimum[name].items()
        )

    async def _read(self) -> _Reached:
        if self._reading is None:
            self._reading = asyncio.create_task(self._query())
            self._reading.add_done_callback(self._done)
        return await asyncio.shield(self._reading)

    def _done(self, task: asyncio.Task[_Reached]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # seen by whoever waits; nobody does when all of them hung up

    async def _query(self) -> _Reached:
        reached = _Reached()
        with translated():
            async with self._pool.connection() as conn:
                rows = await (await conn.execute(_READ)).fetchall()
        for what, topic, partition, next_offset, changes in rows:
            if what == "generation":
                reached.generation = partition
            elif what == "projected":
                reached.projected[partition] = next_offset
            else:
                made = {int(p): int(o) for p, o in (changes or {}).items()}
                reached.translated[topic.removeprefix(self._prefix), partition] = (next_offset, made)
        return reached
