"""Segments that people define, and who is in them.

- definitions.py: the definitions with their versions: create, edit, archive, lists.
- stage.py: keeps memberships: after batches, when the time comes, and for new definitions.

The built-in segments are a view (projections/segments.py): they follow from facts alone.
"""
