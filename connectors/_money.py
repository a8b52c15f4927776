"""Exact money: decimal amounts become integer minor units by the ISO 4217 exponent of their currency, never through a float."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Annotated

from caudal.connectors._mend import UNREADABLE
from pydantic import GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

__all__ = ["Amount", "exponent", "minor"]

# ISO 4217 list one: the currencies whose minor unit is not the hundredth
_EXPONENTS = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV"), 0
    ),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}
_DECIMAL = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?")
_CURRENCY = re.compile(r"[A-Z]{3}")
_MAX_DIGITS = 18  # before the point; more can't be stored in 64 bits as minor units anyway


def _exact(value: object) -> Decimal:
    if isinstance(value, Decimal) and value.is_finite():
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        # the shortest repr of a JSON number is the decimal that the vendor wrote, up to 15 digits
        value = format(Decimal(repr(value)), "f")
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value.strip()):
        raise ValueError("not an amount")
    return Decimal(value.strip())


_AMOUNT = core_schema.union_schema(
    [
        # a shop has a few prices, and looking one up takes a tenth of reading it
        core_schema.no_info_after_validator_function(lru_cache(8192)(_exact), core_schema.str_schema(strict=True)),
        core_schema.no_info_plain_validator_function(_exact),
    ],
    mode="left_to_right",
    custom_error_type="inexact_amount",
    custom_error_message="not an amount",
)
Amount = Annotated[Decimal, GetPydanticSchema(lambda _source, _handler: _AMOUNT), WithJsonSchema({"type": "string"})]
"""A payload field with an amount of money: a decimal string as vendors send it (a JSON number is taken as well)."""


def exponent(currency: str) -> int:
    """Digits of a currency's minor unit: 2 for BRL, 0 for JPY, 3 for KWD."""
    return _EXPONENTS.get(currency, 2)


def minor(amount: Decimal | None, currency: str | None) -> int | None:
    """`amount` in minor units of `currency`, halves rounded away from zero; None stays None.

    What can't be told so (no currency, none of ISO 4217, an amount beyond 64 bits) is UNREADABLE: it costs the field that it stands in, or
    the line or refund that can't do without.
    """
    return None if amount is None else _minor(amount, currency)


@lru_cache(4096)  # an order names a few amounts again and again, most of all nothing
def _minor(amount: Decimal, currency: str | None) -> int:
    currency = (currency or "").strip().upper()
    if not _CURRENCY.fullmatch(currency) or not amount.is_finite() or amount.adjusted() >= _MAX_DIGITS:
        return UNREADABLE  # type: ignore[no-any-return] # it stands for an amount until the event is looked at
    return int(amount.scaleb(exponent(currency)).quantize(Decimal(1), rounding=ROUND_HALF_UP))
