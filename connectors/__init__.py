"""One file per system: how its deliveries are verified, keyed and translated. Pure: no network, clock or database.

A connector is found by its name: the plain files of this folder, and the entry points of other packages in the group
`caudal.connectors`. docs/connectors.md shows how to write one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from caudal.connectors._mend import UNREADABLE, Essential, LeftOut
from caudal.connectors._money import Amount, minor
from caudal.connectors._sdk import (
    Connector,
    Delivery,
    Id,
    Instant,
    Payload,
    Salvaged,
    Scheme,
    Setup,
    SignedRequest,
    Verdict,
    each,
    empties,
    header,
    identifiers,
    parse_json,
    subject,
)
from caudal.connectors._signatures import Hmac

from caudal.errors import BadSettings, UnknownConnector

__all__ = [
    "UNREADABLE",
    "Amount",
    "Connector",
    "Delivery",
    "Essential",
    "Hmac",
    "Id",
    "Instant",
    "LeftOut",
    "Payload",
    "Salvaged",
    "Scheme",
    "Setup",
    "SignedRequest",
    "Verdict",
    "each",
    "empties",
    "get",
    "header",
    "identifiers",
    "minor",
    "parse_json",
    "registry",
    "subject",
]


@cache
def registry() -> Mapping[str, Connector]:
    """Every installed connector by name, in the order of the names.

    Raises:
        BadSettings: two connectors share a name, or an entry point doesn't lead to a connector.
    """
    found = {
        name: importlib.import_module(f"{__name__}.{name}").connector
        for _, name, _ in pkgutil.iter_modules(__path__)
        if not name.startswith("_")
    }
    for point in entry_points(group=__name__):
        try:
            connector = point.load()
        except Exception as exc:
            raise BadSettings(f"connector {point.name} of entry point {point.value} can't be loaded") from exc
        if not isinstance(connector, Connector):
            raise BadSettings(f"entry point {point.value} is not a Connector")
        if connector.name in found:
            raise BadSettings(f"two connectors are named {connector.name}", hint=f"remove the package of {point.value}")
        found[connector.name] = connector
    return MappingProxyType(dict(sorted(found.items())))


def get(name: str) -> Connector:
    """The connector of that name.

    Raises:
        UnknownConnector: there is none.
    """
    try:
        return registry()[name]
    except KeyError:
        raise UnknownConnector(f"no connector is named {name}", hint=f"there are {', '.join(registry())}") from None
