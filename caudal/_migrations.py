"""yoyo-migrations on our own connections: its tables in schema `hub`, each migration in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from yoyo.backends import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri
from yoyo.migrations import Migration, default_migration_table

__all__ = ["Backend"]

_Connection = psycopg.Connection[tuple[Any, ...]]


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's backend, used under a lock of the caller's and changed in four places.

    It connects by our own connection string (yoyo parses addresses itself and knows no socket folders, services or TLS
    options), keeps its tables out of schema `public`, marks a migration as applied in the transaction that applies it,
    and has no lock of its own: that is a row, which stays for ever when its maker is killed.
    """

    def __init__(self, connect: Callable[[], _Connection]) -> None:
        self._our_connect = connect
        super().__init__(parse_uri("postgresql+psycopg:///"), default_migration_table)

    def connect(self, dburi: object) -> _Connection:
        self.schema = "hub"
        return self._our_connect()

    @contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        yield

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        self.ensure_internal_schema_updated()
        with self.transaction():
            self.execute("SET LOCAL search_path TO DEFAULT")  # what a migration creates without a schema isn't yoyo's
            migration.process_steps(self, "apply", force=force)
            self.execute("SET LOCAL search_path TO hub")
            if mark:
                self.mark_one(migration)

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        """What is noted beside a migration; yoyo asks for the user's and host's names, which bare containers lack."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": "caudal",
            "hostname": "",
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }
