"""Criteria judged in plain Python over rows of the tables: the twin that the SQL is compared with. Written for the tests alone."""

from __future__ import annotations

import math
import operator
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from caudal import codes

Row = Mapping[str, Any]
ORDER = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
LINES = {
    "product": "line_products", "product_id": "line_product_ids", "sku": "line_skus", "variant": "line_variants",
    "category": "line_categories", "brand": "line_brands", "quantity": "line_quantities",
}  # fmt: skip
SCORES = {
    "rfm_recency", "rfm_frequency", "rfm_monetary", "probability_alive", "expected_orders_90d", "predicted_value_minor",
    "expected_next_order_at",
}  # fmt: skip
RATES = {"BRL": 1, "EUR": 6}
EXACT = {
    "cpf", "cnpj", "region", "postal_code", "country", "language", "timezone", "gender", "source", "status", "fulfillment_status",
    "shipping_region", "shipping_country", "kind", "object_type", "priority", "satisfaction", "interval",
}  # fmt: skip


def _interaction(kind: str) -> tuple[str, Callable[[Row], bool], Callable[[Row], datetime]]:
    return "interactions", lambda r: r["kind"] == kind, lambda r: r["occurred_at"]


def _at(column: str) -> Callable[[Row], datetime]:
    return lambda r: r[column] or r["occurred_at"]


def _is_order(r: Row) -> bool:
    return (r["kind"] or "order") == "order"


KINDS: dict[str, tuple[str, Callable[[Row], bool], Callable[[Row], datetime]]] = {
    "bought": (
        "orders",
        lambda r: _is_order(r) and (r["status"] or "open") not in {"cancelled", "voided", "deleted", "abandoned"},
        _at("placed_at"),
    ),
    "cancelled": ("orders", lambda r: _is_order(r) and r["status"] in {"cancelled", "voided"}, _at("cancelled_at")),
    "returned": ("refunds", lambda r: True, _at("refunded_at")),
    "abandoned_checkout": (
        "orders",
        lambda r: r["kind"] == "checkout" and r["status"] == "abandoned",
        _at("placed_at"),
    ),
    "abandoned_cart": _interaction("cart.abandoned"),
    "did": ("interactions", lambda r: True, lambda r: r["occurred_at"]),
    "opened_email": _interaction("email.opened"),
    "clicked_email": _interaction("email.clicked"),
    "viewed": ("interactions", lambda r: r["kind"].endswith(".viewed"), lambda r: r["occurred_at"]),
    "opened_ticket": ("tickets", lambda r: r["status"] != "deleted", _at("opened_at")),
    "answered": ("feedback", lambda r: r["status"] != "deleted", _at("answered_at")),
    "subscribed": ("subscriptions", lambda r: True, _at("started_at")),
}
AMOUNT = {"orders": "total_minor", "refunds": "amount_minor", "interactions": "value_minor", "subscriptions": "amount_minor"}  # fmt: skip


def fold(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()


def length(text: str) -> timedelta:
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return timedelta(seconds=int(number) * UNITS[text[len(number) :]])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if len(text) == 10 else datetime.fromisoformat(text)


def age(birth: date, today: date) -> int | None:
    if birth > today:
        return None
    return today.year - birth.year - ((today.month, today.day) < (birth.month, birth.day))


class Twin:
    """Rows of the live schema by customer."""

    def __init__(self, tables: Mapping[str, Iterable[Row]]) -> None:
        owner = {row["subject"]: row for row in tables["links"]}
        self.profiles = {row["customer_id"]: row for row in tables["profiles"]}
        self.metrics = {row["customer_id"]: row for row in tables["metrics"]}
        self.scores = {row["customer_id"]: row for row in tables["customer_scores"]}
        self.segments = {(row["customer_id"], row["segment"]) for row in tables["segment_members"]}
        self.facts: dict[tuple[Any, str], list[Row]] = defaultdict(list)
        for table in {*(kind[0] for kind in KINDS.values()), "consents"}:
            for row in tables[table]:
                link = owner[row["subject"]]
                gone = max((t for t in (link["deleted_at"], link["erased_at"]) if t), default=None)
                if table != "consents" or gone is None or row["occurred_at"] > gone:
                    self.facts[link["customer_id"], table].append(row)

    def holds(self, node: Any, customer: Any, now: datetime) -> bool:
        match node:
            case {"all": children}:
                return all(self.holds(child, customer, now) for child in children)
            case {"any": children}:
                return any(self.holds(child, customer, now) for child in children)
            case {"none": children}:
                return not any(self.holds(child, customer, now) for child in children)
            case {"field": name, "op": op, "value": value}:
                return compare(name, self.value(name, customer, now), op, value)
            case {"fact": _}:
                return self.counted(node, self.happened(node, customer, now))
            case {"sequence": first, "then": steps}:
                return any(
                    self.follows(row, first, steps, customer, now) for row in self.happened(first, customer, now)
                )
            case {"consent": _}:
                return self.consented(node, customer, now)
            case {"segment": name}:
                return (customer, name) in self.segments
            case {"near": point}:
                return near(self.profiles[customer], **point)
        raise AssertionError(node)

    def value(self, name: str, customer: Any, now: datetime) -> Any:
        profile, metrics = self.profiles[customer], self.metrics.get(customer)
        plain, _, part = name.partition(".")
        if plain == "attributes":
            return profile["attributes"].get(part)
        if plain == "age":
            return profile["birth_date"] and age(profile["birth_date"], now.date())
        if plain.startswith("days_since_"):
            column = plain.removeprefix("days_since_") + "_at"
            since = (profile if column in profile else metrics or {}).get(column)
            return None if since is None else (now - since) // timedelta(days=1)
        if plain == "sources_count":
            return len(profile["sources"])
        if plain in profile:
            return profile[plain]
        if plain in SCORES:
            return self.scores[customer][plain] if customer in self.scores else None
        if metrics is None:
            return None
        if plain == "custom":
            return (metrics["custom"] or {}).get(part)
        if plain == "average_order_minor":
            spend = metrics["spend_minor"].get(part)
            return None if spend is None or not metrics["orders_count"] else spend / metrics["orders_count"]
        if plain == "spend_base_minor":
            return sum(spent * RATES[currency] for currency, spent in metrics["spend_minor"].items())
        if plain == "purchase_interval_days":
            if metrics["orders_count"] < 2 or metrics["first_order_at"] is None:
                return None
            between = metrics["last_order_at"] - metrics["first_order_at"]
            return between.total_seconds() / 86400 / (metrics["orders_count"] - 1)
        return metrics[plain].get(part) if part else metrics[plain]

    def happened(self, fact: Any, customer: Any, now: datetime) -> list[Row]:
        table, is_kind, at = KINDS[fact["fact"]]
        return [
            row
            for row in self.facts[customer, table]
            if is_kind(row)
            and at(row) <= now
            and ("within" not in fact or at(row) > now - length(fact["within"]))
            and ("since" not in fact or at(row) >= moment(fact["since"]))
            and ("until" not in fact or at(row) < moment(fact["until"]))
            and fits(row, fact.get("where", []), lines=table == "orders")
        ]

    def counted(self, fact: Any, rows: list[Row]) -> bool:
        table = KINDS[fact["fact"]][0]
        for asked in fact.get("having", [{"measure": "times", "op": ">=", "value": 1}]):
            measure, _, currency = asked["measure"].partition(".")
            if measure == "times":
                total = len(rows)
            elif measure == "units":
                of_lines = [c for c in fact.get("where", []) if c["field"] in LINES]
                asked_of = {"quantity", *(c["field"] for c in of_lines)}
                total = sum(
                    line["quantity"] or 0 for r in rows for line in lines_of(r, asked_of) if fits(line, of_lines)
                )
            else:
                total = sum(row[AMOUNT[table]] or 0 for row in rows if row["currency"] == currency)
            if not compare("", total, asked["op"], asked["value"]):
                return False
        return True

    def follows(self, row: Row, fact: Any, steps: list[Any], customer: Any, now: datetime) -> bool:
        if not steps:
            return True
        step, rest = steps[0], steps[1:]
        start = KINDS[fact["fact"]][2](row)
        end = start + length(step["within"])
        at = KINDS[step["fact"]["fact"]][2]
        after = [r for r in self.happened(step["fact"], customer, now) if start < at(r) <= end]
        if step.get("absent"):
            return end <= now and not after
        return any(self.follows(r, step["fact"], rest, customer, now) for r in after)

    def consented(self, node: dict[str, Any], customer: Any, now: datetime) -> bool:
        rows = [r for r in self.facts[customer, "consents"] if r["purpose"] == node["consent"]]
        state, lapsed = node.get("state", "granted"), node.get("lapsed", False)
        if state != "granted":
            return any(r["state"] == state for r in rows)
        granted = any(
            r["state"] == "granted" and (lapsed or r["expires_at"] is None or r["expires_at"] > now) for r in rows
        )
        return granted and not any(r["state"] == "withdrawn" for r in rows)


def lines_of(row: Row, asked: set[str]) -> list[Row]:
    arrays = {name: row[LINES[name]] or [] for name in asked}
    longest = max(len(values) for values in arrays.values())
    return [{n: v[i] if i < len(v) else None for n, v in arrays.items()} for i in range(longest)]


def fits(row: Row, where: list[Any], *, lines: bool = False) -> bool:
    of_lines = [c for c in where if lines and c["field"] in LINES]
    if of_lines and not any(fits(line, of_lines) for line in lines_of(row, {c["field"] for c in of_lines})):
        return False
    return all(compare(c["field"], _of(row, c["field"]), c["op"], c["value"]) for c in where if c not in of_lines)


def _of(row: Row, name: str) -> Any:
    plain, dot, currency = name.partition(".")
    plain = {"refund_minor": "amount_minor", "price_minor": "amount_minor"}.get(plain, plain)
    return row[plain] if not dot or row["currency"] == currency else None


def compare(name: str, found: Any, op: str, value: Any) -> bool:
    if op == "known":
        return (found is not None) is value
    if found is None:
        return False
    if name.startswith("custom."):
        return of_custom(found, op, value)
    if name.startswith("attributes.") and isinstance(value[0] if isinstance(value, list) else value, int | float):
        if not found.lstrip("-").replace(".", "", 1).isdigit():
            return False
        found = float(found)
    if name in EXACT or name == "sources":
        asked = {form for v in (value if isinstance(value, list) else [value]) for form in coded(name, v)}
        there = bool(asked.intersection(found if op == "has" else [found]))
        return there is (op in {"=", "in", "has"})
    form: Callable[[Any], Any] = lambda v: v  # noqa: E731
    if isinstance(found, datetime):
        form = lambda v: moment(v) if isinstance(v, str) else v  # noqa: E731
    elif isinstance(found, date):
        form = lambda v: date.fromisoformat(v) if isinstance(v, str) else v  # noqa: E731
    elif isinstance(found, str):
        form = fold
    match op:
        case "has":
            return any(fold(each) == fold(value) for each in found if each is not None)
        case "in":
            return form(found) in [form(v) for v in value]
        case "not in":
            return form(found) not in [form(v) for v in value]
        case "between":
            return form(value[0]) <= form(found) <= form(value[1])
        case "contains":
            return form(value) in form(found)
        case "starts with":
            return bool(form(found).startswith(form(value)))
    return bool(ORDER[op](form(found), form(value)))


def coded(name: str, value: str) -> set[str]:
    """What a value that is asked for may stand as."""
    plain = name.removeprefix("shipping_")
    named = {"country": codes.country, "language": codes.language, "gender": codes.gender, "region": codes.region}
    if plain not in named:
        return {value, value.lower()} | ({value.upper()} if plain == "postal_code" else set())
    code = named[plain](value)
    more = {value.upper(), codes.state(code or "")} if plain == "region" else set()
    return {form for form in {value, code} | more if form}


def of_custom(found: Any, op: str, value: Any) -> bool:
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, bool) or isinstance(found, bool):
        return isinstance(first, bool) and isinstance(found, bool) and bool(ORDER[op](found, value))
    if isinstance(first, str) is not isinstance(found, str):
        return False
    if isinstance(found, str) and op in {"<", "<=", ">", ">=", "between"}:
        try:
            at = moment(found)
        except ValueError:
            return False
        return compare("", at, op, value)
    return compare("", found, op, value)


def near(profile: Row, latitude: float, longitude: float, km: float) -> bool:
    if profile["latitude"] is None or profile["longitude"] is None:
        return False
    here, there = math.radians(profile["latitude"]), math.radians(latitude)
    half = (
        math.sin((here - there) / 2) ** 2
        + math.cos(here) * math.cos(there) * math.sin(math.radians(profile["longitude"] - longitude) / 2) ** 2
    )
    return 2 * 6371.0088 * math.asin(min(1, math.sqrt(half))) <= km
