"""Custom metrics: one file with one SELECT each; see docs/metrics.md.

- source.py: `metrics/*.sql`.
- check.py: whether a SELECT may become one.
- metric.py: what one is, its function in the database, the view `metrics` with its values.
- apply.py: which there shall be.
"""
