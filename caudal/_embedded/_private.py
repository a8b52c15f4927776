"""Folders and files that nobody but their owner can look into, whatever the umask."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

__all__ = ["OTHERS", "UMASK", "folder", "secret", "write"]

UMASK = 0o077
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def folder(path: Path) -> Path:
    """Make the folder, which is ours alone, also when a former release left it open."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS:
        path.chmod(mode & ~OTHERS)
    return path


def write(path: Path, text: str) -> None:
    """Write the file anew."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def secret(path: Path) -> str:
    """The secret that the file holds; a new one when there is no such file."""
    try:
        if found := path.read_text():
            return found
    except FileNotFoundError:
        pass
    made = secrets.token_urlsafe(24)
    fresh = path.with_suffix(".new")
    write(fresh, made)
    fresh.replace(path)
    return made
