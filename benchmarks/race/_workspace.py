"""What the contenders are made of: a Python environment of their own, Kafka Connect, and the Debezium sink. Fetched on first use, kept in
the user's cache folder, offline from then on. None of it is a dependency of Caudal.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from caudal._embedded import _broker, _jars
from caudal.settings import load

__all__ = ["connect", "java", "java_versions", "python", "versions"]

HERE = Path(__file__).parent
CONVERTER = "FixedSchemaConverter"
_VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def folder() -> Path:
    """Where everything is kept; all clones of the user share it."""
    return platformdirs.user_cache_path("caudal") / "race"


def python() -> Path:
    """The interpreter that has the contenders' packages, as `requirements.lock` pins them.

    Raises:
        RuntimeError: they can't be installed.
    """
    lock = HERE / "requirements.lock"
    made_of = f"{sys.version_info[:2]} {hashlib.sha256(lock.read_bytes()).hexdigest()}"
    venv = folder() / "venv"
    interpreter, stamp = venv / "bin" / "python", venv / "made-of"
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / "venv.lock"):
        if not stamp.exists() or stamp.read_text() != made_of:
            _say(f"installing the contenders' packages into {venv}, once")
            shutil.rmtree(venv, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(venv)])
            _run([str(interpreter), "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(lock)])
            stamp.write_text(made_of)
    return interpreter


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages in that environment."""
    done = subprocess.run([python(), "-c", _VERSIONS, *packages], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def java_versions() -> dict[str, str]:
    """Versions of Kafka Connect and the sink."""
    return {name: _pins()[name] for name in ("connect", "debezium")}


def connect() -> tuple[list[Path], Path]:
    """The class path of a Connect worker with the converter beside this file, and the plugin path with the Debezium sink.

    Raises:
        EmbeddedServerFailed: something can't be fetched.
        RuntimeError: the converter can't be compiled.
    """
    pins = _pins()
    jars = folder() / "jars"
    worker = _jars.classpath(jars, _pinned("worker"), say=_say, title=f"Kafka Connect {pins['connect']}")
    plugins = folder() / f"debezium-{pins['debezium']}"
    with FileLock(folder() / "connect.lock"):
        if not plugins.exists():
            title = f"the Debezium JDBC sink {pins['debezium']}"
            [archive] = _jars.classpath(jars, _pinned("plugin"), say=_say, title=title)
            fresh = plugins.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            with tarfile.open(archive) as packed:
                packed.extractall(fresh, filter="data")
            fresh.replace(plugins)
        converter = _converter(jars, worker)
    return [*worker, converter], plugins


def java() -> str:
    """The Java that the embedded Kafka runs on too."""
    return _broker.java(load())


def _converter(jars: Path, worker: list[Path]) -> Path:
    source = HERE / f"{CONVERTER}.java"
    target = folder() / f"converter-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not target.exists():
        [compiler] = _jars.classpath(jars, _pinned("compiler"), say=_say, title="a Java compiler")
        fresh = target.with_suffix(".new")
        classpath = ":".join(map(str, worker))
        _run([java(), "-jar", str(compiler), "-17", "-proc:none", "-cp", classpath, "-d", str(fresh), str(source)])
        fresh.replace(target)
    return target


@cache
def _pins() -> dict[str, Any]:
    return tomllib.loads((HERE / "jars.toml").read_text())


def _pinned(part: str) -> tuple[_jars.Jar, ...]:
    found = []
    for coordinates, pin in _pins()[part].items():
        group, artifact, version, *rest = coordinates.split(":")
        classifier, extension = rest or (None, "jar")
        found.append(_jars.Jar(group, artifact, version, pin["size"], pin["sha256"], classifier, extension))
    return tuple(found)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise RuntimeError(
            f"{command[0]} failed: {' / '.join(said)}; the race needs the network once, and Python 3.11 or 3.12"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
