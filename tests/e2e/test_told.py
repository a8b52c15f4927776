"""What is set wrong or out of reach is told in one plain line, without secrets, and with the exit status that docs name."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import environment
from psycopg.conninfo import make_conninfo

from caudal import postgres
from caudal.settings import Settings

SECRET = "hunter2-of-the-test"


def ends(settings: Settings, *arguments: str, **more: str) -> tuple[int, str]:
    """Exit status and the one line on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "caudal.cli", *arguments],
        env=environment(settings, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stderr.splitlines()
    assert SECRET not in done.stderr + done.stdout
    assert "this is a bug" not in done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in said if line.startswith("caudal: ")] == said[-1:], done.stderr
    assert not [line for line in said if line.startswith("%")], done.stderr  # librdkafka's own lines
    return done.returncode, said[-1]


@pytest.fixture
def http() -> Iterator[int]:
    """The port of a program that speaks something else."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


DSN = "CAUDAL_POSTGRES__DSN"
BROKERS = "CAUDAL_KAFKA__BOOTSTRAP_SERVERS"
OPTIONS = "CAUDAL_KAFKA__OPTIONS"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (DSN, f"postgresql://u:{SECRET}%zz@h/x", "no connection string"),
        (DSN, f"password {SECRET}", "no connection string"),
        (DSN, f"host=h pasword={SECRET}", "no connection string"),
        (OPTIONS, f'{{"no.such": "{SECRET}"}}', "no.such"),
        (OPTIONS, f'{{"security.protocol": "{SECRET}"}}', "security.protocol"),
        (OPTIONS, f'{{"sasl.password": "{SECRET}"', "kafka.options"),
        (OPTIONS, f'["{SECRET}"]', "kafka.options"),
        (
            OPTIONS,
            '{"log_level": "0", "ssl.ca.location": "/nowhere.pem", "security.protocol": "ssl"}',
            "ssl.ca.location",
        ),
        ("CAUDAL_REGISTRY__URL", f"u:{SECRET}@registry", "registry.url"),
        ("CAUDAL_REGISTRY__URL", f"http://u:{SECRET}@registry:port", "registry.url"),
        ("CAUDAL_REGISTRY__URL", f"http://[u:{SECRET}@registry", "registry.url"),
        ("CAUDAL_LOG_LEVEL", "loud", "log_level"),
        ("CAUDAL_EDGE__PORT", "99999", "edge.port"),
    ],
)
def test_settings_that_nothing_can_be_made_of(settings, name, value, words):
    status, line = ends(settings, "up", **{"CAUDAL_LOG_LEVEL": "debug", name: value})  # which says the most
    assert status == 78
    assert line.startswith("caudal: bad_settings: ")
    assert words in line


def in_dsn(settings: Settings, **parts: object) -> dict[str, str]:
    return {DSN: make_conninfo(postgres.dsn(settings.postgres), **parts)}


DATABASE: list[tuple[dict[str, object], int, str]] = [
    ({"password": SECRET}, 78, "refuses user or password"),
    ({"user": "nobody"}, 78, "refuses user or password"),
    ({"dbname": "nowhere"}, 78, "has no such database"),
    ({"sslmode": "require"}, 78, "TLS"),
    ({"port": 1}, 69, "nothing listens there"),
    ({"host": "nowhere.invalid"}, 69, "name isn't known"),
]


@pytest.mark.parametrize(
    ("command", "parts", "status", "words"),
    [
        *((("up",), *each) for each in DATABASE),
        (("customers", "find", "--email", "ana@example.com"), *DATABASE[0]),
        (("run",), *DATABASE[4]),
    ],
)
def test_a_database_that_can_not_be_used(settings, command, parts, status, words):
    found, line = ends(settings, *command, **in_dsn(settings, **parts))
    assert (found, words in line) == (status, True), line
    assert "tried again" not in line
    parts_now = {"host": "127.0.0.1", "port": "", **parts}
    assert f"{parts_now['host']}:{parts_now['port']}" in line


def test_another_program_on_the_databases_port(settings, http):
    status, line = ends(settings, "up", **in_dsn(settings, port=http))
    assert (status, "no PostgreSQL" in line) == (78, True), line


def with_options(settings: Settings, **options: str) -> dict[str, str]:
    return {OPTIONS: json.dumps({**settings.kafka.options, **options})}


KAFKA: list[tuple[Callable[[Settings], dict[str, str]], int, str]] = [
    (lambda _: {BROKERS: "127.0.0.1:1"}, 69, "nothing listens there"),
    (lambda _: {BROKERS: "nowhere.invalid:9092"}, 69, "name isn't known"),
    (lambda _: {BROKERS: ",,"}, 69, "can't be reached"),
    (lambda _: {"CAUDAL_KAFKA__PASSWORD": SECRET}, 78, "refuses user or password"),
    (lambda s: with_options(s, **{"sasl.mechanism": "PLAIN"}) | {"CAUDAL_KAFKA__PASSWORD": SECRET}, 78, "refuses user"),
    (lambda s: with_options(s, **{"sasl.mechanism": "SCRAM-SHA-512"}), 78, "refuses user or password"),
    (lambda s: with_options(s, **{"security.protocol": "ssl"}), 78, "TLS"),
    (lambda _: {OPTIONS: "{}"}, 78, "protocol"),
]


@pytest.mark.parametrize(
    ("command", "change", "status", "words"),
    [*((("up",), *each) for each in KAFKA), (("run",), *KAFKA[0]), (("run",), *KAFKA[3])],
)
def test_brokers_that_can_not_be_used(settings, command, change, status, words):
    found, line = ends(settings, *command, **change(settings))
    assert (found, words in line) == (status, True), line


def test_another_program_on_the_brokers_port(settings, http):
    status, line = ends(settings, "up", **{BROKERS: f"127.0.0.1:{http}", OPTIONS: "{}"})
    assert (status, "doesn't speak this protocol" in line) == (78, True), line


@pytest.mark.parametrize("server", [BROKERS, DSN])
def test_status_tells_a_server_that_is_out_of_reach(settings, server):
    value = "127.0.0.1:1" if server == BROKERS else in_dsn(settings, port=1)[DSN]
    done = subprocess.run(
        [sys.executable, "-m", "caudal.cli", "status", "--json"],
        env=environment(settings, **{server: value}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 69
    assert done.stderr == ""
    states = {each["name"]: each["state"] for each in json.loads(done.stdout)["servers"]}
    assert states["kafka" if server == BROKERS else "postgres"] == "unreachable"


@pytest.mark.parametrize(
    ("command", "home"),
    [
        (("up",), "file"),
        (("up",), "/proc/nowhere"),
        (("run",), "file/below"),
        (("down",), "file"),
        (("run", "--role", "edge"), "file"),
    ],
)
def test_a_home_that_can_not_be_used(settings, tmp_path, home, command):
    (tmp_path / "file").write_text("")
    place = str(tmp_path / home)  # an absolute one stays itself
    env = {DSN: ""}  # so that a server of the home's is needed
    done = subprocess.run(
        [sys.executable, "-m", "caudal.cli", *command],
        env={name: value for name, value in environment(settings, CAUDAL_HOME=place).items() if name not in env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in {69, 78}, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"the home folder {place} can't be used" in done.stderr


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make",
    [
        _directory,
        lambda path: path.write_text("[sources.shop\n"),
        lambda path: path.write_bytes(b"[sources.\xff]\n"),
        lambda path: path.write_text("sources = 3\n"),
        lambda path: path.write_text("[sources]\n" + "a." * 10_000 + "b = 1\n"),
    ],
)
@pytest.mark.parametrize("variable", ["CAUDAL_CONFIG_FILE", "CAUDAL_SECRETS_FILE"])
def test_a_file_that_can_not_be_read(settings, tmp_path, make, variable):
    file = tmp_path / "odd.toml"
    make(file)
    if variable == "CAUDAL_SECRETS_FILE" and file.is_file():
        file.write_bytes(file.read_bytes().replace(b"sources", b"secrets"))
    status, line = ends(settings, "up", **{variable: str(file)})
    assert status == 78, line
    assert str(file) in line


@pytest.mark.parametrize(
    ("role", "group"), [("edge", "EDGE"), ("api", "SERVING"), ("registry", "REGISTRY"), ("all", "EDGE")]
)
def test_a_port_that_is_taken(settings, role, group):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "caudal.cli", "run", "--role", role],
            env=environment(settings, **{f"CAUDAL_{group}__PORT": str(port)}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 78, done.stderr
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert f"CAUDAL_{group}__PORT" in done.stderr


@pytest.mark.parametrize(
    ("role", "group", "host"),
    [
        *(("edge", "EDGE", host) for host in ("nowhere.invalid", "203.0.113.1", "a..b", "::2")),
        ("api", "SERVING", "nowhere.invalid"),
        ("registry", "REGISTRY", "203.0.113.1"),
    ],
)
def test_an_address_that_is_not_this_machines(settings, role, group, host):
    status, line = ends(settings, "run", "--role", role, **{f"CAUDAL_{group}__HOST": host})
    assert (status, f"can't listen on {host}" in line) == (78, True), line
