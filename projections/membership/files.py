"""Segments as files: `segments/*.yaml`, one each."""

from __future__ import annotations

from pathlib import Path

from caudal.projections import criteria
from caudal.projections.criteria import BadCriteria, tree
from caudal.projections.membership.definitions import BadSegment, Draft

__all__ = ["read"]

_KEYS = {"name", "description", "criteria", "list"}


def read(path: Path) -> list[Draft]:
    """What a file, or every .yaml file of a folder, says that a segment shall be.

    A file without `name` defines the segment that it is called after. What it leaves out, such as the description, is empty.

    Raises:
        BadSegment: files can't be used; all faults are named.
    """
    files = sorted(f for f in path.iterdir() if f.suffix in {".yaml", ".yml"}) if path.is_dir() else [path]
    if not files:
        raise BadSegment(f"{path} holds no .yaml files")
    drafts, faults = [], []
    for file in files:
        try:
            drafts.append(_draft(file))
        except (BadSegment, BadCriteria) as exc:
            faults.append(f"{file.name}: {exc}")
        except (OSError, UnicodeDecodeError) as exc:
            faults.append(f"{file.name}: {exc.strerror if isinstance(exc, OSError) else 'not UTF-8'}")
    if faults:
        raise BadSegment("; ".join(faults))
    return drafts


def _draft(file: Path) -> Draft:
    data = tree.document(file.read_text("utf-8"))
    if not isinstance(data, dict) or not set(data) <= _KEYS:
        raise BadSegment(f"a map of {', '.join(sorted(_KEYS))} is needed")
    name, description, given = data.get("name", file.stem), data.get("description", ""), data.get("criteria")
    if not isinstance(name, str) or not isinstance(description, str):
        raise BadSegment("name and description are texts")
    if (given is None) == (data.get("list") is not True):
        raise BadSegment("either criteria or `list: true` is needed")
    return Draft(name, None if given is None else criteria.read(given), description)
