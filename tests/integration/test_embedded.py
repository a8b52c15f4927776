"""The embedded servers themselves, each test on a home folder of its own.

A test that has nothing to do with Kafka names an external one, which is never asked: PostgreSQL alone is up at once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.schema_registry import Schema
from psycopg.conninfo import make_conninfo
from test_registry import confluent

from caudal import embedded, kafka, postgres
from caudal import settings as caudal_settings
from caudal._embedded import _broker, _database, _processes, _registry
from caudal.errors import EmbeddedServerFailed
from caudal.settings import Settings

ELSEWHERE = {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "registry": {"url": "http://user:word@127.0.0.1:1"}}


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="caudal-home-"))  # not tmp_path, which other users can't reach
    yield folder
    embedded.down(caudal_settings.load(home=folder))
    shutil.rmtree(folder)


@pytest.fixture
def alone(home: Path) -> Settings:
    """Settings whose only embedded server is PostgreSQL."""
    return caudal_settings.load(home=home, **ELSEWHERE)


def _processes_of(settings: Settings) -> list[int]:
    servers = (_broker.server(settings), _database.server(settings), _registry.server(settings))
    return [pid for server in servers for pid in _processes.find(server.marker)]


def _pids(settings: Settings) -> dict[str, int]:
    return {server.name: server.pid for server in embedded.status(settings) if server.pid is not None}


def _query(settings: Settings, statement: str) -> object:
    with postgres.connect(settings.postgres, role="tests") as connection:
        row = connection.execute(statement).fetchone()
    return row and row[0]


def test_everything_comes_back_after_kill_9_and_nothing_is_left_after_down(home: Path) -> None:
    configured = caudal_settings.load(home=home, embedded={"kafka_heap_mb": 256})
    said: list[str] = []
    ready = embedded.ensure(configured, said.append)
    assert said == ["starting Kafka", "starting PostgreSQL", "starting the schema registry"]
    assert embedded.resolve(configured) == ready
    assert [(server.name, server.embedded, server.state) for server in embedded.status(configured)] == [
        ("kafka", True, "running"),
        ("postgres", True, "running"),
        ("registry", True, "running"),
    ]

    kafka.ensure_topics(ready.kafka, [kafka.CHANGES])
    producer = kafka.producer(ready.kafka, log_level=0)
    producer.produce(kafka.CHANGES, b"kept", partition=0)
    assert producer.flush(20) == 0
    del producer
    with postgres.connect(ready.postgres, role="tests") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    with confluent(ready) as registry:
        schema_id = registry.register_schema("kept", Schema('"string"', "AVRO"))

    pids = _pids(configured)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    again = embedded.ensure(configured)

    assert again == ready  # the same addresses, so that who is connected finds them again
    assert set(_pids(configured).values()).isdisjoint(pids.values())
    consumer = kafka.consumer(again.kafka, "tests")
    consumer.assign([TopicPartition(kafka.CHANGES, 0, 0)])
    message = consumer.poll(30)
    assert message is not None
    assert message.value() == b"kept"
    consumer.close()
    assert _query(again, "SELECT n FROM kept") == 42
    with confluent(ready) as registry:
        assert registry.get_schema(schema_id).schema_str == '"string"'

    assert sorted(embedded.down(configured)) == ["kafka", "postgres", "registry"]
    assert _processes_of(configured) == []
    assert embedded.down(configured) == []
    assert {server.state for server in embedded.status(configured)} == {"stopped"}


def test_starting_what_runs_changes_nothing(alone: Settings) -> None:
    said: list[str] = []
    first = embedded.ensure(alone)
    pids = _pids(alone)
    assert embedded.ensure(alone, said.append) == first
    assert _pids(alone) == pids
    assert said == []


def test_several_may_start_at_once(alone: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        ready = list(pool.map(lambda _: embedded.ensure(alone), range(4)))
    assert all(each == ready[0] for each in ready)
    assert len(_processes.find(_database.server(alone).marker)) == 1


def test_external_servers_are_taken_as_configured(tmp_path: Path) -> None:
    external = caudal_settings.load(home=tmp_path / "home", postgres={"dsn": "host=nowhere.invalid"}, **ELSEWHERE)
    assert embedded.ensure(external) == external == embedded.resolve(external)
    assert not external.home.exists()


def test_the_status_of_external_servers_names_them_without_their_secrets(alone: Settings) -> None:
    ready = embedded.ensure(alone)
    seen = {server.name: server for server in embedded.status(ready)}
    assert seen["postgres"].state == "running"
    assert str(seen["postgres"].version).startswith("18")
    assert seen["kafka"].state == seen["registry"].state == "unreachable"
    assert not any(server.embedded for server in seen.values())
    password = str(psycopg.conninfo.conninfo_to_dict(postgres.dsn(ready.postgres))["password"])
    assert password not in repr(seen)
    assert "word" not in str(seen["registry"].address)


def test_what_does_not_run_is_not_resolved(alone: Settings) -> None:
    with pytest.raises(EmbeddedServerFailed, match=r"PostgreSQL is not running.*caudal up"):
        embedded.resolve(alone)


@pytest.mark.parametrize("name", ["kafka", "postgres", "registry"])
def test_a_port_that_another_program_has_is_named(home: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        addresses = {**ELSEWHERE, "postgres": {"dsn": "host=nowhere.invalid"}}
        del addresses[name]
        if name == "registry":
            configured = caudal_settings.load(home=home, **addresses, registry={"port": port})
        else:
            configured = caudal_settings.load(home=home, **addresses, embedded={f"{name}_port": port})
        with pytest.raises(EmbeddedServerFailed, match=f"port {port}: another program has it.*CAUDAL_"):
            embedded.ensure(configured)
    assert _processes_of(configured) == []


def test_a_fixed_port_is_used_and_a_later_change_of_it_is_not_ignored(alone: Settings) -> None:
    port = _processes.free_port()
    fixed = alone.model_copy(update={"embedded": alone.embedded.model_copy(update={"postgres_port": port})})
    assert f"127.0.0.1:{port}/" in postgres.dsn(embedded.ensure(fixed).postgres)
    moved = alone.model_copy(update={"embedded": alone.embedded.model_copy(update={"postgres_port": port + 1})})
    with pytest.raises(EmbeddedServerFailed, match=f"running on port {port}, not on {port + 1}"):
        embedded.ensure(moved)


def test_pids_that_belong_to_another_by_now_are_neither_trusted_nor_killed(alone: Settings) -> None:
    embedded.ensure(alone)
    database = _database.server(alone)
    pid = _pids(alone)["postgres"]
    account = psutil.Process(pid).uids().real
    os.kill(pid, signal.SIGKILL)
    other = subprocess.Popen(["sleep", "300"], user=account if os.geteuid() == 0 else None)
    try:
        database.run_file.write_text(json.dumps({**json.loads(database.run_file.read_text()), "pid": other.pid}))
        lock_file = alone.home / "postgres" / "data" / "postmaster.pid"
        lock_file.write_text("\n".join([str(other.pid), *lock_file.read_text().splitlines()[1:]]) + "\n")
        with pytest.raises(EmbeddedServerFailed, match="not running"):
            embedded.resolve(alone)
        assert embedded.down(alone) == []
        assert _query(embedded.ensure(alone), "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_postgres_starts_although_a_session_of_the_killed_one_still_works(alone: Settings) -> None:
    ready = embedded.ensure(alone)
    busy = postgres.connect(ready.postgres, role="tests")
    busy.execute("CREATE TABLE kept AS SELECT 42 AS n")
    backend = busy.info.backend_pid
    os.kill(backend, signal.SIGSTOP)  # it can't notice that its server is gone
    os.kill(_pids(alone)["postgres"], signal.SIGKILL)
    assert _query(embedded.ensure(alone), "SELECT n FROM kept") == 42
    assert not psutil.pid_exists(backend)
    busy.close()


def test_a_server_that_was_started_but_not_written_down_is_replaced(alone: Settings) -> None:
    embedded.ensure(alone)
    lost = _pids(alone)["postgres"]
    _database.server(alone).run_file.unlink()
    assert _query(embedded.ensure(alone), "SELECT 1") == 1
    assert _processes.find(_database.server(alone).marker) == [_pids(alone)["postgres"]] != [lost]


def test_down_finds_a_server_that_was_not_written_down(alone: Settings) -> None:
    embedded.ensure(alone)
    _database.server(alone).run_file.unlink()
    assert embedded.down(alone) == ["postgres"]
    assert _processes_of(alone) == []


def test_a_start_that_is_interrupted_leaves_nothing_running_and_can_be_repeated(
    alone: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(home: Path, port: int) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_database, "_answers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedded.ensure(alone)
    assert _processes_of(alone) == []
    assert _query(embedded.ensure(alone), "SELECT 1") == 1


def test_half_made_data_folders_are_made_again(alone: Settings) -> None:
    half = alone.home / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert _query(embedded.ensure(alone), "SELECT 1") == 1


def test_a_server_that_stands_still_is_not_taken_for_a_healthy_one(
    alone: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.ensure(alone)
    pid = _pids(alone)["postgres"]
    os.kill(pid, signal.SIGSTOP)
    try:
        state = {server.name: server.state for server in embedded.status(alone)}
    finally:
        os.kill(pid, signal.SIGCONT)
    assert state["postgres"] == "unreachable"


def test_the_password_is_needed_and_readable_by_its_owner_only(alone: Settings) -> None:
    dsn = postgres.dsn(embedded.ensure(alone).postgres)
    mode = stat.S_IMODE((alone.home / "postgres" / "password").stat().st_mode)
    assert mode == 0o600
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo(dsn, password="guessed"))


def test_the_log_of_postgres_holds_no_values_of_rows(alone: Settings) -> None:
    ready = embedded.ensure(alone)
    with postgres.connect(ready.postgres, role="tests") as connection:
        connection.execute("CREATE TABLE people (email text UNIQUE)")
        connection.execute("INSERT INTO people VALUES (%s)", ["ana@example.com"])
        for statement, values in (
            ("INSERT INTO people VALUES (%s)", ["ana@example.com"]),
            ("INSERT INTO people VALUES ('ana@example.com')", []),
        ):
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute(statement, values)
    log = (alone.home / "logs" / "postgres.out").read_text()
    assert "duplicate key" in log
    assert "ana@example.com" not in log


@pytest.mark.parametrize("extension", ["pg_trgm", "unaccent", "btree_gin", "citext"])
def test_extensions_can_be_created(settings: Settings, extension: str) -> None:
    with postgres.connect(settings.postgres, role="tests") as connection:
        connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        found = connection.execute("SELECT extname FROM pg_extension WHERE extname = %s", [extension]).fetchone()
    assert found == (extension,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("max_locks_per_transaction", "256"),
        ("jit", "off"),
    ],
)
def test_postgres_keeps_what_it_confirmed_and_to_itself(servers: Settings, name: str, value: str) -> None:
    assert _query(servers, f"SELECT current_setting('{name}')") == value


def test_topics_are_not_made_by_asking_for_them(settings: Settings) -> None:
    name = kafka.topic(settings.kafka, "unheard.of")
    consumer = kafka.consumer(
        settings.kafka, kafka.topic(settings.kafka, "group"), **{"allow.auto.create.topics": True}
    )
    consumer.subscribe([name])
    consumer.poll(1)
    consumer.close()
    assert name not in kafka.admin(settings.kafka).list_topics(timeout=10).topics
