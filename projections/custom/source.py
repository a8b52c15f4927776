"""Metrics as files: `metrics/*.sql`, one each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from caudal.errors import Poison

__all__ = ["BadMetric", "Source", "read"]

LARGEST = 20_000
_TITLE = re.compile(r"\A\s*--\s*title:\s*(.{0,200}?)\s*$", re.IGNORECASE | re.MULTILINE)
_WORDS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)


class BadMetric(Poison):
    """A file that can't become a metric."""

    code = "bad_metric"


@dataclass(frozen=True)
class Source:
    """What a file says.

    Attributes:
        file: where it is, for errors.
        name: of the metric; the file's.
        title: of its first line, `-- title: …`.
        statement: the SELECT, with the comments.
    """

    file: str
    name: str
    title: str
    statement: str

    def fault(self, message: str, place: int | None, *, hint: str | None = None) -> BadMetric:
        """An error at a character of the statement, with its line and column."""
        where = self.file
        if place is not None and place >= 0:
            line = self.statement.count("\n", 0, place) + 1
            where += f":{line}:{place - self.statement.rfind(chr(10), 0, place)}"
        return BadMetric(f"{where}: {message}", hint=hint)

    def find(self, word: str) -> int | None:
        """Where a word first stands, outside of comments and texts."""
        plain = _WORDS.sub(lambda found: " " * len(found[0]), self.statement)
        edge = r"\b" if word[:1].isalnum() else ""
        found = re.search(edge + re.escape(word) + edge, plain, re.IGNORECASE)
        return found.start() if found else None


def read(path: Path) -> list[Source]:
    """What a file, or every .sql file of a folder, says.

    Raises:
        BadMetric: files can't be read.
    """
    files = sorted(f for f in path.iterdir() if f.suffix == ".sql") if path.is_dir() else [path]
    if not files:
        raise BadMetric(f"{path} holds no .sql files")
    return [_source(file) for file in files]


def _source(file: Path) -> Source:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadMetric(f"{file}: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}") from None
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", file.stem):
        raise BadMetric(
            f"{file}: the file's name becomes the metric's",
            hint="up to 40 lower-case letters, digits and _, a letter first",
        )
    if len(text) > LARGEST or "\0" in text:
        raise BadMetric(f"{file}: longer than {LARGEST} characters, or not a text")
    title = _TITLE.search(text)
    return Source(str(file), file.stem, title[1] if title else "", re.sub(r"[\s;]+\Z", "", text))
