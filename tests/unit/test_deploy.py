"""deploy/ names only what exists: settings, roles, files, ports."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from caudal import settings
from caudal.cli import app
from caudal.cli.run import Role
from caudal.sources import Source

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "caudal"}


def _settings(service: str) -> dict[str, str]:
    return {name: str(value) for name, value in COMPOSE["services"][service]["environment"].items()}


def test_every_role_of_one_process_has_a_service():
    assert set(OURS) == {role.value for role in Role} - {"all", "worker"}


@pytest.mark.parametrize("service", OURS)
def test_every_setting_exists(service):
    named = {name for name in _settings(service) if not name.startswith(settings.SECRET_PREFIX)}
    assert named <= set(settings.names())


@pytest.mark.parametrize("service", OURS)
def test_the_settings_are_valid_together(service, monkeypatch):
    for name, value in _settings(service).items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    assert loaded.kafka.bootstrap_servers == "kafka:9092"
    if service != "registry":
        assert loaded.registry.url == f"http://registry:{_settings('registry')['CAUDAL_REGISTRY__PORT']}"


def test_settings_named_in_the_dockerfile_exist():
    assert set(re.findall(r"CAUDAL_\w+", DOCKERFILE)) <= set(settings.names())


@pytest.mark.parametrize("service", OURS)
def test_the_command_is_one_that_the_entry_point_takes(service):
    assert 'ENTRYPOINT ["caudal"]' in DOCKERFILE
    name, *arguments = COMPOSE["services"][service]["command"]
    command = typer.main.get_command(app).commands[name]
    context = command.make_context(name, list(arguments))  # raises for an option or a value that doesn't exist
    assert context.params["role"].value == service


def test_the_image_runs_a_command_by_default():
    (default,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    name, *arguments = yaml.safe_load(default)
    assert typer.main.get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize("service", OURS)
def test_the_health_check_asks_the_port_that_the_service_listens_on(service, monkeypatch):
    for name, value in _settings(service).items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    ports = {
        "registry": loaded.registry.port,
        "edge": loaded.edge.port,
        "api": loaded.serving.port,
        "translate": loaded.worker.web_port,
        "project": loaded.worker.web_port,
    }
    check = shlex.join(COMPOSE["services"][service]["healthcheck"]["test"])
    assert f"http://127.0.0.1:{ports[service]}/" in check


@pytest.mark.parametrize(("service", "group"), [("edge", "EDGE"), ("api", "SERVING"), ("registry", "REGISTRY")])
def test_what_other_containers_call_listens_on_all_addresses(service, group):
    assert _settings(service)[f"CAUDAL_{group}__HOST"] == "0.0.0.0"


def test_nothing_is_published_beyond_this_machine():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_nobody_starts_before_what_it_needs_is_healthy():
    for name, service in OURS.items():
        for needed, how in service["depends_on"].items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in COMPOSE["services"][needed]


def test_the_mounted_source_file_can_be_read():
    sources = tomllib.loads((ROOT / "deploy/caudal.toml").read_text())["sources"]
    for name, table in sources.items():
        assert Source.model_validate({**table, "name": name})
    variables = {name for service in OURS for name in _settings(service) if name.startswith(settings.SECRET_PREFIX)}
    assert variables == {settings.SECRET_PREFIX + name.upper().replace("-", "_") for name in sources}


def test_what_the_dockerfile_copies_exists_and_is_not_ignored():
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert all((ROOT / path).exists() for path in kept)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if name.count(".") == 1 and (ROOT / name.split(".")[1]).is_dir()}
    assert folders | {"caudal", "deploy/requirements.lock", "pyproject.toml"} <= set(kept)


def test_the_image_does_not_run_as_root():
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, flags=re.MULTILINE)


def test_no_build_file_names_a_package_registry():
    files = [
        *(ROOT / "deploy").iterdir(),
        ROOT / "Makefile",
        ROOT / ".ci/run",
        ROOT / "pyproject.toml",
        ROOT / "requirements.lock",
    ]
    for file in files:
        addresses = re.findall(r"https?://(?!127\.0\.0\.1|registry:)\S+", file.read_text())
        assert addresses == [], file.name


def test_the_lock_of_the_image_holds_the_versions_of_the_lock_of_development():
    def pins(path: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9._-]+==[^\s;]+", (ROOT / path).read_text(), flags=re.MULTILINE))

    image = pins("deploy/requirements.lock")
    assert image <= pins("requirements.lock")
    assert {pin.partition("==")[0] for pin in image}.isdisjoint({"pytest", "mypy", "ruff"})
