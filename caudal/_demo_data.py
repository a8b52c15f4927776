"""What the demo sends: vendors' own payloads with people placed in them, signed as the vendors sign.

The payloads in demo_payloads/ are the vendors' samples (index.json says whose and under which licence). Every person has one e-mail
address and one phone, and stands in one to three of the systems; Maria, the first, stands in all three.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import orjson

__all__ = ["CRM", "HELP", "SHOP", "SOURCES", "Delivery", "Person", "deliveries", "people", "signed"]

SHOP, CRM, HELP = "shop-br", "crm", "help"
SOURCES = {SHOP: "shopify", CRM: "hubspot", HELP: "zendesk"}
"""Source = connector."""

_PAYLOADS = Path(__file__).parent / "demo_payloads"
_GIVEN = "Ana Beatriz Bruno Caio Camila Daniel Eduarda Felipe Gabriela Heitor Inês Isabela João Juliana Larissa Lucas Luísa Mateus"
_FAMILY = "Almeida Araújo Barbosa Cardoso Carvalho Costa Dias Fernandes Gomes Lima Martins Melo Moreira Nunes Oliveira Pereira Ramos"
_PLACES = (("Recife", "PE"), ("São Paulo", "SP"), ("Porto Alegre", "RS"), ("Belo Horizonte", "MG"), ("Salvador", "BA"))
_PRODUCTS = (
    ("Tênis de corrida", "Calçados", 34990),
    ("Sandália de couro", "Calçados", 18990),
    ("Camiseta de algodão", "Roupas", 7990),
    ("Mochila 20 L", "Acessórios", 22990),
    ("Garrafa térmica", "Acessórios", 9990),
)
_TROUBLES = ("Pedido não chegou", "Troca de tamanho", "Nota fiscal", "Cupom não funciona")
_SHIPPING_MINOR = 1990


@dataclass(frozen=True)
class Person:
    """Someone who stands in `sources`, with an id of their own in each."""

    number: int
    given_name: str
    family_name: str
    email: str
    phone: str
    cpf: str
    city: str
    region: str
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.given_name} {self.family_name}"

    def id_in(self, source: str) -> int:
        """Their id in a system; each system counts for itself."""
        return {SHOP: 7_064_055_000, CRM: 1_246_000, HELP: 6_596_848_000_000}[source] + self.number


@dataclass(frozen=True)
class Delivery:
    """One request of a vendor, unsigned; `email` finds the person whom it is about."""

    source: str
    headers: dict[str, str]
    body: bytes
    email: str = ""


def people(count: int, seed: int = 7) -> list[Person]:
    """Maria, and `count - 1` others. The same seed gives the same people."""
    chance = random.Random(seed)  # noqa: S311 - made-up people, not secrets
    maria = Person(
        0, "Maria", "Souza", "maria.souza@example.com", "+5511987654321", _cpf(0), "Recife", "PE", tuple(SOURCES)
    )
    found = [maria]
    for number in range(1, count):
        given, family = chance.choice(_GIVEN.split()), chance.choice(_FAMILY.split())
        city, region = chance.choice(_PLACES)
        sources = tuple(s for s, likely in ((SHOP, 0.8), (CRM, 0.6), (HELP, 0.5)) if chance.random() < likely)
        found.append(
            Person(
                number, given, family, f"cliente{number}@example.com", f"+55819{80_000_000 + number}", _cpf(number),
                city, region, sources or (SHOP,),
            )
        )  # fmt: skip
    return found


def deliveries(who: list[Person], now: datetime, seed: int = 7) -> list[Delivery]:
    """Everything that the three systems say about them, shuffled: nobody promises an order, and none is needed."""
    chance = random.Random(seed)  # noqa: S311 - as above
    made = [delivery for person in who for delivery in _about(person, now, chance)]
    chance.shuffle(made)
    return made


def signed(delivery: Delivery, secret: str, url: str, now: datetime) -> dict[str, str]:
    """The delivery's headers with the vendor's signature, as of `now`."""
    match SOURCES[delivery.source]:
        case "shopify":
            mark = {"x-shopify-hmac-sha256": _hmac(secret, delivery.body)}
        case "hubspot":
            at = str(int(now.timestamp() * 1000))
            message = f"POST{url}".encode() + delivery.body + at.encode()
            mark = {"x-hubspot-request-timestamp": at, "x-hubspot-signature-v3": _hmac(secret, message)}
        case _:
            at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
            mark = {
                "x-zendesk-webhook-signature-timestamp": at,
                "x-zendesk-webhook-signature": _hmac(secret, at.encode() + delivery.body),
            }
    return {**delivery.headers, **mark}


def _about(person: Person, now: datetime, chance: random.Random) -> Iterator[Delivery]:
    if SHOP in person.sources:
        yield from _shop(person, now, chance)
    if CRM in person.sources:
        yield from _crm(person, now, chance)
    if HELP in person.sources:
        yield from _help(person, now, chance)


# Shopify


def _shop(person: Person, now: datetime, chance: random.Random) -> Iterator[Delivery]:
    joined = now - timedelta(days=chance.randint(300, 700))
    customer = {
        "id": person.id_in(SHOP),
        "email": person.email,
        "phone": person.phone,
        "first_name": person.given_name,
        "last_name": person.family_name,
        "created_at": _iso(joined),
        "updated_at": _iso(joined),
        "state": "enabled",
        "note": None,
    }
    yield _shopify("customers.create", customer, person, joined)
    agreed = joined + timedelta(minutes=1)
    consent = {"state": "subscribed", "opt_in_level": "single_opt_in", "consent_updated_at": _iso(agreed)}
    yield _shopify(
        "customers_email_marketing_consent.update",
        {"customer_id": person.id_in(SHOP), "email_address": person.email, "email_marketing_consent": consent},
        person,
        agreed,
    )
    for nth in range(4 if person.number == 0 else chance.randint(1, 6)):
        yield from _order(person, nth, now - timedelta(days=chance.randint(2, 290)), chance)


def _order(person: Person, nth: int, placed: datetime, chance: random.Random) -> Iterator[Delivery]:
    id_ = 8_209_829_000 + person.number * 10 + nth
    lines = [(i, *chance.choice(_PRODUCTS), chance.randint(1, 2)) for i in range(chance.randint(1, 3))]
    subtotal = sum(price * quantity for _, _, _, price, quantity in lines)
    address = {
        "first_name": person.given_name,
        "last_name": person.family_name,
        "name": person.name,
        "phone": person.phone,
        "company": None,
        "address1": f"Rua das Flores, {person.number + 10}",
        "city": person.city,
        "province": person.region,
        "province_code": person.region,
        "zip": "50030-230",
        "country": "Brazil",
        "country_code": "BR",
    }
    customer = {
        "id": person.id_in(SHOP),
        "email": person.email,
        "phone": person.phone,
        "first_name": person.given_name,
        "last_name": person.family_name,
    }
    line = _template("shopify/orders.paid.json")["line_items"][0]
    shown = {
        "id": id_,
        "admin_graphql_api_id": f"gid://shopify/Order/{id_}",
        "name": f"#{1000 + person.number * 10 + nth}",
        "email": person.email,
        "contact_email": person.email,
        "phone": person.phone,
        "customer": {**_template("shopify/orders.paid.json")["customer"], **customer},
        "billing_address": address,
        "shipping_address": address,
        "note_attributes": [{"name": "CPF", "value": person.cpf}],
        "customer_locale": "pt-BR",
        "currency": "BRL",
        "cancelled_at": None,
        "cancel_reason": None,
        "test": False,
        "tags": "",
        "created_at": _iso(placed),
        "processed_at": _iso(placed),
        "subtotal_price": _money(subtotal),
        "total_discounts": "0.00",
        "total_price": _money(subtotal + _SHIPPING_MINOR),
        "total_shipping_price_set": {"shop_money": {"amount": _money(_SHIPPING_MINOR), "currency_code": "BRL"}},
        "line_items": [
            {
                **line,
                "id": id_ * 10 + i,
                "title": title,
                "name": title,
                "product_type": category,
                "sku": f"SKU-{price}",
                "product_id": price,
                "price": _money(price),
                "quantity": quantity,
            }
            for i, title, category, price, quantity in lines
        ],
    }
    steps: list[tuple[str, str, str | None]] = [("orders.create", "pending", None), ("orders.paid", "paid", None)]
    if chance.random() < 0.6:
        steps.append(("orders.fulfilled", "paid", "fulfilled"))
    for step, (kind, financial, fulfilment) in enumerate(steps):
        at = placed + timedelta(minutes=step)
        state = {"financial_status": financial, "fulfillment_status": fulfilment, "updated_at": _iso(at)}
        yield _shopify(kind, {**shown, **state}, person, at)
    if chance.random() < 0.06 or (person.number == 0 and nth == 0):
        yield _refund(person, shown, placed + timedelta(days=1))


def _refund(person: Person, order: dict[str, Any], at: datetime) -> Delivery:
    """The first line of the order, given back."""
    line = order["line_items"][0]
    amount = _money(round(float(line["price"]) * 100) * line["quantity"])
    sample = _template("shopify/refunds.create.json")
    item = {
        **sample["refund_line_items"][0],
        "line_item_id": line["id"],
        "quantity": line["quantity"],
        "subtotal": amount,
    }
    payment = {**sample["transactions"][0], "order_id": order["id"], "amount": amount, "currency": "BRL"}
    placed = {
        "id": order["id"] + 1_000_000,
        "order_id": order["id"],
        "created_at": _iso(at),
        "processed_at": _iso(at),
        "refund_line_items": [{**item, "line_item": line}],
        "transactions": [payment],
    }
    return _shopify("refunds.create", placed, person, at)


def _shopify(name: str, placed: dict[str, Any], person: Person, at: datetime) -> Delivery:
    body = _body(f"shopify/{name}.json", placed)
    headers = {
        "x-shopify-topic": _kinds()[f"shopify/{name}.json"],
        "x-shopify-webhook-id": _digest(body),
        "x-shopify-shop-domain": "loja.myshopify.com",
        "x-shopify-api-version": "2024-10",
        "x-shopify-triggered-at": _iso(at),
    }
    return Delivery(SHOP, {"content-type": "application/json", **headers}, body, person.email)


# HubSpot


def _crm(person: Person, now: datetime, chance: random.Random) -> Iterator[Delivery]:
    added = now - timedelta(days=chance.randint(100, 600))
    values = {
        "email": person.email,
        "phone": person.phone,
        "firstname": person.given_name,
        "lastname": person.family_name,
        "jobtitle": chance.choice(("Arquiteta", "Professor", "Engenheira", "Analista")),
        "lifecyclestage": chance.choice(("lead", "opportunity", "customer")),
    }
    created = _notice("contact.creation", added, objectId=person.id_in(CRM))
    changes = [
        _notice(
            "contact.propertyChange", added + timedelta(seconds=n),
            objectId=person.id_in(CRM), propertyName=name, propertyValue=value,
        )
        for n, (name, value) in enumerate(values.items(), start=1)
    ]  # fmt: skip
    yield _hubspot([created, *changes], person)
    if person.number == 0:
        yield _contact(person, values, now - timedelta(days=30))
        yield from _deal(person, now - timedelta(days=20))


def _contact(person: Person, values: dict[str, str], at: datetime) -> Delivery:
    """The whole contact, as a workflow sends it."""
    sample = _template("hubspot/contact.object.json")
    stamp = _millis(at)
    text = {**values, "cpf": person.cpf, "city": person.city, "lastmodifieddate": stamp, "createdate": stamp}
    properties = {name: {"value": value, "versions": []} for name, value in text.items()}
    dropped = {"associatedcompanyid", "hs_email_domain", "hs_all_contact_vids", "hs_object_id"}
    kept = {name: value for name, value in sample["properties"].items() if name not in dropped}
    identity = {"type": "EMAIL", "value": person.email, "timestamp": int(stamp), "is-primary": True}
    placed = {
        **sample,
        "vid": person.id_in(CRM),
        "canonical-vid": person.id_in(CRM),
        "properties": {**kept, **properties},
        "identity-profiles": [{**sample["identity-profiles"][0], "vid": person.id_in(CRM), "identities": [identity]}],
    }
    return _hubspot(placed, person)


def _deal(person: Person, at: datetime) -> Iterator[Delivery]:
    """A deal, as a workflow sends it; whose it is comes apart from it."""
    sample = _template("hubspot/deal.object.json")
    text = {
        "dealname": "Uniformes 2026",
        "amount": "4800.00",
        "deal_currency_code": "BRL",
        "hs_lastmodifieddate": _millis(at),
    }
    properties = {**sample["properties"], **{name: {"value": value, "versions": []} for name, value in text.items()}}
    yield _hubspot({**sample, "properties": properties}, person)
    tie = {"fromObjectId": sample["objectId"], "toObjectId": person.id_in(CRM)}
    yield _hubspot([_notice("deal.associationChange", at, **tie)], person)


def _notice(kind: str, at: datetime, **placed: object) -> dict[str, Any]:
    event_id = int(_digest(_json([kind, placed]))[:12], 16)
    return {**_template(f"hubspot/{kind}.json"), "eventId": event_id, "occurredAt": int(_millis(at)), **placed}


def _hubspot(body: object, person: Person) -> Delivery:
    headers = {"content-type": "application/json", "user-agent": "HubSpot Connect 2.0 (http://dev.hubspot.com/)"}
    return Delivery(CRM, headers, _json(body), person.email)


# Zendesk


def _help(person: Person, now: datetime, chance: random.Random) -> Iterator[Delivery]:
    met = now - timedelta(days=chance.randint(60, 400))
    yield _zendesk_user("user.created", person, met, met, {})
    yield _zendesk_user(
        "user.name_changed",
        person,
        met,
        met + timedelta(seconds=1),
        {"current": person.name, "previous": person.given_name},
    )
    phone = {"id": "1", "primary": True, "type": "phone_number", "value": person.phone}
    yield _zendesk_user("user.identity_created", person, met, met + timedelta(seconds=2), {"identity": phone})
    for nth in range(2 if person.number == 0 else chance.randint(1, 3)):
        opened = met + timedelta(days=chance.randint(1, 50), minutes=nth)
        ticket = {
            "id": str(5000 + person.number * 10 + nth),
            "subject": chance.choice(_TROUBLES),
            "created_at": _utc(opened),
        }
        yield _zendesk_ticket("ticket.created", person, opened, {**ticket, "status": "NEW"}, {})
        if person.number == 0 or chance.random() < 0.7:
            solved = opened + timedelta(hours=5)
            solved_ticket = {**ticket, "status": "SOLVED"}
            yield _zendesk_ticket(
                "ticket.status_changed", person, solved, solved_ticket, {"current": "SOLVED", "previous": "NEW"}
            )
            good = (person.number + nth) % 4 != 1
            score = {"score": "GOOD" if good else "BAD", "comment": "Resolveram rápido" if good else "Demorou demais"}
            rated = solved + timedelta(hours=1)
            yield _zendesk_ticket("ticket.csat_received", person, rated, solved_ticket, {"satisfaction_score": score})


def _zendesk_user(kind: str, person: Person, met: datetime, at: datetime, event: dict[str, Any]) -> Delivery:
    detail = {
        "id": str(person.id_in(HELP)),
        "email": person.email,
        "external_id": "",
        "created_at": _utc(met),
        "updated_at": _utc(at),
    }
    return _zendesk(kind, person, subject=f"zen:user:{person.id_in(HELP)}", at=at, detail=detail, event=event)


def _zendesk_ticket(kind: str, person: Person, at: datetime, ticket: dict[str, Any], event: dict[str, Any]) -> Delivery:
    who = str(person.id_in(HELP))
    detail = {
        **ticket,
        "requester_id": who,
        "submitter_id": who,
        "description": ticket["subject"],
        "updated_at": _utc(at),
    }
    return _zendesk(kind, person, subject=f"zen:ticket:{ticket['id']}", at=at, detail=detail, event=event)


def _zendesk(
    kind: str, person: Person, *, subject: str, at: datetime, detail: dict[str, Any], event: dict[str, Any]
) -> Delivery:
    sample = _template(f"zendesk/{kind}.json")
    placed = {
        "time": _utc(at),
        "subject": subject,
        "detail": {**sample["detail"], **detail},
        "event": {**sample["event"], **event},
    }
    id_ = _digest(_json([kind, placed]))
    headers = {
        "content-type": "application/json",
        "user-agent": "Zendesk Webhook",
        "x-zendesk-webhook-invocation-id": id_,
    }
    return Delivery(HELP, headers, _body(f"zendesk/{kind}.json", {**placed, "id": id_}), person.email)


# Shared


@cache
def _sample(name: str) -> bytes:
    return (_PAYLOADS / name).read_bytes()


def _template(name: str) -> dict[str, Any]:
    """A sample of a vendor, as a fresh value."""
    found: dict[str, Any] = orjson.loads(_sample(name))
    return found


@cache
def _kinds() -> dict[str, str]:
    return {entry["file"]: entry["kind"] for entry in orjson.loads(_sample("index.json"))}


def _body(name: str, placed: dict[str, Any]) -> bytes:
    return _json({**_template(name), **placed})


def _json(value: object) -> bytes:
    return orjson.dumps(value)


def _hmac(secret: str, message: bytes) -> str:
    return base64.b64encode(hmac.new(secret.encode(), message, hashlib.sha256).digest()).decode()


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def _money(minor: int) -> str:
    return f"{minor / 100:.2f}"


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _millis(at: datetime) -> str:
    return str(int(at.timestamp() * 1000))


def _cpf(number: int) -> str:
    """A CPF with its two check digits."""
    digits = [int(digit) for digit in f"{123_456_000 + number:09d}"]
    for _ in range(2):
        weights = range(len(digits) + 1, 1, -1)
        rest = sum(digit * weight for digit, weight in zip(digits, weights, strict=True)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    return "".join(map(str, digits))
