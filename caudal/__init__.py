"""Caudal: an event-sourced customer integration hub."""

__all__ = ["__version__"]
__version__ = "0.1.0"
