"""Files and command lines that are nonsense: a clear error that says where, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog
from caudal.processors import rules
from caudal.projections import criteria
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from record_values import RANDOMS

from caudal import cli, sources
from caudal.errors import BadSettings
from caudal.settings import Settings

CONFIG = """
[sources.shop]
connector = "shopify"
secrets = ["shop", "shop-old"]
priority = 3
max_body_bytes = 4096

[sources.crm]
connector = "hubspot"
auth = "header"
header = "X-Key"
public_url = "https://example.com/crm"
"""
SECRETS = '[secrets]\nshop = "hush"\nshop-old = "older"\ncrm = "k"\n'
IDENTITY = (Path(rules.__file__).parent / "identity.toml").read_text()
CRITERIA = [
    '{"all": [{"field": "city", "op": "=", "value": "Recife"}, {"not": {"consent": "marketing_email"}}]}',
    "all:\n  - {field: orders_count, op: '>=', value: 2}\n  - any:\n    - {field: name, op: contains, value: ana}\n",
    'city = "Recife" and orders_count >= 2 and not (name contains "ana" or age between 25 and 34)',
]
ODD = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"=",
    b"[",
    b"]",
    b"[[sources]]",
    b'"',
    b"'''",
    b"{",
    b"}",
    b"[sources]",
    b"[secrets]\n",
    b"= 1e999",
    b"= nan",
    b"= 9" + b"9" * 5000,
    b"= " + b"[" * 3000,
    b"= [" + b"{a=" * 500,
    b"= 1979-05-27T07:32:00Z",
    b"= -1",
    b"= {}",
    b"= []",
    b'= ""',
    b"= true",
    b"a" * 7_000,
    b"&a [*a]",
    b"!!python/object:os.system x",
    b"!!timestamp x",
    b"? [",
    b"- " * 500,
    b"<<: *x",
    b"(" * 1000,
    b" or " * 500,
    b"\\u0000",
    b"\\ud800",
    b"." * 300,
    b"a.b.c.d = 1\n",
    b"[sources.shop]\n",
    b'[sources."a b"]\n',
    b'[sources.""]\n',
    b"[sources.\xc3\xa7]\n",
    b"9" * 400,
    b"today - 99999999 days",
]


def nonsense(rng: Random, text: str) -> bytes:
    """The text with something odd put in, or a part of it gone, doubled or replaced."""
    data = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, length = rng.randrange(len(data) + 1), rng.choice((0, 0, 1, 5, 40))
        match rng.randrange(4):
            case 0:
                data[at : at + length] = b""
            case 1:
                data[at:at] = data[at : at + length]
            case _:
                data[at : at + length] = rng.choice(ODD)
    return bytes(data)


def settled(folder: Path) -> Settings:
    return Settings(home=folder, config_file=folder / "caudal.toml")


def read(folder: Path) -> None:
    settings = settled(folder)
    found = sources.load(settings)
    for name in found:
        with contextlib.suppress(BadSettings):
            found.secrets(name)
    rules.load(settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@examples(100)
@given(which=st.sampled_from(["caudal.toml", "secrets.toml", "identity.toml"]), rng=RANDOMS)
def test_a_file_is_read_or_told_what_is_wrong_with_it(folder: Path, which: str, rng: Random) -> None:
    texts = {"caudal.toml": CONFIG, "secrets.toml": SECRETS, "identity.toml": IDENTITY}
    for name, text in texts.items():
        (folder / name).write_bytes(nonsense(rng, text) if name == which else text.encode())
    told = ""
    try:
        read(folder)
        sources.add(settled(folder), sources.Source(name="late", connector="shopify", secrets=("late",)))
        sources.store_secret(settled(folder), "late", "x")
    except BadSettings as exc:
        told = str(exc)
    assert not told or which in told
    assert "hush" not in told


@pytest.mark.parametrize("text", [b"a = " + b"[" * 20_000, b"a = 9" + b"9" * 10_000, b"\xff", b"a = {" + b"a={" * 5000])
def test_a_file_that_is_too_much_for_the_parser_is_told_too(tmp_path: Path, text: bytes) -> None:
    for name in ("caudal.toml", "secrets.toml", "identity.toml"):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(BadSettings, match=name):
            read(tmp_path)
        (tmp_path / name).unlink()


READERS: list[Callable[[str], Any]] = [criteria.load_text, criteria.parse]


@examples(100)
@given(text=st.sampled_from(CRITERIA), rng=RANDOMS)
def test_criteria_are_read_or_told_what_is_wrong_with_them(text: str, rng: Random) -> None:
    damaged = nonsense(rng, text).decode("utf-8", "replace")
    for reader in READERS:
        with contextlib.suppress(criteria.BadCriteria):
            reader(damaged)


WORDS = [
    "",
    "-",
    "--",
    "--help",
    "-h",
    "--json",
    "--limit",
    "-1",
    "1e9",
    "9" * 400,
    "a\x00b"[:1],
    "\udcff",
    "../../etc/passwd",
    "/",
    "shopify",
    "orders/create",
    "--source",
    "--kind",
    "--header",
    "x: y",
    "x",
    "=",
    "--secret",
    "hush",
    "--url",
    "http://[",
    "caudal.toml",
    "odd.json",
    "--connector",
    "--name",
    "ç" * 300,
    "--auth",
    "path_token",
    "--since",
    "yesterday",
    "--secret-file",
    "--yes",
    "%s%n",
    "{}",
]
COMMANDS = [["translate"], ["connectors"], ["connectors", "show"], ["connectors", "verify"], ["criteria", "check"], ["criteria", "schema"],
            ["sources", "add"], ["sources", "list"], ["sources", "remove"], ["what"], []]  # fmt: skip


@examples(40)
@given(command=st.sampled_from(COMMANDS), words=st.lists(st.sampled_from(WORDS), max_size=5), rng=RANDOMS)
def test_a_command_line_ends_with_a_result_or_an_error_that_says_what_is_wrong(
    folder: Path, command: list[str], words: list[str], rng: Random
) -> None:
    (folder / "odd.json").write_bytes(nonsense(rng, CRITERIA[0]))
    (folder / "caudal.toml").write_bytes(nonsense(rng, CONFIG) if rng.random() < 0.3 else CONFIG.encode())
    errors: list[Exception] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith("CAUDAL_")]:
            patch.delenv(name)
        patch.setattr(sys, "argv", ["caudal", *command, *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rng.choice(ODD))))
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), errors="surrogateescape"))
        patch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), errors="surrogateescape"))
        patch.setattr(cli, "bug", lambda error: errors.append(error) or BadSettings("a bug"))
        with pytest.raises(SystemExit):
            cli.main()
    structlog.reset_defaults()
    if errors:
        raise errors[0]
