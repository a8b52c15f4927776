"""Which databases can't be ours, told before anything is made in them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from caudal import postgres
from caudal.errors import BadSettings, DatabaseRefused, DatabaseUnavailable
from caudal.settings import PostgresSettings

SETTINGS = PostgresSettings.model_validate({"dsn": "postgresql://u:hunter2@db.example:5433/x"})
GOOD = (18, "UTF8", False, True, [])


class Answers:
    def __init__(self, row: tuple[Any, ...]) -> None:
        self._row = row

    def execute(self, _statement: str, _values: object) -> Answers:
        return self

    def fetchone(self) -> tuple[Any, ...]:
        return self._row


@pytest.mark.parametrize("row", [GOOD, (19, *GOOD[1:])])
def test_a_database_that_fits(row: tuple[Any, ...]) -> None:
    postgres._fit(Answers(row), SETTINGS)  # type: ignore[arg-type] # stands in for a connection


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, 17, "PostgreSQL 17, 18 or newer is needed"),
        (1, "SQL_ASCII", "encoding is SQL_ASCII"),
        (2, True, "replica"),
        (3, False, "may not create schemas"),
        (4, ["unaccent", "pg_trgm"], "lacks the extension unaccent, pg_trgm"),
    ],
)
def test_one_that_does_not(place: int, value: object, words: str) -> None:
    row = tuple(value if i == place else each for i, each in enumerate(GOOD))
    with pytest.raises(BadSettings, match=words) as told:
        postgres._fit(Answers(row), SETTINGS)  # type: ignore[arg-type] # stands in for a connection
    assert "db.example:5433" in str(told.value)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("said", "refused", "words"),
    [
        ('FATAL:  password authentication failed for user "u"', True, "refuses user or password"),
        ("fe_sendauth: no password supplied", True, "refuses user or password"),
        (
            'authentication method requirement "scram-sha-256" failed: server requested a cleartext password',
            True,
            "refuses user",
        ),
        ('FATAL:  database "x" does not exist', True, "no such database"),
        ('FATAL:  role "u" does not exist', True, "refuses user or password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "u", database "x", no encryption', True, "from here"),
        ("server does not support SSL, but SSL was required", True, "TLS"),
        ("SSL error: certificate verify failed", True, "TLS"),
        ("received invalid response to SSL negotiation: H", True, "no PostgreSQL"),
        ('invalid sslmode value: "bogus"', True, "value that is none"),
        ('invalid integer value "notaport" for connection option "port"', True, "value that is none"),
        ("Connection refused\n\tIs the server running on that host?", False, "nothing listens there"),
        ("failed to resolve host 'db.example': [Errno -2] Name or service not known", False, "name isn't known"),
        ("connection timeout expired", False, "no answer in time"),
        ("FATAL:  the database system is starting up", False, "starting or stopping"),
        ("FATAL:  sorry, too many clients already", False, "no connection left"),
        ("something that nobody foresaw about hunter2", False, "OperationalError"),
    ],
)
def test_why_there_is_no_connection(said: str, refused: bool, words: str) -> None:
    error = postgres.no_connection(SETTINGS, psycopg.OperationalError(said))
    assert type(error) is (DatabaseRefused if refused else DatabaseUnavailable)
    assert words in str(error)
    assert "db.example:5433" in str(error)
    assert "hunter2" not in str(error)
