"""What the one module that owns psycopg adds to it."""

from __future__ import annotations

import psycopg
import pytest

from caudal import postgres
from caudal.settings import Settings


def test_what_is_rolled_back_keeps_its_plans(settings: Settings):
    with postgres.connect(settings.postgres, role="test", prepare_threshold=0) as conn:

        def plans() -> int:
            return conn.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False).fetchone()[0]

        conn.execute("CREATE TEMP TABLE kept (n int)", prepare=False)
        with postgres.transaction(conn):
            conn.execute("INSERT INTO kept VALUES (1)")
        made = plans()
        assert made > 0
        with postgres.transaction(conn):
            conn.execute("INSERT INTO kept VALUES (2)")
            raise psycopg.Rollback
        with pytest.raises(psycopg.errors.DivisionByZero), postgres.transaction(conn):
            conn.execute("INSERT INTO kept SELECT 1 / (n - 1) FROM kept")
        assert plans() >= made
        assert conn.execute("SELECT array_agg(n) FROM kept").fetchone() == ([1],)
