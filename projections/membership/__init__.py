"""Segments that people define, and who is in them.

- definitions.py: the definitions with their versions: create, edit, archive.
- lists.py: who was put on the lists; files.py: definitions as files; reasons.py: why someone is in or not, in words.
- stage.py: keeps memberships: after batches, when the time comes, and for new definitions.

The built-in segments are a view (projections/segments.py): they follow from facts alone.
"""
