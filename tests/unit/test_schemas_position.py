"""Tokens are opaque to callers and exact to us; a damaged one is an answer, not an accident."""

from __future__ import annotations

import base64
import contextlib

import pytest
from caudal.schemas.position import BadToken, covers, decode, encode, merge
from hypothesis import given
from hypothesis import strategies as st

OFFSETS = st.dictionaries(st.integers(0, 63), st.integers(0, 2**63 - 1), min_size=1, max_size=5)
POSITIONS = st.dictionaries(
    st.sampled_from(["customer.changes", "capture.shop-br", "capture.crm"]), OFFSETS, max_size=3
)


@given(POSITIONS)
def test_a_token_comes_back_as_its_position(position: dict[str, dict[int, int]]) -> None:
    token = encode(position)
    assert decode(token) == position
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_equal_positions_give_equal_tokens() -> None:
    assert encode({"b": {2: 1, 1: 5}, "a": {0: 3}}) == encode({"a": {0: 3}, "b": {1: 5, 2: 1}, "c": {}})
    assert base64.urlsafe_b64decode(encode({"a": {0: 3}}) + "==") == b'{"a":{"0":3}}'


@given(POSITIONS, POSITIONS)
def test_a_merged_position_is_the_least_that_covers_both(
    a: dict[str, dict[int, int]], b: dict[str, dict[int, int]]
) -> None:
    both = merge(a, b)
    assert covers(both, a)
    assert covers(both, b)
    assert both == merge(b, a)
    assert merge(both, a) == both
    assert all(
        offset in (a.get(t, {}).get(p), b.get(t, {}).get(p)) for t, ps in both.items() for p, offset in ps.items()
    )


def test_a_position_covers_only_what_it_has_reached() -> None:
    assert covers({"t": {0: 5, 1: 2}}, {"t": {0: 5}})
    assert covers({}, {"t": {0: 0}})
    assert not covers({"t": {0: 4}}, {"t": {0: 5}})
    assert not covers({"t": {0: 5}}, {"t": {1: 1}})


def token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "!",
        "ção",
        "a",
        token("{"),
        token("[]"),
        token("7"),
        token('{"t":5}'),
        token('{"t":{"x":1}}'),
        token('{"t":{"²":1}}'),
        token('{"t":{"-1":1}}'),
        token('{"t":{"0":-1}}'),
        token('{"t":{"0":1.5}}'),
        token('{"t":{"0":true}}'),
        token('{"t":{"0":9223372036854775808}}'),
        token("[" * 40_000),
        "A" * 70_000,
    ],
)
def test_a_damaged_token_is_told(damaged: str) -> None:
    with pytest.raises(BadToken):
        decode(damaged)


@given(st.text(max_size=40))
def test_any_text_is_a_position_or_a_bad_token(text: str) -> None:
    with contextlib.suppress(BadToken):
        assert isinstance(decode(text), dict)
