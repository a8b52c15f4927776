"""What holds customers together is what their subjects state now: evidence that its source takes back is looked at again."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
from captures import T0, capture, events, links_by_log, links_by_table, partition_of_subjects, translate, with_people

from caudal import postgres
from caudal.settings import Settings

pytestmark = pytest.mark.usefixtures("with_people")
__all__ = ["with_people"]

ONE, TWO, THREE = "shop:customer:1", "shop:customer:2", "crm:contact:3"
PHONE, OTHER = "+5581988887777", "+5581977776666"


def says(subject: str, at: int = 0, **fields: Any) -> dict[str, Any]:
    return {"subject": subject, "at": (T0 + timedelta(hours=at)).isoformat(), **fields}


def told(settings: Settings, *people: dict[str, Any]) -> set[frozenset[str]]:
    """Translate these, each in a batch of its own; who is one customer then."""
    for person in people:
        capture(settings, "shop", [person])
        translate(settings, ["shop"])
    assert links_by_log(settings) == links_by_table(settings)
    return partition_of_subjects(settings)


def apart(*groups: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(group) for group in groups}


TOGETHER = apart((ONE, TWO))
PARTED = apart((ONE,), (TWO,))


@pytest.mark.parametrize("fields", [{"phone": OTHER}, {"cleared": ["phone"]}, {"phone": "000"}])
def test_a_phone_that_is_corrected_or_cleared_joins_no_more(settings, fields):
    both = [says(ONE, email="a@x.com", phone=PHONE), says(TWO, email="b@x.com", phone=PHONE)]
    assert told(settings, *both) == TOGETHER
    assert told(settings, says(TWO, 1, email="b@x.com", **fields)) == PARTED
    (link,) = [e for e in events(settings, "SubjectLinked") if e["reason"] == "split"]
    assert link["subject"] == TWO
    with postgres.connect(settings.postgres, role="tests") as db:
        gone = db.execute(
            "SELECT links, withdrawn FROM hub.identifiers WHERE value = %s AND subject = %s", (PHONE, TWO)
        )
        assert gone.fetchall() == [(False, True)]


def test_what_a_partial_update_leaves_out_is_still_stated(settings):
    told(settings, says(ONE, email="a@x.com", phone=PHONE), says(TWO, email="b@x.com", phone=PHONE))
    assert told(settings, says(TWO, 1, email="c@x.com")) == TOGETHER
    assert told(settings, says(TWO, 2, name="Bia")) == TOGETHER


def test_other_evidence_still_holds(settings):
    told(settings, says(ONE, email="a@x.com", phone=PHONE), says(TWO, email="b@x.com", phone=PHONE))
    told(settings, says(TWO, identifiers=[["external_id", "e-1"]]), says(ONE, identifiers=[["external_id", "e-1"]]))
    assert told(settings, says(TWO, 1, phone=OTHER)) == TOGETHER


def test_a_merge_of_the_vendor_still_holds(settings):
    told(settings, says(ONE, phone=PHONE), says(TWO, phone=PHONE, identifiers=[["subject", ONE]]))
    assert told(settings, says(TWO, 1, phone=OTHER)) == TOGETHER


def test_an_address_that_becomes_a_further_one_is_still_stated(settings):
    told(settings, says(ONE, email="a@x.com"), says(TWO, email="a@x.com"))
    assert told(settings, says(TWO, 1, email="b@x.com", other_emails=["a@x.com"])) == TOGETHER
    assert told(settings, says(TWO, 2, other_emails=[], cleared=["other_emails"])) == PARTED


def test_what_no_field_of_the_account_stated_stays_for_good(settings):
    told(settings, says("shop:order:7", identifiers=[["email", "a@x.com"]]), says(ONE, email="a@x.com"))
    assert told(settings, says("shop:order:7", 1, identifiers=[["email", "b@x.com"]])) == apart((ONE, "shop:order:7"))


def test_what_orders_repeat_of_the_account_goes_with_it(settings):
    told(settings, says(ONE, phone=PHONE), says(TWO, phone=PHONE), says(TWO, 1, identifiers=[["phone", PHONE]]))
    assert told(settings, says(TWO, 2, phone=OTHER)) == PARTED
    assert told(settings, says(TWO, 3, identifiers=[["phone", PHONE]])) == PARTED


def test_who_was_joined_by_way_of_the_corrected_one_is_parted_too(settings):
    told(settings, says(ONE, email="a@x.com"), says(TWO, email="a@x.com", phone=PHONE), says(THREE, phone=PHONE))
    assert told(settings, says(TWO, 1, phone=OTHER, email="a@x.com")) == apart((ONE, TWO), (THREE,))


def test_a_value_that_comes_back_joins_again(settings):
    told(settings, says(ONE, phone=PHONE), says(TWO, phone=PHONE), says(TWO, 1, phone=OTHER))
    assert told(settings, says(TWO, 2, phone=PHONE)) == TOGETHER


def test_a_corrected_cpf_takes_the_place_of_the_wrong_one(settings):
    told(settings, says(ONE, cpf="52998224725"), says(TWO, cpf="52998224725", email="b@x.com"))
    assert told(settings, says(TWO, 1, cpf="11144477735")) == PARTED
    assert told(settings, says(THREE, cpf="11144477735")) == apart((ONE,), (TWO, THREE))


def test_statements_in_any_order_give_the_same_customers(settings):
    history = [
        says(ONE, 0, phone=PHONE),
        says(TWO, 0, phone=PHONE),
        says(TWO, 1, phone=OTHER),
        says(TWO, 2, phone=PHONE),
        says(TWO, 3, phone=OTHER, email="b@x.com"),
    ]
    for length, expected in ((3, PARTED), (4, TOGETHER), (5, PARTED)):
        for order in (
            itertools.permutations(history[:length]) if length < 5 else [history[::-1], history[2:] + history[:2]]
        ):
            with postgres.connect(settings.postgres, role="tests") as db:
                db.execute("TRUNCATE hub.subjects, hub.identifiers, hub.unpublished_links")
            capture(settings, "shop", order, partition=0)
            translate(settings, ["shop"], size=1)
            assert partition_of_subjects(settings) == expected, order


def test_a_rule_can_have_it_told_only(settings, capsys):
    settings.config_file.with_name("identity.toml").write_text(
        'priority = ["subject", "external_id", "cpf", "cnpj", "email", "phone", "device"]\n[kinds.phone]\nwithdrawn = "report"\n'
    )
    told(settings, says(ONE, phone=PHONE), says(TWO, phone=PHONE))
    assert told(settings, says(TWO, 1, phone=OTHER)) == TOGETHER
    assert "evidence.withdrawn" in capsys.readouterr().out
