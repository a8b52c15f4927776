from __future__ import annotations

import pytest
from caudal.projections.membership import lists

A, B = "4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77", "018f0000-0000-7000-8000-00000000000a"


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n",
        f"\ufeffcustomer_id\r\n{A}\r\n\r\n{B}",
        f'\n"customer_id";"name"\n"{A}";"Ana"\n{B};',
        f" {A} ,x\n{B}\t1",
    ],
)
def test_ids_are_read_from_lines_and_from_the_first_column_whatever_the_file_looks_like(text):
    assert list(lists.ids(text.splitlines())) == [A, B]


def test_what_is_no_id_stays_to_be_counted():
    assert list(lists.ids(["12345", A, "customer_id"])) == ["12345", A, "customer_id"]
