"""What criteria can speak of: profile fields, metrics, kinds of facts, and what may be asked of each.

A field's SQL stands over the aliases `p` (the profile), `m` (the metrics), `f` (a fact) and `i` (a line of an order); `{now}` is the
moment that is asked about and `{currency}` the currency of an amount. Everything here is our own constant text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from caudal.projections.metrics import metrics
from caudal.projections.profiles import FIELDS as PROFILE_FIELDS

from caudal import codes

__all__ = ["FACT_KINDS", "FIELDS", "HUB_TABLES", "OPERATORS", "SPEND_BASE", "FactKind", "Field", "Kind", "exponent"]

Kind = Literal["text", "code", "number", "money", "time", "date", "list", "codes", "attribute", "custom", "days", "age"]

_ORDERED = ("=", "!=", "<", "<=", ">", ">=", "between")
OPERATORS: Mapping[Kind, tuple[str, ...]] = {
    "text": ("=", "!=", "in", "not in", "contains", "starts with", "known"),
    "code": ("=", "!=", "in", "not in", "known"),
    "number": (*_ORDERED, "in", "not in", "known"),
    "money": (*_ORDERED, "known"),
    "time": ("<", "<=", ">", ">=", "between", "known"),
    "date": (*_ORDERED, "known"),
    "list": ("has", "known"),
    "codes": ("has", "known"),
    "attribute": (*_ORDERED, "in", "not in", "contains", "starts with", "known"),
    "custom": (*_ORDERED, "in", "not in", "contains", "starts with", "known"),
    "days": (*_ORDERED, "known"),
    "age": (*_ORDERED, "in", "not in", "known"),
}
"""Kind of a field → what may be asked of it. `text` and `list` are compared without case and accents; the value that is asked of
`code` and `codes` is brought to the code's form (see `Field.forms`)."""


Forms = Callable[[str], tuple[str, ...]]


def _distinct(*values: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _lower(value: str) -> tuple[str, ...]:
    """Our own words are lower case; others stand as they are."""
    return _distinct(value, value.lower())


def _country(value: str) -> tuple[str, ...]:
    return _distinct(codes.country(value), value)


def _language(value: str) -> tuple[str, ...]:
    return _distinct(codes.language(value), value)


def _gender(value: str) -> tuple[str, ...]:
    return _distinct(codes.gender(value), value)


def _region(value: str) -> tuple[str, ...]:
    """Sources state a region's code where they know it, else its name."""
    code = codes.region(value)
    return _distinct(value, value.upper(), code, codes.state(code) if code else None)


def _any_case(value: str) -> tuple[str, ...]:
    return _distinct(value, value.upper(), value.lower())


_FORMS: Mapping[str, Forms] = {
    "country": _country, "shipping_country": _country, "language": _language, "gender": _gender, "region": _region,
    "shipping_region": _region, "postal_code": _any_case,
}  # fmt: skip
"""Name of a field → its forms."""


@dataclass(frozen=True)
class Field:
    """Something that a condition compares.

    Attributes:
        kind: how it compares.
        sql: its value.
        reads: the view it is of; of a fact's field the fact.
        about: what it is, for the docs.
        since: of `days` and `age`: the time or date that the value counts from.
        hub: one of `HUB_TABLES` that it reads, too.
        line: it is of a line of an order, not of the order.
        forms: of `code` and `codes`: what a value that somebody asks for may stand as.
    """

    kind: Kind
    sql: str
    reads: str
    about: str = ""
    since: str = ""
    line: bool = False
    hub: str = ""
    forms: Forms = _lower


@dataclass(frozen=True)
class FactKind:
    """A kind of thing that happened to a customer.

    Attributes:
        table: the fact.
        at: when it happened.
        holds: which rows of the table are of this kind.
        fields: what can be asked of one.
        amount: its money in minor units, if it has any; the currency is in the column `currency`.
        about: what it is, for the docs.
    """

    table: str
    at: str
    holds: str
    fields: Mapping[str, Field]
    amount: str | None = None
    about: str = ""

    @property
    def lines(self) -> bool:
        """Whether it has lines, whose units can be summed."""
        return self.table == "orders"


_EXACT = {"cpf", "cnpj", "region", "postal_code", "country", "language", "timezone", "gender"}
_PROFILE_KINDS: Mapping[str, Kind] = {
    "text": "text", "text[]": "list", "double precision": "number", "date": "date", "timestamptz": "time",
}  # fmt: skip
_METRIC_KINDS: Mapping[str, Kind] = {
    "bigint": "number", "integer": "number", "double precision": "number", "numeric": "number", "text": "text",
    "text[]": "list", "timestamptz": "time", "date": "date",
}  # fmt: skip


_METRIC_ABOUT = {
    "discount_share": "discounts by what the orders would have cost without them, 0 to 1; in the currency of most orders",
    "favourite_category": "with the most units",
    "favourite_product": "with the most units",
    "favourite_channel": "sales channel of most orders",
    "favourite_weekday": "1 (Monday) to 7 (Sunday), in UTC",
    "mean_first_response_s": "seconds from a ticket's opening to its first reply",
    "mean_review_rating": "in stars of five",
}


SPEND_BASE = f"""(
    SELECT CASE WHEN count(*) = count(r.factor)
                THEN least(greatest(round(coalesce(sum(s.value::numeric * r.factor), 0)), {-(2**63)}), {2**63 - 1})::bigint END
    FROM jsonb_each_text({{spend}}) s(currency, value)
    LEFT JOIN LATERAL (SELECT x.factor FROM hub.rates x WHERE x.currency = s.currency ORDER BY x.day DESC LIMIT 1) r ON true)"""
"""Spend by currency in the base currency, by each one's newest rate; NULL when one has none."""


def _elapsed(column: str, view: str) -> Field:
    """Whole days of 24 hours since a time of the profile or the metrics."""
    what = column.split(".")[1].removesuffix("_at").replace("_", " ")
    return Field(
        "days", f"floor(extract(epoch FROM {{now}} - {column}) / 86400)", view, f"whole days since {what}", since=column
    )


def _profile() -> dict[str, Field]:
    found = {
        name: Field(
            "code" if name in _EXACT else _PROFILE_KINDS[type_], f"p.{name}", "profiles", forms=_FORMS.get(name, _lower)
        )
        for name, type_ in PROFILE_FIELDS.items()
    }
    found["sources"] = Field("codes", "p.sources", "profiles", "sources that know the customer")
    found["sources_count"] = Field("number", "cardinality(p.sources)", "profiles", "how many sources know the customer")
    found["age"] = Field(
        "age",
        "CASE WHEN p.birth_date <= {today} THEN extract(year FROM age({today}::timestamp, p.birth_date::timestamp)) END",
        "profiles",
        "completed years; the day begins at midnight UTC",
        since="p.birth_date",
    )
    found["days_since_signed_up"] = _elapsed("p.signed_up_at", "profiles")
    return found


def _metrics() -> dict[str, Field]:
    found = {}
    for name, type_ in metrics.columns.items():
        if name == "customer_id":
            continue
        if type_ in _METRIC_KINDS:
            found[name] = Field(_METRIC_KINDS[type_], f"m.{name}", "metrics", _METRIC_ABOUT.get(name, ""))
        elif type_ == "jsonb" and name.endswith("_minor"):
            found[name] = Field(
                "money", f"(m.{name} ->> {{currency}})::bigint", "metrics", "by currency, in minor units"
            )
        if type_ == "timestamptz":
            found[f"days_since_{name.removesuffix('_at')}"] = _elapsed(f"m.{name}", "metrics")
    found["average_order_minor"] = Field(
        "money",
        "(m.spend_minor ->> {currency})::float8 / nullif(m.orders_count, 0)",
        "metrics",
        "spend in a currency by the number of orders, in minor units",
    )
    found["spend_base_minor"] = Field(
        "number",
        f"CASE WHEN m.spend_minor IS NOT NULL THEN {SPEND_BASE.format(spend='m.spend_minor')} END",
        "metrics",
        "all spend in the base currency at the newest rates, in its minor units; unknown while a rate is missing",
        hub="rates",
    )
    found["purchase_interval_days"] = Field(
        "number",
        "CASE WHEN m.orders_count >= 2 "
        "THEN extract(epoch FROM m.last_order_at - m.first_order_at)::float8 / 86400 / (m.orders_count - 1) END",
        "metrics",
        "days between orders on average, from the second order on",
    )
    return found


HUB_TABLES = frozenset({"rates", "customer_scores"})
"""Tables that fields read beside facts and views; they change with no event."""


def _scores() -> dict[str, Field]:
    about: Mapping[str, tuple[Kind, str]] = {
        "rfm_recency": ("number", "fifth by the last order, 1 to 5; 5 ordered last"),
        "rfm_frequency": ("number", "fifth by the number of orders, 1 to 5; 5 ordered most often"),
        "rfm_monetary": ("number", "fifth by spend in the base currency, 1 to 5; 5 spent most"),
        "probability_alive": ("number", "probability that more orders come, 0 to 1"),
        "expected_orders_90d": ("number", "orders expected in the next 90 days"),
        "predicted_value_minor": (
            "number",
            "spend expected in the next 12 months, in minor units of the base currency",
        ),
        "expected_next_order_at": ("time", "when half of customers like this one have ordered again"),
    }
    # looked up by customer, so that what doesn't ask for a score has no join
    return {
        name: Field(
            kind,
            f"(SELECT s.{name} FROM hub.customer_scores s WHERE s.customer_id = p.customer_id)",
            "customer_scores",
            text,
        )
        for name, (kind, text) in about.items()
    }


FIELDS: Mapping[str, Field] = {
    **_profile(),
    "attributes": Field("attribute", "(p.attributes ->> {attribute})", "profiles", "custom attributes, by name"),
    **_metrics(),
    "custom": Field("custom", "(m.custom -> {attribute})", "metrics", "values of custom metrics, by name"),
    **_scores(),
}
"""Name → field of a customer. `attributes`, `custom` and fields of kind `money` are followed by a dot and the attribute, the value's name
or the currency.
"""


def _of(table: str, **kinds: str) -> dict[str, Field]:
    """Fields of a fact: name → kind, or kind and column."""
    found = {"source": Field("code", "f.source", table)}
    for name, spec in kinds.items():
        kind, _, column = spec.partition(":")
        found[name] = Field(cast("Kind", kind), f"f.{column or name}", table, forms=_FORMS.get(name, _lower))
    return found


def _line(**columns: str) -> dict[str, Field]:
    return {name: Field("text", f"i.{column}", "orders", "of a line", line=True) for name, column in columns.items()}


def _money(**columns: str) -> dict[str, Field]:
    return {
        name: Field(
            "money", f"CASE WHEN f.currency = {{currency}} THEN f.{column} END", "", "by currency, in minor units"
        )
        for name, column in columns.items()
    }


_ORDER = _of(
    "orders", status="code", fulfillment_status="code", channel="text", coupons="list", tags="list", shipping_city="text",
    shipping_region="code", shipping_country="code",
) | _money(total_minor="total_minor", discount_minor="discount_minor") | _line(
    product="product", product_id="product_id", sku="sku", variant="variant", category="category", brand="brand",
)  # fmt: skip
_DONE = _of(
    "interactions", kind="code", object_type="code", object="text", campaign="text", channel="text"
) | _money(value_minor="value_minor")  # fmt: skip
_WITHOUT_KIND = {name: f for name, f in _DONE.items() if name != "kind"}
_PLACED = "coalesce(f.placed_at, f.occurred_at)"
_AMOUNT = "f.total_minor"


def _done(holds: str, about: str) -> FactKind:
    return FactKind("interactions", "f.occurred_at", holds, _WITHOUT_KIND, "f.value_minor", about)


FACT_KINDS: Mapping[str, FactKind] = {
    "bought": FactKind(
        "orders", _PLACED,
        "coalesce(f.kind, 'order') = 'order' AND coalesce(f.status, 'open') NOT IN ('cancelled', 'voided', 'deleted', 'abandoned')",
        _ORDER, _AMOUNT, "an order that counts: placed, and not cancelled, voided or deleted",
    ),
    "cancelled": FactKind(
        "orders", "coalesce(f.cancelled_at, f.occurred_at)",
        "coalesce(f.kind, 'order') = 'order' AND f.status IN ('cancelled', 'voided')", _ORDER, _AMOUNT, "an order that was cancelled",
    ),
    "returned": FactKind(
        "refunds", "coalesce(f.refunded_at, f.occurred_at)", "true",
        _of("refunds", reason="text") | _money(refund_minor="amount_minor"), "f.amount_minor", "a refund",
    ),
    "abandoned_checkout": FactKind(
        "orders", _PLACED, "f.kind = 'checkout' AND f.status = 'abandoned'", _ORDER, _AMOUNT, "a checkout that was left",
    ),
    "abandoned_cart": _done("f.kind = 'cart.abandoned'", "a cart that was left"),
    "did": FactKind("interactions", "f.occurred_at", "true", _DONE, "f.value_minor", "any interaction; `kind` says which"),
    "opened_email": _done("f.kind = 'email.opened'", "an e-mail that was opened"),
    "clicked_email": _done("f.kind = 'email.clicked'", "a link in an e-mail that was followed"),
    "viewed": _done("right(f.kind, 7) = '.viewed'", "a page or product that was looked at"),
    "opened_ticket": FactKind(
        "tickets", "coalesce(f.opened_at, f.occurred_at)", "f.status IS DISTINCT FROM 'deleted'",
        _of("tickets", status="code", priority="code", type="text", channel="text", tags="list", team="text", product="text",
            satisfaction="code", satisfaction_score="number"), None, "a support ticket",
    ),
    "answered": FactKind(
        "feedback", "coalesce(f.answered_at, f.occurred_at)", "f.status IS DISTINCT FROM 'deleted'",
        _of("feedback", kind="code", score="number", survey="text", product="text", language="code"), None, "a survey answer or a review",
    ),
    "subscribed": FactKind(
        "subscriptions", "coalesce(f.started_at, f.occurred_at)", "true",
        _of("subscriptions", plan="text", status="code", interval="code") | _money(price_minor="amount_minor"), "f.amount_minor",
        "a subscription",
    ),
}  # fmt: skip
"""Name → kind of fact."""

LINE_COLUMNS = {
    "product": "line_products", "product_id": "line_product_ids", "sku": "line_skus", "variant": "line_variants",
    "category": "line_categories", "brand": "line_brands", "quantity": "line_quantities",
}  # fmt: skip
"""A line's column → the array column of `orders` that it is unnested from."""

_EXPONENTS = dict.fromkeys(
    ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0
) | dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3) | dict.fromkeys(("CLF", "UYW"), 4)  # fmt: skip


def exponent(currency: str) -> int:
    """Digits of a currency's minor unit (ISO 4217)."""
    return _EXPONENTS.get(currency, 2)
