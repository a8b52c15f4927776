"""The nightly proof: one worker rebuilds a sample of customers from the log and says whether the views are right.

It has a thread and connections of its own and rests after every customer, so that the data path doesn't notice. The worker that holds
an advisory lock does it; the others show its result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from caudal import postgres, sources, telemetry
from caudal.errors import CaudalError
from caudal.telemetry import Log, logger

if TYPE_CHECKING:
    from caudal.schemas.codec import Codec
    from caudal.settings import Settings

__all__ = ["Nightly"]

_LOCK = postgres.Lock.PROOF
_KEY = "views.verified"
REST_S = 0.05
LOOK_EVERY_S = 600.0
"""How often a worker looks whether the hour has come, or another worker has a newer result; not at its start, when it has a log to
catch up with."""
NAMED = 20
"""Most customers named in the log line."""


class Nightly:
    """Proves a sample once a day."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        """Nothing is connected before the time comes."""
        self._settings = settings
        self._codec = codec
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nightly", daemon=True)

    def start(self) -> None:
        """Begin to wait for the hour, unless the sample is empty."""
        if self._settings.worker.verify_sample:
            self._thread.start()

    def stop(self) -> None:
        """End, at the latest after the customer that is being proved."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    def prove(self, day: str) -> Mapping[str, Any] | None:
        """Prove the sample, unless it was done on this day or another worker does it; the day's result, if there is one.

        Raises:
            CaudalError: a server can't be reached, or the log doesn't hold what is needed.
        """
        with postgres.translated(), postgres.connect(self._settings.postgres, role="nightly") as conn:
            got = conn.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
            result = _result(conn)
            if (result is None or result["day"] != day) and got == (True,):
                result = {"day": day, "at": time.time(), **self._verify(conn)}
                conn.execute(
                    """INSERT INTO hub.control (key, value) VALUES (%s, %s)
                       ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, changed_at = now()""",
                    (_KEY, Jsonb(result)),
                )
        if result is not None:
            telemetry.VERIFY_DIFFERENCES.set(result["differing_customers"])
            telemetry.VERIFY_LAST.set(result["at"])
        return result if result is not None and result["day"] == day else None

    def _verify(self, conn: psycopg.Connection[Any]) -> dict[str, Any]:
        from caudal.projections import Prover, sample, verify_customers

        priorities = {name: source.priority for name, source in sources.load(self._settings).items()}
        prover = Prover(self._settings, self._codec, priorities=priorities)
        began = time.monotonic()
        try:
            customers = sample(conn, self._settings.worker.verify_sample)
            findings = verify_customers(prover, customers, each=lambda _: self._rest())
        finally:
            prover.close()
        told = logger().warning if findings.rows else logger().info
        told(
            Log.VIEWS_VERIFIED,
            customers=findings.customers,
            differing=findings.differing,
            rows=findings.rows,
            tables=dict(findings.tables),
            named=findings.named[:NAMED],
            seconds=round(time.monotonic() - began, 1),
        )
        return {"customers": findings.customers, "differing_customers": findings.differing}

    def _rest(self) -> None:
        if self._stop.wait(REST_S):
            raise _Stopped

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                now = datetime.now(UTC)
                due = now - timedelta(hours=self._settings.worker.verify_hour)
                self.prove(due.date().isoformat())
            except _Stopped:
                return
            except CaudalError as exc:
                logger().warning(Log.PROCESS_FAILED, process="worker", step="verify", code=exc.code)
            except Exception as exc:
                logger().exception(Log.PROCESS_FAILED, process="worker", step="verify", error=type(exc).__name__)


class _Stopped(Exception):
    """The worker ends."""


def _result(conn: psycopg.Connection[Any]) -> dict[str, Any] | None:
    row = conn.execute("SELECT value FROM hub.control WHERE key = %s", (_KEY,)).fetchone()
    return row[0] if row else None
