"""The condition tree: what it is made of, its limits, and reading it from JSON or YAML with errors that say where.

A condition holds or doesn't: a comparison with something unknown doesn't hold, and `none` turns that into yes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, TypeAlias

import orjson
import yaml
from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, OPERATORS, FactKind, Field
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic import Field as Constrained

from caudal.errors import Poison

__all__ = [
    "All",
    "Any_",
    "BadCriteria",
    "Compare",
    "Condition",
    "Consent",
    "Fact",
    "Having",
    "Near",
    "None_",
    "Segment",
    "Sequence",
    "Step",
    "document",
    "dump",
    "duration",
    "field_of",
    "json_schema",
    "load",
    "load_text",
    "metrics_named",
    "moment",
    "order",
    "unknown",
    "walk",
]

MAX_DEPTH = 10
MAX_CONDITIONS = 200
MAX_LIST = 1_000
MAX_STRING = 200
MAX_TEXT = 65_536
MAX_WINDOW = timedelta(days=3650)
EXCERPT = 100
"""Characters of a text that are shown around a fault."""
_RAW_DEPTH = 4 * MAX_DEPTH
_RAW_ITEMS = 20_000
_INTEGER = 2**63
CUSTOM = "custom."


class BadCriteria(Poison):
    """Criteria that can't be used. `path` leads to the fault in the tree, `position` is its character in the text form."""

    code = "bad_criteria"

    def __init__(self, message: str, *, path: str = "", position: int | None = None, expected: tuple[str, ...] = ()):
        super().__init__(message)
        self.path = path
        self.position = position
        self.expected = expected
        self._text = ""

    def within(self, text: str) -> BadCriteria:
        """The same fault, knowing the text that `position` counts in."""
        self._text = text
        return self

    @property
    def excerpt(self) -> str:
        """The line of the text with a caret under the fault; empty where there is no text."""
        if self.position is None or not self._text.strip():
            return ""
        line, column = self._line_and_column()
        start = max(0, column - EXCERPT + 20)
        shown = line[start : start + EXCERPT].replace("\t", " ")
        return f"{shown}\n{' ' * (column - start)}^"

    def _line_and_column(self) -> tuple[str, int]:
        """The line that the position is in, and its place there, both from 0."""
        assert self.position is not None
        begin = self._text.rfind("\n", 0, self.position) + 1
        return self._text[begin:].partition("\n")[0], self.position - begin

    def __str__(self) -> str:
        where = self.path and f"{self.path}: "
        if self.position is not None:
            where = f"at character {self.position + 1}: "
            if (line := self._text.count("\n", 0, self.position)) > 0:
                where = f"at line {line + 1}, character {self._line_and_column()[1] + 1}: "
        wanted = f"; expected {', '.join(self.expected)}" if self.expected else ""
        return f"{where}{self.message}{wanted}"


Operator = Literal[
    "=", "!=", "<", "<=", ">", ">=", "in", "not in", "between", "contains", "starts with", "has", "known"
]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
Value = Scalar | Annotated[list[Scalar], Constrained(min_length=1, max_length=MAX_LIST)]
Duration = Annotated[
    str,
    Constrained(
        pattern=r"^[1-9][0-9]{0,9}(s|min|h|d|w)$", description="A whole number and s, min, h, d or w; at most 3650d."
    ),
]
Name = Annotated[str, Constrained(min_length=1, max_length=MAX_STRING)]
Several = Annotated[list["Condition"], Constrained(min_length=1, max_length=MAX_CONDITIONS)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class All(_Node):
    """Every one holds."""

    all: Several


class Any_(_Node):  # noqa: N801 - `Any` is Python's
    """At least one holds."""

    any: Several


class None_(_Node):  # noqa: N801 - `None` is Python's
    """No one holds."""

    none: Several


class Compare(_Node):
    """A field of the profile or a metric, or within a fact a field of that, compared with a value."""

    field: Name
    op: Operator
    value: Value


class Having(_Node):
    """How often, how many units, or how much money the facts that fit come to."""

    measure: Name = Constrained(description="times, units (of orders), or amount_minor.<currency>.")
    op: Operator
    value: Value


class Fact(_Node):
    """Something happened: facts of a kind that fit all of `where`, within the window; at least once unless `having` says otherwise."""

    fact: Name
    where: list[Compare] = Constrained(default=[], max_length=20)
    having: list[Having] = Constrained(default=[], max_length=5)
    within: Duration | None = Constrained(default=None, description="Only in this time before now.")
    since: str | None = Constrained(default=None, description="Only from this date or time on.")
    until: str | None = Constrained(default=None, description="Only before this date or time.")


class Step(_Node):
    """What comes next in a sequence: a fact within a time after the one before, or, as the last one, the lack of it."""

    fact: Fact
    within: Duration
    absent: bool = False


class Sequence(_Node):
    """A fact, then others, each within a time after the one before it."""

    sequence: Fact
    then: list[Step] = Constrained(min_length=1, max_length=4)


class Consent(_Node):
    """The state of consent for a purpose: granted somewhere and withdrawn nowhere; withdrawn, or pending, somewhere.

    With `lapsed`, consents that were granted for a time which is over count too.
    """

    consent: Name
    state: Literal["granted", "withdrawn", "pending"] = "granted"
    lapsed: bool = False


class Segment(_Node):
    """The customer is in another segment."""

    segment: Name


class Point(_Node):
    """A circle on the earth."""

    latitude: float = Constrained(ge=-90, le=90)
    longitude: float = Constrained(ge=-180, le=180)
    km: float = Constrained(gt=0, le=20_100)


class Near(_Node):
    """The profile's coordinates lie within a distance of a point."""

    near: Point


_KINDS = {
    "all": All, "any": Any_, "none": None_, "field": Compare, "fact": Fact, "sequence": Sequence, "consent": Consent,
    "segment": Segment, "near": Near,
}  # fmt: skip


def _kind(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return next((f"<{name}>" for name, cls in _KINDS.items() if isinstance(value, cls)), None)
    named = [name for name in _KINDS if name in value] if isinstance(value, dict) else []
    return f"<{named[0]}>" if len(named) == 1 else None


Condition: TypeAlias = Annotated[
    Annotated[All, Tag("<all>")]
    | Annotated[Any_, Tag("<any>")]
    | Annotated[None_, Tag("<none>")]
    | Annotated[Compare, Tag("<field>")]
    | Annotated[Fact, Tag("<fact>")]
    | Annotated[Sequence, Tag("<sequence>")]
    | Annotated[Consent, Tag("<consent>")]
    | Annotated[Segment, Tag("<segment>")]
    | Annotated[Near, Tag("<near>")],
    Discriminator(
        _kind,
        custom_error_type="condition",
        custom_error_message=f"not a condition: a map with exactly one of {', '.join(_KINDS)} is needed",
    ),
]

for _model in (All, Any_, None_):
    _model.model_rebuild()
_ADAPTER: TypeAdapter[Condition] = TypeAdapter(Condition)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the tree. Which operators and values a field takes is beyond it; `load` checks that as well."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Caudal criteria",
        **_ADAPTER.json_schema(),
    }


def dump(condition: Condition) -> dict[str, Any]:
    """The tree as JSON values; what was left at its default is left out."""
    data: dict[str, Any] = condition.model_dump(exclude_defaults=True)
    return data


def load(data: Any) -> Condition:
    """The tree out of JSON values.

    Raises:
        BadCriteria: it isn't one, says something that has no meaning, or is too large; `path` leads to the fault.
    """
    _bounded(data)
    try:
        condition = _ADAPTER.validate_python(data)
    except ValidationError as exc:
        raise _fault(exc, data) from None
    for number, (path, node) in enumerate(walk(condition)):
        if number >= MAX_CONDITIONS:
            raise BadCriteria(f"more than {MAX_CONDITIONS} conditions", path=path)
        _check(node, path)
    return condition


def load_text(text: str) -> Condition:
    """The tree out of a JSON or YAML document.

    Raises:
        BadCriteria: see `load`.
    """
    return load(document(text))


def document(text: str) -> Any:
    """The values of a JSON or YAML document.

    Raises:
        BadCriteria: it is neither, or too long.
    """
    if len(text) > MAX_TEXT:
        raise BadCriteria(f"longer than {MAX_TEXT} characters")
    try:
        return orjson.loads(text) if text.lstrip().startswith("{") else yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        raise BadCriteria(
            f"no YAML: {exc.problem or 'it ends too early'}", position=mark.index if mark else None
        ) from None
    except orjson.JSONDecodeError as exc:
        raise BadCriteria(f"no JSON: {exc.msg}", position=exc.pos) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as exc:
        # a date such as 2026-13-45, a character that YAML forbids, a surrogate, brackets without end
        raise BadCriteria(f"no YAML that can be read: {type(exc).__name__}") from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which let a short text stand for an endless one, and with dates left as text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _bounded(data: Any) -> None:
    """Refuse what is too deep, too large or unstorable before anything recurses into it."""
    left: list[tuple[Any, int]] = [(data, 0)]
    items = 0
    while left:
        value, depth = left.pop()
        items += 1
        if depth > _RAW_DEPTH or items > _RAW_ITEMS:
            raise BadCriteria("too deep" if depth > _RAW_DEPTH else "too large")
        match value:
            case dict():
                left += [(key, depth + 1) for key in value]
                left += [(each, depth + 1) for each in value.values()]
            case list():
                left += [(each, depth + 1) for each in value]
            case str():
                if len(value) > MAX_STRING:
                    raise BadCriteria(f"a text of more than {MAX_STRING} characters")
                if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
                    raise BadCriteria("a text with characters that can't be stored")
            case bool() | None:
                pass
            case int() | float():
                if not -_INTEGER <= value < _INTEGER:  # also false for NaN
                    raise BadCriteria("a number that is out of range")
            case _:
                raise BadCriteria("a value that JSON doesn't have")


def _fault(error: ValidationError, data: Any) -> BadCriteria:
    """The first fault that pydantic found, in our words, with the path in the data (pydantic's also names branches of unions)."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path, current = "", data
    for part in first["loc"]:
        if isinstance(part, int) and isinstance(current, list) and part < len(current):
            path, current = f"{path}[{part}]", current[part]
        elif isinstance(part, str) and isinstance(current, dict) and part in current:
            path, current = _under(path, part), current[part]
    missing = first["type"] == "missing"
    if missing:
        return BadCriteria(f"`{first['loc'][-1]}` is missing", path=path)
    if first["type"] == "extra_forbidden":
        return BadCriteria("nothing of this name belongs here", path=path)
    if path.endswith("value"):
        return BadCriteria("a text, a number, true, false or a list of such is needed", path=path)
    return BadCriteria(first["msg"][0].lower() + first["msg"][1:], path=path)


def _under(path: str, part: str) -> str:
    # a key that is no word of ours isn't repeated: it may be anything
    shown = part if re.fullmatch(r"[a-z_]{1,20}", part) else "?"
    return f"{path}.{shown}" if path else shown


def walk(condition: Condition, path: str = "", depth: int = 1) -> Iterator[tuple[str, Condition]]:
    """Every condition of the tree with its path, parents first.

    Raises:
        BadCriteria: it is deeper than allowed.
    """
    if depth > MAX_DEPTH:
        raise BadCriteria(f"more than {MAX_DEPTH} levels", path=path)
    yield path, condition
    for name, children in groups(condition):
        for number, child in enumerate(children):
            yield from walk(child, f"{_under(path, name)}[{number}]", depth + 1)


def groups(condition: Condition) -> tuple[tuple[str, list[Condition]], ...]:
    """The conditions of `all`, `any` or `none`; of a leaf nothing."""
    match condition:
        case All():
            return (("all", condition.all),)
        case Any_():
            return (("any", condition.any),)
        case None_():
            return (("none", condition.none),)
        case _:
            return ()


def _check(node: Condition, path: str) -> None:
    """That a leaf has a meaning."""
    match node:
        case Compare():
            field, _ = field_of(node.field, FIELDS, _under(path, "field"))
            _check_value(field, node.op, node.value, path)
        case Fact():
            _check_fact(node, path)
        case Sequence():
            _check_fact(node.sequence, _under(path, "sequence"), counted=False)
            for number, step in enumerate(node.then):
                at = f"{_under(path, 'then')}[{number}]"
                duration(step.within, _under(at, "within"))
                _check_fact(step.fact, _under(at, "fact"), counted=False)
                if step.absent and number < len(node.then) - 1:
                    raise BadCriteria("only the last step can be absent", path=_under(at, "absent"))
        case _:
            pass


def _check_fact(node: Fact, path: str, *, counted: bool = True) -> None:
    kind = FACT_KINDS.get(node.fact)
    if kind is None:
        raise BadCriteria(unknown("kind of fact", node.fact, FACT_KINDS), path=_under(path, "fact"))
    if node.within is not None:
        duration(node.within, _under(path, "within"))
    for name, text in (("since", node.since), ("until", node.until)):
        if text is not None:
            moment(text, _under(path, name))
    for number, compare in enumerate(node.where):
        at = f"{_under(path, 'where')}[{number}]"
        field, _ = field_of(compare.field, kind.fields, _under(at, "field"))
        _check_value(field, compare.op, compare.value, at)
    if node.having and not counted:
        raise BadCriteria("a step of a sequence isn't counted", path=_under(path, "having"))
    for number, having in enumerate(node.having):
        at = f"{_under(path, 'having')}[{number}]"
        measure_of(having.measure, kind, _under(at, "measure"))
        if having.op in {"in", "not in", "known"}:
            raise BadCriteria("this can't be asked of a measure", path=_under(at, "op"))
        _check_value(Field("number", "", ""), having.op, having.value, at)


_CURRENCY = re.compile(r"[A-Z]{3}")


def measure_of(name: str, kind: FactKind, path: str = "") -> tuple[str, str]:
    """A measure of a kind of fact, and its currency.

    Raises:
        BadCriteria: the kind has no such measure.
    """
    measure, _, currency = name.partition(".")
    if name == "times" or (name == "units" and kind.lines):
        return measure, ""
    if measure == "amount_minor" and kind.amount and _CURRENCY.fullmatch(currency):
        return measure, currency
    known = ["times", *(["units"] if kind.lines else []), *(["amount_minor.<currency>"] if kind.amount else [])]
    raise BadCriteria(f"not a measure of this kind of fact, which has {', '.join(known)}", path=path)


def field_of(name: str, fields: Mapping[str, Field], path: str = "") -> tuple[Field, str]:
    """The field that a name means, and the currency or attribute behind its dot.

    Raises:
        BadCriteria: there is none.
    """
    plain, dot, rest = name.partition(".")
    field = fields.get(plain)
    if field is None:
        raise BadCriteria(unknown("field", plain, fields), path=path)
    if field.kind == "money" and not _CURRENCY.fullmatch(rest):
        raise BadCriteria("the currency is missing, as in spend_minor.BRL", path=path)
    if field.kind == "attribute" and not rest:
        raise BadCriteria("the attribute's name is missing, as in attributes.tier", path=path)
    if field.kind == "custom" and not rest:
        raise BadCriteria("the value's name is missing, as in custom.repeat_orders", path=path)
    if dot and field.kind not in {"money", "attribute", "custom"}:
        raise BadCriteria("this field has no parts", path=path)
    return field, rest


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """That there is no such name, and which was perhaps meant."""
    near = get_close_matches(name, known, n=1)
    # what is no word isn't repeated: it may be anything
    shown = f" {name}" if re.fullmatch(r"[a-z][a-z0-9._-]{0,63}", name) else ""
    return f"unknown {what}{shown}" + (f"; did you mean {near[0]}?" if near else "")


def _check_value(field: Field, op: str, value: Value, path: str) -> None:
    if op not in OPERATORS[field.kind]:
        raise BadCriteria(
            f"this can't be asked here; what can is {', '.join(OPERATORS[field.kind])}", path=_under(path, "op")
        )
    at = _under(path, "value")
    if op == "known":
        if not isinstance(value, bool):
            raise BadCriteria("true or false is needed", path=at)
        return
    if op in {"in", "not in", "between"}:
        if not isinstance(value, list):
            raise BadCriteria("a list is needed", path=at)
        if op == "between" and len(value) != 2:
            raise BadCriteria("between needs two values", path=at)
        values = [(each, f"{at}[{number}]") for number, each in enumerate(value)]
    elif isinstance(value, list):
        raise BadCriteria("one value is needed, not a list", path=at)
    else:
        values = [(value, at)]
    for each, place in values:
        _check_scalar(field, op, each, place)
    if field.kind in {"attribute", "custom"} and len({isinstance(each, str) for each, _ in values}) > 1:
        raise BadCriteria("texts and numbers can't be mixed", path=at)


def _check_scalar(field: Field, op: str, value: bool | int | float | str, path: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match field.kind:
        case "text" | "code" | "list" | "codes" if not isinstance(value, str):
            raise BadCriteria("a text is needed", path=path)
        case "number" if not number:
            raise BadCriteria("a number is needed", path=path)
        case "money" if not isinstance(value, int) or not number:
            raise BadCriteria("a whole number of minor units is needed", path=path)
        case "time":
            moment(value, path)
        case "date" if not isinstance(value, str) or not _DATE.fullmatch(value):
            raise BadCriteria("a date is needed, as in 2026-01-31", path=path)
        case "date":
            moment(value, path)
        case "days" | "age":
            most = MAX_WINDOW.days if field.kind == "days" else 150
            if not isinstance(value, int) or not number or not 0 <= value <= most:
                raise BadCriteria(f"a whole number between 0 and {most} is needed", path=path)
        case "attribute":
            wants_text = op in {"contains", "starts with"}
            wants_number = op in {"<", "<=", ">", ">=", "between"}
            if not (number or isinstance(value, str)) or (number and wants_text) or (not number and wants_number):
                raise BadCriteria(f"a {'number' if wants_number else 'text'} is needed", path=path)
        case "custom" if op in {"contains", "starts with"} and not isinstance(value, str):
            raise BadCriteria("a text is needed", path=path)
        case "custom" if isinstance(value, bool) and op not in {"=", "!="}:
            raise BadCriteria("true and false can only be asked for by = and !=", path=path)
        case "custom" if isinstance(value, str) and op in {"<", "<=", ">", ">=", "between"}:
            moment(value, path)
        case _:
            pass


_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([1-9][0-9]{0,9})(s|min|h|d|w)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def duration(text: str, path: str = "") -> timedelta:
    """The length of a window.

    Raises:
        BadCriteria: it isn't one, or longer than 3650 days.
    """
    found = _DURATION.fullmatch(text)
    if not found:
        raise BadCriteria("a duration is needed, as in 90d", path=path)
    number, unit = found.groups()
    length = timedelta(**{_UNITS[unit]: int(number)}) if len(number) < 10 else timedelta.max
    if length > MAX_WINDOW:
        raise BadCriteria(f"a window can't be longer than {MAX_WINDOW.days}d", path=path)
    return length


def moment(text: object, path: str = "") -> datetime:
    """A date (its midnight UTC) or a time with its zone.

    Raises:
        BadCriteria: it is neither, or not between the years 1900 and 2200.
    """
    try:
        at = datetime.fromisoformat(str(text))
        if _DATE.fullmatch(str(text)):
            at = at.replace(tzinfo=UTC)
    except ValueError:
        raise BadCriteria("a date or a time is needed, as in 2026-01-31 or 2026-01-31T10:00:00Z", path=path) from None
    if at.tzinfo is None:
        raise BadCriteria("a time needs its zone, as in 2026-01-31T10:00:00Z", path=path)
    if not 1900 <= at.year <= 2200:
        raise BadCriteria("a year between 1900 and 2200 is needed", path=path)
    return at


def segments_named(condition: Condition) -> set[str]:
    """The segments whose members a condition speaks of."""
    return {node.segment for _, node in walk(condition) if isinstance(node, Segment)}


def metrics_named(condition: Condition) -> dict[str, str]:
    """The values of custom metrics that a condition speaks of, with the path of each."""
    return {
        node.field.removeprefix(CUSTOM): _under(path, "field")
        for path, node in walk(condition)
        if isinstance(node, Compare) and node.field.startswith(CUSTOM)
    }


def order(criteria: Mapping[str, Condition]) -> list[str]:
    """Names of segments so that each comes after those that its criteria name. Names that aren't there are left out.

    Raises:
        BadCriteria: segments that contain each other.
    """
    graph = {name: segments_named(condition) & criteria.keys() for name, condition in criteria.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as exc:
        raise BadCriteria(f"segments contain each other: {' → '.join(reversed(exc.args[1]))}") from None
