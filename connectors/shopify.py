"""Shopify: REST-shaped webhook payloads of the Admin API, versions 2023-01 to 2026-10 (https://shopify.dev/docs/api/webhooks).

Person: `<source>:customer:<id>`; a guest's order, checkout or draft stands for its buyer. Amounts are those in the shop's currency.
An order names its own subject too, so that what knows only the order's id (refunds, disputes, returns) finds the person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any

from caudal.connectors._mend import Essential
from caudal.connectors._money import Amount, minor
from caudal.connectors._sdk import (
    Connector,
    Delivery,
    Id,
    Instant,
    Payload,
    Setup,
    empties,
    header,
    identifiers,
    subject,
)
from caudal.connectors._signatures import Hmac
from caudal.schemas import (
    ConsentStated,
    Event,
    Identifier,
    InteractionRecorded,
    OrderLine,
    OrderStated,
    ProfileStated,
    Refund,
    RefundLine,
    SubjectDeleted,
    SubscriptionStated,
)
from pydantic import Field, TypeAdapter, ValidationError

from caudal.errors import MissingField

_IGNORED = {
    "app": "scopes_update uninstalled",
    "app_purchases_one_time": "update",
    "app_subscriptions": "approaching_capped_amount update",
    "attributed_sessions": "first last",
    "audit_events": "admin_api_activity",
    "bulk_operations": "finish",
    "channels": "delete",
    "collection_listings": "add remove update",
    "collection_publications": "create delete update",
    "collections": "create delete update",
    "companies": "create delete update",
    "company_contact_roles": "assign revoke",
    "company_contacts": "create delete update",
    "company_locations": "create delete update",
    "customer_account_settings": "update",
    "customer_groups": "create delete update",
    "customer_payment_methods": "create revoke update",
    "customers": "purchasing_summary",  # sums that we count ourselves
    "delivery_promise_settings": "update",
    "discounts": "create delete redeemcode_added redeemcode_removed update",
    "domains": "create destroy update",
    "fulfillment_events": "create delete",  # fulfillments/update carries the same as shipment_status
    "fulfillment_holds": "added released",
    "fulfillment_orders": (
        "cancellation_request_accepted cancellation_request_rejected cancellation_request_submitted cancelled "
        "fulfillment_request_accepted fulfillment_request_rejected fulfillment_request_submitted "
        "fulfillment_service_failed_to_complete hold_released line_items_prepared_for_local_delivery "
        "line_items_prepared_for_pickup manually_reported_progress_stopped merged moved order_routing_complete placed_on_hold "
        "progress_reported rescheduled scheduled_fulfillment_order_ready split"
    ),
    "inventory_items": "create delete update",
    "inventory_levels": "connect disconnect update",
    "inventory_shipments": (
        "add_items create delete mark_in_transit receive_items remove_items update_item_quantities update_tracking"
    ),
    "inventory_transfers": "add_items cancel complete ready_to_ship remove_items update_item_quantities",
    "locales": "create destroy update",
    "locations": "activate create deactivate delete update",
    "markets": "create delete update",
    "markets_backup_region": "update",
    "metafield_definitions": "create delete update",
    "metaobjects": "create delete update",
    "order_transactions": "create",  # orders/updated follows with the new state
    "orders": "edited link_requested risk_assessment_changed shopify_protect_eligibility_changed",  # orders/updated follows
    "payment_schedules": "due",
    "payment_terms": "create delete update",
    "product_feeds": "create full_sync full_sync_finish incremental_sync update",
    "product_listings": "add remove update",
    "product_publications": "create delete update",
    "products": "create delete update",
    "profiles": "create delete update",  # delivery profiles, not people
    "returns": "process update",  # name neither the order nor the new state
    "reverse_deliveries": "attach_deliverable",
    "reverse_fulfillment_orders": "dispose",
    "scheduled_product_listings": "add remove update",
    "segments": "create delete update",
    "selling_plan_groups": "create delete update",
    "shipping_addresses": "create update",
    "shop": "update",
    "subscription_billing_attempts": "challenged failure success",
    "subscription_billing_cycle_edits": "create delete update",
    "subscription_billing_cycles": "skip unskip",
    "tax_services": "create update",
    "tender_transactions": "create",
    "themes": "create delete publish update",
    "variants": "in_stock out_of_stock",
}


def _delivery_id(headers: Mapping[str, str], _body: bytes) -> str | None:
    """X-Shopify-Webhook-Id, the same on every retry (https://shopify.dev/docs/apps/build/webhooks/verify-deliveries).

    X-Shopify-Event-Id is shared by all deliveries of one merchant's action, also those about several customers, so it is only
    the second choice and is told apart by topic.
    """
    event_id = headers.get("x-shopify-event-id")
    return headers.get("x-shopify-webhook-id") or (f"{event_id}:{headers.get('x-shopify-topic')}" if event_id else None)


connector = Connector(
    name="shopify",
    title="Shopify",
    kind=header("x-shopify-topic"),
    delivery_id=_delivery_id,
    verify=Hmac(header="x-shopify-hmac-sha256", encoding="base64"),
    ignored=frozenset(f"{family}/{verb}" for family, verbs in _IGNORED.items() for verb in verbs.split()),
    setup=Setup(
        webhooks="an app's webhook subscriptions (shopify.app.toml or the Admin API), or the shop's Settings, Notifications, Webhooks; "
        "format JSON",
        key_at="the app's client secret; for webhooks made in the shop's settings, the key shown under their list",
        note="An app's subscriptions bring more topics than the shop's settings offer. The topics customers/data_request, "
        "customers/redact and shop/redact are entered as the app's compliance webhooks.",
    ),
)

_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)


def _triggered_at(delivery: Delivery) -> datetime:
    """When Shopify saw the change: for payloads that carry no time. Deliveries of 2023 lack the header; then the time of capture."""
    given = delivery.headers.get("x-shopify-triggered-at")
    try:
        return _INSTANT.validate_python(given) if given else delivery.captured_at
    except ValidationError:
        return delivery.captured_at


# --- what payloads are made of -------------------------------------------------------------------------------------------------


class Address(Payload):
    first_name: str | None = None
    last_name: str | None = None
    name: str | None = None
    company: str | None = None
    address1: str | None = None
    address2: str | None = None
    city: str | None = None
    province: str | None = None
    province_code: str | None = None
    zip: str | None = None
    country_code: str | None = None
    phone: str | None = None
    latitude: float | None = None
    longitude: float | None = None


class MarketingConsent(Payload):
    state: str | None = None
    opt_in_level: str | None = None
    consent_updated_at: Instant | None = None
    consent_collected_from: str | None = None


class CustomerRef(Payload):
    """The customer inside an order, checkout, draft or cart: who it is, and mostly what the shop knows of them."""

    id: Annotated[Id | None, Essential] = None
    email: str | None = None
    phone: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None
    default_address: Address | None = None


class Money(Payload):
    amount: Amount | None = None
    currency_code: str | None = None


class MoneySet(Payload):
    shop_money: Money | None = None
    presentment_money: Money | None = None


class Named(Payload):
    """A note attribute, or a localized field (a tax number asked for at checkout)."""

    name: str | None = None
    key: str | None = None
    country_code: str | None = None
    purpose: str | None = None
    title: str | None = None
    value: str | None = None


_ADDRESS_FIELDS = {
    "company": "company",
    "address_line1": "address1",
    "address_line2": "address2",
    "city": "city",
    "region": "province_code",
    "postal_code": "zip",
    "country": "country_code",
}


def _address(a: Address) -> dict[str, Any]:
    """Profile fields of an address. The province's code is left out by countries that have none; then its name is the region."""
    stated = {field: getattr(a, name) for field, name in _ADDRESS_FIELDS.items()}
    return stated | {"region": a.province_code or a.province, "latitude": a.latitude, "longitude": a.longitude}


def _full_name(first: str | None, last: str | None) -> str | None:
    return " ".join(part for part in (first, last) if part) or None


def _split(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Tags come as one text with commas; newer topics send a list."""
    if text is None:
        return None
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(part.strip() for part in parts if part.strip())


def _gid(gid: str | None) -> str | None:
    """`gid://shopify/Customer/1` is customer 1."""
    return gid.rsplit("/", 1)[-1].partition("?")[0] if gid else None


# --- customers -----------------------------------------------------------------------------------------------------------------


class Customer(Payload):
    id: Id
    email: str | None = None
    phone: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    state: str | None = None
    note: str | None = None
    tags: str | tuple[str, ...] | None = None
    verified_email: bool | None = None
    tax_exempt: bool | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None
    default_address: Address | None = None
    addresses: tuple[Address, ...] | None = None
    email_marketing_consent: MarketingConsent | None = None
    sms_marketing_consent: MarketingConsent | None = None
    # before 2023-07
    accepts_marketing: bool | None = None
    accepts_marketing_updated_at: Instant | None = None
    marketing_opt_in_level: str | None = None


@connector.on("customers/create", "customers/update", "customers/enable", "customers/disable")
def customer_stated(c: Customer, source: str, delivery: Delivery) -> Iterator[Event]:
    who = subject(source, "customer", c.id)
    at = c.updated_at or _triggered_at(delivery)
    known = identifiers(email=c.email, phone=c.phone)
    cleared = list(
        empties(c, email="email", phone="phone", given_name="first_name", family_name="last_name", tags="tags")
    )
    name = _full_name(c.first_name, c.last_name) if {"first_name", "last_name"} <= c.model_fields_set else None
    if {"given_name", "family_name"} <= set(cleared):
        cleared.append("name")
    address: dict[str, Any] = {}
    if c.default_address:
        address = _address(c.default_address)
        cleared += empties(c.default_address, **_ADDRESS_FIELDS)
    elif c.addresses == () or "default_address" in c.model_fields_set:
        cleared += _ADDRESS_FIELDS  # Shopify leaves default_address out when there is no address at all
    phones = dict.fromkeys(
        a.phone for a in (c.default_address, *(c.addresses or ())) if a and a.phone and a.phone != c.phone
    )
    if not phones and "addresses" in c.model_fields_set:
        cleared.append("other_phones")
    attributes = {"note": c.note or None} if "note" in c.model_fields_set else {}
    flags = {"email_verified": c.verified_email, "tax_exempt": c.tax_exempt}
    attributes |= {flag: str(value).lower() for flag, value in flags.items() if value is not None}
    yield ProfileStated(
        subject=who,
        occurred_at=at,
        identifiers=known,
        cleared=tuple(field for field in cleared if not address.get(field)),
        name=name,
        given_name=c.first_name,
        family_name=c.last_name,
        email=c.email,
        phone=c.phone,
        other_phones=tuple(phones) or None,
        tags=_split(c.tags) or None,
        status=c.state,
        signed_up_at=c.created_at,
        attributes=attributes,
        **address,
    )
    email_consent = c.email_marketing_consent or _legacy_consent(c)
    for purpose, consent in (("marketing_email", email_consent), ("marketing_sms", c.sms_marketing_consent)):
        yield from _consent(who, purpose, consent, at, known)


def _legacy_consent(c: Customer) -> MarketingConsent | None:
    if c.accepts_marketing is None:
        return None
    refused = "unsubscribed" if c.accepts_marketing_updated_at else "not_subscribed"
    return MarketingConsent(
        state="subscribed" if c.accepts_marketing else refused,
        opt_in_level=c.marketing_opt_in_level,
        consent_updated_at=c.accepts_marketing_updated_at,
    )


_CONSENT_STATES = {
    "subscribed": "granted",
    "unsubscribed": "withdrawn",
    "redacted": "withdrawn",
    "pending": "pending",
    "not_subscribed": "unknown",
    "invalid": "unknown",
}


def _consent(
    who: str, purpose: str, consent: MarketingConsent | None, at: datetime, known: tuple[Identifier, ...]
) -> Iterator[Event]:
    if consent is None or not consent.state:
        return
    state = _CONSENT_STATES.get(consent.state.lower(), "unknown")
    yield ConsentStated(
        subject=who,
        occurred_at=consent.consent_updated_at or at,
        identifiers=known,
        purpose=purpose,
        state=state,
        legal_basis=None if state == "unknown" else "consent",
        evidence=f"opt-in level {consent.opt_in_level}" if consent.opt_in_level else None,
        collected_via=consent.consent_collected_from.lower() if consent.consent_collected_from else None,
    )


class EmailConsentUpdate(Payload):
    customer_id: Id
    email_address: str | None = None
    email_marketing_consent: MarketingConsent | None = None


@connector.on("customers_email_marketing_consent/update")
def email_consent_stated(u: EmailConsentUpdate, source: str, delivery: Delivery) -> Iterator[Event]:
    who, known = subject(source, "customer", u.customer_id), identifiers(email=u.email_address)
    yield from _consent(who, "marketing_email", u.email_marketing_consent, _triggered_at(delivery), known)


class SmsConsentUpdate(Payload):
    id: Id
    phone: str | None = None
    sms_marketing_consent: MarketingConsent | None = None


@connector.on("customers_marketing_consent/update")
def sms_consent_stated(u: SmsConsentUpdate, source: str, delivery: Delivery) -> Iterator[Event]:
    who, known = subject(source, "customer", u.id), identifiers(phone=u.phone)
    yield from _consent(who, "marketing_sms", u.sms_marketing_consent, _triggered_at(delivery), known)


class TagChange(Payload):
    customer_id: Id = Field(alias="customerId")
    tags: tuple[str, ...]
    occurred_at: Instant | None = Field(default=None, alias="occurredAt")


@connector.on("customer.tags_added", "customer.tags_removed")
def customer_tags_changed(t: TagChange, source: str, delivery: Delivery) -> Iterator[Event]:
    # since 2025-01 customers carry no tags and these topics name only what changed: each tag is stated on its own, as an attribute
    value = "true" if delivery.kind == "customer.tags_added" else None
    if tags := _split(t.tags):
        yield ProfileStated(
            subject=subject(source, "customer", _gid(t.customer_id)),
            occurred_at=t.occurred_at or _triggered_at(delivery),
            attributes={f"tag:{tag}": value for tag in tags},
        )


class SegmentMove(Payload):
    customer_id: Id
    segment_id: Id


@connector.on("customer.joined_segment", "customer.left_segment")
def segment_moved(m: SegmentMove, source: str, delivery: Delivery) -> Iterator[Event]:
    yield InteractionRecorded(
        subject=subject(source, "customer", _gid(m.customer_id)),
        occurred_at=_triggered_at(delivery),
        interaction_id=f"segment:{delivery.delivery_id}",
        kind="segment.joined" if delivery.kind == "customer.joined_segment" else "segment.left",
        object_type="segment",
        object=_gid(m.segment_id),
    )


class Merge(Payload):
    kept: str = Field(alias="admin_graphql_api_customer_kept_id")
    deleted: str = Field(alias="admin_graphql_api_customer_deleted_id")
    status: str


@connector.on("customers/merge")
def customers_merged(m: Merge, source: str, delivery: Delivery) -> Iterator[Event]:
    if m.status.lower() not in {"completed", "success", "succeeded"}:
        return  # requested, in progress or failed: nothing has come of it yet
    gone, kept = subject(source, "customer", _gid(m.deleted)), subject(source, "customer", _gid(m.kept))
    at = _triggered_at(delivery)
    yield ProfileStated(subject=kept, occurred_at=at, identifiers=identifiers(subject=gone))
    yield SubjectDeleted(
        subject=gone, occurred_at=at, identifiers=identifiers(subject=kept), kind="deleted", reason="merged"
    )


class Reference(Payload):
    id: Id


@connector.on("customers/delete")
def customer_deleted(c: Reference, source: str, delivery: Delivery) -> Iterator[Event]:
    yield SubjectDeleted(
        subject=subject(source, "customer", c.id),
        occurred_at=_triggered_at(delivery),
        kind="deleted",
        reason="vendor_deleted",
    )


# --- orders, checkouts, drafts -------------------------------------------------------------------------------------------------


class TaxLine(Payload):
    price: Amount | None = None


class DiscountAllocation(Payload):
    amount: Amount | None = None
    amount_set: MoneySet | None = None


class LineItem(Payload):
    id: Id | None = None
    key: str | None = None  # checkouts and carts have no id
    sku: str | None = None
    product_id: Id | None = None
    title: str | None = None
    variant_title: str | None = None
    product_type: str | None = None
    vendor: str | None = None
    quantity: int
    price: Amount
    total_discount: Annotated[Amount | None, Essential] = None
    discount_allocations: Annotated[tuple[DiscountAllocation, ...] | None, Essential] = None
    tax_lines: Annotated[tuple[TaxLine, ...] | None, Essential] = None


class DiscountCode(Payload):
    code: str | None = None
    title: str | None = None
    amount: Amount | None = None


class ShippingLine(Payload):
    price: Amount | None = None
    discounted_price: Amount | None = None


class Transaction(Payload):
    kind: str | None = None
    status: str | None = None
    amount: Amount | None = None
    currency: str | None = None


class RefundLineItem(Payload):
    line_item_id: Id
    quantity: int
    subtotal: Annotated[Amount | None, Essential] = None
    subtotal_set: Annotated[MoneySet | None, Essential] = None


class RefundItem(Payload):
    id: Id
    order_id: Id | None = None
    created_at: Instant | None = None
    processed_at: Instant | None = None
    note: str | None = None
    refund_line_items: tuple[RefundLineItem, ...] | None = None
    transactions: Annotated[tuple[Transaction, ...] | None, Essential] = None


class Sale(Payload):
    """What orders, checkouts and drafts share."""

    id: Id
    email: str | None = None
    contact_email: str | None = None
    phone: str | None = None
    customer: CustomerRef | None = None
    name: str | None = None
    currency: str | None = None
    total_price: Amount | None = None
    subtotal_price: Amount | None = None
    total_discounts: Amount | None = None
    total_tax: Amount | None = None
    total_shipping_price_set: MoneySet | None = None
    shipping_lines: tuple[ShippingLine, ...] | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None
    completed_at: Instant | None = None
    closed_at: Instant | None = None
    note: str | None = None
    tags: str | tuple[str, ...] | None = None
    source_name: str | None = None
    discount_codes: tuple[DiscountCode, ...] | None = None
    line_items: tuple[LineItem, ...] | None = None
    billing_address: Address | None = None
    shipping_address: Address | None = None
    customer_locale: str | None = None
    note_attributes: tuple[Named, ...] | None = None
    localization_extensions: tuple[Named, ...] | None = None
    localized_fields: tuple[Named, ...] | None = None


class Order(Sale):
    order_number: str | None = None
    processed_at: Instant | None = None
    cancelled_at: Instant | None = None
    cancel_reason: str | None = None
    financial_status: str | None = None
    fulfillment_status: str | None = None
    total_price_set: MoneySet | None = None
    refunds: tuple[RefundItem, ...] | None = None


class Draft(Sale):
    status: str | None = None
    shipping_line: ShippingLine | None = None
    applied_discount: DiscountCode | None = None


_DOCUMENT_NAMES = {"cpf", "cnpj", "cpfcnpj", "taxcredentialbr"}
_NAME_MAX = 256
"""Characters of a name that are looked at; what is longer must not be remembered, and is no document's name."""


@lru_cache(1024)  # a shop's themes and apps give the same few names to every order
def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _documents(sale: Sale) -> dict[str, str]:
    """CPF (11 digits) and CNPJ (14) from the checkout's tax field or from note attributes that themes and apps name so."""
    found: dict[str, str] = {}
    for field in (*(sale.localized_fields or ()), *(sale.localization_extensions or ()), *(sale.note_attributes or ())):
        brazilian_tax = field.country_code == "BR" and (field.purpose or "").upper() == "TAX"
        names = {_letters(name[:_NAME_MAX]) for name in (field.key, field.name, field.title) if name}
        if field.value and (brazilian_tax or names & _DOCUMENT_NAMES):
            digits = re.sub(r"\D", "", field.value)
            kind = "cnpj" if len(digits) == 14 or "cnpj" in names else "cpf"
            found.setdefault(kind, field.value)
    return found


def _buyer(sale: Sale, source: str, kind: str) -> tuple[str, tuple[Identifier, ...]]:
    """Who bought, and what links them. A known customer's sale also names its own subject, which other topics know it by."""
    customer, own = sale.customer or CustomerRef(), subject(source, kind, sale.id)
    known = identifiers(
        email=(customer.email, sale.email, sale.contact_email), phone=(customer.phone, sale.phone), **_documents(sale)
    )
    if customer.id is None:
        return own, known
    return subject(source, "customer", customer.id), known + identifiers(subject=own)


def _buyer_stated(sale: Sale, who: str, own: str, known: tuple[Identifier, ...], at: datetime) -> Iterator[Event]:
    """What a sale says of its buyer.

    The customer inside is the shop's record of them as of its `updated_at`, and is stated as that. Where it has no name, or there is none,
    the one who pays is described, as the sale's own subject: that yields to every record of a person. Parcels may go to others.
    """
    customer = sale.customer or CustomerRef()
    payer = sale.billing_address or sale.shipping_address or Address()
    paid_by = _full_name(payer.first_name, payer.last_name) or payer.name
    given, family = customer.first_name, customer.last_name
    name = _full_name(given, family)
    recorded = customer.id is not None and bool(name or not paid_by)
    if recorded:
        address = customer.default_address or sale.billing_address or Address()
        at = customer.updated_at or customer.created_at or at
    else:
        if customer.id is not None:  # tied to the customer, whose event names it
            known = (*(found for found in known if found.value != own), *identifiers(subject=who))
        who, address = own, payer
        if not name:
            name, given, family = paid_by, payer.first_name, payer.last_name
    stated: dict[str, Any] = {
        "name": name,
        "given_name": given,
        "family_name": family,
        "email": customer.email or sale.email or sale.contact_email,
        "phone": customer.phone or sale.phone or address.phone,
        "language": sale.customer_locale,
    }
    stated |= _address(address) | _documents(sale)
    if any(stated.values()):
        yield ProfileStated(subject=who, occurred_at=at, identifiers=known, **stated)


def _shop(money: MoneySet | None) -> Decimal | None:
    return money.shop_money.amount if money and money.shop_money else None


def _total(amounts: Iterable[Decimal | None]) -> Decimal:
    return sum([amount for amount in amounts if amount is not None], start=Decimal(0))


def _line(line: LineItem, position: int, currency: str | None) -> OrderLine:
    allocations = line.discount_allocations
    # allocations hold the line's share of every discount; carts and old payloads have only the line's own
    discount = _total(d.amount or _shop(d.amount_set) for d in allocations) if allocations else line.total_discount
    return OrderLine(
        line_id=line.id or line.key or str(position),
        quantity=line.quantity,
        unit_price_minor=minor(line.price, currency) or 0,
        sku=line.sku,
        product_id=line.product_id,
        product=line.title,
        variant=line.variant_title,
        category=line.product_type,
        brand=line.vendor,
        discount_minor=minor(discount, currency) or 0,
        tax_minor=(minor(_total([t.price for t in line.tax_lines]), currency) or 0) if line.tax_lines else 0,
    )


def _shipping(sale: Sale) -> Decimal | None:
    if (charged := _shop(sale.total_shipping_price_set)) is not None:
        return charged
    lines = sale.shipping_lines
    if isinstance(sale, Draft):
        return sale.shipping_line.price if sale.shipping_line else None
    prices = [s.price if s.discounted_price is None else s.discounted_price for s in lines or ()]
    return None if lines is None or None in prices else _total(prices)


def _sale_stated(sale: Sale, source: str, subject_kind: str, at: datetime, **stated: Any) -> Iterator[Event]:
    who, known = _buyer(sale, source, subject_kind)
    currency, ship = sale.currency, sale.shipping_address
    cleared = [*empties(sale, note="note", tags="tags"), *stated.pop("cleared", ())]
    if ship is None and "shipping_address" in sale.model_fields_set:
        cleared += ("shipping_city", "shipping_region", "shipping_postal_code", "shipping_country")
    ship = ship or Address()
    yield from _buyer_stated(sale, who, subject(source, subject_kind, sale.id), known, at)
    fields: dict[str, Any] = {
        "number": sale.name,
        "currency": currency,
        # not current_total_price: that is less refunds, which are stated on their own
        "total_minor": minor(sale.total_price, currency),
        "subtotal_minor": minor(sale.subtotal_price, currency),
        "discount_minor": minor(sale.total_discounts, currency),
        "shipping_minor": minor(_shipping(sale), currency),
        "tax_minor": minor(sale.total_tax, currency),
        "placed_at": sale.created_at,
        "channel": sale.source_name,
        "coupons": None if sale.discount_codes is None else tuple(d.code for d in sale.discount_codes if d.code),
        "tags": _split(sale.tags) or None,
        "note": sale.note,
        "shipping_city": ship.city,
        "shipping_region": ship.province_code or ship.province,
        "shipping_postal_code": ship.zip,
        "shipping_country": ship.country_code,
        "lines": None
        if sale.line_items is None
        else tuple(_line(line, position, currency) for position, line in enumerate(sale.line_items)),
    }
    yield OrderStated(subject=who, occurred_at=at, identifiers=known, cleared=tuple(cleared), **fields | stated)


_FINANCIAL = {"expired": "voided"}
_FULFILMENT = {
    None: "unfulfilled",
    "pending": "unfulfilled",
}  # null is Shopify's word for unfulfilled; its test orders say pending


@connector.on(
    "orders/create",
    "orders/updated",
    "orders/paid",
    "orders/cancelled",
    "orders/fulfilled",
    "orders/partially_fulfilled",
)
def order_stated(o: Order, source: str, delivery: Delivery) -> Iterator[Event]:
    # dated back to its creation, a later statement would lose against all that came since
    at = o.updated_at or (o.created_at if delivery.kind == "orders/create" else None) or _triggered_at(delivery)
    fulfilment = None
    if "fulfillment_status" in o.model_fields_set:
        fulfilment = _FULFILMENT.get(o.fulfillment_status, o.fulfillment_status)
    refunds = (_refund(refund, at, o) for refund in o.refunds or ())
    yield from _sale_stated(
        o,
        source,
        "order",
        at,
        order_id=o.id,
        kind="order",
        status="cancelled" if o.cancelled_at else _FINANCIAL.get(o.financial_status or "", o.financial_status),
        fulfillment_status=fulfilment,
        placed_at=o.processed_at or o.created_at,
        paid_at=at if delivery.kind == "orders/paid" else None,
        cancelled_at=o.cancelled_at,
        cancel_reason=o.cancel_reason,
        cleared=empties(o, cancelled_at="cancelled_at", cancel_reason="cancel_reason"),
        refunds=tuple(refund for refund in refunds if refund),
    )


@connector.on("orders/delete")
def order_deleted(o: Reference, source: str, delivery: Delivery) -> Iterator[Event]:
    who = subject(source, "order", o.id)
    yield OrderStated(subject=who, occurred_at=_triggered_at(delivery), order_id=o.id, kind="order", status="deleted")


# Ids are unique within a type only, and orders, drafts and checkouts are all orders here: the latter carry their type in the id.


@connector.on("checkouts/create", "checkouts/update")
def checkout_stated(c: Sale, source: str, delivery: Delivery) -> Iterator[Event]:
    # closed without having been completed: the buyer left, or the shop gave up waiting
    status = "won" if c.completed_at else "abandoned" if c.closed_at else "open"
    at = c.updated_at or _triggered_at(delivery)
    yield from _sale_stated(c, source, "checkout", at, order_id=f"checkout:{c.id}", kind="checkout", status=status)


@connector.on("checkouts/delete")
def checkout_deleted(c: Reference, source: str, delivery: Delivery) -> Iterator[Event]:
    yield OrderStated(
        subject=subject(source, "checkout", c.id),
        occurred_at=_triggered_at(delivery),
        order_id=f"checkout:{c.id}",
        kind="checkout",
        status="deleted",
    )


_DRAFT_STATUSES = {"completed": "won", "invoice_sent": "pending"}


@connector.on("draft_orders/create", "draft_orders/update")
def draft_stated(d: Draft, source: str, delivery: Delivery) -> Iterator[Event]:
    yield from _sale_stated(
        d,
        source,
        "draft_order",
        d.updated_at or _triggered_at(delivery),
        order_id=f"draft:{d.id}",
        kind="draft",
        status=_DRAFT_STATUSES.get(d.status or "", d.status),
        discount_minor=minor(d.applied_discount.amount if d.applied_discount else None, d.currency),
    )


@connector.on("draft_orders/delete")
def draft_deleted(d: Reference, source: str, delivery: Delivery) -> Iterator[Event]:
    yield OrderStated(
        subject=subject(source, "draft_order", d.id),
        occurred_at=_triggered_at(delivery),
        order_id=f"draft:{d.id}",
        kind="draft",
        status="deleted",
    )


# --- refunds, returns, disputes, fulfilments: known by their order's id --------------------------------------------------------


def _refund(r: RefundItem, at: datetime, order: Order | None = None) -> Refund | None:
    """The money of a refund in the shop's currency. Without any currency there was none: an edited or restocked order."""
    paid = [t for t in r.transactions or () if t.kind == "refund" and t.status in {None, "success", "pending"}]
    sets = [line.subtotal_set for line in r.refund_line_items or ()] + [order.total_price_set if order else None]
    pairs = [(s.shop_money, s.presentment_money) for s in sets if s and s.shop_money and s.presentment_money]
    amount, currency = _total(t.amount for t in paid), next((t.currency for t in paid if t.currency), None)
    shops = (order.currency if order else None) or next(
        (shop.currency_code for shop, _ in pairs if shop.currency_code), currency
    )
    if currency and currency != shops:
        # transactions are in the buyer's currency; the refund's own amounts tell the rate
        rated = [(shop.amount, buyer.amount) for shop, buyer in pairs if buyer.currency_code == currency]
        buyers = _total(amount for _, amount in rated)
        if buyers:
            amount, currency = amount * _total(amount for amount, _ in rated) / buyers, shops
    currency = currency or shops
    if currency is None:
        return None
    lines = (
        RefundLine(
            line_id=line.line_item_id,
            quantity=line.quantity,
            amount_minor=minor(_shop(line.subtotal_set) or line.subtotal, currency) or 0,
        )
        for line in r.refund_line_items or ()
    )
    return Refund(
        refund_id=r.id,
        refunded_at=r.processed_at or r.created_at or at,
        amount_minor=minor(amount, currency) or 0,
        currency=currency,
        reason=r.note,
        lines=tuple(lines),
    )


@connector.on("refunds/create")
def refund_stated(r: RefundItem, source: str, delivery: Delivery) -> Iterator[Event]:
    at = r.processed_at or r.created_at or _triggered_at(delivery)
    who = subject(source, "order", r.order_id)
    if r.order_id and (refund := _refund(r, at)):
        yield OrderStated(subject=who, occurred_at=at, order_id=r.order_id, refunds=(refund,))


class ReturnLine(Payload):
    return_reason: str | None = None


class Return(Payload):
    id: Id
    order_id: Id | None = None
    order: Reference | None = None
    status: str | None = None
    return_line_items: tuple[ReturnLine, ...] | None = None


_RETURNS = {
    "returns/request": "requested",
    "returns/approve": "approved",
    "returns/decline": "declined",
    "returns/cancel": "cancelled",
    "returns/close": "closed",
    "returns/reopen": "reopened",
}


@connector.on(*_RETURNS)
def return_recorded(r: Return, source: str, delivery: Delivery) -> Iterator[Event]:
    order_id = r.order.id if r.order else r.order_id
    step = _RETURNS[delivery.kind or ""]
    reasons = dict.fromkeys(line.return_reason for line in r.return_line_items or () if line.return_reason)
    yield InteractionRecorded(
        subject=subject(source, "order", order_id),
        occurred_at=_triggered_at(delivery),
        interaction_id=f"return:{r.id}:{step}",
        kind=f"return.{step}",
        object_type="order",
        object=order_id,
        properties={"reasons": ", ".join(reasons)} if reasons else {},
    )


class Dispute(Payload):
    id: Id
    order_id: Id | None = None
    type: str | None = None
    amount: Amount | None = None
    currency: str | None = None
    reason: str | None = None
    status: str | None = None
    initiated_at: Instant | None = None
    evidence_sent_on: Instant | None = None
    finalized_on: Instant | None = None


@connector.on("disputes/create", "disputes/update")
def dispute_recorded(d: Dispute, source: str, delivery: Delivery) -> Iterator[Event]:
    opened = delivery.kind == "disputes/create"
    step = "opened" if opened else d.status or "updated"
    at = (d.initiated_at if opened else d.finalized_on) or _triggered_at(delivery)
    details = {"type": d.type, "reason": d.reason, "status": d.status}
    yield InteractionRecorded(
        subject=subject(source, "order" if d.order_id else "dispute", d.order_id or d.id),
        occurred_at=at,
        interaction_id=f"dispute:{d.id}:{step}",
        kind=f"dispute.{step}",
        object_type="order",
        object=d.order_id,
        value_minor=minor(d.amount, d.currency),
        currency=d.currency,
        properties={name: value for name, value in details.items() if value},
    )


class Fulfilment(Payload):
    id: Id
    order_id: Id
    status: str | None = None
    shipment_status: str | None = None
    tracking_company: str | None = None
    email: str | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None


@connector.on("fulfillments/create", "fulfillments/update")
def fulfilment_recorded(f: Fulfilment, source: str, delivery: Delivery) -> Iterator[Event]:
    step = f.shipment_status or f.status or "updated"
    yield InteractionRecorded(
        subject=subject(source, "order", f.order_id),
        occurred_at=f.updated_at or f.created_at or _triggered_at(delivery),
        identifiers=identifiers(email=f.email),
        interaction_id=f"fulfillment:{f.id}:{step}",
        kind=f"fulfillment.{step}",
        object_type="order",
        object=f.order_id,
        properties={"carrier": f.tracking_company} if f.tracking_company else {},
    )


# --- carts and subscriptions ---------------------------------------------------------------------------------------------------


class CartLine(Payload):
    line_price: Amount | None = None
    quantity: int = 1
    line_price_set: MoneySet | None = None


class Cart(Payload):
    id: Id
    customer: CustomerRef | None = None
    customer_id: Id | None = None
    email: str | None = None
    line_items: tuple[CartLine, ...] | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None


@connector.on("carts/create", "carts/update")
def cart_recorded(c: Cart, source: str, delivery: Delivery) -> Iterator[Event]:
    # carts are anonymous until someone signs in
    ref = c.customer or CustomerRef()
    customer_id = ref.id or c.customer_id
    known = identifiers(email=(c.email, ref.email), phone=ref.phone)
    if not customer_id and not known:
        return
    lines = c.line_items or ()
    money = [line.line_price_set.shop_money for line in lines if line.line_price_set and line.line_price_set.shop_money]
    currency = next((m.currency_code for m in money if m.currency_code), None)
    yield InteractionRecorded(
        subject=subject(source, "customer", customer_id) if customer_id else subject(source, "cart", c.id),
        occurred_at=c.updated_at or _triggered_at(delivery),
        identifiers=known,
        interaction_id=f"cart:{c.id}",
        kind="cart.created" if delivery.kind == "carts/create" else "cart.updated",
        object_type="cart",
        object=c.id,
        value_minor=minor(_total(m.amount for m in money), currency) if currency else None,
        currency=currency,
        properties={"units": str(sum(line.quantity for line in lines))},
    )


class BillingPolicy(Payload):
    interval: str | None = None
    interval_count: int | None = None


class SubscriptionContract(Payload):
    id: Id
    customer_id: Id | None = None
    status: str | None = None
    currency_code: str | None = None
    billing_policy: BillingPolicy | None = None


@connector.on(
    "subscription_contracts/create",
    "subscription_contracts/update",
    "subscription_contracts/activate",
    "subscription_contracts/pause",
    "subscription_contracts/cancel",
    "subscription_contracts/expire",
    "subscription_contracts/fail",
)
def subscription_stated(s: SubscriptionContract, source: str, delivery: Delivery) -> Iterator[Event]:
    at = _triggered_at(delivery)
    policy = s.billing_policy or BillingPolicy()
    person = subject(source, "customer", s.customer_id) if s.customer_id else subject(source, "subscription", s.id)
    yield SubscriptionStated(
        subject=person,
        occurred_at=at,
        subscription_id=s.id,
        status=s.status.lower() if s.status else None,
        currency=s.currency_code,
        interval=policy.interval.lower() if policy.interval else None,
        interval_count=policy.interval_count,
        started_at=at if delivery.kind == "subscription_contracts/create" else None,
        cancelled_at=at if delivery.kind == "subscription_contracts/cancel" else None,
    )


# --- privacy: https://shopify.dev/docs/apps/build/compliance/privacy-law-compliance --------------------------------------------


class PrivacyRequest(Payload):
    customer: CustomerRef
    orders_requested: tuple[Id, ...] = ()
    orders_to_redact: Annotated[tuple[Id, ...], Essential] = ()
    data_request: Reference | None = None


@connector.on("customers/data_request")
def data_requested(p: PrivacyRequest, source: str, delivery: Delivery) -> Iterator[Event]:
    request_id = p.data_request.id if p.data_request else delivery.delivery_id
    yield InteractionRecorded(
        subject=subject(source, "customer", p.customer.id),
        occurred_at=_triggered_at(delivery),
        identifiers=identifiers(email=p.customer.email, phone=p.customer.phone),
        interaction_id=f"data_request:{request_id}",
        kind="privacy.data_requested",
        object_type="data_request",
        object=request_id,
        properties={"orders": ", ".join(p.orders_requested)} if p.orders_requested else {},
    )


@connector.on("customers/redact")
def customer_redacted(p: PrivacyRequest, source: str, delivery: Delivery) -> Iterator[Event]:
    gone = [subject(source, "order", order_id) for order_id in p.orders_to_redact]
    if p.customer.id:
        gone.insert(0, subject(source, "customer", p.customer.id))
    if not gone:
        raise MissingField("a redaction that names neither a customer's id nor an order")
    for who in gone:
        yield SubjectDeleted(subject=who, occurred_at=_triggered_at(delivery), kind="erased", reason="redact")


class ShopRedact(Payload):
    shop_id: Id


@connector.on("shop/redact")
def shop_redacted(p: ShopRedact, source: str, delivery: Delivery) -> Iterator[Event]:
    yield SubjectDeleted(
        subject=subject(source, "shop", p.shop_id),
        occurred_at=_triggered_at(delivery),
        kind="erased",
        reason="shop_redact",
        scope="source",
    )
