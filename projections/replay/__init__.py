"""Rebuilding facts and views from the log while everything keeps running."""

from caudal.projections.replay._beside import Beside, await_live, offsets, still
from caudal.projections.replay._build import Build, Progress
from caudal.projections.replay._follow import Followed
from caudal.projections.replay._load import PAUSED_S, paused
from caudal.projections.replay._proof import Proof, moment, schema_name
from caudal.projections.replay._records import Record, held, latest, one, records
from caudal.projections.replay._replay import Replay, cancel, drop

__all__ = [
    "PAUSED_S",
    "Beside",
    "Build",
    "Followed",
    "Progress",
    "Proof",
    "Record",
    "Replay",
    "await_live",
    "cancel",
    "drop",
    "held",
    "latest",
    "moment",
    "offsets",
    "one",
    "paused",
    "records",
    "schema_name",
    "still",
]
