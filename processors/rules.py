"""The rules of identity: which identifiers are evidence, how strong, and within which limits. Read from `identity.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Literal

from caudal.schemas import Identifier
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from caudal.errors import BadSettings
from caudal.identifiers import KINDS, LONGEST, normalise
from caudal.settings import Settings

__all__ = ["FILE", "Kind", "Rules", "load"]

FILE = "identity.toml"


class Kind(BaseModel):
    """The rules of one kind of identifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most: int | None = Field(None, ge=1)
    shared_by: int | None = Field(None, ge=1)
    blocked: tuple[str, ...] = ()
    withdrawn: Literal["split", "report"] = "split"

    @field_validator("blocked")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"{pattern!r} is not a regular expression: {exc}") from None
        return patterns


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    priority: tuple[str, ...]
    kinds: dict[str, Kind]


class Rules:
    """Evidence and its limits.

    Attributes:
        priority: kind → rank; 0 is the strongest.
        kinds: the rules by kind.
        region: ISO 3166 country of phone numbers without a country code.
    """

    def __init__(self, priority: Mapping[str, int], kinds: Mapping[str, Kind], region: str = "BR") -> None:
        self.priority = priority
        self.kinds = kinds
        self.region = region
        self._blocked = {kind: tuple(re.compile(pattern) for pattern in rule.blocked) for kind, rule in kinds.items()}
        # every update of a person repeats all of their identifiers
        self._cached = lru_cache(maxsize=131_072)(self._evidence)

    def evidence(self, kind: str, value: str) -> Identifier | None:
        """The identifier in its normal form; None when it is invalid or blocked, and so says nothing about who it is."""
        # what is too long for `normalise` must not be remembered either
        return self._cached(kind, value) if len(value) <= LONGEST else None

    def _evidence(self, kind: str, value: str) -> Identifier | None:
        if kind not in self.kinds:
            return None
        normal = normalise(kind, value, self.region)
        if normal is None or any(pattern.fullmatch(normal) for pattern in self._blocked[kind]):
            return None
        return Identifier(kind=kind, value=normal)

    def usable(self, identifiers: Iterable[Identifier]) -> tuple[Identifier, ...]:
        """The identifiers that are evidence, normalised, each once, in the order given."""
        found = (self.evidence(identifier.kind, identifier.value) for identifier in identifiers)
        # by their values: dataclasses hash ten times as slowly as tuples
        return tuple({(i.kind, i.value): i for i in found if i is not None}.values())

    def most(self, kind: str) -> int | None:
        """How many values of `kind` one customer may have; None: any number."""
        return self.kinds[kind].most

    def shared_by(self, kind: str) -> int | None:
        """How many subjects may carry one value before it is no evidence any more; None: any number."""
        return self.kinds[kind].shared_by

    def splits(self, kind: str) -> bool:
        """Whether a value of `kind` that its subject states no more is evidence no more, and what it alone held together is split."""
        return self.kinds[kind].withdrawn == "split"


def load(settings: Settings) -> Rules:
    """The rules in `identity.toml` beside the configuration file, else those that come with Caudal.

    Raises:
        BadSettings: the file can't be read, or says something that can't be.
    """
    own = settings.config_file.parent / FILE
    try:
        text = own.read_text(encoding="utf-8") if own.exists() else _packaged()
        stated = _File.model_validate(tomllib.loads(text))
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in exc.errors())
        raise BadSettings(f"{own}: {faults}", hint="docs/identity.md explains the file") from None
    except (OSError, ValueError, RecursionError) as exc:  # a number of thousands of digits is a plain ValueError
        raise BadSettings(f"{own}: {exc}") from None
    named = set(stated.priority)
    if named != KINDS or set(stated.kinds) - KINDS or len(named) != len(stated.priority):
        raise BadSettings(
            f"{own}: priority names each kind of identifier once: {', '.join(sorted(KINDS))}",
            hint="docs/identity.md explains the file",
        )
    return Rules(
        priority={kind: rank for rank, kind in enumerate(stated.priority)},
        kinds={kind: stated.kinds.get(kind, Kind()) for kind in stated.priority},
        region=settings.default_region,
    )


def _packaged() -> str:
    return resources.files("caudal.processors").joinpath(FILE).read_text(encoding="utf-8")
