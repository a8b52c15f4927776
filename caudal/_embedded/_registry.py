"""The embedded schema registry as a process: `python -m caudal._embedded._registry PORT --embedded-in=HOME`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

from pydantic import SecretStr

from caudal._embedded import _processes
from caudal.settings import KafkaSettings, Settings, load

__all__ = ["address", "answers", "server"]


def server(settings: Settings) -> _processes.Server:
    """The registry of `settings.home`, kept in the Kafka that `settings` name."""
    home = settings.home.resolve()
    marker = f"--embedded-in={home}"

    def start(port: int) -> int:
        command = [sys.executable, "-m", __name__, str(port), marker]
        return _processes.spawn(command, home / "logs" / "registry.out", env=_environment(settings.kafka))

    return _processes.Server(
        name="registry",
        title="the schema registry",
        home=home,
        marker=marker,
        port=settings.registry.port,
        port_setting="CAUDAL_REGISTRY__PORT",
        logs=(home / "logs" / "registry.out",),
        start=start,
        answers=lambda run: answers(f"http://{_processes.HOST}:{run.port}"),
        # a registry that knows only the broker's former address is of no use
        details={"bootstrap_servers": settings.kafka.bootstrap_servers or ""},
    )


def answers(url: str) -> bool:
    """Whether a registry answers at the address; one that asks for credentials does."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/subjects", timeout=5):  # noqa: S310 - the operator's own address
            return True
    except urllib.error.HTTPError as exc:
        return exc.code in {401, 403}
    except (OSError, ValueError):
        return False


def address(url: str) -> str:
    """The address without the credentials that it may hold."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _environment(kafka: KafkaSettings) -> dict[str, str]:
    """Our environment, with these settings of Kafka instead of what it says."""
    prefix = "CAUDAL_KAFKA__"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    for name, value in kafka:
        if isinstance(value, SecretStr):
            environment[prefix + name.upper()] = value.get_secret_value()
        elif value is not None:
            environment[prefix + name.upper()] = json.dumps(value) if isinstance(value, dict) else str(value)
    return environment


def _main() -> None:
    import uvicorn

    from caudal.schemas._registry_server import build

    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--embedded-in", required=True, help="tells this process from others")
    port: int = parser.parse_args().port
    uvicorn.run(build(load()), host=_processes.HOST, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    _main()
