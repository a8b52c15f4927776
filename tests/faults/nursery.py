"""Starts Caudal's processes in milliseconds: each is forked from one that has imported everything.

A process that is killed is so back at once; imports would take most of the time of a run otherwise. Run as a program, this is the
process that forks; it ends, and its children with it, when its standard input does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil


class Nursery:
    """The process that forks, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C is for who asks it to fork
        )  # fmt: skip

    def spawn(self, role: str, env: dict[str, str], log: Path) -> psutil.Process:
        """Start `caudal run --role ROLE` with this environment."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"role": role, "env": env, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return psutil.Process(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


def _main() -> None:
    import caudal.producers.edge
    import caudal.projections
    import caudal.serving.api
    import yoyo  # noqa: F401 - every process migrates
    from caudal.processors import translate  # noqa: F401

    import caudal.embedded
    import caudal.standing
    import caudal.worker

    caudal.worker._import_faust()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are nobody's
    children: list[psutil.Process] = []
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(**order)
        children.append(psutil.Process(pid))
        print(pid, flush=True)
    for child in children:
        if child.is_running():
            child.kill()


def _become(role: str, env: dict[str, str], log: str) -> None:
    """Be that process and no other from now on."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, _LOG), (2, log, _LOG)):
        os.dup2(os.open(path, flags), target)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["caudal", "run", "--role", role]
    status: object = 1
    try:
        from caudal.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)


_LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND

if __name__ == "__main__":
    _main()
