"""What several systems send about some people, made from one seed: deliveries as the vendors send them, and what they say.

Every statement has a moment of its own, and what is sent is shuffled, so that much is late and out of order. Some deliveries come
twice, some are damaged, some are signed with another secret.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from model import Model

from caudal._demo_data import CRM, HELP, SHOP, Delivery

START = datetime(2026, 3, 1, 9, tzinfo=UTC)
PEOPLE = 14
_GIVEN = ("Ana", "Bruno", "Camila", "Diego", "Eduarda", "Fábio", "Inês", "João", "Luísa", "Mateus", "Rita", "Tiago")
_FAMILY = ("Almeida", "Barros", "Conceição", "Dias", "Esteves", "Gonçalves", "Lopes", "Melo", "Nunes", "Souza")
_CITIES = ("Recife", "São Paulo", "Lisboa", "Porto", "Curitiba", "Évora")


@dataclass(frozen=True)
class Sent:
    """One request. `fate` is `taken`, `damaged` (authentic, and nobody can read it) or `refused` (signed by somebody else)."""

    delivery: Delivery
    fate: str = "taken"


class Story:
    """Everything that is sent in the run of a seed, in order, and what must come of it."""

    def __init__(self, seed: int, people: int = PEOPLE) -> None:
        self.seed = seed
        self.model = Model()
        self.emails: list[str] = []
        self._chance = random.Random(f"story {seed}")
        self._now = START
        self._made: list[Delivery] = []
        self._count = 0
        for number in range(people):
            self._person(number)
        self.sent = self._arranged()

    # ---- people

    def _person(self, number: int) -> None:
        chance = self._chance
        email = f"p{number}.s{self.seed}@loja.com.br"
        phone = f"+55819{self.seed % 100_000:05d}{number:03d}"
        if number and chance.random() < 0.15:  # a family with one phone: one customer, as nothing says otherwise
            phone = f"+55819{self.seed % 100_000:05d}{number - 1:03d}"
        self.emails.append(email)
        name = (chance.choice(_GIVEN), chance.choice(_FAMILY))
        sources = [source for source, likely in ((SHOP, 0.85), (CRM, 0.6), (HELP, 0.6)) if chance.random() < likely]
        for source in sources or [SHOP]:
            by_email, by_phone = chance.choice(((True, True), (True, False), (False, True)))
            known = (email if by_email else None, phone if by_phone else None)
            {SHOP: self._shopper, CRM: self._contact, HELP: self._user}[source](number, name, *known)

    def _id(self, number: int, more: int = 0) -> str:
        """Of one person in one system; unlike that of every other seed."""
        return str(7_000_000 + self.seed * 10_000 + number * 100 + more)

    def _at(self) -> datetime:
        """A moment that nothing else has."""
        self._now += timedelta(seconds=self._chance.randint(1, 900))
        return self._now

    # ---- Shopify

    def _shopper(self, number: int, name: tuple[str, str], email: str | None, phone: str | None) -> None:
        chance, customer = self._chance, self._id(number)
        self._customer("customers/create", customer, name, (email, phone))
        for _ in range(chance.randrange(3)):
            if chance.random() < 0.4:
                name = (chance.choice(_GIVEN), name[1])
            known = (email, phone if chance.random() < 0.7 else None)  # or the phone is emptied
            self._customer("customers/update", customer, name, known, city=chance.choice((*_CITIES, None)))
        for nth in range(chance.randrange(3)):
            self._order(self._id(number, 10 + nth), customer, name, (email, phone))
        for _ in range(chance.randrange(3)):
            self._email_consent(customer, email)
        if chance.random() < 0.25:
            guest = email or f"convidado{number}.s{self.seed}@loja.com.br"
            self._order(self._id(number, 20), None, name, (guest, None))
        if chance.random() < 0.25:
            other = self._id(number, 1)
            self._customer("customers/create", other, name, (f"outro{number}.s{self.seed}@loja.com.br", None))
            self._merge(other, customer)

    def _customer(
        self, kind: str, customer: str, name: tuple[str, str], known: tuple[str | None, str | None], city: str | None = None
    ) -> None:  # fmt: skip
        (email, phone), subject = known, f"{SHOP}:customer:{customer}"
        at = self._at()
        body: dict[str, Any] = {
            "id": int(customer), "email": email, "phone": phone, "first_name": name[0], "last_name": name[1],
            "created_at": _iso(START), "updated_at": _iso(at), "state": "enabled",
        }  # fmt: skip
        fields = {"name": " ".join(name), "given_name": name[0], "family_name": name[1], "email": email, "phone": phone}
        if city:
            body["default_address"] = {"city": city, "country_code": "BR"}
            fields["city"] = city
        self.model.profile(subject, at, _known(email, phone), **fields)
        self._shopify(kind, body, at)

    def _order(
        self, order: str, customer: str | None, name: tuple[str, str], known_by: tuple[str | None, str | None]
    ) -> None:
        email, phone = known_by
        chance, own = self._chance, f"{SHOP}:order:{order}"
        subject = f"{SHOP}:customer:{customer}" if customer else own
        total, placed = chance.randint(1_000, 90_000), self._at()
        steps: list[tuple[str, str, str | None]] = [("orders/create", "pending", None)]
        if chance.random() < 0.8:
            steps.append(("orders/paid", "paid", None))
        if chance.random() < 0.5:
            steps.append(("orders/fulfilled", "paid", "fulfilled"))
        if chance.random() < 0.15:
            steps.append(("orders/cancelled", "voided", None))
        for kind, financial, fulfilment in steps:
            at = self._at()
            body: dict[str, Any] = {
                "id": int(order), "name": f"#{order[-5:]}", "email": email, "phone": phone, "currency": "BRL",
                "total_price": f"{total / 100:.2f}", "created_at": _iso(placed), "processed_at": _iso(placed),
                "updated_at": _iso(at), "financial_status": financial, "fulfillment_status": fulfilment,
                "cancelled_at": _iso(at) if kind == "orders/cancelled" else None,
                "line_items": [{"id": int(order) * 10, "title": "Tênis", "quantity": 1, "price": f"{total / 100:.2f}"}],
            }  # fmt: skip
            known = _known(email, phone)
            if customer:
                # as the shop's record of them was long before
                body["customer"] = {"id": int(customer), "email": email, "phone": phone, "updated_at": _iso(START)}
                known.append(f"subject {own}")
                self.model.profile(subject, START, known, email=email, phone=phone)
            else:
                body["billing_address"] = {"first_name": name[0], "last_name": name[1], "city": "Recife"}
                self.model.profile(
                    own, at, known,
                    name=" ".join(name), given_name=name[0], family_name=name[1], email=email, city="Recife",
                )  # fmt: skip
            status = "cancelled" if kind == "orders/cancelled" else financial
            self.model.order(
                SHOP, order, subject, at, known,
                status=status, total_minor=total, fulfillment_status=fulfilment or "unfulfilled",
            )  # fmt: skip
            self._shopify(kind, body, at)
        if chance.random() < 0.25:
            self._refund(order, total // 4)
        if chance.random() < 0.1:
            at = self._at()
            self.model.order(SHOP, order, own, at, [f"subject {own}"], status="deleted")
            self._shopify("orders/delete", {"id": int(order)}, at)

    def _refund(self, order: str, amount: int) -> None:
        at, own, refund = self._at(), f"{SHOP}:order:{order}", f"{order}7"
        paid = {"kind": "refund", "status": "success", "amount": f"{amount / 100:.2f}", "currency": "BRL"}
        self.model.order(SHOP, order, own, at, [f"subject {own}"])
        self.model.refund(SHOP, refund, own, amount, "BRL")
        body = {"id": int(refund), "order_id": int(order), "processed_at": _iso(at), "transactions": [paid]}
        self._shopify("refunds/create", body, at)

    def _email_consent(self, customer: str, email: str | None) -> None:
        at, subject = self._at(), f"{SHOP}:customer:{customer}"
        state, meant = self._chance.choice(
            (("subscribed", "granted"), ("unsubscribed", "withdrawn"), ("pending", "pending"))
        )
        consent = {"state": state, "opt_in_level": "single_opt_in", "consent_updated_at": _iso(at)}
        self.model.consent(subject, "marketing_email", at, meant, _known(email, None))
        body = {"customer_id": int(customer), "email_address": email, "email_marketing_consent": consent}
        self._shopify("customers_email_marketing_consent/update", body, at)

    def _merge(self, gone: str, kept: str) -> None:
        at, subject = self._at(), f"{SHOP}:customer:{gone}"
        self.model.profile(subject, at, [f"subject {SHOP}:customer:{kept}"])
        self.model.merge(subject, at)
        body = {
            "admin_graphql_api_customer_kept_id": f"gid://shopify/Customer/{kept}",
            "admin_graphql_api_customer_deleted_id": f"gid://shopify/Customer/{gone}",
            "status": "completed",
        }
        self._shopify("customers/merge", body, at)

    def _shopify(self, kind: str, body: object, at: datetime) -> None:
        headers = {"x-shopify-topic": kind, "x-shopify-webhook-id": self._next(), "x-shopify-triggered-at": _iso(at)}
        self._add(SHOP, headers, body)

    # ---- HubSpot

    def _contact(self, number: int, name: tuple[str, str], email: str | None, phone: str | None) -> None:
        chance, contact = self._chance, self._id(number, 2)
        subject, at = f"{CRM}:contact:{contact}", self._at()
        self.model.profile(subject, at)
        notices = [self._notice("contact.creation", at, objectId=int(contact))]
        values = {"email": email, "phone": phone, "firstname": name[0], "lastname": name[1]}
        notices += [self._property(contact, key, value) for key, value in values.items() if value]
        cut = chance.randint(1, len(notices))
        for part in (notices[:cut], notices[cut:]):
            if part:
                self._hubspot(part)
        for _ in range(chance.randrange(3)):
            self._hubspot([self._property(contact, "city", chance.choice((*_CITIES, "")))])
        if chance.random() < 0.4:
            optout = chance.choice(("true", "false"))
            at = self._at()
            self.model.consent(subject, "marketing_email", at, {"true": "withdrawn", "false": "granted"}[optout])
            self._hubspot([
                self._notice(
                    "contact.propertyChange", at,
                    objectId=int(contact), propertyName="hs_email_optout", propertyValue=optout,
                )
            ])  # fmt: skip
        if chance.random() < 0.25:
            other = self._id(number, 3)
            self._hubspot([self._property(other, "firstname", "Duplicata")])
            at = self._at()
            loser = f"{CRM}:contact:{other}"
            self.model.profile(subject, at, [f"subject {loser}"])
            self.model.merge(loser, at, [f"subject {subject}"])
            self._hubspot(
                [self._notice("contact.merge", at, primaryObjectId=int(contact), mergedObjectIds=[int(other)])]
            )

    def _property(self, contact: str, key: str, value: str) -> dict[str, Any]:
        at, subject = self._at(), f"{CRM}:contact:{contact}"
        field = {"firstname": "given_name", "lastname": "family_name"}.get(key, key)
        known = _known(value if key == "email" else None, value if key == "phone" else None)
        self.model.profile(subject, at, known, **{field: value or None})
        return self._notice("contact.propertyChange", at, objectId=int(contact), propertyName=key, propertyValue=value)

    def _notice(self, kind: str, at: datetime, **more: Any) -> dict[str, Any]:
        event = int(self._next().rpartition("-")[2])
        common = {"eventId": event, "subscriptionId": 7, "portalId": 33, "attemptNumber": 0}
        return {**common, "subscriptionType": kind, "occurredAt": int(at.timestamp() * 1000), **more}

    def _hubspot(self, notices: list[dict[str, Any]]) -> None:
        self._add(CRM, {}, notices)

    # ---- Zendesk

    def _user(self, number: int, name: tuple[str, str], email: str | None, phone: str | None) -> None:
        chance, user = self._chance, self._id(number, 4)
        self._user_event("user.created", user, email, {})
        if chance.random() < 0.7:
            self._user_event("user.name_changed", user, email, {"current": " ".join(name)}, name=" ".join(name))
        if phone:
            identity = {"id": "1", "primary": True, "type": "phone_number", "value": phone}
            self._user_event(
                "user.identity_created", user, email, {"identity": identity}, _known(None, phone), phone=phone
            )
        for nth in range(chance.randrange(3)):
            self._ticket(self._id(number, 30 + nth), user)
        if chance.random() < 0.25:
            other = self._id(number, 5)
            self._user_event("user.created", other, f"suporte{number}.s{self.seed}@loja.com.br", {})
            self._user_event("user.merged", user, email, {"user": {"id": other}}, [f"subject {HELP}:user:{other}"])

    def _user_event(
        self, kind: str, user: str, email: str | None, event: dict[str, Any], identifiers: list[str] | None = None, **fields: Any
    ) -> None:  # fmt: skip
        at, subject = self._at(), f"{HELP}:user:{user}"
        stated = {"email": email} if email else {}
        self.model.profile(subject, at, [*_known(email, None), *(identifiers or ())], **stated, **fields)
        detail = {"id": user, "email": email or "", "role": "end-user", "external_id": ""}
        self._zendesk(kind, f"zen:user:{user}", at, detail, event)

    def _ticket(self, ticket: str, user: str) -> None:
        chance, opened = self._chance, self._at()
        subject, title = f"{HELP}:user:{user}", chance.choice(("Troca", "Entrega atrasada", "Nota fiscal"))
        status, priority = "NEW", "NORMAL"
        steps: list[tuple[str, dict[str, Any]]] = [("ticket.created", {})]
        for _ in range(chance.randrange(3)):
            if chance.random() < 0.6:
                steps.append(
                    ("ticket.status_changed", {"current": chance.choice(("OPEN", "PENDING", "SOLVED", "CLOSED"))})
                )
            else:
                steps.append(("ticket.priority_changed", {"current": chance.choice(("LOW", "HIGH", "URGENT"))}))
        for kind, event in steps:
            at = self._at()
            if kind == "ticket.status_changed":
                event["previous"], status = status, event["current"]
            elif kind == "ticket.priority_changed":
                event["previous"], priority = priority, event["current"]
            self.model.ticket(HELP, ticket, subject, at, status=status.lower(), priority=priority.lower(), title=title)
            detail = {
                "id": ticket, "requester_id": user, "subject": title, "status": status, "priority": priority,
                "created_at": _iso(opened), "updated_at": _iso(at),
            }  # fmt: skip
            self._zendesk(kind, f"zen:ticket:{ticket}", at, detail, event)

    def _zendesk(self, kind: str, of: str, at: datetime, detail: dict[str, Any], event: dict[str, Any]) -> None:
        id_ = self._next()
        body = {
            "type": f"zen:event-type:{kind}", "id": id_, "time": _iso(at), "subject": of, "detail": detail, "event": event,
        }  # fmt: skip
        self._add(HELP, {"x-zendesk-webhook-invocation-id": id_}, body)

    # ---- what is sent

    def _next(self) -> str:
        self._count += 1
        return f"s{self.seed}-{self._count}"

    def _add(self, source: str, headers: dict[str, str], body: object) -> None:
        headers = {"content-type": "application/json", **headers}
        self._made.append(Delivery(source, headers, orjson.dumps(body)))

    def _arranged(self) -> list[Sent]:
        """Out of order, but not wholly: most things come near to when they happened. Some come twice."""
        chance = self._chance
        placed = [(nth + chance.uniform(0, 40), Sent(delivery)) for nth, delivery in enumerate(self._made)]
        end = len(placed)
        placed += [(chance.uniform(place, end + 40), sent) for place, sent in placed if chance.random() < 0.08]
        for fate in ("damaged", "refused"):
            for nth in range(chance.randint(1, 3)):
                model = chance.choice(self._made)
                marked = {"x-shopify-webhook-id", "x-zendesk-webhook-invocation-id"} & model.headers.keys()
                headers = {**model.headers, **dict.fromkeys(marked, f"{fate}-{self.seed}-{nth}")}
                body = model.body[: len(model.body) // 2] + f' "{fate} {self.seed} {nth}'.encode()
                placed.append((chance.uniform(0, end), Sent(Delivery(model.source, headers, body), fate)))
        placed.sort(key=lambda one: one[0])
        return [sent for _, sent in placed]


def _known(email: str | None, phone: str | None) -> list[str]:
    return [f"{kind} {value}" for kind, value in (("email", email), ("phone", phone)) if value]


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
