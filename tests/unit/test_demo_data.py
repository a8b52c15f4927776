"""What the demo sends is what the vendors would send."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from caudal.connectors import SignedRequest
from caudal.connectors._sdk import Delivery

from caudal import connectors
from caudal._demo_data import SOURCES, deliveries, people, signed
from caudal.identifiers import normalise

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
WHO = people(30)
MADE = deliveries(WHO, NOW)
PAYLOADS = Path(connectors.__file__).parents[1] / "caudal/demo_payloads"


def _translate(delivery, headers):
    connector = connectors.get(SOURCES[delivery.source])
    return connector.translate(Delivery(source=delivery.source, body=delivery.body, headers=headers))


def test_the_same_seed_gives_the_same_deliveries():
    assert deliveries(people(30), NOW) == MADE


@pytest.mark.parametrize("source", SOURCES)
def test_each_is_signed_as_its_vendor_signs(source):
    for delivery in [each for each in MADE if each.source == source][:20]:
        url = f"http://127.0.0.1:8470/in/{source}"
        headers = signed(delivery, "hush", url, NOW)
        verify = connectors.get(SOURCES[source]).verify.verify
        request = SignedRequest(delivery.body, headers, "POST", url)
        assert verify(request, ["hush"], now=NOW).ok
        assert not verify(request, ["loud"], now=NOW).ok


def test_each_is_understood_and_no_event_is_stated_twice():
    events = [event for delivery in MADE for event in _translate(delivery, signed(delivery, "s", "http://e/in/x", NOW))]
    assert max(Counter(event.event_id for event in events).values()) == 1
    assert {type(event).__name__ for event in events} >= {
        "ProfileStated",
        "OrderStated",
        "TicketStated",
        "ConsentStated",
        "FeedbackStated",
    }
    assert all(event.occurred_at <= NOW for event in events)


def test_people_share_no_identifier_so_that_each_is_one_customer():
    for kind in ("email", "phone", "cpf"):
        values = [normalise(kind, getattr(person, kind), "BR") for person in WHO]
        assert None not in values
        assert len(set(values)) == len(WHO)


def test_no_sample_person_of_a_vendor_is_left_in_what_is_sent():
    everything = b"".join(delivery.body for delivery in MADE)
    for stranger in (
        b"jon@example.com",
        b"john@example.com",
        b"bob@biller.com",
        b"kovatif642",
        b"marina.duarte",
        b"555-SHIP",
    ):
        assert stranger not in everything


def test_the_first_person_stands_in_all_three_systems():
    assert set(WHO[0].sources) == set(SOURCES)
    assert {delivery.source for delivery in MADE if delivery.email == WHO[0].email} == set(SOURCES)


def test_every_payload_is_listed_with_its_source_and_licence():
    index = orjson.loads((PAYLOADS / "index.json").read_bytes())
    files = {str(path.relative_to(PAYLOADS)) for path in PAYLOADS.rglob("*.json")} - {"index.json"}
    assert {entry["file"] for entry in index} == files
    assert all(entry["source"] and entry["licence"] and entry["kind"] for entry in index)
