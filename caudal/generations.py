"""Generations of the canonical log: the first is `customer.changes`; each replay from captures makes the next, `customer.changes.<n>`.

Which one is current stands in hub.generation. It changes in the transaction that swaps the identity tables and the views, so whoever
reads it together with them sees what belongs together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caudal import kafka, postgres
from caudal.settings import KafkaSettings, Settings

if TYPE_CHECKING:
    import psycopg

__all__ = ["current", "current_topic", "name", "number_of", "topic"]


def name(number: int) -> str:
    """The topic of a generation, without the prefix."""
    return kafka.CHANGES if number == 1 else f"{kafka.CHANGES}.{number}"


def topic(settings: KafkaSettings, number: int) -> str:
    """The topic of a generation, with the prefix."""
    return kafka.topic(settings, name(number))


def number_of(topic_name: str) -> int | None:
    """Which generation a topic (without the prefix) holds; None when it is no generation's."""
    if topic_name == kafka.CHANGES:
        return 1
    number = topic_name.removeprefix(f"{kafka.CHANGES}.")
    plain = number != topic_name and number.isascii() and number.isdigit() and not number.startswith("0")
    return int(number) if plain and number != "1" else None


def current(connection: psycopg.Connection[Any]) -> int:
    """The generation that is live; 1 in a database that nothing has prepared yet.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    with postgres.translated():
        there = connection.execute("SELECT to_regclass('hub.generation') IS NOT NULL").fetchone()
        row = connection.execute("SELECT number FROM hub.generation").fetchone() if there == (True,) else None
    return int(row[0]) if row else 1


def current_topic(settings: Settings) -> str:
    """The full name of the topic that holds the live generation.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    with postgres.connect(settings.postgres, role="generation") as connection:
        return topic(settings.kafka, current(connection))
