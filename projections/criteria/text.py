"""The text form: `city = "Recife" and bought(category = "shoes", times >= 2, within = 90d)` and back.

The grammar is in criteria.lark. Every text is read into the same data as JSON gives, and checked by the same rules; a fault of either
kind names the character where it begins.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from typing import Any

from caudal.projections.criteria import tree
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, exponent
from caudal.projections.criteria.tree import BadCriteria
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

__all__ = ["parse", "print_text", "read"]

_WORDS = {
    "NAME": "a name", "STRING": "a text in quotes", "NUMBER": "a number", "MONEY": "an amount such as 500 BRL",
    "DURATION": "a duration such as 90d or 3 months", "TIME": "a date", "CURRENCY": "a currency", "OPERATOR": "a comparison such as =",
    "LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "COMMA": ",", "DOT": ".", "$END": "the end",
}  # fmt: skip
_KEYWORDS = {"then", "within", "and", "or", "not", "in", "between", "contains", "has", "is", "known", "unknown", "true",
             "false"}  # fmt: skip
_OPERATORS = {"==": "=", "<>": "!=", "≠": "!=", "≤": "<=", "≥": ">="}
_QUOTED = r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|“[^”\n]*”'
_UNIT_WORDS = (
    ("sem", "w", 1), ("we", "w", 1), ("se", "s", 1), ("mi", "min", 1), ("h", "h", 1), ("d", "d", 1), ("m", "d", 30), ("y", "d", 365),
    ("a", "d", 365),
)  # fmt: skip
"""Beginning of a unit's name in English or Portuguese → our unit, and how many."""
_WINDOW = ("within", "since", "until")
_MEASURES = ("times", "units", "amount", "amount_minor")


def read(given: Any) -> tree.Condition:
    """Criteria as programs give them: the text form, or a tree.

    Raises:
        BadCriteria: see `parse` and `tree.load`.
    """
    return parse(given) if isinstance(given, str) else tree.load(given)


def parse(text: str) -> tree.Condition:
    """The tree of a text.

    Raises:
        BadCriteria: it can't be read; `position` is the character, `expected` what could stand there.
    """
    if len(text) > tree.MAX_TEXT:
        raise BadCriteria(f"longer than {tree.MAX_TEXT} characters")
    reader = _Reader()
    try:
        _shallow(text)
        data = reader.transform(_parser().parse(text))
    except UnexpectedInput as exc:
        raise _unexpected(exc, text).within(text) from None
    except VisitError as exc:
        raise (exc.orig_exc.within(text) if isinstance(exc.orig_exc, BadCriteria) else exc.orig_exc) from None
    try:
        return tree.load(data)
    except BadCriteria as exc:
        exc.position = reader.position(data, exc.path)
        raise exc.within(text) from None


def _shallow(text: str) -> None:
    """Refuse nesting that no tree may have, before the parser builds it."""
    depth = 0
    for place, character in enumerate(re.sub(_QUOTED, lambda m: " " * len(m[0]), text)):
        depth += (character in "([") - (character in ")]")
        if depth > 4 * tree.MAX_DEPTH:
            raise BadCriteria("too many brackets within brackets", position=place)
    if len(re.findall(r"\bnot\s+(?=not\b)", text, flags=re.IGNORECASE)) > tree.MAX_DEPTH:
        raise BadCriteria("too many negations in a row")


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = resources.files(__package__).joinpath("criteria.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", maybe_placeholders=True)


def _unexpected(exc: UnexpectedInput, text: str) -> BadCriteria:
    place = exc.pos_in_stream
    names: set[str] = set()
    if isinstance(exc, UnexpectedToken):
        names = exc.accepts or exc.expected
        if exc.token.type == "$END":
            place = len(text.rstrip())
    elif isinstance(exc, UnexpectedCharacters):
        names = exc.allowed or set()
    words = {_WORDS.get(name) or name.strip("_").lower().replace("_", " ") for name in names}
    at = len(text) if place is None or place < 0 else place
    what = "the text ends too early" if at >= len(text.rstrip()) else "this can't stand here"
    return BadCriteria(what, position=at, expected=tuple(sorted(words)))


class _Money:
    """An amount as it is written: it becomes minor units of the currency, which goes into the field's name."""

    def __init__(self, amount: Decimal, currency: str, at: int) -> None:
        minor = amount.scaleb(exponent(currency))
        if minor != minor.to_integral_value():
            raise BadCriteria(f"{currency} has {exponent(currency)} decimal places", position=at)
        self.minor, self.currency = int(minor), currency


class _Literal:
    """A value that stands where a condition may: an argument of segment(…), consent(…) or near(…)."""

    def __init__(self, value: Any, at: int) -> None:
        self.value, self.at = value, at


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Makes the data of the parsed text, and remembers where each part of it stood."""

    def __init__(self) -> None:
        super().__init__(visit_tokens=False)
        self._marks: dict[tuple[int, str], int] = {}
        self._kept: list[Any] = []  # an id is only good as long as its object lives

    def position(self, data: Any, path: str) -> int | None:
        """The character where what the path leads to begins, or the closest thing around it."""
        at, current = self._marks.get((id(data), "")), data
        for name, number in re.findall(r"([a-z_?]+)|\[([0-9]+)\]", path):
            at = self._marks.get((id(current), name), at)
            try:
                current = current[int(number) if number else name]
            except (KeyError, IndexError, TypeError):
                return at
            at = self._marks.get((id(current), ""), at)
        return at

    def _made(self, data: Any, at: int, **places: int) -> Any:
        self._kept.append(data)
        self._marks[id(data), ""] = at
        for name, place in places.items():
            self._marks[id(data), name] = place
        return data

    def start(self, condition: Any) -> Any:
        return self._condition(condition)

    def _condition(self, data: Any) -> Any:
        if isinstance(data, _Literal):
            raise BadCriteria("this can't stand alone", position=data.at, expected=("a condition",))
        return data

    def either(self, *conditions: Any) -> Any:
        return self._group("any", conditions)

    def both(self, *conditions: Any) -> Any:
        return self._group("all", conditions)

    def negated(self, condition: Any) -> Any:
        return self._group("none", [condition])

    def _group(self, name: str, conditions: Any) -> Any:
        children = [self._condition(c) for c in conditions]
        return self._made({name: children}, self._marks[id(children[0]), ""])

    def field(self, name: Token, part: Token | None = None) -> Token:
        whole = name.value
        if part is not None:
            whole += "." + (_string(part) if part.type == "STRING" else part.value)
        return Token("FIELD", whole, start_pos=name.start_pos)

    def values(self, *values: Token) -> list[Token]:
        return [*values]

    def comparison(self, field: Token, operator: Token, value: Any) -> Any:
        op = re.sub(r"\s+", " ", operator.value.lower())
        return self._compared(field, _OPERATORS.get(op, op), operator, value)

    def between(self, field: Token, low: Token, high: Token) -> Any:
        return self._compared(field, "between", low, [low, high])

    def known(self, field: Token, which: Token) -> Any:
        return self._made(
            {"field": field.value, "op": "known", "value": which.type == "KNOWN"}, _at(field), op=_at(which)
        )

    def _compared(self, field: Token, op: str, operator: Token, value: Any) -> Any:
        tokens = value if isinstance(value, list) else [value]
        if any(token.type == "AGO" for token in tokens):
            return self._relative(field, op, operator, tokens)
        values = [_value(token) for token in tokens]
        name = field.value
        if any(isinstance(v, _Money) for v in values):
            currencies = {v.currency if isinstance(v, _Money) else None for v in values}
            if len(currencies) > 1 or None in currencies or "." in name:
                raise BadCriteria("one currency is needed", position=_at(tokens[0]))
            name = f"{name.removesuffix('_minor')}_minor.{currencies.pop()}"
            values = [v.minor for v in values]
        data = {"field": name, "op": op, "value": values if isinstance(value, list) else values[0]}
        return self._made(data, _at(field), field=_at(field), op=_at(operator), value=_at(tokens[0]))

    def ago(self, length: Token) -> Token:
        return Token("AGO", length.value, start_pos=length.start_pos)

    def _relative(self, field: Token, op: str, operator: Token, tokens: list[Token]) -> Any:
        """A comparison with `30 days ago` as one of whole days since, which says the same and knows when it flips."""
        places = {"field": _at(field), "op": _at(operator), "value": _at(tokens[0])}
        if field.value == "since" and op == "=":
            return self._made({"field": "within", "op": "=", "value": _duration(tokens[0])}, _at(field), **places)
        name = f"days_since_{field.value.removesuffix('_at')}"
        if name not in FIELDS or field.value not in FIELDS:
            dated = ", ".join(f for f in FIELDS if f"days_since_{f.removesuffix('_at')}" in FIELDS)
            raise BadCriteria(
                "a time that moves can't stand here", position=_at(tokens[0]), expected=("a date", f"a time of {dated}")
            )
        days = [_days(token) for token in tokens]
        match op:
            case ">" | ">=":
                compared, wanted = "<", days[:1]
            case "<" | "<=":
                compared, wanted = ">=", days[:1]
            case "between" if len(days) == 2 and days[0] > days[1]:
                compared, wanted = "between", [days[1], days[0] - 1]
            case _:
                raise BadCriteria(
                    "this can't be asked of a time that moves", position=_at(operator),
                    expected=("<", ">", "between 60 days ago and 30 days ago"),
                )  # fmt: skip
        return self._made(
            {"field": name, "op": compared, "value": wanted if op == "between" else wanted[0]}, _at(field), **places
        )

    def call(self, name: Token, *arguments: Any) -> Any:
        given = [_Literal(_value(a), _at(a)) if isinstance(a, Token) else a for a in arguments if a is not None]
        at = _at(name)
        match name.value:
            case "all" | "any" | "none":
                if not given:
                    raise BadCriteria("conditions are missing", position=at)
                return self._made({name.value: [self._condition(c) for c in given]}, at)
            case "segment":
                [segment] = self._literals(given, at, "a segment's name", str)
                return self._made({"segment": segment}, at)
            case "source":
                [source] = self._literals(given, at, "a source's name", str)
                return self._made({"field": "sources", "op": "has", "value": source}, at)
            case "consent":
                return self._consent(given, at)
            case "near":
                point = self._literals(given, at, "latitude, longitude and kilometres", int | float, count=3)
                return self._made({"near": dict(zip(("latitude", "longitude", "km"), point, strict=True))}, at)
            case _:
                return self._fact(name.value, given, at)

    def _literals(self, given: list[Any], at: int, what: str, kind: Any, count: int = 1) -> list[Any]:
        if len(given) != count or not all(isinstance(g, _Literal) and isinstance(g.value, kind) for g in given):
            raise BadCriteria("other arguments are needed", position=at, expected=(what,))
        return [g.value for g in given]

    def _consent(self, given: list[Any], at: int) -> Any:
        rest: dict[str, Any] = {}
        while (
            len(given) > 1
            and isinstance(given[-1], dict)
            and given[-1].get("field") in {"state", "lapsed"} - rest.keys()
        ):
            told = given.pop()
            rest[told["field"]] = told["value"]
        [purpose] = self._literals(given, at, "a purpose, state = a state if it isn't granted, or lapsed = true", str)
        return self._made({"consent": purpose, **rest}, at)

    def _fact(self, name: str, given: list[Any], at: int) -> Any:
        if name not in FACT_KINDS:
            return self._made({"fact": name}, at)  # the tree's own check says what is wrong with it
        data: dict[str, Any] = {"fact": name}
        where, having = [], []
        places = {}
        for each in given:
            if not isinstance(each, dict) or "field" not in each:
                place = each.at if isinstance(each, _Literal) else self._marks[id(each), ""]
                raise BadCriteria("only comparisons can stand here", position=place)
            field, value_at = each["field"], self._marks.get((id(each), "value"), at)
            if field in _WINDOW:
                if each["op"] != "=" or not isinstance(each["value"], str) or field in data:
                    raise BadCriteria("a window is needed once, as in within = 90d", position=self._marks[id(each), ""])
                data[field], places[field] = each["value"], value_at
            elif field.partition(".")[0] in _MEASURES:
                having.append(self._measured(each))
            else:
                where.append(each)
        if where:
            data["where"] = where
        if having:
            data["having"] = having
        return self._made(data, at, **places)

    def _measured(self, compared: dict[str, Any]) -> Any:
        marks = {name: self._marks.get((id(compared), name), 0) for name in ("field", "op", "value")}
        data = {"measure": compared["field"], "op": compared["op"], "value": compared["value"]}
        return self._made(data, marks["field"], measure=marks["field"], op=marks["op"], value=marks["value"])

    def step(self, absent: Token | None, fact: Any, within: Token) -> Any:
        data = {"fact": fact, "within": _duration(within), **({"absent": True} if absent else {})}
        return self._made(data, self._marks[id(fact), ""], within=_at(within))

    def sequence(self, fact: Any, *steps: Any) -> Any:
        return self._made({"sequence": fact, "then": [*steps]}, self._marks[id(fact), ""])


def _at(token: Token) -> int:
    return token.start_pos or 0


def _duration(token: Token) -> str:
    """`3 months` as `90d`; a month is 30 days, a year 365. What has no such form is left for the tree's own check."""
    found = re.fullmatch(r"0*([0-9]+)\s*(.+)", token.value)
    if found is None or found[2] in {"s", "min", "h", "d", "w"}:
        return str(token.value)
    number, word = min(int(found[1][:10]), 10**6), found[2].lower()  # beyond any window, which the tree's check refuses
    unit, length = next((unit, length) for start, unit, length in _UNIT_WORDS if word.startswith(start))
    return f"{number * length}{unit}"


def _days(token: Token) -> int:
    length = tree.duration(_duration(token))
    if length % timedelta(days=1):
        raise BadCriteria("whole days are needed", position=_at(token))
    return length.days


def _string(token: Token) -> str:
    text = str(token.value)
    if text[0] == "“":
        return text[1:-1]
    if text[0] == "'":
        inner = re.sub(r'\\.|"', lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), text[1:-1])
        text = f'"{inner}"'
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise BadCriteria("a backslash in a text is followed by what JSON allows", position=_at(token)) from None


def _value(token: Token) -> Any:
    match token.type:
        case "STRING":
            return _string(token)
        case "NUMBER":
            return _number(token)
        case "MONEY":
            amount, currency = token.value.split()
            if len(amount) > 20:
                raise BadCriteria("a number that is out of range", position=_at(token))
            return _Money(Decimal(amount), currency, _at(token))
        case "TRUE" | "FALSE":
            return token.type == "TRUE"
        case "DURATION":
            return _duration(token)
        case "AGO":
            raise BadCriteria("a time that moves can't stand here", position=_at(token))
        case _:
            return token.value


def _number(token: Token) -> int | float:
    if re.fullmatch(r"-?[0-9]{1,20}", token.value):
        return int(token.value)
    if len(token.value) > 40:
        raise BadCriteria("a number that is out of range", position=_at(token))
    return float(token.value)


def print_text(condition: tree.Condition) -> str:
    """The text of a tree; `parse` gives the same tree back."""
    match condition:
        case tree.All():
            return _joined("all", " and ", condition.all)
        case tree.Any_():
            return _joined("any", " or ", condition.any)
        case tree.None_():
            if len(condition.none) == 1:
                return f"not {_within(condition.none[0])}"
            return f"none({', '.join(print_text(c) for c in condition.none)})"
        case tree.Compare():
            return _comparison(_field(condition.field), condition.op, condition.value)
        case tree.Fact():
            return _fact(condition)
        case tree.Sequence():
            steps = [f"then {'not ' if s.absent else ''}{_fact(s.fact)} within {s.within}" for s in condition.then]
            return " ".join([_fact(condition.sequence), *steps])
        case tree.Consent():
            state = "" if condition.state == "granted" else f', state = "{condition.state}"'
            lapsed = ", lapsed = true" if condition.lapsed else ""
            return f"consent({_quoted(condition.consent)}{state}{lapsed})"
        case tree.Segment():
            return f"segment({_quoted(condition.segment)})"
        case tree.Near():
            point = condition.near
            return f"near({point.latitude!r}, {point.longitude!r}, {point.km!r})"


def _joined(name: str, word: str, conditions: list[tree.Condition]) -> str:
    if len(conditions) == 1:
        return f"{name}({print_text(conditions[0])})"
    return word.join(_within(c) for c in conditions)


def _within(condition: tree.Condition) -> str:
    text = print_text(condition)
    several = isinstance(condition, tree.All) and len(condition.all) > 1
    several = several or (isinstance(condition, tree.Any_) and len(condition.any) > 1)
    return f"({text})" if several else text


def _fact(fact: tree.Fact) -> str:
    parts = [_comparison(_field(c.field), c.op, c.value) for c in fact.where]
    parts += [_comparison(_field(h.measure), h.op, h.value) for h in fact.having]
    parts += [f"within = {fact.within}"] if fact.within else []
    parts += [f"{name} = {_quoted(at)}" for name, at in (("since", fact.since), ("until", fact.until)) if at]
    return f"{fact.fact}({', '.join(parts)})"


def _field(name: str) -> str:
    plain, dot, rest = name.partition(".")
    simple = re.fullmatch(r"[A-Z]{3}|[a-z_][a-z0-9_]*", rest) and rest not in _KEYWORDS
    return name if not dot or simple else f"{plain}[{_quoted(rest)}]"


def _comparison(field: str, op: str, value: tree.Value) -> str:
    if op == "known":
        return f"{field} is {'known' if value else 'unknown'}"
    if isinstance(value, list):
        if op == "between":
            return f"{field} between {_scalar(value[0])} and {_scalar(value[1])}"
        return f"{field} {op} [{', '.join(_scalar(v) for v in value)}]"
    return f"{field} {op} {_scalar(value)}"


def _scalar(value: bool | int | float | str) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
