"""What people or vendors put into a name never reaches a terminal as anything but text."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal import telemetry
from caudal.cli import _output
from caudal.errors import CaudalError
from caudal.printable import json_escaped, printable, width

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\\\click\x1b]8;;\x1b\\\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "c1": "\x9b31mred\x9d0;x\x9c\x90q\x9c",
    "bell and backspace": "safe\x08\x08\x08\x08evil\x07\x7f",
    "carriage return": "real\rfake",
    "line ends": "one\ntwo\x0bthree\x0cfour\x85five\u2028six\u2029seven",
    "bidi": "user\u202egnp.exe\u202c \u2066x\u2069 \u200f\u061c",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\u180eh",
    "tags": "flag\U000e0067\U000e007f",
    "surrogate": "half \ud83d",
    "private": "\ue000\U0010fffd",
    "nul": "a\x00b",
    "marks": "Z" + "\u0301" * 500,
}
markup = pytest.mark.parametrize(
    "text", ["[red]x[/red]", "[link=https://evil.example]x[/link]", ":warning:", "[/]", "x\\\\", "[bold"]
)


def obeyed(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hostile_is_printed_by_any_way_of_printing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HOSTILE[name]
    for out in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        _output.table(("name", "tags", "map"), [(text, [text], {text: text})])
        _output.say(f"it is {text}")
        _output.note(text)
        _output.emit({text: text})
        _output.emit_line([text])
        _output.complain(CaudalError(text, hint=text))
        shown = out.getvalue().replace("\x1b[31mcaudal", "caudal").replace("\x1b[0m\n", "\n")  # the colour of our own
        assert obeyed(shown.replace("\t", "")) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_json_has_the_same_value_behind_the_escapes(name: str) -> None:
    value = {HOSTILE[name]: [HOSTILE[name]]}
    document = json_escaped(json.dumps(value, ensure_ascii=False))
    assert obeyed(document) == []
    assert json.loads(document) == value


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_no_text_is_obeyed(text: str) -> None:
    assert obeyed(printable(text)) == []
    assert "\n" not in printable(text)
    assert json.loads(json_escaped(json.dumps(text, ensure_ascii=False))) == text


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_what_is_shown_stays(text: str) -> None:
    assert printable(text) == text


def test_names_of_people_stay_as_they_are() -> None:
    for name in ("José Conceição", "李小龍", "Ωμέγα", "Zoë", "Nguyễn Văn Á", "محمد", "🙂", "R$ 10,00 – 5 %"):
        assert printable(name) == name


@markup
def test_markup_is_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("NO_COLOR", "1")
    _output.table(("name",), [(text,)])
    assert text in out.getvalue()


def test_a_long_value_is_cut_in_tables_and_whole_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    _output.table(("kind", "id"), [("k" * 30_000, 1)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 350
    assert "…  1" in lines[1]
    _output.emit_line({"kind": "k" * 30_000})
    assert len(capsys.readouterr().out) > 30_000
    _output.complain(CaudalError("x" * 100_000))
    assert len(capsys.readouterr().err) < 5_000


def test_columns_stand_under_each_other_whatever_the_letters_width(capsys: pytest.CaptureFixture[str]) -> None:
    _output.table(("name", "n"), [("李小龍", 1), ("Ana", 2), ("e\u0301", 3)])
    lines = capsys.readouterr().out.splitlines()
    assert {width(line) for line in lines} == {width("李小龍  1")}


def test_log_lines_for_people_are_escaped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import structlog

    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    try:
        for as_json in (True, False):
            telemetry.configure_logging("info", json=as_json)
            telemetry.logger().info(
                telemetry.Log.SOURCES_REFUSED, reason=HOSTILE["link"] + HOSTILE["c1"] + HOSTILE["bidi"]
            )
    finally:
        structlog.reset_defaults()
    assert obeyed(re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())) == []
