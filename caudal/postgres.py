"""The one module that owns psycopg: connections, migrations, error translation."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import IntEnum, unique
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from caudal.errors import BadSettings, DatabaseRefused, DatabaseUnavailable, Fatal
from caudal.settings import PostgresSettings

__all__ = [
    "REFUSED",
    "Lock",
    "address",
    "connect",
    "let_go_after",
    "migrate",
    "opened",
    "pool",
    "transaction",
    "translated",
]


@unique
class Lock(IntEnum):
    """Advisory locks of one key, here so that no two are the same. (Locks of two keys are another space.)"""

    MAKING = 0x6361_7564  # the live schema is being made
    SWAP = 0x6361_7565  # see projections/_schema.py
    SEARCH = 0x6361_7566  # the search index is being kept
    PROOF = 0x6361_7567
    SCORES = 0x6361_7568
    REPORTS = 0x6361_7569
    MEMBERSHIPS = 0x6361_756A
    ROLLUPS = 0x6361_756B  # what is new in the rollups is folded
    PLACES = 0x6361_7564_706C  # the index of where events lie is put in order


REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""What PostgreSQL says of values that it can't store; the last one of a text that is too long for an index. They don't pass with time."""

_LET_GO = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
"""What ends a transaction whose client stood still (see `let_go_after`). To psycopg these are internal errors."""


def dsn(settings: PostgresSettings) -> str:
    """The connection string.

    Raises:
        Fatal: none is known (the caller must resolve the embedded servers first, see `caudal.embedded`).
    """
    if settings.dsn is None:
        raise Fatal("no PostgreSQL is set", hint="run `caudal up`, or set CAUDAL_POSTGRES__DSN")
    return settings.dsn.get_secret_value()


PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "40000",
}
"""How long to wait for a server that is gone without a word: 10 s for a connection, 40 s for a sign of life while a statement runs.
The system's own patience is 2 hours. What the connection string says comes first."""


def _patient(settings: PostgresSettings) -> str:
    """The connection string, with `PATIENCE` where it says nothing else."""
    given = dsn(settings)
    stated = conninfo_to_dict(given)
    return make_conninfo(given, **{name: value for name, value in PATIENCE.items() if name not in stated})


def connect(
    settings: PostgresSettings, *, role: str, schema: str | None = None, **extra: Any
) -> psycopg.Connection[tuple[Any, ...]]:
    """One autocommit connection for `role` (shown in pg_stat_activity as `caudal <role>`); names without a schema are of `schema`.

    Raises:
        DatabaseUnavailable: the server can't be reached.
    """
    try:
        return psycopg.connect(
            _patient(settings),
            autocommit=True,
            application_name=f"caudal {role}",
            options="-c timezone=UTC -c jit=off" + (f" -c search_path={schema}" if schema else ""),
            **extra,
        )
    except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
        raise no_connection(settings, exc) from exc


_REFUSALS = {
    r"password authentication failed|no password supplied|SCRAM|authentication method requirement": "it refuses user or password",
    r'database ".*" does not exist': "it has no such database",
    r'role ".*" does not exist': "it refuses user or password",
    r"pg_hba\.conf|permission denied for database": "it doesn't let this user in from here, or not without TLS",
    r"not support SSL|SSL error|certificate|root\.crt": "no TLS connection as the connection string asks for it",
    r"invalid .*(value|option)|invalid integer|invalid port": "the connection string holds a value that is none",
    r"invalid response|expected authentication request|unexpected (message|response)": "what answers there is no PostgreSQL",
}
"""What libpq says when trying again can't help, in our words: its own text may hold more than may be told."""
_ABSENCES = {
    r"resolve|translate host name|Name or service": "the host's name isn't known",
    r"Connection refused|No such file": "nothing listens there",
    r"timeout|timed out": "no answer in time",
    r"too many (clients|connections)|remaining connection slots": "it has no connection left",
    r"starting up|shutting down|recovery": "it is starting or stopping",
    r"unreachable|No route": "there is no way to it",
}


def no_connection(settings: PostgresSettings, exc: psycopg.Error) -> DatabaseUnavailable:
    """Why there is no connection, in words that hold no secret."""
    where, text = address(settings), str(exc)
    for pattern, reason in _REFUSALS.items():
        if re.search(pattern, text):
            return DatabaseRefused(f"PostgreSQL at {where} can't be used: {reason}", hint="CAUDAL_POSTGRES__DSN")
    reason = next((words for pattern, words in _ABSENCES.items() if re.search(pattern, text)), type(exc).__name__)
    return DatabaseUnavailable(f"PostgreSQL at {where} can't be reached: {reason}")


def address(settings: PostgresSettings) -> str:
    """Where the server is, without user and password."""
    parts = conninfo_to_dict(dsn(settings))
    return f"{parts.get('host') or parts.get('hostaddr') or 'local'}:{parts.get('port') or 5432}"


LONGEST = 10
"""A transaction that takes so many sessions is ended by the server; one that waits for its client, after one session."""


def let_go_after(connection: psycopg.Connection[Any], session_ms: int) -> None:
    """Let the server end a transaction whose client stands still.

    A process that was stopped, or a machine that is gone without a word, would keep its locks from whoever takes over its work. In
    pipeline mode the server doesn't know that it waits for its client, so there is a limit for the whole, too.
    """
    connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('transaction_timeout', %s, false)",
        (str(session_ms), str(session_ms * LONGEST)),
    )


FREE_S = 5.0
"""Longest wait for a free connection of a pool."""
OPENED_S = 10.0


def pool(settings: PostgresSettings, *, role: str) -> AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]:
    """An unopened pool of autocommit connections; the caller opens and closes it."""
    timeout_ms = int(settings.statement_timeout_s * 1000)
    return AsyncConnectionPool(
        _patient(settings),
        min_size=1,
        max_size=settings.pool_size,
        open=False,
        check=_check,
        timeout=FREE_S,
        kwargs={
            "autocommit": True,
            "application_name": f"caudal {role}",
            "prepare_threshold": 0,
            # planning the API's wide statements takes several times as long as running them: one plan each, made once
            "options": f"-c timezone=UTC -c jit=off -c plan_cache_mode=force_generic_plan -c statement_timeout={timeout_ms}",
        },
    )


@asynccontextmanager
async def opened(settings: PostgresSettings, *, role: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """A pool with its first connection made, for who asks once and goes.

    Raises:
        DatabaseUnavailable: the server can't be reached.
    """
    await asyncio.to_thread(
        lambda: connect(settings, role=role).close()
    )  # a pool tries on until its time is over, and tells no reason
    async with AsyncExitStack() as stack:
        with translated():
            made = pool(settings, role=role)
            stack.push_async_callback(made.close)
            await made.open(wait=True, timeout=OPENED_S)
        yield made


_CHECK_AFTER_S = 1.0
_checked: WeakKeyDictionary[psycopg.AsyncConnection[Any], float] = WeakKeyDictionary()


async def _check(connection: psycopg.AsyncConnection[Any]) -> None:
    """Whether a pooled connection still lives, asked once a second: asking every time doubles the round trips of a busy API."""
    if time.monotonic() - _checked.get(connection, 0.0) > _CHECK_AFTER_S:
        await connection.execute("SELECT 1", prepare=False)
        _checked[connection] = time.monotonic()


def migrate(settings: PostgresSettings) -> None:
    """Bring schema `hub` up to date; safe to call at every start and from several processes at once.

    A migration and the note that it was applied are one transaction, so a crash leaves nothing half done.

    Raises:
        BadSettings: the server is too old, lacks an extension, or its user may not make what is needed.
        DatabaseUnavailable: the server can't be reached.
    """
    import yoyo

    from caudal._migrations import Backend

    migrations = yoyo.read_migrations(str(Path(__file__).parent / "migrations"))
    with translated(), connect(settings, role="migrate") as lock:
        # freed by the server when we die, unlike yoyo's own lock, which is a row
        lock.execute("SELECT pg_advisory_lock(hashtextextended('caudal.migrate', 0))")
        _fit(lock, settings)
        lock.execute("CREATE SCHEMA IF NOT EXISTS hub")
        with Backend(lambda: connect(settings, role="migrate")) as backend:
            backend.apply_migrations(backend.to_apply(migrations))


OLDEST = 18
EXTENSIONS = ("pg_trgm", "unaccent")


def _fit(connection: psycopg.Connection[Any], settings: PostgresSettings) -> None:
    """Whether the database can be ours; raises BadSettings when not."""
    row = connection.execute(
        """SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),
                  pg_is_in_recovery(), has_database_privilege(current_database(), 'CREATE'),
                  ARRAY(SELECT name FROM unnest(%s::text[]) name WHERE name NOT IN (SELECT name FROM pg_available_extensions))""",
        (list(EXTENSIONS),),
    ).fetchone()
    assert row is not None
    version, encoding, replica, may_create, lacking = row
    fault = None
    if version < OLDEST:
        fault = f"it is PostgreSQL {version}, {OLDEST} or newer is needed"
    elif encoding != "UTF8":
        fault = f"the database's encoding is {encoding}, UTF8 is needed"
    elif replica:
        fault = "it is a replica, which nothing can be written to"
    elif not may_create:
        fault = "its user may not create schemas (GRANT CREATE ON DATABASE)"
    elif lacking:
        fault = f"it lacks the extension {', '.join(lacking)} (PostgreSQL's contrib package)"
    if fault is not None:
        raise BadSettings(f"PostgreSQL at {address(settings)} can't be used: {fault}", hint="CAUDAL_POSTGRES__DSN")


@contextmanager
def transaction(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """As `connection.transaction()`, but what is rolled back keeps its prepared statements. psycopg forgets them all then, since what
    they name could have been made in the transaction; nothing is made or dropped in these. `psycopg.Rollback` undoes it without an error.
    """
    idle = psycopg.pq.TransactionStatus.IDLE
    if connection.info.transaction_status != idle:
        with connection.transaction():
            yield
        return
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except psycopg.Rollback:
        pass
    finally:
        if not connection.closed and connection.info.transaction_status != idle:
            connection.pgconn.exec_(b"ROLLBACK")


@contextmanager
def translated() -> Iterator[None]:
    """Turn lost connections, deadlocks and shutdowns into `DatabaseUnavailable`; all else passes."""
    try:
        yield
    except psycopg.errors.ProgramLimitExceeded:
        raise  # an OperationalError, but one that comes again
    except (psycopg.OperationalError, psycopg.InterfaceError, *_LET_GO) as exc:
        # OperationalError holds lost connections, admin shutdown, deadlocks, serialisation failures, disk full: all pass with time
        raise DatabaseUnavailable(f"PostgreSQL: {type(exc).__name__}", hint="the same work is tried again") from exc
