"""The embedded schema registry as a process, with a password: `python -m caudal._embedded._registry PORT --embedded-in=HOME`."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from caudal._embedded import _private, _processes
from caudal.errors import EmbeddedServerFailed
from caudal.settings import RegistrySettings, Settings, environment, load

__all__ = ["address", "answers", "client", "server"]

USER = "caudal"


def server(settings: Settings) -> _processes.Server:
    """The registry of `settings.home`, kept in the Kafka that `settings` name."""
    home = settings.home.resolve()
    marker = f"--embedded-in={home}"

    def prepare(port: int) -> Callable[[], int]:
        _private.secret(_private.folder(home / "registry") / "password")
        access = {"registry": client(settings.registry, home, port)}
        env = environment(settings.model_copy(update=access))
        command = [sys.executable, "-m", __name__, str(port), marker]
        return lambda: _processes.spawn(command, home / "logs" / "registry.out", env=env)

    return _processes.Server(
        name="registry",
        title="the schema registry",
        home=home,
        marker=marker,
        port=settings.registry.port,
        port_setting="CAUDAL_REGISTRY__PORT",
        logs=(home / "logs" / "registry.out",),
        prepare=prepare,
        answers=lambda run: answers(f"http://{_processes.HOST}:{run.port}"),
        # a registry that knows only the broker's former address is of no use; one of a former release asks for no password
        details={"bootstrap_servers": settings.kafka.bootstrap_servers or "", "access": "basic"},
    )


def client(settings: RegistrySettings, home: Path, port: int) -> RegistrySettings:
    """These settings, for the registry of this home.

    Raises:
        EmbeddedServerFailed: its password can't be read.
    """
    try:
        password = (home / "registry" / "password").read_text()
    except OSError as exc:
        raise EmbeddedServerFailed(f"the schema registry's password can't be read: {exc.strerror}") from exc
    access = {"url": f"http://{_processes.HOST}:{port}", "username": USER, "password": SecretStr(password)}
    return settings.model_copy(update=access)


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


def _main() -> None:
    import uvicorn

    from caudal.schemas._registry_server import build

    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--embedded-in", required=True, help="tells this process from others")
    port: int = parser.parse_args().port
    uvicorn.run(build(_here(load())), host=_processes.HOST, port=port, log_level="warning", access_log=False)


def _here(settings: Settings) -> Settings:
    return settings.model_copy(update={"registry": settings.registry.model_copy(update={"host": _processes.HOST})})


if __name__ == "__main__":
    _main()
