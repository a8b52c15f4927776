"""Facts, views and the live runner. A view is one SELECT with a key; see facts.py, profiles.py, metrics.py, segments.py."""

from caudal.projections._prove import Difference, Prover, Rebuilt, sample
from caudal.projections._runner import Runner
from caudal.projections._schema import FACTS, LIVE, VIEWS, ensure_live, priority_sql
from caudal.projections._sql import select as select_sql
from caudal.projections._verify import Findings, plain, verify_customers
from caudal.projections.profiles import PROVENANCE

__all__ = [
    "FACTS",
    "LIVE",
    "PROVENANCE",
    "VIEWS",
    "Difference",
    "Findings",
    "Prover",
    "Rebuilt",
    "Runner",
    "ensure_live",
    "plain",
    "priority_sql",
    "sample",
    "select_sql",
    "verify_customers",
]
