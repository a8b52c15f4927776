"""Texts that others wrote, made safe to print: a terminal obeys some characters, and others make a line read as what it isn't."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["json_escaped", "printable", "width"]

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of what isn't shown: controls (also the C1 ones), formats (bidi, zero width, tags), halves of pairs, private and unassigned
characters, separators of lines."""
_MARKS = 4
"""Most combining marks on one character."""
_BARE = re.compile(r"[\x20-\x7e\xa1-\xac\xae-\u02ff]*")
"""Texts that need no look at each character."""


def printable(text: str, *, keep: str = "", most: int | None = None) -> str:
    """The text in which whatever isn't shown stands as an escape, by its number.

    Args:
        text: by anyone.
        keep: characters that stay, such as line ends.
        most: so many characters of it are shown; `…` says that there are more.
    """
    cut = most is not None and len(text) > most
    if cut:
        text = text[:most]
    if not _BARE.fullmatch(text):
        shown, marks = [], 0
        for character in text:
            marks = marks + 1 if unicodedata.combining(character) else 0
            seen = unicodedata.category(character) not in _HIDDEN and marks <= _MARKS
            shown.append(character if seen or character in keep else _escape(character))
        text = "".join(shown)
    return f"{text}…" if cut else text


def json_escaped(document: str) -> str:
    """A JSON document in which what isn't shown stands as an escape. JSON itself asks for this of the first controls only."""
    if _BARE.fullmatch(document):
        return document
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in _HIDDEN
        else "".join(f"\\u{unit:04x}" for unit in _units(character))
        for character in document
    )


def width(text: str) -> int:
    """Columns that a printable text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in {"Mn", "Me"} else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _escape(character: str) -> str:
    named = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character)
    point = ord(character)
    return named or (
        f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
    )


def _units(character: str) -> list[int]:
    raw = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]
