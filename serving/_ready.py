"""Whether what the API needs is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg_pool import AsyncConnectionPool

from caudal import kafka
from caudal.errors import CaudalError
from caudal.settings import KafkaSettings

__all__ = ["Readiness"]

_ALL_THERE = """
    SELECT NOT EXISTS (SELECT FROM unnest(%s::text[]) name WHERE to_regclass(name) IS NULL),
           EXISTS (SELECT FROM hub.logs WHERE fault IS NOT NULL)
"""
_NEEDED = [
    "live.profiles",
    "live.metrics",
    "live.segment_members",
    "live.links",
    "live.offsets",
    "hub.generation",
    "hub.logs",
    "hub.translated",
    "hub.tokens",
]


class Readiness:
    """Looks whether PostgreSQL and Kafka answer and the views exist; at most once a second, since nobody needs a token to ask."""

    def __init__(self, pool: AsyncConnectionPool[Any], settings: KafkaSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._admin: AdminClient | None = None
        self._looked: tuple[float, asyncio.Task[list[str]]] | None = None

    async def missing(self) -> list[str]:
        """What is missing: postgresql, kafka, views, and the log when it doesn't fit what was projected of it."""
        now = time.monotonic()
        if self._looked is None or now - self._looked[0] > 1:
            self._looked = (now, asyncio.create_task(self._look()))
        return await asyncio.shield(self._looked[1])

    async def _look(self) -> list[str]:
        kafka_answers = asyncio.get_running_loop().run_in_executor(None, self._kafka_answers)
        missing = []
        try:
            async with self._pool.connection(timeout=2) as conn:
                row = await (await conn.execute(_ALL_THERE, (_NEEDED,))).fetchone()
            if not (row and row[0]):
                missing.append("views")
            if row and row[1]:
                missing.append("log")
        except psycopg.Error:
            missing.append("postgresql")
        if not await kafka_answers:
            missing.append("kafka")
        return missing

    def _kafka_answers(self) -> bool:
        try:
            self._admin = self._admin or kafka.admin(self._settings)
            return bool(self._admin.list_topics(timeout=2).brokers)
        except (KafkaException, CaudalError):
            return False
