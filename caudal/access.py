"""API tokens: `cdl_` and 32 random bytes. Only the SHA-256 is stored, so a token is shown once, when it is made.

A token of 256 random bits needs no salt and no slow hash: nobody can guess it, and looking up its hash tells an attacker nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from caudal.errors import Fatal
from caudal.postgres import translated

__all__ = [
    "CACHE_S",
    "BadAccess",
    "Checker",
    "Grant",
    "Scope",
    "TokenInfo",
    "create",
    "granted",
    "list_tokens",
    "revoke",
]

CACHE_S = 1.0
"""How long a checked token is believed. Documented is twice as much: a revoked token stops working within 2 s."""

_CACHE_SIZE = 1024
_SHAPE = re.compile(r"cdl_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_COLUMNS = "name, scopes, created_at, expires_at, last_used_at, revoked_at"

_CREATE = f"INSERT INTO hub.tokens (name, hash, scopes, expires_at) VALUES (%s, %s, %s, %s) RETURNING {_COLUMNS}"
_LIST = f"SELECT {_COLUMNS} FROM hub.tokens ORDER BY created_at, id"
_REVOKE = "UPDATE hub.tokens SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL"
_CHECK = """
    WITH used AS (
        UPDATE hub.tokens SET last_used_at = now()
        WHERE hash = %(hash)s AND revoked_at IS NULL AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
    )
    SELECT hash, name, scopes, expires_at FROM hub.tokens WHERE hash = %(hash)s AND revoked_at IS NULL
"""


class BadAccess(Fatal):
    """A token can't be made as asked."""

    code = "bad_access"


class Scope(StrEnum):
    """What a token allows. `admin` holds all others."""

    CUSTOMERS_READ = "customers:read"
    CUSTOMERS_WRITE = "customers:write"
    CHANGES_READ = "changes:read"
    SEGMENTS_READ = "segments:read"
    SEGMENTS_WRITE = "segments:write"
    METRICS_READ = "metrics:read"
    REPORTS_READ = "reports:read"
    OPERATE = "operate"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as it is kept: everything but the token itself."""

    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token allows, until when."""

    name: str
    scopes: frozenset[str]
    expires_at: datetime | None

    def allows(self, scope: Scope) -> bool:
        """Whether the token may do what `scope` names."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def expired(self, now: datetime) -> bool:
        """Whether the token's time is over."""
        return self.expires_at is not None and self.expires_at <= now


def create(
    conn: psycopg.Connection[Any], name: str, scopes: Collection[str], *, expires_at: datetime | None = None
) -> tuple[str, TokenInfo]:
    """Make a token; the plain token is returned here and never again.

    Raises:
        BadAccess: an unknown scope, none at all, a bad or taken name, or an end that is over already.
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    known = [s.value for s in Scope]
    unknown = sorted(set(scopes) - set(known))
    if unknown or not scopes:
        raise BadAccess(
            f"unknown scope {', '.join(unknown)}" if unknown else "no scope", hint=f"scopes: {', '.join(known)}"
        )
    if not _NAME.fullmatch(name):
        raise BadAccess("bad token name", hint="up to 64 letters, digits and . _ @ -, a letter or digit first")
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= datetime.now(UTC)):
        raise BadAccess("a token must end in the future", hint="give the time with its zone, e.g. 2030-01-31T00:00:00Z")
    token = f"cdl_{secrets.token_urlsafe(32)}"
    with translated(), conn.cursor(row_factory=class_row(TokenInfo)) as cursor:
        try:
            row = cursor.execute(_CREATE, (name, _digest(token), sorted(set(scopes)), expires_at)).fetchone()
        except psycopg.errors.UniqueViolation as exc:
            raise BadAccess(f"there is a token {name} already", hint="revoke it first, or choose another name") from exc
    assert row is not None
    return token, row


def list_tokens(conn: psycopg.Connection[Any]) -> list[TokenInfo]:
    """All tokens, revoked ones too, oldest first.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    with translated(), conn.cursor(row_factory=class_row(TokenInfo)) as cursor:
        return cursor.execute(_LIST).fetchall()


def revoke(conn: psycopg.Connection[Any], name: str) -> bool:
    """Make the token of this name useless, within 2 s everywhere; False when there is none.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    with translated():
        return conn.execute(_REVOKE, (name,)).rowcount > 0


def granted(conn: psycopg.Connection[Any], token: str) -> Grant | None:
    """The grant of a valid token; None for one that is malformed, unknown, revoked or expired. For those who are rarely asked.

    Raises:
        DatabaseUnavailable: PostgreSQL can't be reached.
    """
    if not _SHAPE.fullmatch(token):
        return None
    digest = _digest(token)
    with translated():
        grant = _grant(conn.execute(_CHECK, {"hash": digest}).fetchone(), digest)
    return None if grant is None or grant.expired(datetime.now(UTC)) else grant


class Checker:
    """Says what a token allows, asking PostgreSQL at most once a second per token."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._cache: OrderedDict[bytes, tuple[float, Grant | None]] = OrderedDict()

    async def check(self, token: str) -> Grant | None:
        """The grant of a valid token; None for one that is malformed, unknown, revoked or expired.

        Raises:
            DatabaseUnavailable: PostgreSQL can't be reached.
        """
        token = token.strip()  # a file's line end, an address copied with a blank
        if not _SHAPE.fullmatch(token):
            return None
        digest = _digest(token)
        asked_at = time.monotonic()
        known = self._cache.get(digest)
        if known is None or asked_at - known[0] > CACHE_S:
            known = (asked_at, await self._ask(digest))
            self._cache[digest] = known
            self._cache.move_to_end(digest)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        grant = known[1]
        return None if grant is None or grant.expired(datetime.now(UTC)) else grant

    async def _ask(self, digest: bytes) -> Grant | None:
        with translated():
            async with self._pool.connection() as conn:
                return _grant(await (await conn.execute(_CHECK, {"hash": digest})).fetchone(), digest)


def _grant(row: tuple[Any, ...] | None, digest: bytes) -> Grant | None:
    if row is None or not hmac.compare_digest(bytes(row[0]), digest):
        return None
    return Grant(name=row[1], scopes=frozenset(row[2]), expires_at=row[3])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
