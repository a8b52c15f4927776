"""Rebuilding facts and views from the log while everything keeps running."""

from caudal.projections.replay._build import Build, Progress

__all__ = ["Build", "Progress"]
