"""Any criteria: hypothesis strategies that know the catalogue, with values from pools so that they often fit the data."""

from __future__ import annotations

from typing import Any

from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, OPERATORS, Field
from hypothesis import strategies as st

WORDS = ["Recife", "recife", "São Paulo", "Sao Paulo", "Olinda", "shoes", "Shoes", "vip", "x", "a b", 'q"\\']
POOLS: dict[str, list[str]] = {
    "sources": ["crm", "shop"], "source": ["crm", "shop"], "status": ["paid", "open", "cancelled", "solved", "abandoned", "active"],
    "gender": ["female", "male"], "country": ["BR", "PT"], "kind": ["nps", "email.opened", "page.viewed"],
}  # fmt: skip
NAMES = [*FIELDS]
numbers = st.integers(-1, 12) | st.sampled_from([0.5, 3.0, 250.0])
durations = st.sampled_from(["1d", "7d", "30d", "36h", "12w", "90min", "3600s"])
moments = st.sampled_from(["2026-03-01", "2026-05-20T12:00:00Z", "2026-05-31T00:00:00-03:00", "2026-06-10"])
dates = st.sampled_from(["2000-02-29", "2001-03-01", "1992-06-01", "1992-06-02", "1980-01-01"])
currencies = st.sampled_from(["BRL", "EUR", "JPY"])


def _scalars(name: str, field: Field, op: str) -> st.SearchStrategy[Any]:
    match field.kind:
        case "text" | "code" | "list" | "codes":
            return st.sampled_from(POOLS.get(name, WORDS))
        case "number":
            return numbers
        case "money":
            return st.integers(-50, 500)
        case "time":
            return moments
        case "date":
            return dates
        case "days":
            return st.integers(0, 120)
        case "age":
            return st.integers(0, 50)
        case _ if op in {"<", "<=", ">", ">=", "between"}:
            return numbers
        case _ if op in {"contains", "starts with"}:
            return st.sampled_from(WORDS)
        case _:
            return st.sampled_from([*WORDS, "3"])


def _of_one_type(op: str) -> st.SearchStrategy[Any]:
    """What a value of a custom metric may be compared with: numbers, texts, times or booleans, not mixed."""
    words = st.sampled_from(WORDS)
    if op in {"<", "<=", ">", ">=", "between"}:
        return st.sampled_from([numbers, moments])
    if op in {"contains", "starts with"}:
        return st.just(words)
    return st.sampled_from([numbers, words, *([st.booleans()] if op in {"=", "!="} else [])])


@st.composite
def comparisons(draw: st.DrawFn, fields: dict[str, Field] | Any = FIELDS) -> dict[str, Any]:
    name = draw(st.sampled_from([*fields]))
    field = fields[name]
    op = draw(st.sampled_from(OPERATORS[field.kind]))
    scalars = draw(_of_one_type(op)) if field.kind == "custom" else _scalars(name, field, op)
    if field.kind == "custom":
        name = f"custom.{draw(st.sampled_from(['n', 't', 'b', 'at', 'then']))}"
    elif field.kind == "money":
        name = f"{name}.{draw(currencies)}"
    elif field.kind == "attribute":
        name = f"{name}.{draw(st.sampled_from(['tier', 'my field', 'Tier.2', 'then']))}"
    if op == "known":
        value: Any = draw(st.booleans())
    elif op == "between":
        value = [draw(scalars), draw(scalars)]
    elif op in {"in", "not in"}:
        value = draw(st.lists(scalars, min_size=1, max_size=3))
    else:
        value = draw(scalars)
    return {"field": name, "op": op, "value": value}


@st.composite
def facts(draw: st.DrawFn, *, counted: bool = True) -> dict[str, Any]:
    name = draw(st.sampled_from([*FACT_KINDS]))
    kind = FACT_KINDS[name]
    data: dict[str, Any] = {"fact": name}
    if where := draw(st.lists(comparisons(kind.fields), max_size=2)):
        data["where"] = where
    measures = ["times", *(["units"] if kind.lines else []), *(["amount_minor.BRL"] if kind.amount else [])]
    having = st.fixed_dictionaries(
        {
            "measure": st.sampled_from(measures),
            "op": st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
            "value": st.integers(-1, 4) | st.just(300),
        }
    )
    if counted and (asked := draw(st.lists(having, max_size=2))):
        data["having"] = asked
    if draw(st.booleans()):
        data["within"] = draw(durations)
    for name in ("since", "until"):
        if draw(st.integers(0, 4)) == 0:
            data[name] = draw(moments)
    return data


@st.composite
def sequences(draw: st.DrawFn) -> dict[str, Any]:
    steps = [
        {"fact": draw(facts(counted=False)), "within": draw(durations)} for _ in range(draw(st.sampled_from([1, 1, 2])))
    ]
    if draw(st.booleans()):
        steps[-1]["absent"] = True
    return {"sequence": draw(facts(counted=False)), "then": steps}


points = st.fixed_dictionaries(
    {
        "latitude": st.sampled_from([-8.05, -23.5, 0.0]),
        "longitude": st.sampled_from([-34.9, -46.6, 0.0]),
        "km": st.sampled_from([1.0, 50.0, 3000.0]),
    }
)
consents = st.fixed_dictionaries(
    {"consent": st.sampled_from(["marketing_email", "terms"])},
    optional={"state": st.sampled_from(["withdrawn", "pending"]), "lapsed": st.just(True)},
)
leaves = st.one_of(
    comparisons(), comparisons(), facts(), sequences(), consents,
    st.sampled_from(["buyers", "no such"]).map(lambda s: {"segment": s}), points.map(lambda p: {"near": p}),
)  # fmt: skip
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda name, children: {name: children},
        st.sampled_from(["all", "any", "none"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)
