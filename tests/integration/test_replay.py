"""Replays on real servers: beside a live projection, with readers, with changed definitions, refused, cancelled, rolled back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from api_server import running, token_of
from caudal.schemas.codec import Codec, Registry
from logs import connect, fill, rebuilt
from replays import Source, on_topic, projecting, replaying, until

from benchmarks import _generate
from caudal import kafka
from caudal.settings import Settings

NOTHING = {"profiles": ([], []), "metrics": ([], []), "segment_members": ([], [])}


@pytest.fixture
def codec(settings: Settings) -> Iterator[Codec]:
    registry = Registry(settings)
    yield Codec(registry)
    registry.close()


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(settings) as connection:
        yield connection


def projected(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT coalesce(sum(next_offset), 0)::int FROM live.offsets").fetchone()
    return row[0] if row else 0


def live_schema(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT 'live'::regnamespace::oid::int").fetchone()
    assert row is not None
    return int(row[0])


class Readers:
    """Reads of customers over the API, one after the other, until it is closed."""

    def __init__(self, address: str, token: str, customers: list[str]) -> None:
        self.statuses: dict[int | str, int] = {}
        self._stop = threading.Event()
        self._client = httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60)
        self._customers = customers
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for customer in self._customers:
                try:
                    status: int | str = self._client.get(f"/customers/{customer}").status_code
                except httpx.HTTPError as exc:
                    status = type(exc).__name__
                self.statuses[status] = self.statuses.get(status, 0) + 1


@pytest.mark.timeout(300)
def test_a_rebuild_beside_writes_and_reads_changes_nothing_and_fails_no_read(
    settings: Settings, codec: Codec, conn: psycopg.Connection[Any]
) -> None:
    fill(settings, codec, _generate.events(1_500, 200, skew=0.5))
    following = _generate.events(100_000, 200, seed=8, skew=0.5)
    with projecting(settings, codec) as projection:
        until(lambda: projected(conn) >= 1_500, "projection of the first events")
        customers = [c for (c,) in conn.execute("SELECT customer_id::text FROM live.profiles LIMIT 20").fetchall()]
        before = live_schema(conn)
        with (
            running(settings) as address,
            Readers(address, token_of(settings, "customers:read"), customers) as readers,
            Source(settings, codec, following, rate=60) as source,
            replaying(settings, codec) as replay,
        ):
            until(lambda: source.sent > 30 and readers.statuses.get(200, 0) > 20, "traffic")
            built = replay.full()
            assert built.diff is not None
            assert built.diff["differences"] == 0
            assert replay.swap(built.id).state == "swapped"
            seen, sent = readers.statuses[200], source.sent
            until(lambda: readers.statuses[200] > seen + 20 and source.sent > sent + 20, "traffic after the swap")
        until(lambda: projected(conn) == 1_500 + source.sent, "projection of the last events")
        assert projection.failed is None
    assert live_schema(conn) != before
    assert set(readers.statuses) == {200}
    assert rebuilt(conn) == NOTHING
    assert not any(value["rebuilt"] for _, value in on_topic(settings, codec, kafka.PROFILES) if value), (
        "nothing changed"
    )
    with replaying(settings, codec) as replay:
        diff = replay.full().diff
    assert diff is not None
    assert diff["differences"] == 0
