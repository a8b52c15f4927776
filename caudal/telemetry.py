"""Log event names, metrics, and how logging is set up. `docs/reference/telemetry.md` lists them; a test compares."""

from __future__ import annotations

import logging
import sys
import threading
import time
from enum import StrEnum
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

from caudal.printable import printable

__all__ = ["Log", "Seldom", "configure_logging", "logger"]


class Log(StrEnum):
    """The literal event of every log line: `noun.verb_past`. All else is keywords; ids only, never personal data."""

    BATCH_PROJECTED = "batch.projected"
    BATCH_RETRIED = "batch.retried"
    BATCH_TRANSLATED = "batch.translated"
    CAPTURE_DEAD_LETTERED = "capture.dead_lettered"
    EVENT_DEAD_LETTERED = "event.dead_lettered"
    CHANGE_CUT = "change.cut"
    CHANGE_PUT_ASIDE = "change.put_aside"
    EVIDENCE_WITHDRAWN = "evidence.withdrawn"
    DELIVERY_REFUSED = "delivery.refused"
    LIBRARY_LOGGED = "library.logged"
    LOG_ACCEPTED = "log.accepted"
    LOG_TRUNCATED = "log.truncated"
    METRIC_GIVEN_UP = "metric.given_up"
    OUTBOX_RECOVERED = "outbox.recovered"
    PARTS_LEFT_OUT = "parts.left_out"
    PARTITIONS_ASSIGNED = "partitions.assigned"
    PARTITIONS_REVOKED = "partitions.revoked"
    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    PROCESS_FAILED = "process.failed"
    PROCESS_RESTARTED = "process.restarted"
    SEGMENT_APPLIED = "segment.applied"
    SERVER_STARTED = "server.started"
    SERVER_STOPPED = "server.stopped"
    SETTING_SUSPECTED = "setting.suspected"
    SOURCES_LOADED = "sources.loaded"
    SOURCES_REFUSED = "sources.refused"
    SOURCE_UNUSABLE = "source.unusable"
    SERVER_UNREACHABLE = "server.unreachable"
    SCHEMA_REGISTERED = "schema.registered"
    COMMAND_RECEIVED = "command.received"
    REPLAY_ENDED = "replay.ended"
    REPLAY_STARTED = "replay.started"
    REPLAY_SWAPPED = "replay.swapped"
    REPORT_FAILED = "report.failed"
    REPORT_WRITTEN = "report.written"
    REQUEST_FAILED = "request.failed"
    STREAM_CLOSED = "stream.closed"
    STREAM_RECORD_SKIPPED = "stream.record_skipped"
    VIEWS_VERIFIED = "views.verified"
    SCORES_COMPUTED = "scores.computed"


DELIVERIES = Counter("caudal_deliveries_total", "Deliveries at the edge by outcome.", ["source", "outcome"])
DELIVERY_SECONDS = Histogram(
    "caudal_delivery_seconds",
    "From the request's first byte to the broker's acknowledgement.",
    ["source"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
TRANSLATED = Counter("caudal_events_translated_total", "Canonical events made from captures.", ["source"])
LEFT_OUT = Counter(
    "caudal_parts_left_out_total",
    "Parts of deliveries that could not be read, while the rest was used.",
    ["source", "reason"],
)
DEAD_LETTERS = Counter("caudal_dead_letters_total", "Inputs put aside by stage and code.", ["stage", "code"])
PROJECTED = Counter("caudal_events_projected_total", "Events applied to facts and views.", ["type"])
BATCH_SECONDS = Histogram(
    "caudal_batch_seconds",
    "Time of one batch by stage.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
BATCH_EVENTS = Histogram(
    "caudal_batch_events", "Events per batch by stage.", ["stage"], buckets=(1, 10, 100, 1000, 5000, 20000)
)
VIEW_ROWS = Counter("caudal_view_rows_changed_total", "View rows that changed.", ["view"])
PUBLISHED = Counter("caudal_changes_published_total", "Messages on the change topics.", ["topic"])
METRIC_FAILURES = Counter(
    "caudal_custom_metric_failures_total",
    "Times that a custom metric was not computed of a customer; the code is SQLSTATE, or too_long.",
    ["metric", "code"],
)
LAG = Gauge("caudal_consumer_lag_events", "Events not yet taken by partition.", ["topic", "partition"])
LOG_FAULT = Gauge("caudal_log_fault", "1 while a log doesn't fit what was read of it and nobody goes on.", ["topic"])
LOG_TRUNCATIONS = Counter(
    "caudal_log_truncations_total", "Times that stored offsets didn't fit their topic.", ["topic", "reason"]
)
UNREAD = Counter("caudal_records_unread_total", "Records that were deleted before they were read.", ["topic"])
CHANGES_CUT = Counter(
    "caudal_changes_cut_total",
    "Change messages published without fields, for their topic takes no larger ones.",
    ["topic"],
)
REQUEST_SECONDS = Histogram(
    "caudal_request_seconds",
    "Time of the API's answers by route, live streams left out.",
    ["route"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
STREAM_CLIENTS = Gauge("caudal_stream_clients", "Open live streams.")
VERIFY_DIFFERENCES = Gauge(
    "caudal_verify_differing_customers", "Customers of the last daily proof whose rows aren't what the log says."
)
VERIFY_ROLLUPS = Gauge(
    "caudal_verify_differing_rollup_rows", "Rows of rollups that weren't what the facts say at the last daily proof."
)
VERIFY_LAST = Gauge("caudal_verify_last_timestamp_seconds", "When the last daily proof began, in seconds since 1970.")
SEGMENT_CHANGES = Counter("caudal_segment_changes_total", "Customers who entered or left defined segments.", ["change"])
SEGMENT_LATENESS = Histogram(
    "caudal_segment_lateness_seconds",
    "From the moment a membership could change with no event to its judgement.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
METRICS = (
    DELIVERIES,
    DELIVERY_SECONDS,
    TRANSLATED,
    LEFT_OUT,
    DEAD_LETTERS,
    PROJECTED,
    BATCH_SECONDS,
    BATCH_EVENTS,
    VIEW_ROWS,
    PUBLISHED,
    METRIC_FAILURES,
    LAG,
    LOG_FAULT,
    LOG_TRUNCATIONS,
    UNREAD,
    CHANGES_CUT,
    REQUEST_SECONDS,
    STREAM_CLIENTS,
    VERIFY_DIFFERENCES,
    VERIFY_ROLLUPS,
    VERIFY_LAST,
    SEGMENT_CHANGES,
    SEGMENT_LATENESS,
)
"""Every metric, for the docs page and its test."""


def configure_logging(level: str = "info", *, json: bool | None = None, **labels: str) -> None:
    """Send structlog and the standard library's loggers to standard error, JSON unless that is a terminal.

    `labels` stand in every line of structlog, whichever thread writes it (a context variable wouldn't reach all of them).
    """
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: Any = structlog.processors.JSONRenderer() if as_json else _for_people(structlog.dev.ConsoleRenderer())
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**event, **labels},
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    from caudal import _libraries

    _libraries.write_lines(renderer, labels)
    logging.captureWarnings(as_json)


class Seldom:
    """Log lines of what comes again and again while it lasts: the first at once, then one every `every_s` that says how many were left
    out. Any thread may write them.
    """

    def __init__(self, every_s: float = 20.0) -> None:
        self._every_s = every_s
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def warning(self, event: Log, **fields: Any) -> None:
        """A warning; lines whose words are the same are the same, whatever their numbers."""
        key = (event, *(f"{name}={value}" for name, value in fields.items() if isinstance(value, str)))
        now = time.monotonic()
        with self._lock:
            since, unsaid = self._told.get(key, (-self._every_s, 0))
            if now - since < self._every_s:
                self._told[key] = since, unsaid + 1
                return
            if len(self._told) > self.MOST:
                self._told.clear()
            self._told[key] = now, 0
        logger().warning(event, **fields, **({"more_since_last": unsaid} if unsaid else {}))

    MOST = 1000


def _for_people(render: Any) -> Any:
    """A renderer of lines in which what a terminal would obey stands as an escape; JSON escapes it by itself."""

    def rendered(log: Any, method: str, event: Any) -> Any:
        shown = {
            name: printable(value, keep="\n") if isinstance(value, str) else value for name, value in event.items()
        }
        return render(log, method, shown)

    return rendered


def logger() -> structlog.typing.FilteringBoundLogger:
    """The logger; call as `log.info(Log.BATCH_PROJECTED, events=120)`."""
    return structlog.get_logger()  # type: ignore[no-any-return]  # it is what was configured
