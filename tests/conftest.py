"""Fixtures shared by all tests.

`servers` are real embedded Kafka, PostgreSQL and registry, one set for the whole run, also with several pytest-xdist
workers. `settings` give each test a database, a topic prefix and folders of its own on them; a module whose tests only read
what was made once overrides it with one of its own scope, made by `own_settings`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from caudal.projections import Runner
from caudal.schemas.codec import Codec, Registry
from filelock import FileLock
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from caudal import embedded, kafka, postgres
from caudal import settings as caudal_settings
from caudal.settings import PostgresSettings, Settings

TEMPLATE = "caudal_template"
TOPICS = (kafka.CHANGES, kafka.PROFILES, kafka.METRICS, kafka.SEGMENTS, kafka.DEAD_LETTERS, kafka.COMMANDS)
PARTITIONS = 4

hypothesis.settings.register_profile("long")  # what `make test-fuzz` runs with, see tests/fuzz/examples.py

_session_folder = pytest.StashKey[Path]()
_skipped: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    folder = worker["caudal_session_folder"] if worker else tempfile.mkdtemp(prefix="caudal-tests-")
    config.stash[_session_folder] = Path(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell each pytest-xdist worker the folder that the first process made."""
    node.workerinput["caudal_session_folder"] = str(node.config.stash[_session_folder])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_session_folder], ignore_errors=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the servers, and in CI fail a run that skipped a test. The first process gets here after all workers."""
    if hasattr(session.config, "workerinput"):
        return
    folder = session.config.stash[_session_folder]
    if (folder / "run").exists():
        embedded.down(_server_settings(folder))
    if os.environ.get("CI") == "true" and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") == "true" and _skipped:
        terminalreporter.section("skipped tests fail the run when CI=true", red=True)
        for nodeid in _skipped:
            terminalreporter.line(nodeid)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Settings:
    """Settings of the run's embedded servers, with a migrated template database."""
    folder = request.config.stash[_session_folder]
    with FileLock(folder / "fixture.lock"):
        running = embedded.ensure(_server_settings(folder))
        _make_template(running)
    return running


@pytest.fixture(scope="session")
def own_settings(servers: Settings) -> Callable[[Path], AbstractContextManager[Settings]]:
    """Makes settings with a fresh migrated database, a fresh topic prefix whose topics exist, and that folder."""

    @contextmanager
    def made(folder: Path) -> Iterator[Settings]:
        name = f"t{uuid.uuid4().hex[:12]}"
        with postgres.connect(servers.postgres, role="tests") as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        fresh = caudal_settings.load(
            home=folder / "home",
            config_file=folder / "caudal.toml",
            kafka=servers.kafka.model_dump() | {"topic_prefix": f"{name}.", "partitions": PARTITIONS},
            postgres={"dsn": _database(servers, name).dsn},
            registry=servers.registry.model_dump(),
            edge={"port": 0},
            serving={"port": 0},
        )
        kafka.ensure_topics(fresh.kafka, TOPICS)
        yield fresh
        _delete_topics(fresh)
        with postgres.connect(servers.postgres, role="tests") as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return made


@pytest.fixture
def settings(own_settings: Callable[[Path], AbstractContextManager[Settings]], tmp_path: Path) -> Iterator[Settings]:
    """What `own_settings` makes, for this test alone."""
    with own_settings(tmp_path) as fresh:
        yield fresh


@pytest.fixture
def codec(settings: Settings) -> Iterator[Codec]:
    """Codec over the run's registry."""
    registry = Registry(settings)
    yield Codec(registry)
    registry.close()


@pytest.fixture
def conn(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the test's database."""
    with postgres.connect(settings.postgres, role="tests") as connection:
        yield connection


@pytest.fixture
def live(settings: Settings, codec: Codec) -> Iterator[Runner]:
    """A live runner that has all partitions."""
    runner = Runner(settings, codec)
    runner.positions(range(PARTITIONS))
    yield runner
    runner.close()


def _server_settings(folder: Path) -> Settings:
    return caudal_settings.load(home=folder, embedded={"kafka_heap_mb": 384})


def _database(servers: Settings, name: str) -> PostgresSettings:
    dsn = make_conninfo(postgres.dsn(servers.postgres), dbname=name)
    return PostgresSettings(dsn=SecretStr(dsn))


def _make_template(servers: Settings) -> None:
    with postgres.connect(servers.postgres, role="tests") as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone()
        if known is None:
            connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}_new")
            connection.execute(f"CREATE DATABASE {TEMPLATE}_new")
            postgres.migrate(_database(servers, f"{TEMPLATE}_new"))
            connection.execute(f"ALTER DATABASE {TEMPLATE}_new RENAME TO {TEMPLATE}")


def _delete_topics(settings: Settings) -> None:
    admin = kafka.admin(settings.kafka)
    mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.kafka.topic_prefix)]
    for deletion in admin.delete_topics(mine).values() if mine else ():
        deletion.result()
