"""Files of exchange rates are read whole or not at all."""

from datetime import date
from decimal import Decimal

import pytest

from caudal import rates


def test_columns_are_found_by_name_and_others_ignored():
    found = rates.read(
        ["currency,bank,rate,date", "EUR,x,6.21,2026-01-31", "JPY,x,0.037,2026-01-31", "EUR,x,6.21,2026-01-31"]
    )
    assert found == [
        rates.Rate("EUR", date(2026, 1, 31), Decimal("6.21")),
        rates.Rate("JPY", date(2026, 1, 31), Decimal("0.037")),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2026-01-31,EUR", "decimal number"),
        ("31/01/2026,EUR,6", "date"),
        ("2026-01-31,EUR,6,2", "more values"),
        ("2026-01-31,euro,6", "ISO 4217"),
        ("2026-01-31,EUR,-6", "between"),
        ("2026-01-31,EUR,NaN", "between"),
        ("2026-01-31,EUR,1e999999", "between"),
        ("2026-01-31,EUR,6.3", "another rate of EUR"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_by_its_number(line, told):
    with pytest.raises(rates.BadRates, match=rf"line 3: .*{told}"):
        rates.read(["date,currency,rate", "2026-01-31,EUR,6.2", line])


def test_a_file_without_the_columns_is_told_what_is_missing():
    with pytest.raises(rates.BadRates, match="currency, rate"):
        rates.read(["date;currency;rate", "date"][1:])
