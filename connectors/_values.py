"""Values as vendors and their users write them, in the form that events carry. Each answers None for what it can't read."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from caudal.codes import country, gender, language

__all__ = ["country", "day", "gender", "language", "moment", "slug", "tax_number", "timezone"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SMALL_WORDS = frozenset({"of", "es", "au", "d", "in"})
"""Words that IANA zone names write small, as in America/Port_of_Spain."""


def moment(value: object) -> datetime | None:
    """A time from ISO 8601 text or milliseconds since 1970 (number or digits)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        if isinstance(value, int | float) or re.fullmatch(r"-?\d{5,}(\.0+)?", str(value).strip()):
            return _EPOCH + timedelta(milliseconds=int(float(str(value))))
        at = datetime.fromisoformat(str(value).strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def day(value: object) -> date | None:
    """A date: ISO 8601, day/month/year, year/month/day, or midnight UTC in milliseconds."""
    text = str(value).strip()
    if found := re.fullmatch(r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})", text):
        first, second, year = (int(part) for part in found.groups())
        # Ours write the day first; only a second number above 12 proves the American order
        month, day_ = (first, second) if second > 12 else (second, first)
        return _date(year, month, day_)
    if found := re.fullmatch(r"(\d{4})[/.-](\d{1,2})[/.-](\d{1,2})", text):
        year, month, day_ = (int(part) for part in found.groups())
        return _date(year, month, day_)
    at = moment(value)
    return at.date() if at else None


def _date(year: int, month: int, day_: int) -> date | None:
    try:
        return date(year, month, day_)
    except ValueError:
        return None


def timezone(value: object) -> str | None:
    """An IANA zone, also as HubSpot spells it: `america_slash_sao_paulo` becomes `America/Sao_Paulo`."""
    text = str(value).strip()
    if "_slash_" not in text:
        return text if re.fullmatch(r"[A-Z][A-Za-z]+(/[A-Za-z0-9_+-]+)+", text) else None
    words = re.split(r"(/|_|-)", text.replace("_slash_", "/").replace("_hyphen_", "-"))
    return "".join(word if word in _SMALL_WORDS else word.capitalize() for word in words)


def tax_number(name: str, value: str) -> tuple[str, str] | None:
    """`("cpf", …)` or `("cnpj", …)` where a field's name says that it holds one and the length agrees; `cpf_cnpj` is told by length."""
    words = set(re.split(r"[\W_]+", name.lower()))
    number = re.sub(r"[^0-9A-Za-z]", "", value)
    if "cpf" in words and re.fullmatch(r"\d{11}", number):
        return "cpf", number
    if "cnpj" in words and re.fullmatch(r"[0-9A-Za-z]{12}\d{2}", number):
        return "cnpj", number.upper()
    return None


def slug(value: object) -> str:
    """A name as an attribute's name: lower case, with underscores."""
    return re.sub(r"\W+", "_", str(value).strip().lower()).strip("_")
