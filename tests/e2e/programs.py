"""Programs of a test's own: started with its servers, found by their run files, ended with the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from caudal import settings as caudal_settings
from caudal.settings import Settings


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment in which a command has these settings."""
    own = {
        **caudal_settings.environment(settings),
        "CAUDAL_EDGE__PORT": "0",
        "CAUDAL_SERVING__PORT": "0",
        "CAUDAL_WORKER__SESSION_TIMEOUT_MS": "6000",  # the least that brokers take: a killed worker is missed sooner
    }
    return {**own, **more, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', '')}"}


def caudal(settings: Settings, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "caudal.cli", *arguments],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@contextlib.contextmanager
def running(arguments: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs until the test ends; what it writes is in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "caudal.cli", *arguments], env=env, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(condition: Callable[[], Any], log: Path | None = None, seconds: float = 90.0) -> Any:
    """The first true value of `condition`; fails with the end of the log when none comes."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, log.read_text()[-4000:] if log else "nothing came in time"
        time.sleep(0.1)


def address(settings: Settings, name: str, log: Path) -> str:
    """Where the edge or the API listens."""
    file = settings.home / "run" / f"{name}.json"
    until(file.exists, log)
    found = json.loads(file.read_text())
    return f"http://{found['host']}:{found['port']}"
