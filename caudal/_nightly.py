"""The nightly proof: one worker rebuilds a sample of customers from the log and says whether the views are right.

It has a thread and connections of its own and rests after every customer, so that the data path doesn't notice. The worker that holds
an advisory lock does it; the others show its result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from caudal import postgres, sources, telemetry
from caudal._periodic import Periodic
from caudal.telemetry import Log, logger

if TYPE_CHECKING:
    from caudal.schemas.codec import Codec
    from caudal.settings import Settings

__all__ = ["Nightly"]

_LOCK = postgres.Lock.PROOF
_KEY = "views.verified"
REST_S = 0.05
NAMED = 20
"""Most customers named in the log line."""


class Nightly(Periodic):
    """Proves a sample once a day, from the hour on that is set."""

    step = "verify"
    every_s = 600.0

    def __init__(self, settings: Settings, codec: Codec) -> None:
        """Nothing is connected before the time comes."""
        super().__init__()
        self._settings = settings
        self._codec = codec

    def look(self, now: datetime) -> Mapping[str, Any] | None:
        """Prove the sample if that is due; the day's result, of whichever worker, if there is one.

        Raises:
            CaudalError: a server can't be reached, or the log doesn't hold what is needed.
        """
        return self.prove((now - timedelta(hours=self._settings.worker.verify_hour)).date().isoformat())

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
            telemetry.VERIFY_ROLLUPS.set(result.get("differing_rollup_rows", 0))  # none from the release before
            telemetry.VERIFY_LAST.set(result["at"])
        return result if result is not None and result["day"] == day else None

    def _verify(self, conn: psycopg.Connection[Any]) -> dict[str, Any]:
        from caudal.projections import Prover, known, sample, verify_customers, verify_rollups

        priorities = {name: source.priority for name, source in sources.load(self._settings).items()}
        prover = Prover(self._settings, self._codec, priorities=priorities)
        began = time.monotonic()
        try:
            customers = sample(conn, self._settings.worker.verify_sample)
            of = known(conn)
            findings = verify_customers(prover, customers, each=lambda _: self.rest(REST_S))
            of_customers = findings.rows
            verify_rollups(conn, findings)
        finally:
            prover.close()
        told = logger().warning if findings.rows else logger().info
        told(
            Log.VIEWS_VERIFIED,
            customers=findings.customers,
            of=of,
            differing=findings.differing,
            rows=findings.rows,
            tables=dict(findings.tables),
            named=findings.named[:NAMED],
            seconds=round(time.monotonic() - began, 1),
        )
        return {
            "customers": findings.customers,
            "of_customers": of,
            "differing_customers": findings.differing,
            "differing_rollup_rows": findings.rows - of_customers,
        }


def _result(conn: psycopg.Connection[Any]) -> dict[str, Any] | None:
    row = conn.execute("SELECT value FROM hub.control WHERE key = %s", (_KEY,)).fetchone()
    return row[0] if row else None
