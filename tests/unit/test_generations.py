"""Names of the generations of the log."""

from __future__ import annotations

import pytest

from caudal import generations


@pytest.mark.parametrize(
    ("number", "name"), [(1, "customer.changes"), (2, "customer.changes.2"), (30, "customer.changes.30")]
)
def test_a_generation_and_its_topic_tell_each_other(number, name):
    assert generations.name(number) == name
    assert generations.number_of(name) == number


@pytest.mark.parametrize(
    "name",
    [
        "customer.profiles",
        "customer.changes.",
        "customer.changes.1",
        "customer.changes.02",
        "customer.changes.x",
        "customer.changes.٣",
    ],
)
def test_other_topics_are_no_generation(name):
    assert generations.number_of(name) is None
