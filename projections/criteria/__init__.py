"""Criteria: one language for search, segments and reports.

- tree.py: the condition tree, its limits, reading it from JSON and YAML.
- text.py and criteria.lark: the short text form and back.
- fields.py: what a condition can speak of.
- compile.py: the tree as one SQL predicate; whom it holds of, what it reads.
- _due.py: when the answer could change with no new event.
- personal.py: whether it speaks of personal data.
- _because.py: since which event it holds.

The language is described in docs/segments.md.
"""

from caudal.projections.criteria._because import because
from caudal.projections.criteria.compile import (
    SCAN,
    SEEK,
    Sql,
    conditions,
    explanation,
    judged,
    members,
    predicate,
    reads,
)
from caudal.projections.criteria.personal import personal, personal_segments
from caudal.projections.criteria.text import parse, print_text, read
from caudal.projections.criteria.tree import (
    BadCriteria,
    Condition,
    dump,
    json_schema,
    load,
    load_text,
    metrics_named,
    order,
    segments_named,
)

__all__ = [
    "SCAN",
    "SEEK",
    "BadCriteria",
    "Condition",
    "Sql",
    "because",
    "conditions",
    "dump",
    "explanation",
    "json_schema",
    "judged",
    "load",
    "load_text",
    "members",
    "metrics_named",
    "order",
    "parse",
    "personal",
    "personal_segments",
    "predicate",
    "print_text",
    "read",
    "reads",
    "segments_named",
]
