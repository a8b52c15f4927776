"""Which criteria ask by personal data: after the tags of the event schemas, whatever the condition looks like."""

from __future__ import annotations

import pytest
from caudal.projections import criteria
from caudal.projections.criteria.fields import FIELDS

ASKS = {
    'email = "ana@example.com"': ["email"],
    'email starts with "a"': ["email"],
    "email is known": ["email"],
    'phone contains "99"': ["phone"],
    'orders_count > 1 and (tickets_count = 0 or not cpf = "12345678909")': ["cpf"],
    'name = "Ana" or city = "Recife"': ["city", "name"],
    "age > 30": ["age"],
    "birth_date < 1990-01-01": ["birth_date"],
    'attributes.email2 = "x"': ["attributes.email2"],
    'custom.copied = "x"': ["custom.copied"],
    "near(-8.05, -34.9, 5)": ["near"],
    'bought(shipping_city = "Recife", within = 30d)': ["bought.shipping_city"],
    'bought(shipping_city = "Recife") then opened_ticket() within 7d': ["bought.shipping_city"],
    'opened_ticket() then bought(shipping_city = "Recife") within 7d': ["bought.shipping_city"],
    "orders_count > 1": [],
    "spend_minor.BRL > 100": [],
    'bought(category = "shoes", within = 90d)': [],
    'consent("marketing_email")': [],
    'source("shop")': [],
    'segment("buyers")': [],
    "days_since_last_order > 3": [],
    "rfm_recency = 5": [],
}


@pytest.mark.parametrize("text", ASKS)
def test_criteria_that_ask_by_personal_data_are_known(text: str) -> None:
    assert criteria.personal(criteria.parse(text)) == ASKS[text]


def test_every_field_that_tells_who_or_where_somebody_is_is_personal() -> None:
    for name in ("email", "phone", "name", "cpf", "cnpj", "city", "postal_code", "birth_date", "latitude"):
        if name in FIELDS:
            assert criteria.personal(criteria.load({"field": name, "op": "known", "value": True})) == [name]
    where = [{"field": "shipping_city", "op": "known", "value": True}]
    assert criteria.personal(criteria.load({"fact": "bought", "where": where})) == ["bought.shipping_city"]


def test_a_segment_of_a_personal_segment_is_personal() -> None:
    defined = {
        "mails": criteria.parse("email is known"),
        "within": criteria.parse('orders_count > 1 and not segment("mails")'),
        "twice": criteria.parse('segment("within") or segment("buyers")'),
        "plain": criteria.parse('segment("buyers")'),
    }
    assert criteria.personal_segments(defined) == {"mails", "within", "twice"}
