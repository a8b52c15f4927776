"""Sources: which systems send to this hub, kept in `caudal.toml`; their secrets, kept elsewhere.

```toml
[sources.shop-br]
connector = "shopify"
secrets = ["shop-br"]
```

A secret is named in `caudal.toml` and never stands in it: the value is `CAUDAL_SECRET_SHOP_BR` in the environment, or
`shop-br = "…"` under `[secrets]` in the secrets file. The environment wins.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError

from caudal.errors import BadSettings, UnknownSource
from caudal.settings import SECRET_PREFIX, Settings

__all__ = [
    "Name",
    "Source",
    "Sources",
    "Watch",
    "add",
    "drop_secrets",
    "load",
    "plain_secret",
    "read",
    "remove",
    "secret_variable",
    "secrets_path",
    "store_secret",
]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
"""Names of sources and secrets."""

SECRET_MIN_CHARS = 16
"""Fewest characters of a secret that `caudal sources add` takes. The vendors' own have 32 and more; a short one can be found by trying,
offline, by whoever saw one signed delivery."""
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(point) for point in range(0xFE00, 0xFE10)
}
"""Characters that show nothing and that Unicode counts as letters, marks or symbols."""


class Source(BaseModel):
    """One configured system: an instance of a connector, with its own topic `capture.<name>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    connector: Name = Field(description="Which connector reads it; `caudal connectors` lists them.")
    secrets: tuple[Name, ...] = Field(
        (), description="Names of the secrets that are valid now. Unset: the source's name."
    )
    auth: Literal["signature", "path_token", "basic", "header"] = Field(
        "signature", description="How a sender proves itself; all but `signature` are for vendors that sign nothing."
    )
    header: str | None = Field(None, description='Name of the header that carries the secret, with `auth = "header"`.')
    public_url: str | None = Field(None, description="This source's address as the vendor calls it.")
    priority: int = Field(0, description="Where sources state different values for a field, the higher priority wins.")
    max_body_bytes: int | None = Field(
        None, ge=1, le=15 * 1024 * 1024, description="Largest delivery taken, in place of the edge's own."
    )
    signature_versions: tuple[str, ...] = Field(
        (), description="Versions of the vendor's signature that are taken. Unset: its strongest alone."
    )
    replay_window_s: int | None = Field(
        None, ge=0, description="Oldest signed timestamp accepted, seconds, in place of the edge's own; 0 takes any."
    )

    @model_validator(mode="before")
    @classmethod
    def _secret_of_its_own_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("secrets") and "name" in given:
            return {**given, "secrets": (given["name"],)}
        return given

    @model_validator(mode="after")
    def _header_is_named(self) -> Source:
        if (self.auth == "header") != (self.header is not None):
            raise ValueError('`auth = "header"` and `header` come together')
        return self


class Sources(Mapping[str, Source]):
    """The configured sources by name, with the secrets as they were when read."""

    def __init__(self, sources: Mapping[str, Source], secrets: Mapping[str, str]) -> None:
        self._sources = dict(sources)
        self._secrets = dict(secrets)

    def __getitem__(self, name: str) -> Source:
        try:
            return self._sources[name]
        except KeyError:
            raise UnknownSource(f"no source is named {name[:80]!r}", hint="`caudal sources list` shows them") from None

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def get(self, name: str, default: Any = None) -> Any:
        """The source, or `default`."""
        return self._sources.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def secrets(self, name: str) -> tuple[str, ...]:
        """The values of a source's secrets that are there; during a rotation two are.

        Raises:
            BadSettings: none is there, or one can't be what its vendor gave.
            UnknownSource: no such source.
        """
        source = self[name]
        names = source.secrets
        found = tuple(value for secret in names if (value := _value(secret, self._secrets)))
        if source.auth == "basic" and not all(":" in value for value in found):
            raise BadSettings(f'source {name}: a secret for `auth = "basic"` is user:password')
        if not found:
            raise BadSettings(
                f"source {name} has no secret",
                hint=f"set {secret_variable(names[0])}, or {names[0]} under [secrets] in the secrets file",
            )
        return found


def load(settings: Settings) -> Sources:
    """Read the sources; no file means none.

    Raises:
        BadSettings: a file can't be read or a value doesn't fit; the message names file and key.
    """
    path = settings.config_file
    tables = _table(read(path), "sources", path)
    sources = {name: _source(name, table, path) for name, table in tables.items()}
    return Sources(sources, _secrets(settings))


def add(settings: Settings, source: Source) -> bool:
    """Write a source to the file, in place of one with the same name; False when nothing changes.

    Comments and everything else in the file stay as they are.

    Raises:
        BadSettings: the file can't be read or written.
    """
    path = settings.config_file
    document = _document(path)
    tables = _table(document, "sources", path)
    if source.name in tables and _source(source.name, tables[source.name], path) == source:
        return False
    stated = source.model_dump(exclude_defaults=True, exclude={"name"})
    if "sources" not in document:
        document["sources"] = tomlkit.table(is_super_table=True)
    parent: Any = document["sources"]
    if source.name not in parent:
        parent[source.name] = tomlkit.table()
    table = parent[source.name]
    for key in [key for key in table if key not in stated]:
        del table[key]
    for key, value in stated.items():
        table[key] = list(value) if isinstance(value, tuple) else value
    _write(path, tomlkit.dumps(document))
    return True


def remove(settings: Settings, name: str) -> bool:
    """Take a source out of the file; False when it isn't there. What it sent stays in its topic.

    Raises:
        BadSettings: the file can't be read or written.
    """
    path = settings.config_file
    document = _document(path)
    if name not in _table(document, "sources", path):
        return False
    parent: Any = document["sources"]
    del parent[name]
    if not parent:
        del document["sources"]
    _write(path, tomlkit.dumps(document))
    return True


def plain_secret(text: str, *, name: str) -> str:
    """A secret without what a file, a shell or a clipboard put around it: blanks, line ends, marks that show nothing.

    Args:
        text: as it was given.
        name: what to call it in messages; the secret itself is never told.

    Raises:
        BadSettings: something is in it that no vendor gives and that would make every delivery be refused.
    """
    start, end = 0, len(text)
    while start < end and _shows_nothing(text[start]):
        start += 1
    while end > start and _shows_nothing(text[end - 1]):
        end -= 1
    value = text[start:end]
    fault = hint = ""
    if odd := next((c for c in value if c != " " and _shows_nothing(c)), ""):
        fault, hint = f"holds the character U+{ord(odd):04X}, which can't be seen", "copy it again"
    elif len(value) > 1 and value[0] == value[-1] and value[0] in "\"'`":
        fault, hint = "stands in quotes", "the quotes are part of the value there: leave them out"
    elif value.endswith(("\\n", "\\r")):
        fault, hint = "ends with a backslash and a letter, which stand for a line end elsewhere", "leave them out"
    if fault:
        raise BadSettings(f"secret {name} {fault}", hint=hint)
    return value


def _shows_nothing(character: str) -> bool:
    return character in _UNSEEN or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"}


def secret_variable(name: str) -> str:
    """The environment variable that holds the secret `name`."""
    return SECRET_PREFIX + name.upper().replace("-", "_")


def secrets_path(settings: Settings) -> Path:
    """The secrets file: the configured one, else `secrets.toml` in the home folder."""
    return settings.secrets_file or settings.home / "secrets.toml"


def store_secret(settings: Settings, name: str, value: str) -> bool:
    """Put a secret into the secrets file, readable by its owner only; False when it is there already.

    Raises:
        BadSettings: the file can't be read or written, or the name doesn't fit.
    """
    path = secrets_path(settings)
    document = _document(path)
    if "secrets" not in document:
        document["secrets"] = tomlkit.table()
    table: Any = document["secrets"]
    value = plain_secret(value, name=name)
    if table.get(name) == value:
        return False
    table[name] = value
    _check_secrets(_table(document, "secrets", path), path)
    _write(path, tomlkit.dumps(document), mode=0o600)
    return True


def drop_secrets(settings: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """Take secrets out of the secrets file, those that no source names any more; the names of those that were there.

    Raises:
        BadSettings: a file can't be read or written.
    """
    wanted = {name for source in load(settings).values() for name in source.secrets}
    path = secrets_path(settings)
    document = _document(path)
    table: Any = _table(document, "secrets", path)
    dropped = tuple(name for name in names if name in table and name not in wanted)
    for name in dropped:
        del table[name]
    if dropped:
        _write(path, tomlkit.dumps(document), mode=0o600)
    return dropped


class Watch:
    """Whether the files that sources are read from have changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: object = None

    def changed(self) -> bool:
        """Whether the files are others than at the last call; True at first. Costs two `stat`s."""
        seen = (_stamp(self._settings.config_file), _stamp(secrets_path(self._settings)))
        if seen == self._seen:
            return False
        self._seen = seen
        return True


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _value(name: str, file: Mapping[str, str]) -> str:
    variable = secret_variable(name)
    return plain_secret(os.environ.get(variable, ""), name=variable) or plain_secret(file.get(name, ""), name=name)


def _secrets(settings: Settings) -> dict[str, str]:
    path = secrets_path(settings)
    if settings.secrets_file is not None and not path.exists():
        raise BadSettings(f"{path}: the secrets file isn't there", hint="CAUDAL_SECRETS_FILE names it")
    return _check_secrets(_table(read(path), "secrets", path), path)


def _check_secrets(table: Mapping[str, Any], path: Path) -> dict[str, str]:
    for name, value in table.items():
        if not isinstance(value, str):
            raise BadSettings(f"{path}: secrets.{name}: a secret is a string")
    return {name: str(value) for name, value in table.items()}


def _source(name: str, table: Any, path: Path) -> Source:
    if not isinstance(table, Mapping):
        raise BadSettings(f"{path}: sources.{name}: a source is a table", hint=f"[sources.{name}]")
    try:
        return Source.model_validate({**tomlkit.item(dict(table)).unwrap(), "name": name})
    except ValidationError as exc:
        faults = "; ".join(
            ".".join(["sources", name, *(str(part) for part in e["loc"])]) + f": {e['msg']}"
            for e in exc.errors(include_input=False, include_url=False)
        )
        raise BadSettings(f"{path}: {faults}") from None
    except RecursionError:
        raise BadSettings(f"{path}: sources.{name}: tables within tables without end") from None


def read(path: Path) -> dict[str, Any]:
    """A TOML file; empty when it isn't there.

    Raises:
        BadSettings: it can't be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:  # a number of thousands of digits is a plain ValueError
        raise BadSettings(f"{path}: {exc}") from None


def _document(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return tomlkit.document()
    except (OSError, ValueError, RecursionError, TOMLKitError) as exc:
        raise BadSettings(f"{path}: {exc}") from None


def _table(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, Mapping):
        raise BadSettings(f"{path}: {key}: not a table")
    return table


def _write(path: Path, text: str, mode: int | None = None) -> None:
    """Replace the file as a whole, so that a reader sees the old or the new text and never half of it."""
    target = path.resolve()  # a linked file stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode is None:
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        part = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(handle)
            part.chmod(mode)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise BadSettings(f"{path}: {exc}") from None
