"""Operators' commands as they come on the topic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.supervisor import ROLES
from caudal.worker import parse_command


@pytest.mark.parametrize(
    ("value", "command"),
    [
        (b'{"command": "pause"}', ("pause", ROLES)),
        (b'{"command": "resume", "role": "project"}', ("resume", ("project",))),
        (b'{"command": "pause", "role": null}', ("pause", ROLES)),
        (b'{"command": "pause", "role": "replay"}', ("pause", ("replay",))),
        (b'{"command": "pause", "role": "everything"}', (None, ())),
        (b'{"command": ["pause"]}', (None, ())),
        (b'["pause"]', (None, ())),
        (b"pause", (None, ())),
    ],
)
def test_commands_are_understood_or_ignored(value, command):
    assert parse_command(value) == command


@settings(deadline=None)  # shared machines stall
@given(st.binary(max_size=40))
def test_no_bytes_raise(value):
    parse_command(value)
