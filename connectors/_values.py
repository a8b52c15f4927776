"""Values as vendors and their users write them, in the form that events carry. Each answers None for what it can't read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta

from caudal.codes import country, gender, language

__all__ = ["country", "day", "gender", "language", "moment", "slug", "tax_number", "timezone"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SMALL_WORDS = frozenset({"of", "es", "au", "d", "in"})
"""Words that IANA zone names write small, as in America/Port_of_Spain."""


_NUMBER = re.compile(r"(-?\d{1,20})(\.\d+)?", re.ASCII)
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)(\d{6})?", re.ASCII)
_YEARS = range(1971, 9000)
"""Of deliveries and what they are about: what programs write for "no date" and "never" lies outside."""
_NO_BIRTH = frozenset({date(1899, 12, 30), date(1899, 12, 31), date(1900, 1, 1)})
"""The first days of spreadsheets and databases."""
_OLDEST_YEARS = 130
_DAY_MS = 86_400_000


def moment(value: object) -> datetime | None:
    """A time of the years from 1971 on: ISO 8601, digits as 20240512 or 20240512133000, or a number since 1970.

    The number's size tells its unit: what would be before 1973 in milliseconds is seconds, what would be after 5138 is microseconds.
    """
    if isinstance(value, bool) or value is None:
        return None
    text = str(value).strip()
    try:
        if number := _NUMBER.fullmatch(text):
            at = _of_digits(number[1]) or _since_1970(int(number[1]))
        else:
            at = datetime.fromisoformat(text)
            at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return at if at and at.year in _YEARS else None


def _of_digits(digits: str) -> datetime | None:
    found = _COMPACT.fullmatch(digits)
    if found is None:
        return None
    day_ = _date(int(found[1]), int(found[2]), int(found[3]))
    if day_ is None or day_.year not in range(1900, 2200):
        return None
    try:
        time = datetime.strptime(found[4] or "000000", "%H%M%S").time()  # noqa: DTZ007 - its zone follows
    except ValueError:
        return None
    return datetime.combine(day_, time, UTC)


def _since_1970(number: int) -> datetime | None:
    size = abs(number)
    if size < 10**8:
        return None  # a number of something else
    for limit, per_second in ((10**11, 1), (10**14, 10**3), (10**17, 10**6), (10**20, 10**9)):
        if size < limit:
            return _EPOCH + timedelta(microseconds=number * 10**6 // per_second)
    return None


def day(value: object, by: datetime | None = None) -> date | None:
    """A day, such as one of birth, where it is certain which: a calendar has no time zone, so the day is the one that was written.

    Read are ISO 8601 (of a moment its own day, whatever its offset; of one in UTC at the hour when it is midnight east of Greenwich none:
    programs there write the midnight of a day so, and it is the day after), day/month/year (month first only where the second number is
    above 12), year/month/day, both also as eight digits, and midnights since 1970 in milliseconds, as date pickers write them, in seconds
    or in microseconds.

    Args:
        value: as the source has it.
        by: when it was stated; a day after it, more than 130 years before, or that programs write for "no date" is none.
    """
    if isinstance(value, bool) or value is None:
        return None
    return next((found for found in _days(str(value).strip()) if _is_plausible(found, by)), None)


def _is_plausible(found: date, by: datetime | None) -> bool:
    if by is None:
        return True
    return found <= by.date() + timedelta(days=1) and by.year - found.year <= _OLDEST_YEARS and found not in _NO_BIRTH


def _days(text: str) -> Iterator[date]:
    """What the text can mean, the likeliest first."""
    if number := re.fullmatch(r"(-?\d{1,20})(\.0+)?", text, re.ASCII):
        readings: Iterable[date | None] = _days_of_number(number[1])
    elif found := re.fullmatch(r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})([ T]\d{1,2}:\d\d.*)?", text, re.ASCII):
        readings = [_day_first(found[1], found[2], found[3])]
    elif found := re.fullmatch(r"(\d{4})[/.-](\d{1,2})[/.-](\d{1,2})", text, re.ASCII):
        readings = [_date(int(found[1]), int(found[2]), int(found[3]))]
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return
        readings = [at.date() if at.utcoffset() else _day_of_utc(at)]
    yield from (reading for reading in readings if reading)


def _days_of_number(digits: str) -> Iterator[date | None]:
    number = int(digits)
    if number % _DAY_MS == 0 and (number or digits == "0"):
        yield _day_of(number, 10**3)
    if re.fullmatch(r"\d{8}", digits):
        yield _date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) if digits[:2] in ("19", "20") else None
        yield _day_first(digits[:2], digits[2:4], digits[4:])
    if at := _of_digits(digits):
        yield at.date()
    if abs(number) < 10**8:
        return
    for per_second in (1, 10**3, 10**6):
        if number % (86_400 * per_second) == 0:
            yield _day_of(number, per_second)
    for per_second in (10**3, 1):  # midnight of some zone: on the half hour
        if number % (1_800 * per_second) == 0:
            yield _day_of(number, per_second)


def _day_of(number: int, per_second: int) -> date | None:
    try:
        return _day_of_utc(_EPOCH + timedelta(microseconds=number * 10**6 // per_second))
    except OverflowError:
        return None


def _day_of_utc(at: datetime) -> date | None:
    whole = at.minute % 30 == 0 and at.second == 0 and at.microsecond == 0
    east = whole and at.hour >= 10 and (at.hour, at.minute) != (12, 0)
    return None if east and at.tzinfo is not None else at.date()


def _day_first(first: str, second: str, year: str) -> date | None:
    # Ours write the day first; only a second number above 12 proves the American order
    month, day_ = (int(first), int(second)) if int(second) > 12 else (int(second), int(first))
    return _date(int(year), month, day_)


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
