"""What would have to turn for someone to enter or leave, in words."""

from __future__ import annotations

import pytest
from caudal.projections.criteria import conditions, parse, print_text
from caudal.projections.membership.reasons import turns


@pytest.mark.parametrize(
    ("text", "holding", "words"),
    [
        ("age > 3", [], "`age > 3` holds"),
        ("age > 3", ["age > 3"], "`age > 3` no longer holds"),
        ('age > 3 and city = "a"', ["age > 3"], '`city = "a"` holds'),
        ('age > 3 and city = "a"', [], '`age > 3` holds and `city = "a"` holds'),
        ('age > 3 or city = "a"', [], '`age > 3` holds or `city = "a"` holds'),
        ('not city = "a"', ['city = "a"'], '`city = "a"` no longer holds'),
        ('not city = "a"', [], '`city = "a"` holds'),
        (
            'age > 3 and (city = "a" or city = "b")',
            ["age > 3", 'city = "a"', 'city = "b"'],
            '`age > 3` no longer holds or (`city = "a"` no longer holds and `city = "b"` no longer holds)',
        ),
    ],
)
def test_what_would_turn_it(text, holding, words):
    condition = parse(text)
    holds = {}
    for path, node in reversed(conditions(condition)):
        children = [
            held for at, held in holds.items() if at.rpartition("[")[0].rpartition(".")[0] == path and at != path
        ]
        kind = type(node).__name__
        combined = {"All": all, "Any_": any, "None_": lambda found: not any(found)}.get(kind)
        holds[path] = combined(children) if combined else print_text(node) in holding
    assert turns(condition, holds) == words
