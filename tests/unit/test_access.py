from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from caudal import access
from caudal.access import BadAccess, Checker, Grant, Scope

TOKEN = "cdl_" + "A" * 43


class Rows:
    """A pool whose every query answers with the same row, and that counts them."""

    def __init__(self, row):
        self.row = row
        self.asked = 0

    @asynccontextmanager
    async def connection(self):
        yield self

    async def execute(self, _statement, _parameters):
        self.asked += 1
        return self

    async def fetchone(self):
        return self.row


def row(token=TOKEN, scopes=("customers:read",), expires_at=None):
    return (hashlib.sha256(token.encode()).digest(), "crm", list(scopes), expires_at)


@pytest.mark.parametrize(
    ("name", "scopes", "expires_at", "fault"),
    [
        ("crm", ["customers:erase"], None, "unknown scope customers:erase"),
        ("crm", [], None, "no scope"),
        ("", ["admin"], None, "bad token name"),
        ("with space", ["admin"], None, "bad token name"),
        ("x" * 65, ["admin"], None, "bad token name"),
        ("crm", ["admin"], datetime(2001, 1, 1, tzinfo=UTC), "in the future"),
        ("crm", ["admin"], datetime(2999, 1, 1), "in the future"),  # noqa: DTZ001 - a time without its zone is the point
    ],
)
def test_a_token_that_makes_no_sense_is_refused_before_anything_is_stored(name, scopes, expires_at, fault):
    with pytest.raises(BadAccess, match=fault):
        access.create(None, name, scopes, expires_at=expires_at)


def test_admin_holds_every_scope_and_no_other_scope_holds_a_second():
    for scope in Scope:
        assert Grant("a", frozenset({"admin"}), None).allows(scope)
    assert not Grant("a", frozenset({"customers:read"}), None).allows(Scope.CHANGES_READ)


async def test_a_token_is_asked_for_once_and_again_after_the_cache_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    pool = Rows(row())
    checker = Checker(pool)
    for _ in range(5):
        assert (await checker.check(TOKEN)).allows(Scope.CUSTOMERS_READ)
    assert pool.asked == 1
    pool.row = None  # revoked
    now += access.CACHE_S + 0.01
    assert await checker.check(TOKEN) is None
    assert pool.asked == 2


def test_a_revoked_token_is_forgotten_within_the_two_seconds_that_the_docs_promise():
    assert access.CACHE_S <= 2


async def test_a_token_expires_although_its_verdict_is_cached():
    soon = datetime.now(UTC) + timedelta(milliseconds=50)
    checker = Checker(Rows(row(expires_at=soon)))
    assert await checker.check(TOKEN)
    while datetime.now(UTC) < soon:
        pass
    assert await checker.check(TOKEN) is None


@pytest.mark.parametrize(
    "token", ["", "cdl_", "cdl_" + "A" * 42, "cdl_" + "A" * 44, "xyz_" + "A" * 43, "cdl_" + "é" * 43]
)
async def test_what_cannot_be_a_token_costs_no_query(token):
    pool = Rows(row())
    assert await Checker(pool).check(token) is None
    assert pool.asked == 0


async def test_guesses_are_cached_too_and_the_cache_stays_small(monkeypatch):
    monkeypatch.setattr(access, "_CACHE_SIZE", 3)
    pool = Rows(None)
    checker = Checker(pool)
    for i in range(10):
        await checker.check(f"cdl_{i:043}")
        await checker.check(f"cdl_{i:043}")
    assert pool.asked == 10
    assert len(checker._cache) == 3
