from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from caudal.connectors._sdk import Delivery, SignedRequest
from caudal.connectors.zendesk import TICKET_TEMPLATE, USER_TEMPLATE, connector
from caudal.schemas import Event, FeedbackStated, InteractionRecorded, ProfileStated, SubjectDeleted, TicketStated

from caudal.errors import InvalidPayload, MissingField, UnknownKind

SECRET = "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ=="  # every webhook's secret while it is being tested
# A group membership as Zendesk sends it, with the newline at its end (zendesk-go, webhook_test.go; the signature is computed)
BODY = b"""{
\t"type": "zen:event-type:user.group_membership_created",
\t"account_id": 12514403,
\t"id": "6b9bbadf-5725-4e92-bebe-7b71011bf5f1",
\t"subject": "zen:user:6596848315901",
\t"time": "2099-07-04T05:33:18Z",
\t"zendesk_event_version": "2022-06-20",
\t"detail": {
\t\t"created_at": "2099-07-04T05:27:58Z",
\t\t"default_group_id": "0",
\t\t"email": "user.name@example.com",
\t\t"external_id": "",
\t\t"id": "6596848315901",
\t\t"organization_id": "0",
\t\t"role": "end-user",
\t\t"updated_at": "2099-07-04T05:33:18Z"
\t},
\t"event": { "group": { "id": "1" } }
}
"""
SIGNED = {
    "x-zendesk-webhook-signature": "10IqYzYTLHRftNsNE+im0DeOM6/JactIRuy0XCHJ9B8=",
    "x-zendesk-webhook-signature-timestamp": "1234",
}
SENT = {"x-zendesk-webhook-signature-timestamp": "2025-06-02T09:30:02Z"}


def event(kind: str, changes: dict[str, Any], **detail: Any) -> dict[str, Any]:
    details: dict[str, dict[str, Any]] = {
        "ticket": {
            "id": "5158",
            "requester_id": "42",
            "status": "OPEN",
            "priority": "HIGH",
            "subject": "Late",
            "created_at": "2025-06-01T10:00:00Z",
            "via": {"channel": "mail"},
        },
        "user": {"id": "42", "email": "a@example.com", "external_id": "", "role": "end-user", "organization_id": "0"},
    }
    return {
        "type": f"zen:event-type:{kind}",
        "id": "cbe4028c",
        "time": "2025-06-02T09:30:00.672717030Z",
        "detail": details[kind.partition(".")[0]] | detail,
        "event": changes,
    }


def translate(body: Any, kind: str | None = None, headers: dict[str, str] | None = None) -> list[Event]:
    return connector.translate(
        Delivery(source="help", body=json.dumps(body).encode(), kind=kind, headers=headers or {})
    )


def one(events: list[Event]) -> Any:
    (found,) = events
    return found


# Signatures and keys


def test_a_signature_covers_timestamp_and_raw_body() -> None:
    assert connector.verify.verify(SignedRequest(body=BODY, headers=SIGNED), [SECRET]).ok
    assert not connector.verify.verify(SignedRequest(body=BODY.rstrip(), headers=SIGNED), [SECRET]).ok
    later = SIGNED | {"x-zendesk-webhook-signature-timestamp": "1235"}
    assert not connector.verify.verify(SignedRequest(body=BODY, headers=later), [SECRET]).ok


def test_a_wrong_or_missing_signature_is_refused() -> None:
    body = b'{"event_type": "foo.bar","data": {"key": "value"}}'
    headers = {
        "x-zendesk-webhook-signature": "qtmu3iClLKujnujOBkwe7yjI34o5CzsLD04Uy4LbE2A=",
        "x-zendesk-webhook-signature-timestamp": "0",
    }
    assert not connector.verify.verify(SignedRequest(body=body, headers=headers), [SECRET]).ok
    for missing in headers:
        verdict = connector.verify.verify(
            SignedRequest(body=body, headers={k: v for k, v in headers.items() if k != missing}), [SECRET]
        )
        assert not verdict.ok
        assert missing in verdict.reason


def test_either_of_two_secrets_holds_during_rotation() -> None:
    assert connector.verify.verify(SignedRequest(body=BODY, headers=SIGNED), ["new", SECRET]).ok


def test_the_age_of_a_timestamp_is_judged_only_where_a_clock_is_given() -> None:
    given = SignedRequest(body=BODY, headers=SIGNED)
    assert connector.verify.verify(given, [SECRET], now=datetime(1970, 1, 1, 0, 21, tzinfo=UTC)).ok
    assert not connector.verify.verify(given, [SECRET], now=datetime(2026, 1, 1, tzinfo=UTC)).ok


def test_an_event_is_keyed_by_its_id_and_a_trigger_by_the_invocation() -> None:
    headers = {"x-zendesk-webhook-invocation-id": "inv-1"}
    assert connector.key(headers, BODY) == ("6b9bbadf-5725-4e92-bebe-7b71011bf5f1", "user.group_membership_created")
    assert connector.key(headers, b'{"type": "trigger.ticket", "ticket": {"id": "1"}}') == ("inv-1", "trigger.ticket")


# Kinds


def test_event_types_that_are_written_with_a_slash_are_understood() -> None:
    body = event("user.identity_created", {"identity": {"type": "email", "primary": True, "value": "a@example.com"}})
    assert translate(body | {"type": "zen:event-type/user.identity_created"}) == translate(body)


def test_an_explicit_kind_may_carry_the_vendors_prefix() -> None:
    body = event("user.created", {})
    del body["type"]
    with pytest.raises(InvalidPayload):
        translate(body, "zen:event-type:user.created")  # the type is part of the event's format
    assert translate(event("user.created", {}), "zen:event-type:user.created") == translate(event("user.created", {}))


def test_what_says_nothing_of_a_customer_gives_no_events() -> None:
    for kind in ("organization.created", "article.published", "agent.state_changed", "user.password_changed"):
        assert translate({"type": f"zen:event-type:{kind}", "id": "1"}) == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"type": "zen:event-type:ticket.exploded", "id": "1"}, UnknownKind),
        ({"type": "End User Comment", "ticketID": "12345"}, UnknownKind),
        ({"hello": "world"}, UnknownKind),
        ([], InvalidPayload),
        ({"ticket": {"id": 1}}, MissingField),
        ({"ticket": {"updated_at": "2025-06-01T00:00:00Z"}}, InvalidPayload),
        (event("ticket.created", {}, id=""), InvalidPayload),
        (event("ticket.csat_received", {}), MissingField),
        (event("user.merged", {"user": {"id": "0"}}), MissingField),
    ],
)
def test_what_cannot_be_used_is_poison_with_a_reason(body: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        translate(body)


# Tickets


def test_a_ticket_is_its_requesters() -> None:
    ticket = one(translate(event("ticket.created", {})))
    assert isinstance(ticket, TicketStated)
    assert ticket.subject == "help:user:42"
    assert ticket.occurred_at == datetime(2025, 6, 2, 9, 30, 0, 672717, tzinfo=UTC)


def test_a_ticket_without_requester_stands_for_itself() -> None:
    assert one(translate(event("ticket.created", {}, requester_id="0"))).subject == "help:ticket:5158"


def test_empty_texts_and_the_id_zero_state_nothing() -> None:
    ticket = one(translate(event("ticket.created", {}, priority="", assignee_id="0", group_id="", subject="")))
    assert (ticket.priority, ticket.assignee, ticket.team, ticket.title, ticket.cleared) == (None, None, None, None, ())


def test_a_field_that_was_emptied_is_stated_to_be_empty() -> None:
    ticket = one(translate(event("ticket.priority_changed", {"current": "", "previous": "HIGH"})))
    assert ticket.cleared == ("priority",)
    assert ticket.priority is None


def test_solving_and_reopening_are_told_by_the_change_of_status() -> None:
    solved = one(translate(event("ticket.status_changed", {"current": "SOLVED", "previous": "OPEN"}, status="SOLVED")))
    assert (solved.status, solved.solved_at) == ("solved", solved.occurred_at)
    reopened = one(translate(event("ticket.status_changed", {"current": "OPEN", "previous": "SOLVED"})))
    assert (reopened.status, reopened.solved_at, reopened.cleared) == ("open", None, ("solved_at",))


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("HOLD", "hold"),
        ("On-hold", "hold"),
        ("Em espera", "hold"),
        ("Resolvido", "solved"),
        ("archived", "closed"),
        ("Novo", "new"),
    ],
)
def test_statuses_are_read_in_every_spelling(written: str, status: str) -> None:
    assert one(translate(event("ticket.created", {}, status=written))).status == status


def test_a_ticket_deleted_for_good_loses_what_was_written_in_it() -> None:
    ticket = one(translate(event("ticket.permanently_deleted", {})))
    assert (ticket.status, ticket.title) == ("deleted", None)
    assert "title" in ticket.cleared


def comment(**fields: Any) -> dict[str, Any]:
    return event("ticket.comment_added", {"comment": {"id": 9, "is_public": True, "body": "private matters"} | fields})


def test_a_public_comment_is_an_interaction_with_the_customer() -> None:
    _, reply = translate(comment(author={"id": 1, "is_staff": True}))
    assert isinstance(reply, InteractionRecorded)
    assert (reply.kind, reply.subject) == ("ticket.replied", "help:user:42")
    _, question = translate(comment(author={"id": 77, "is_staff": False}))
    assert isinstance(question, InteractionRecorded)
    assert (question.kind, question.subject) == ("ticket.commented", "help:user:77")


def test_a_private_note_is_no_interaction_and_no_text_is_copied() -> None:
    assert len(translate(comment(is_public=False, author={"id": 1, "is_staff": True}))) == 1
    assert "private matters" not in repr(translate(comment(author={"id": 1, "is_staff": True})))


@pytest.mark.parametrize(
    ("score", "word", "number", "scale"),
    [
        ("GOOD", "good", 1.0, (0.0, 1.0)),
        ("bad", "bad", 0.0, (0.0, 1.0)),
        ("Good, I'm satisfied", "good", 1.0, (0.0, 1.0)),
        (5, "good", 5.0, (1.0, 5.0)),
        ("3", "bad", 3.0, (1.0, 5.0)),
    ],
)
def test_a_rating_is_feedback(score: Any, word: str, number: float, scale: tuple[float, float]) -> None:
    given = event("ticket.csat_received", {"satisfaction_score": {"score": score, "comment": "fast"}})
    ticket, feedback = translate(given)
    assert isinstance(ticket, TicketStated)
    assert isinstance(feedback, FeedbackStated)
    assert (ticket.satisfaction, ticket.satisfaction_comment) == (word, "fast")
    assert (feedback.kind, feedback.score, feedback.text) == ("csat", number, "fast")
    assert (feedback.scale_min, feedback.scale_max) == scale


def test_a_rating_seen_by_event_and_by_export_is_one_feedback() -> None:
    _, told = translate(event("ticket.csat_received", {"satisfaction_score": {"score": "GOOD"}}))
    _, polled = translate(
        {
            "ticket": {
                "id": 5158,
                "updated_at": "2025-06-03T00:00:00Z",
                "satisfaction_rating": {"id": 1, "score": "good"},
            }
        }
    )
    assert isinstance(told, FeedbackStated)
    assert isinstance(polled, FeedbackStated)
    assert told.feedback_id == polled.feedback_id


def test_a_ticket_of_the_api_is_stated_whole() -> None:
    given = {
        "id": 1,
        "requester_id": 42,
        "priority": None,
        "status": "new",
        "tags": [],
        "updated_at": "2025-06-03T00:00:00Z",
    }
    ticket = one(translate({"ticket": given}))
    assert ticket.cleared == ("priority",)
    assert ticket.tags == ()


def test_a_page_of_an_export_gives_the_events_of_each_record() -> None:
    tickets = [{"id": n, "updated_at": "2025-06-03T00:00:00Z"} for n in (1, 2)]
    events = translate({"tickets": tickets, "end_of_stream": True})
    assert [e.subject for e in events] == ["help:ticket:1", "help:ticket:2"]
    assert len({e.event_id for e in events}) == 2


# Users


def test_agents_and_admins_are_no_customers() -> None:
    for role in ("agent", "admin"):
        assert translate(event("user.created", {}, role=role)) == []
        assert translate(event("user.deleted", {}, role=role)) == []
        assert translate({"user": {"id": 1, "role": role, "updated_at": "2025-06-03T00:00:00Z"}}) == []


def test_becoming_an_agent_ends_the_profile_and_becoming_a_customer_starts_it() -> None:
    hired = one(translate(event("user.role_changed", {"current": "agent", "previous": "end-user"}, role="agent")))
    assert isinstance(hired, SubjectDeleted)
    left = one(translate(event("user.role_changed", {"current": "end-user", "previous": "agent"})))
    assert isinstance(left, ProfileStated)
    assert translate(event("user.role_changed", {"current": "admin", "previous": "agent"}, role="admin")) == []


def test_a_user_is_known_by_email_and_external_id() -> None:
    profile = one(translate(event("user.created", {}, external_id="c-7")))
    assert [(i.kind, i.value) for i in profile.identifiers] == [("email", "a@example.com"), ("external_id", "c-7")]


def test_a_second_address_links_without_becoming_the_main_one() -> None:
    identity = {"id": "1", "type": "email", "primary": False, "value": "b@example.com"}
    profile = one(translate(event("user.identity_created", {"identity": identity})))
    assert profile.email == "a@example.com"
    assert ("email", "b@example.com") in [(i.kind, i.value) for i in profile.identifiers]


def test_the_main_address_is_cleared_only_when_none_takes_its_place() -> None:
    identity = {"id": "1", "type": "email", "primary": True, "value": "old@example.com"}
    assert one(translate(event("user.identity_deleted", {"identity": identity}))).cleared == ()
    assert one(translate(event("user.identity_deleted", {"identity": identity}, email=""))).cleared == ("email",)


def test_a_merge_says_that_two_users_are_one_person() -> None:
    profile, *both = translate(event("user.merged", {"user": {"id": "43"}}))
    assert profile.identifiers[-1].kind == "subject"
    assert profile.identifiers[-1].value == "help:user:43"
    assert [(e.subject, e.kind, e.identifiers[0].value) for e in both] == [
        ("help:user:42", "merged", "help:user:43"),
        ("help:user:43", "merged", "help:user:42"),
    ], "which of them is gone only its deletion tells"


def test_each_tag_that_came_or_went_is_stated_by_itself() -> None:
    profile = one(translate(event("user.tags_changed", {"added": {"tags": ["vip"]}, "removed": {"tags": ["new"]}})))
    assert profile.attributes == {"tag.new": None, "tag.vip": "true"}
    assert profile.tags is None


def test_a_custom_field_with_a_tax_number_identifies() -> None:
    profile = one(
        translate(event("user.custom_field_changed", {"current": "529.982.247-25", "field": {"title": "CPF"}}))
    )
    assert profile.cpf == "52998224725"
    assert ("cpf", "52998224725") in [(i.kind, i.value) for i in profile.identifiers]


def test_a_permanently_deleted_user_of_an_export_is_erased() -> None:
    gone = {"id": 1, "active": False, "role": "end-user", "updated_at": "2025-06-03T00:00:00Z"}
    assert one(translate({"user": gone})).kind == "deleted"
    assert one(translate({"user": gone | {"permanently_deleted": True}})).kind == "erased"


# Templates


def render(template: str, **values: str) -> dict[str, Any]:
    def value(match: re.Match[str]) -> str:
        return values.get(match[1].replace(".", "_"), "")

    rendered: dict[str, Any] = json.loads(re.sub(r"\{\{([\w.]+)\}\}", value, template))
    return rendered


def test_the_ticket_template_gives_ticket_person_and_rating() -> None:
    body = render(
        TICKET_TEMPLATE,
        ticket_id="5158",
        ticket_title="Late",
        ticket_status="Solved",
        ticket_priority="Urgent",
        ticket_via="Web form",
        ticket_tags="late vip",
        ticket_updated_at_with_timestamp="2025-06-02T09:30Z",
        satisfaction_current_rating="Bad, I'm unsatisfied",
        satisfaction_current_comment="slow",
        ticket_requester_id="42",
        ticket_requester_email="a@example.com",
        ticket_requester_role="End user",
    )
    person, ticket, feedback = translate(body)
    assert isinstance(person, ProfileStated)
    assert (person.subject, person.email, person.cleared) == ("help:user:42", "a@example.com", ())
    assert isinstance(ticket, TicketStated)
    assert (ticket.status, ticket.priority, ticket.channel, ticket.tags) == ("solved", "urgent", "web", ("late", "vip"))
    assert ticket.occurred_at == datetime(2025, 6, 2, 9, 30, tzinfo=UTC)
    assert isinstance(feedback, FeedbackStated)
    assert feedback.score == 0.0


def test_placeholders_without_a_value_state_nothing() -> None:
    ticket = translate(render(TICKET_TEMPLATE, ticket_id="1", ticket_requester_id="42"), headers=SENT)[-1]
    assert isinstance(ticket, TicketStated)
    assert (ticket.title, ticket.status, ticket.cleared, ticket.satisfaction) == (None, None, (), None)


def test_the_user_template_dates_from_the_signed_timestamp() -> None:
    body = render(USER_TEMPLATE, ticket_requester_id="42", ticket_requester_name="Marina", ticket_requester_tags="vip")
    person = one(translate(body, headers=SENT))
    assert (person.name, person.tags) == ("Marina", ("vip",))
    assert person.occurred_at == datetime(2025, 6, 2, 9, 30, 2, tzinfo=UTC)


def test_a_requester_on_the_staff_is_no_customer_in_any_language() -> None:
    for role in ("Agent", "Agente", "Administrador"):
        assert (
            translate(render(USER_TEMPLATE, ticket_requester_id="42", ticket_requester_role=role), headers=SENT) == []
        )
