"""Exchange rates into the base currency: read from the operator's file, stored, listed.

Money is converted when it is read, with each currency's newest rate, so a new rate changes no view.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from caudal.errors import Poison
from caudal.projections.criteria.fields import exponent
from caudal.projections.membership.stage import refill

if TYPE_CHECKING:
    import psycopg

__all__ = ["BadRates", "Rate", "listed", "load", "read"]

COLUMNS = ("date", "currency", "rate")
_CURRENCY = re.compile(r"[A-Z]{3}")
_BEFORE = date(1, 1, 1)
"""Day of the base currency's own rate, which is always 1."""


class BadRates(Poison):
    """A file of rates that can't be used."""

    code = "bad_rates"


@dataclass(frozen=True, slots=True)
class Rate:
    """Units of the base currency for one unit of another, from a day on."""

    currency: str
    day: date
    rate: Decimal


def read(lines: Iterable[str]) -> list[Rate]:
    """Rates of a CSV with the columns date, currency and rate, in any order; other columns are ignored.

    Raises:
        BadRates: a line can't be used; nothing of the file is then.
    """
    rows = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise BadRates(f"the first line doesn't name {', '.join(missing)}", hint="date,currency,rate")
    found: dict[tuple[str, date], Rate] = {}
    for row in rows:
        if None in row:
            raise BadRates(f"line {rows.line_num}: more values than columns", hint="decimals are written with a point")
        try:
            one = Rate(row["currency"].strip(), date.fromisoformat(row["date"].strip()), Decimal(row["rate"].strip()))
        except (ValueError, InvalidOperation, AttributeError) as exc:
            raise BadRates(
                f"line {rows.line_num}: a date (2026-01-31), a currency and a decimal number are needed"
            ) from exc
        if not _CURRENCY.fullmatch(one.currency):
            raise BadRates(f"line {rows.line_num}: the currency is not an ISO 4217 code")
        if not one.rate.is_finite() or not Decimal("1e-12") <= one.rate <= Decimal("1e12"):
            raise BadRates(f"line {rows.line_num}: the rate is no number between 1e-12 and 1e12")
        if found.setdefault((one.currency, one.day), one) != one:
            raise BadRates(f"line {rows.line_num}: another rate of {one.currency} for that day stands before")
    return list(found.values())


def load(conn: psycopg.Connection[Any], base: str, rates: Sequence[Rate]) -> int:
    """Store rates to the base currency; those of a day that is there already are replaced. All or none.

    When the base currency is another one than before, everything that was loaded for that one goes.

    Returns:
        How many there are now, without the base currency's own.

    Raises:
        BadRates: a rate of the base currency itself is not 1.
    """
    for one in rates:
        if one.currency == base and one.rate != 1:
            raise BadRates(f"one {base} is one {base}: it is the base currency")
    rows = [(one.currency, one.day, one.rate, _factor(one, base), base) for one in rates if one.currency != base]
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("DELETE FROM hub.rates WHERE base <> %s", (base,))
        rows.append((base, _BEFORE, Decimal(1), Decimal(1), base))
        cursor.executemany(
            """INSERT INTO hub.rates (currency, day, rate, factor, base) VALUES (%s, %s, %s, %s, %s)
               ON CONFLICT (currency, day) DO UPDATE SET rate = excluded.rate, factor = excluded.factor""",
            rows,
        )
        row = cursor.execute("SELECT count(*) - 1 FROM hub.rates").fetchone()
        refill(conn, reading="rates")
    assert row is not None
    return int(row[0])


def listed(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """The base currency, the newest rate of each other one, and currencies that customers spent but that have none."""
    row = conn.execute("SELECT base FROM hub.rates LIMIT 1").fetchone()
    assert row is not None
    newest = conn.execute(
        """SELECT DISTINCT ON (currency) currency, day, rate FROM hub.rates WHERE currency <> base ORDER BY currency, day DESC"""
    ).fetchall()
    there = conn.execute("SELECT to_regclass('live.metrics') IS NOT NULL").fetchone()
    missing: list[tuple[str]] = []
    if there == (True,):
        missing = conn.execute(
            """SELECT DISTINCT c FROM live.metrics, jsonb_object_keys(spend_minor) c
               WHERE c NOT IN (SELECT currency FROM hub.rates) ORDER BY c"""
        ).fetchall()
    return {
        "base": row[0],
        "rates": [{"currency": c, "date": day.isoformat(), "rate": f"{rate:f}"} for c, day, rate in newest],
        "missing": [c for (c,) in missing],
    }


def _factor(one: Rate, base: str) -> Decimal:
    """Minor units of the base currency for one minor unit: 1 JPY has no cents, 1 BRL has a hundred."""
    return one.rate.scaleb(exponent(base) - exponent(one.currency))
