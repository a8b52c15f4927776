"""Facts, views, the live runner and replay. A view is one SELECT with a key; see facts.py, profiles.py, metrics.py, segments.py."""

from caudal.projections._schema import FACTS, VIEWS, ensure_live, priority_sql
from caudal.projections.profiles import PROVENANCE

__all__ = ["FACTS", "PROVENANCE", "VIEWS", "ensure_live", "priority_sql"]
