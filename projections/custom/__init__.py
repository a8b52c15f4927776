"""Custom metrics: one file with one SELECT each; see docs/metrics.md.

- source.py: `metrics/*.sql`.
- check.py: whether a SELECT may become one.
- metric.py: what one is, its function in the database, the view `metrics` with its values.
- bound.py: how long one may take.
- apply.py: which there shall be.
"""
