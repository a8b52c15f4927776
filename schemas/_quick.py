"""Makes frozen dataclasses cheap to make: what `dataclass` itself writes calls `object.__setattr__` for each field, which takes four
times as long as setting it, and an event has forty.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, TypeVar

__all__ = ["quick"]

_T = TypeVar("_T")


def quick(cls: type[_T]) -> type[_T]:
    """The same frozen dataclass (with slots and keyword-only fields, for others than this file to know nothing of), made faster.

    An instance is of a class without the lock while its fields are set, and of its own afterwards. A subclass is made as before.
    """
    slow = cls.__init__
    # the same slots, so that an instance of one can become one of the other
    unlocked = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    opened = type(f"{cls.__name__}Opened", (cls,), {"__slots__": (), **unlocked})
    scope: dict[str, Any] = {
        "_cls": cls,
        "_opened": opened,
        "_become": object.__setattr__,
        "_slow": slow,
        "_missing": MISSING,
    }
    parameters, code = [], []
    declared = fields(cls)  # type: ignore[arg-type] # a dataclass, as the text above says
    for field in declared:
        name = field.name
        value = name
        if field.default_factory is not MISSING:
            scope |= {f"_default_{name}": MISSING, f"_make_{name}": field.default_factory}
            value = f"_make_{name}() if {name} is _missing else {name}"
        elif field.default is not MISSING:
            scope[f"_default_{name}"] = field.default
        parameters.append(f"{name}=_default_{name}" if f"_default_{name}" in scope else name)
        code.append(f"    self.{name} = {value}")
    given = ", ".join(f"{field.name}={field.name}" for field in declared)
    lines = [
        f"def __init__(self, *, {', '.join(parameters)}):",
        "  if self.__class__ is _cls:",
        "    _become(self, '__class__', _opened)",
        *code,
        "    self.__class__ = _cls",
        "  else:",
        f"    _slow(self, {given})",
    ]
    exec("\n".join(lines), scope)  # noqa: S102 - the text is made of our own declarations
    cls.__init__ = scope["__init__"]  # type: ignore[method-assign] # which is all that this is for
    return cls
