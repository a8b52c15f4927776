"""Keeps the search index, in a thread of the process that serves searches; of several such processes one does at a time."""

from __future__ import annotations

import threading

import psycopg
from caudal.projections import search

from caudal import postgres
from caudal.errors import DatabaseUnavailable
from caudal.settings import PostgresSettings
from caudal.telemetry import Log, logger

__all__ = ["Indexing"]

PAUSE_S = 0.2
"""Between two looks at what is due: how far the index may be behind."""
_RETRY_S = 2.0


class Indexing:
    """The thread; it has a connection of its own."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="search-index", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at hand."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with postgres.connect(self._settings, role="search-index") as conn:
                    self._keep(conn)
            except (DatabaseUnavailable, psycopg.Error) as exc:
                # the views don't exist yet, or were just swapped; or the server is gone for a while
                logger().debug(Log.SERVER_UNREACHABLE, code=type(exc).__name__)
                self._stopping.wait(_RETRY_S)

    def _keep(self, conn: psycopg.Connection[tuple[object, ...]]) -> None:
        conn.execute("SET synchronous_commit = off")  # a text and the note that it is due are lost together
        while not self._stopping.is_set():
            search.ensure(conn)
            # under load something new is due after each look; the same pause as ever makes more of it one batch
            while search.due(conn) and search.refresh(conn) == search.BATCH and not self._stopping.is_set():
                pass
            self._stopping.wait(PAUSE_S)
