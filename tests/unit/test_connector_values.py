from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from caudal.connectors import _values


@pytest.mark.parametrize(
    "written",
    [
        1748865600000,
        "1748865600000",
        "2025-06-02T12:00:00Z",
        "2025-06-02T09:00:00-03:00",
        "2025-06-02T12:00Z",
        "2025-06-02 12:00:00",
    ],
)
def test_times_are_read_from_iso_8601_and_milliseconds(written: object) -> None:
    assert _values.moment(written) == datetime(2025, 6, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize("written", [None, "", "soon", True, "9" * 40, -(10**30), float("inf"), float("nan"), [], {}])
def test_what_is_no_time_is_none(written: object) -> None:
    assert _values.moment(written) is None


@pytest.mark.parametrize(
    "written", [0, "0", 12, "12345", 86_400, "0001-01-01", "1899-12-30", "1970-01-01T00:00:00Z", "9999-12-31"]
)
def test_what_programs_write_for_no_time_is_none(written: object) -> None:
    assert _values.moment(written) is None


@pytest.mark.parametrize(
    "written",
    [
        1748865600,
        "1748865600",
        "1748865600.5",
        1748865600000000,
        "1748865600000000000",
        "20250602120000",
        1748865600000.0,
    ],
)
def test_the_size_of_a_number_tells_its_unit(written: object) -> None:
    assert _values.moment(written) == datetime(2025, 6, 2, 12, tzinfo=UTC)


BY = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        "1990-05-12",
        "1990-05-12T00:00:00+02:00",
        "1990-05-12T23:00:00-03:00",
        "1990-05-12T00:00:00Z",
        "1990-05-12T03:00:00.000Z",  # midnight in Brasília
        "1990-05-12T12:00:00Z",
        "1990-05-12 00:00:00",
        "12/05/1990",
        "12.5.1990",
        "12/05/1990 00:00",
        19900512,
        "19900512",
        "12051990",
        "19900512000000",
        642470400000,
        "642470400000",
        "642481200000",  # midnight in Brasília
        "642470400",
        "642470400000000",
        642470400000.0,
    ],
)
def test_a_day_of_birth_is_the_day_that_was_written(written: object) -> None:
    assert _values.day(written, BY) == date(1990, 5, 12)


@pytest.mark.parametrize(
    ("written", "expected"),
    [(0, date(1970, 1, 1)), ("0", date(1970, 1, 1)), ("-86400000", date(1969, 12, 31)), ("-248400000000", date(1962, 2, 17)),
     ("42865200000", date(1971, 5, 12)), ("01011990", date(1990, 1, 1)), ("05/13/1990", date(1990, 5, 13))],
)  # fmt: skip
def test_days_around_1970_are_read_too(written: object, expected: date) -> None:
    assert _values.day(written, BY) == expected


@pytest.mark.parametrize(
    "written",
    ["1990-05-11T22:00:00.000Z", "1990-05-11T23:00:00Z", "31/02/1990", "1990", "05-12", "199005", "12/05/90", "33005", 32400, "0001-01-01",
     "0000-00-00", "00000000", "1899-12-30", "1900-01-01", "9999-12-31", "2027-01-01", "1890-01-01", "13131990", "-62135596800000", True,
     None, "8640000000000000", "9" * 20],
)  # fmt: skip
def test_a_day_that_is_not_certain_is_none(written: object) -> None:
    assert _values.day(written, BY) is None


@pytest.mark.parametrize("written", ["1991-04-17", "17/04/1991", "17.4.1991", "4/17/1991", "1991/4/17", "671846400000"])
def test_days_are_read_in_the_orders_that_people_write(written: str) -> None:
    assert _values.day(written) == date(1991, 4, 17)


@pytest.mark.parametrize("written", ["31/02/1991", "1991-13-01", "in spring", ""])
def test_what_is_no_day_is_none(written: str) -> None:
    assert _values.day(written) is None


@pytest.mark.parametrize(
    ("written", "code"),
    [("Brasil", "BR"), ("brazil", "BR"), ("br", "BR"), ("UK", "GB"), ("Estados Unidos", "US"), ("Atlantis", None)],
)
def test_countries_are_codes(written: str, code: str | None) -> None:
    assert _values.country(written) == code


@pytest.mark.parametrize(
    ("written", "tag"),
    [("pt-br", "pt-BR"), ("pt_BR", "pt-BR"), ("EN", "en"), ("zh-hant-tw", "zh-Hant-TW"), ("Português (Brasil)", None)],
)
def test_languages_have_their_usual_capitals(written: str, tag: str | None) -> None:
    assert _values.language(written) == tag


@pytest.mark.parametrize(
    ("written", "zone"),
    [
        ("America/Recife", "America/Recife"),
        ("america_slash_sao_paulo", "America/Sao_Paulo"),
        ("america_slash_port_of_spain", "America/Port_of_Spain"),
        ("Brasilia", None),
    ],
)
def test_zones_are_ianas(written: str, zone: str | None) -> None:
    assert _values.timezone(written) == zone


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("cpf", "529.982.247-25", ("cpf", "52998224725")),
        ("Nº do CPF", "52998224725", ("cpf", "52998224725")),
        ("cnpj_da_empresa", "12.ABC.345/01DE-35", ("cnpj", "12ABC34501DE35")),
        ("cpf", "123", None),
        ("favourite_number", "52998224725", None),
    ],
)
def test_tax_numbers_are_told_by_name_and_length(name: str, value: str, found: tuple[str, str] | None) -> None:
    assert _values.tax_number(name, value) == found
