"""Why someone is in a segment or not, in words: what would have to turn for the whole to turn."""

from __future__ import annotations

from collections.abc import Mapping

from caudal.projections.criteria import Condition, print_text, tree

__all__ = ["turns"]


def turns(condition: Condition, holds: Mapping[str, bool]) -> str:
    """What would turn the condition, as far as its parts go.

    Args:
        condition: the tree.
        holds: for the path of each condition whether it holds now.
    """
    return _turns(condition, "", holds)[0]


def _turns(node: Condition, path: str, holds: Mapping[str, bool]) -> tuple[str, bool]:
    """The words, and whether they need brackets within others."""
    children = [
        (child, f"{path}.{name}[{number}]" if path else f"{name}[{number}]")
        for name, several in tree.groups(node)
        for number, child in enumerate(several)
    ]
    if not children:
        return f"`{print_text(node)}` {'no longer holds' if holds[path] else 'holds'}", False
    match node:
        case tree.All():
            word, which = (" or ", True) if holds[path] else (" and ", False)
        case tree.Any_():
            word, which = (" and ", True) if holds[path] else (" or ", False)
        case _:
            word, which = (" or ", False) if holds[path] else (" and ", True)
    parts = [_turns(child, at, holds) for child, at in children if holds[at] is which]
    if len(parts) == 1:
        return parts[0]
    return word.join(f"({text})" if several else text for text, several in parts), True
