"""`caudal.postgres.migrate` on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from caudal import postgres
from caudal.errors import DatabaseUnavailable
from caudal.settings import PostgresSettings, Settings


@pytest.fixture
def empty(servers: Settings) -> Iterator[PostgresSettings]:
    name = f"t{uuid.uuid4().hex[:12]}"
    with postgres.connect(servers.postgres, role="tests") as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield _at(servers.postgres, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _at(settings: PostgresSettings, **parts: str) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(make_conninfo(postgres.dsn(settings), **parts)))


def _tables(settings: PostgresSettings, schema: str) -> set[str]:
    with postgres.connect(settings, role="tests") as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
        return {name for (name,) in rows}


def _applied(settings: PostgresSettings) -> list[str]:
    with postgres.connect(settings, role="tests") as connection:
        return [row[0] for row in connection.execute("SELECT migration_id FROM hub._yoyo_migration ORDER BY 1")]


def test_migrations_make_the_hub_and_leave_schema_public_empty(empty: PostgresSettings) -> None:
    postgres.migrate(empty)
    assert {"offsets", "outbox"} <= _tables(empty, "hub")
    assert _tables(empty, "public") == set()


def test_migrating_again_changes_nothing(empty: PostgresSettings) -> None:
    postgres.migrate(empty)
    before = _applied(empty)
    postgres.migrate(empty)
    assert _applied(empty) == before
    assert before[0] == "0001_projection"


def test_several_may_migrate_at_once(empty: PostgresSettings) -> None:
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(postgres.migrate, empty) for _ in range(4)]:
            future.result()
    applied = _applied(empty)
    assert len(applied) == len(set(applied)) > 0


def test_a_migration_that_fails_leaves_nothing_and_can_be_tried_again(empty: PostgresSettings) -> None:
    with postgres.connect(empty, role="tests") as connection:
        connection.execute("CREATE SCHEMA hub")
        connection.execute("CREATE TABLE hub.outbox ()")  # in the way of the first migration's second table
    with pytest.raises(psycopg.errors.DuplicateTable):
        postgres.migrate(empty)
    assert "offsets" not in _tables(empty, "hub")
    with postgres.connect(empty, role="tests") as connection:
        connection.execute("DROP TABLE hub.outbox")
    postgres.migrate(empty)
    assert "offsets" in _tables(empty, "hub")


@pytest.mark.parametrize("shape", ["url", "keywords", "service"])
def test_every_shape_of_connection_string_works(
    empty: PostgresSettings, shape: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(postgres.dsn(empty))
    if shape == "url":
        dsn = "postgresql://{user}:{password}@/{dbname}?host={host}&port={port}".format(**parts)
    elif shape == "keywords":
        dsn = make_conninfo(**parts)
    else:
        file = tmp_path_factory.mktemp("service") / "services.conf"
        file.write_text("[hub]\n" + "".join(f"{key}={value}\n" for key, value in parts.items()))
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        dsn = "service=hub"
    postgres.migrate(PostgresSettings(dsn=SecretStr(dsn)))
    assert "offsets" in _tables(empty, "hub")


def test_passwords_may_hold_any_character(servers: Settings, empty: PostgresSettings) -> None:
    role, password = f"t{uuid.uuid4().hex[:12]}", "p@ss/w:rd %41'\"\\ ü"
    with postgres.connect(empty, role="tests") as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD {psycopg.sql.quote(password)}")
        try:
            postgres.migrate(_at(empty, user=role, password=password))
            with pytest.raises(DatabaseUnavailable) as refused:
                postgres.migrate(_at(empty, user=role, password="wrong-word"))
        finally:
            connection.execute(f"DROP OWNED BY {role} CASCADE")
            connection.execute(f"DROP ROLE {role}")
    assert "wrong-word" not in str(refused.value)
