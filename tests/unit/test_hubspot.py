from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from caudal.connectors._sdk import Delivery, SignedRequest
from caudal.connectors.hubspot import connector
from caudal.schemas import ConsentStated, Event, OrderStated, ProfileStated, SubjectDeleted, TicketStated

from caudal.errors import InvalidPayload, MissingField, UnknownKind

SECRET = "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"
URL = "https://www.example.com/webhook_uri"
BODY = b"{'example_field':'example_value'}"
# The first three are HubSpot's own: hubspot-api-python, tests/spec/utils/test_signature.py, and the v1 page of its documentation
V1 = {
    "x-hubspot-signature": "69fc6631a867edd4f9e9e627fc5c1148e3fbdd8b21837b6d2b8901c1fa57f750",
    "x-hubspot-signature-version": "v1",
}
V2 = {
    "x-hubspot-signature": "eee2dddcc73c94d699f5e395f4b9d454a069a6855fbfa152e91e88823087200e",
    "x-hubspot-signature-version": "v2",
}
V3 = {
    "x-hubspot-signature-v3": "HPW73RUtKmcYoEDADG0s6MmGFWUzWJKAW07r8RDgcQw=",
    "x-hubspot-request-timestamp": "15000000",
}
V3_AT = datetime.fromtimestamp(15_000, UTC)


def request(headers: dict[str, str], body: bytes = BODY, method: str = "POST", url: str = URL) -> SignedRequest:
    return SignedRequest(body=body, headers=headers, method=method, url=url)


def v3(url: str, body: bytes = BODY, timestamp: str = "15000000", secret: str = SECRET) -> dict[str, str]:
    message = b"POST" + url.encode() + body + timestamp.encode()
    signature = base64.b64encode(hmac.new(secret.encode(), message, hashlib.sha256).digest()).decode()
    return {"x-hubspot-signature-v3": signature, "x-hubspot-request-timestamp": timestamp}


def notice(kind: str, **fields: Any) -> dict[str, Any]:
    return {
        "eventId": 1,
        "subscriptionId": 2,
        "portalId": 3,
        "occurredAt": 1748779200123,
        "subscriptionType": kind,
    } | fields


def changed(name: str, value: Any, record: str = "contact") -> list[Event]:
    return translate(notice(f"{record}.propertyChange", objectId=7, propertyName=name, propertyValue=value))


def translate(body: Any, kind: str | None = None) -> list[Event]:
    return connector.translate(Delivery(source="crm", body=json.dumps(body).encode(), kind=kind))


def one(events: list[Event]) -> Any:
    (event,) = events
    return event


# Signatures


def test_the_vendors_own_signatures_hold() -> None:
    assert connector.verify.verify(request(V1), [SECRET]).ok
    assert connector.verify.verify(request(V2, body=b"", method="GET"), [SECRET]).ok
    assert connector.verify.verify(request(V3), [SECRET]).ok


def test_a_v1_signature_covers_the_documented_body() -> None:
    body = (
        b'[{"eventId":1,"subscriptionId":12345,"portalId":62515,"occurredAt":1564113600000,"subscriptionType":"contact.creation",'
        b'"attemptNumber":0,"objectId":123,"changeSource":"CRM","changeFlag":"NEW","appId":54321}]'
    )
    headers = {"x-hubspot-signature": "232db2615f3d666fe21a8ec971ac7b5402d33b9a925784df3ca654d05f4817de"}
    assert connector.verify.verify(request(headers, body), [SECRET]).ok
    assert not connector.verify.verify(request(headers, body + b" "), [SECRET]).ok


def test_an_old_v3_signature_is_refused_only_where_a_clock_is_given() -> None:
    assert connector.verify.verify(request(V3), [SECRET], now=V3_AT).ok
    late = connector.verify.verify(request(V3), [SECRET], now=datetime(2026, 1, 1, tzinfo=UTC))
    assert not late.ok
    assert "window" in late.reason


@pytest.mark.parametrize("broken", ["method", "url", "body", "timestamp", "secret"])
def test_v3_covers_method_uri_body_and_timestamp(broken: str) -> None:
    headers = v3(URL)
    given = {
        "method": request(headers, method="PUT"),
        "url": request(headers, url=URL + "/"),
        "body": request(headers, body=BODY + b"\n"),
        "timestamp": request(headers | {"x-hubspot-request-timestamp": "15000001"}),
        "secret": request(v3(URL, secret="another")),
    }[broken]
    assert not connector.verify.verify(given, [SECRET]).ok


def test_v3_alone_decides_where_it_is_present() -> None:
    assert not connector.verify.verify(
        request(V1 | {"x-hubspot-signature-v3": "bm8=", "x-hubspot-request-timestamp": "1"}), [SECRET]
    ).ok
    assert not connector.verify.verify(request(V1 | {"x-hubspot-signature-v3": ""}), [SECRET]).ok


def test_v3_is_computed_over_the_uri_with_the_documented_characters_decoded() -> None:
    signed = v3("https://www.example.com/in/crm?to=a:b/c?d@e!f$g'h(i)j*k,l;m&keep=%20%26")
    received = "https://www.example.com/in/crm?to=a%3Ab%2fc%3Fd%40e%21f%24g%27h%28i%29j%2Ak%2Cl%3Bm&keep=%20%26"  # %2f: either case
    assert connector.verify.verify(request(signed, url=received), [SECRET]).ok


def test_either_of_two_secrets_holds_during_rotation() -> None:
    for headers in (V1, v3(URL)):
        assert connector.verify.verify(request(headers), ["new", SECRET]).ok
        assert not connector.verify.verify(request(headers), ["new", "newer"]).ok


def test_a_request_without_signature_tells_which_header_is_missing() -> None:
    verdict = connector.verify.verify(request({}), [SECRET])
    assert not verdict.ok
    assert "x-hubspot-signature-v3" in verdict.reason


# Notices


def test_both_grammars_give_the_same_events_for_the_same_change() -> None:
    fields = {"objectId": 7, "propertyName": "city", "propertyValue": "Recife"}
    older = translate([notice("contact.propertyChange", **fields)])
    newer = translate([notice("object.propertyChange", objectTypeId="0-1", **fields)])
    assert older == newer
    assert one(older).city == "Recife"


def test_the_field_of_older_documentation_names_the_kind_too() -> None:
    given = notice("", objectId=7)
    del given["subscriptionType"]
    assert one(translate([given | {"eventType": "contact.deletion"}])).kind == "deleted"


def test_a_redelivery_gives_the_same_event_ids() -> None:
    first, again = (translate([notice("contact.creation", objectId=7, attemptNumber=n)]) for n in (0, 3))
    assert first == again


def test_notices_that_share_their_event_id_stay_apart() -> None:
    events = translate([notice("contact.creation", objectId=7), notice("contact.creation", objectId=8)])
    assert len({event.event_id for event in events}) == 2


def test_a_single_notice_need_not_come_in_an_array() -> None:
    assert translate(notice("contact.creation", objectId=7)) == translate([notice("contact.creation", objectId=7)])


def test_an_empty_batch_gives_nothing() -> None:
    assert translate([]) == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([notice("contact.exploded", objectId=7)], UnknownKind),
        ([notice("object.exploded", objectTypeId="0-1", objectId=7)], UnknownKind),
        ([notice("object.creation", objectId=7)], MissingField),
        ([{"objectId": 7}], UnknownKind),
        ([notice("contact.creation")], InvalidPayload),
        ([notice("contact.creation", objectId=7, occurredAt="soon")], InvalidPayload),
        ([7], InvalidPayload),
        (None, InvalidPayload),
        ({"id": "7", "properties": {"colour": "red"}}, UnknownKind),
    ],
)
def test_what_cannot_be_used_is_poison_with_a_reason(body: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        translate(body)


@pytest.mark.parametrize(
    "kind", ["company.creation", "product.propertyChange", "line_item.deletion", "conversation.newMessage"]
)
def test_what_says_nothing_of_a_customer_gives_no_events(kind: str) -> None:
    assert translate([notice(kind, objectId=7)]) == []


def test_objects_without_a_meaning_here_give_no_events() -> None:
    assert translate([notice("object.creation", objectTypeId="2-1234567", objectId=7)]) == []


# Contacts


def test_one_changed_property_states_that_field_only() -> None:
    event = one(changed("firstname", "Marina"))
    assert event.given_name == "Marina"
    assert event.name is None
    assert event.cleared == ()
    assert event.occurred_at == datetime(2025, 6, 1, 12, 0, 0, 123000, tzinfo=UTC)


@pytest.mark.parametrize("value", ["", None])
def test_an_emptied_property_is_stated_to_be_empty(value: str | None) -> None:
    assert one(changed("email", value)).cleared == ("email",)
    assert one(changed("favourite_team", value)).attributes == {"favourite_team": None}


def test_what_a_field_cannot_hold_is_kept_as_an_attribute() -> None:
    event = one(changed("country", "Atlantis"))
    assert event.country is None
    assert event.attributes == {"country": "Atlantis"}
    assert one(changed("date_of_birth", "last spring")).attributes == {"date_of_birth": "last spring"}


def test_every_address_and_number_links() -> None:
    assert [i.value for i in one(changed("hs_additional_emails", "a@example.com; b@example.com")).identifiers] == [
        "a@example.com",
        "b@example.com",
    ]
    assert one(changed("mobilephone", "+5581998765432")).identifiers[0].kind == "phone"


def test_a_property_named_cpf_cnpj_is_told_by_its_length() -> None:
    assert one(changed("cpf_cnpj", "529.982.247-25")).cpf == "52998224725"
    assert one(changed("cpf_cnpj", "11.222.333/0001-81")).cnpj == "11222333000181"
    assert one(changed("cpf_cnpj", "to come")).attributes == {"cpf_cnpj": "to come"}


@pytest.mark.parametrize(("value", "state"), [("true", "withdrawn"), ("false", "granted"), ("", "unknown")])
def test_an_opt_out_is_a_consent_and_no_attribute(value: str, state: str) -> None:
    event = one(changed("hs_email_optout", value))
    assert isinstance(event, ConsentStated)
    assert (event.purpose, event.state) == ("marketing_email", state)


def test_a_legal_basis_that_does_not_apply_grants_nothing() -> None:
    assert one(changed("hs_legal_basis", "Not applicable")).state == "unknown"
    assert one(changed("hs_legal_basis", "Performance of a contract")).legal_basis == "contract"


def test_a_merge_ties_all_ids_to_the_survivor_and_hides_the_others() -> None:
    winner, *gone = translate(
        [notice("contact.merge", primaryObjectId=1, mergedObjectIds=[2, 3], newObjectId=9, numberOfPropertiesMoved=4)]
    )
    assert isinstance(winner, ProfileStated)
    assert winner.subject == "crm:contact:9"
    assert [i.value for i in winner.identifiers] == ["crm:contact:1", "crm:contact:2", "crm:contact:3"]
    assert [event.subject for event in gone] == ["crm:contact:1", "crm:contact:2", "crm:contact:3"]
    assert all(isinstance(event, SubjectDeleted) and event.reason == "merged" for event in gone)


def test_a_privacy_deletion_erases_where_a_deletion_hides() -> None:
    assert one(translate([notice("contact.privacyDeletion", objectId=7)])).kind == "erased"
    assert one(translate([notice("contact.deletion", objectId=7)])).kind == "deleted"


def test_an_association_reads_the_same_from_both_ends() -> None:
    from_contact = translate(
        [notice("contact.associationChange", associationType="CONTACT_TO_TICKET", fromObjectId=7, toObjectId=4)]
    )
    from_ticket = translate(
        [notice("ticket.associationChange", associationType="TICKET_TO_CONTACT", fromObjectId=4, toObjectId=7)]
    )
    generic = translate(
        [notice("object.associationChange", fromObjectTypeId="0-1", toObjectTypeId="0-5", fromObjectId=7, toObjectId=4)]
    )
    for events in (from_contact, from_ticket, generic):
        event = one(events)
        assert isinstance(event, TicketStated)
        assert (event.subject, event.identifiers[0].value) == ("crm:ticket:4", "crm:contact:7")


def test_a_removed_association_states_nothing_about_whose_a_deal_is() -> None:
    given = notice(
        "deal.associationChange",
        associationType="DEAL_TO_CONTACT",
        fromObjectId=4,
        toObjectId=7,
        associationRemoved=True,
    )
    assert translate([given]) == []


# Deals and tickets


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("dealstage", "closedwon", "won"),
        ("dealstage", "closedlost", "lost"),
        ("dealstage", "contractsent", "open"),
        ("hs_is_closed_won", "true", "won"),
        ("hs_is_closed", "false", "open"),
    ],
)
def test_the_stage_of_a_deal_is_its_status(name: str, value: str, status: str) -> None:
    assert one(changed(name, value, "deal")).status == status


def test_a_stage_of_an_accounts_own_pipeline_is_not_guessed() -> None:
    assert changed("dealstage", "23419482", "deal") == []
    assert changed("hs_pipeline_stage", "23419482", "ticket") == []


def test_an_amount_alone_is_taken_with_two_decimals_and_without_a_currency() -> None:
    event = one(changed("amount", "1999.90", "deal"))
    assert (event.total_minor, event.currency) == (199990, None)


def test_a_whole_deal_counts_in_the_minor_units_of_its_currency() -> None:
    body = {
        "id": "4",
        "properties": {"dealname": "x", "amount": "500", "deal_currency_code": "JPY"},
        "updatedAt": "2025-06-01T00:00:00Z",
    }
    event = one(translate(body, "deal.object"))
    assert isinstance(event, OrderStated)
    assert (event.total_minor, event.currency) == (500, "JPY")


def test_a_whole_deal_of_several_contacts_is_tied_to_none() -> None:
    body = {
        "id": "4",
        "properties": {"dealname": "x", "dealstage": "closedwon", "closedate": "2025-05-01T00:00:00Z"},
        "updatedAt": "2025-06-01T00:00:00Z",
        "associations": {"contacts": {"results": [{"id": "7"}, {"id": "8"}]}},
    }
    event = one(translate(body))
    assert event.identifiers == ()
    assert event.paid_at == datetime(2025, 5, 1, tzinfo=UTC)
    body["associations"] = {"contacts": {"results": [{"id": "7", "type": "a"}, {"id": "7", "type": "b"}]}}
    assert [i.value for i in one(translate(body)).identifiers] == ["crm:contact:7"]


@pytest.mark.parametrize(("stage", "status"), [("1", "new"), ("2", "pending"), ("3", "open"), ("4", "closed")])
def test_the_stages_of_the_default_pipeline_are_statuses(stage: str, status: str) -> None:
    assert one(changed("hs_pipeline_stage", stage, "ticket")).status == status


def test_a_closing_time_closes_a_ticket_of_any_pipeline() -> None:
    event = one(changed("closed_date", "1748865600000", "ticket"))
    assert (event.status, event.closed_at) == ("closed", datetime(2025, 6, 2, 12, tzinfo=UTC))
    assert one(changed("closed_date", "", "ticket")).cleared == ("closed_at",)


# Whole records


def test_a_whole_contact_leaves_hubspots_bookkeeping_out() -> None:
    properties = {
        "email": "a@example.com",
        "hs_analytics_num_visits": "3",
        "num_notes": "1",
        "vip": "yes",
        "hs_email_optout": "true",
    }
    body = {"id": "7", "properties": properties, "updatedAt": "2025-06-01T00:00:00Z", "archived": False}
    profile, consent = translate(body)
    assert isinstance(profile, ProfileStated)
    assert profile.attributes == {"vip": "yes"}
    assert isinstance(consent, ConsentStated)


def test_an_archived_record_is_gone() -> None:
    body = {
        "id": "7",
        "properties": {"email": None},
        "updatedAt": "2025-06-01T00:00:00Z",
        "archived": True,
        "archivedAt": "2025-06-02T00:00:00Z",
    }
    event = one(translate(body))
    assert isinstance(event, SubjectDeleted)
    assert event.occurred_at == datetime(2025, 6, 2, tzinfo=UTC)


def test_a_page_of_records_gives_the_events_of_each() -> None:
    records = [
        {"id": str(n), "properties": {"email": f"{n}@example.com"}, "updatedAt": "2025-06-01T00:00:00Z"} for n in (1, 2)
    ]
    assert [event.subject for event in translate({"results": records})] == ["crm:contact:1", "crm:contact:2"]
