"""Every error Caudal raises, grouped by what to do about it.

`Fatal` stops the process: a human is needed. `Retryable` means back off and try the same work again. `Poison` means that
one input can't be used: it becomes a dead letter and the stream goes on. Each class carries a stable `code`, used as the
dead-letter header and as a metric label. Messages never contain personal data or secrets.
"""

from __future__ import annotations

__all__ = [
    "BadSchema",
    "BadSettings",
    "BrokerRefused",
    "BrokerUnavailable",
    "CaudalError",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "DecisionRefused",
    "EmbeddedServerFailed",
    "Fatal",
    "IncompatibleSchema",
    "InvalidPayload",
    "LogTruncated",
    "LostPartition",
    "MissingField",
    "NotKnown",
    "Poison",
    "RefusedRecord",
    "RegistryUnavailable",
    "ReplayCancelled",
    "ReplayRefused",
    "ReplayRunning",
    "Retryable",
    "ServersInUse",
    "UndecodableRecord",
    "UninstalledConnector",
    "UnknownConnector",
    "UnknownKind",
    "UnknownSource",
    "UnusableEvent",
]


class CaudalError(Exception):
    """The root of all of Caudal's errors. `code` is stable across releases."""

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def excerpt(self) -> str:
        """Lines of the caller's own text that show where the fault is; for its author's eyes, never logged."""
        return ""


class Fatal(CaudalError):
    """Stop: trying again can't help, a human is needed."""

    code = "fatal"


class BadSettings(Fatal):
    code = "bad_settings"


class BadSchema(Fatal):
    code = "bad_schema"


class IncompatibleSchema(Fatal):
    code = "incompatible_schema"


class EmbeddedServerFailed(Fatal):
    code = "embedded_server_failed"


class ServersInUse(Fatal):
    """The embedded servers can't be stopped while processes use them."""

    code = "servers_in_use"


class UnknownSource(Fatal):
    code = "unknown_source"


class UnknownConnector(Fatal):
    code = "unknown_connector"


class LogTruncated(Fatal):
    """The log doesn't hold what was stated on it: its first events, or those that stored offsets tell of."""

    code = "log_truncated"


class DecisionRefused(Fatal):
    """What a person asks of subjects can't be done as things stand."""

    code = "decision_refused"


class NotKnown(DecisionRefused):
    """There is no such subject, customer or decision."""

    code = "not_known"


class ReplayRefused(Fatal):
    """What was asked of a replay can't be done as things stand, or would change more than was allowed."""

    code = "replay_refused"


class ReplayCancelled(Fatal):
    """Someone cancelled the replay; what it had built is gone."""

    code = "replay_cancelled"


class Retryable(CaudalError):
    """Back off and try the same work again."""

    code = "retryable"


class BrokerUnavailable(Retryable):
    code = "broker_unavailable"


class DatabaseUnavailable(Retryable):
    code = "database_unavailable"


class BrokerRefused(BrokerUnavailable):
    """Kafka is there and doesn't let us in as we ask: user, password, protocol. It may after a change at its side."""

    code = "broker_refused"


class DatabaseRefused(DatabaseUnavailable):
    """PostgreSQL is there and doesn't let us in as we ask: user, password, database. It may after a change at its side."""

    code = "database_refused"


class RegistryUnavailable(Retryable):
    code = "registry_unavailable"


class LostPartition(Retryable):
    """Another worker owns the partition now; drop the batch and take what is assigned."""

    code = "lost_partition"


class ReplayRunning(Retryable):
    """Another replay runs; one at a time."""

    code = "replay_running"


class Poison(CaudalError):
    """One input can't be used: dead-letter it with this reason and go on."""

    code = "poison"


class InvalidPayload(Poison):
    """The body isn't what the vendor's format says (not JSON, wrong types, wrong shape)."""

    code = "invalid_payload"


class MissingField(Poison):
    """A field that the event can't do without is absent."""

    code = "missing_field"


class UnknownKind(Poison):
    """The delivery's kind is none that the connector knows."""

    code = "unknown_kind"


class UndecodableRecord(Poison):
    """Bytes on a topic that are not a valid record of the schema they name."""

    code = "undecodable_record"


class UninstalledConnector(Poison):
    """The capture's connector is not installed where it is translated."""

    code = "uninstalled_connector"


class RefusedRecord(Poison):
    """Kafka will never take the record: it is larger than its topic allows, or a rule of the broker forbids it."""

    code = "refused_record"


class UnusableEvent(Poison):
    """A well-formed event whose values can't be stored (out of range, contradictory)."""

    code = "unusable_event"
