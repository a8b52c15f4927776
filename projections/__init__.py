"""Facts, views and the live runner. A view is one SELECT with a key; see facts.py, profiles.py, metrics.py, segments.py.

Rollups are sums of facts by time: see rollups.py.
"""

from caudal.projections._prove import Difference, Prover, Rebuilt, known, sample
from caudal.projections._rollup import computed as rollup_of_facts
from caudal.projections._rollup import stored as rollup_rows
from caudal.projections._runner import Runner
from caudal.projections._schema import FACTS, LIVE, ROLLUPS, VIEWS, ensure_live, priority_sql
from caudal.projections._sql import select as select_sql
from caudal.projections._verify import Findings, plain, verify_customers, verify_rollups
from caudal.projections.profiles import PROVENANCE

__all__ = [
    "FACTS",
    "LIVE",
    "PROVENANCE",
    "ROLLUPS",
    "VIEWS",
    "Difference",
    "Findings",
    "Prover",
    "Rebuilt",
    "Runner",
    "ensure_live",
    "known",
    "plain",
    "priority_sql",
    "rollup_of_facts",
    "rollup_rows",
    "sample",
    "select_sql",
    "verify_customers",
    "verify_rollups",
]
