"""A PostgreSQL that takes a connection and never says a word."""

from __future__ import annotations

import socket
import time

import pytest
from pydantic import SecretStr

from caudal import postgres
from caudal.errors import DatabaseUnavailable
from caudal.settings import PostgresSettings


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres.PATIENCE, "connect_timeout", "2")  # the least that libpq knows
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = PostgresSettings(dsn=SecretStr(f"postgresql://nobody:x@127.0.0.1:{port}/caudal"))
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            postgres.connect(settings, role="tests")
        assert time.monotonic() - began < 60


def test_what_the_connection_string_says_of_patience_is_left_as_it_is() -> None:
    settings = PostgresSettings(dsn=SecretStr("postgresql://127.0.0.1/caudal?connect_timeout=3&keepalives_idle=7"))
    parts = postgres.conninfo_to_dict(postgres._patient(settings))
    assert (parts["connect_timeout"], parts["keepalives_idle"]) == ("3", "7")
    assert parts["tcp_user_timeout"] == "40000"
