"""Criteria without a database: the tree and its limits, the text form and back, and inputs that mean harm."""

import json
from pathlib import Path

import pytest
from caudal.projections import criteria
from caudal.projections.criteria import tree
from caudal.projections.criteria.fields import FIELDS
from caudal.projections.criteria.text import parse, print_text
from criteria_trees import trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(trees)
def test_a_tree_goes_into_text_and_json_and_back(data):
    condition = criteria.load(data)
    assert parse(print_text(condition)) == condition
    assert criteria.load(json.loads(json.dumps(criteria.dump(condition)))) == condition
    assert criteria.load_text(json.dumps(data)) == condition


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('city = "Recife"', {"field": "city", "op": "=", "value": "Recife"}),
        ("spend > 500 BRL", {"field": "spend_minor.BRL", "op": ">", "value": 50000}),
        ("spend between 5 JPY and 7 JPY", {"field": "spend_minor.JPY", "op": "between", "value": [5, 7]}),
        ("email is unknown", {"field": "email", "op": "known", "value": False}),
        ('attributes["my field"] = "x"', {"field": "attributes.my field", "op": "=", "value": "x"}),
        ('source("crm")', {"field": "sources", "op": "has", "value": "crm"}),
        (
            'city not in ["a", "b"] AND age >= 3',
            {
                "all": [
                    {"field": "city", "op": "not in", "value": ["a", "b"]},
                    {"field": "age", "op": ">=", "value": 3},
                ]
            },
        ),
        (
            'bought(category = "shoes", times >= 2, amount > 9.90 EUR, within = 90d)',
            {
                "fact": "bought",
                "where": [{"field": "category", "op": "=", "value": "shoes"}],
                "having": [
                    {"measure": "times", "op": ">=", "value": 2},
                    {"measure": "amount_minor.EUR", "op": ">", "value": 990},
                ],
                "within": "90d",
            },
        ),
        (
            "viewed() then not bought() within 7d",
            {"sequence": {"fact": "viewed"}, "then": [{"fact": {"fact": "bought"}, "within": "7d", "absent": True}]},
        ),
        (
            'not (segment("a") or consent("x", state = "withdrawn"))',
            {"none": [{"any": [{"segment": "a"}, {"consent": "x", "state": "withdrawn"}]}]},
        ),
    ],
)
def test_a_text_means_a_tree(text, data):
    assert criteria.dump(parse(text)) == criteria.dump(criteria.load(data))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("city = 'Recife'", 'city = "Recife"'),
        ("name = 'D\\'Ávila \"Neto\"'", 'name = "D\'Ávila \\"Neto\\""'),
        ("city = “Recife”", 'city = "Recife"'),
        ("age == 3", "age = 3"),
        ("age <> 3", "age != 3"),
        ("age ≥ 3 and age ≤ 9", "age >= 3 and age <= 9"),
        ("bought(within = 3 months)", "bought(within = 90d)"),
        ("bought(within = 1 Month)", "bought(within = 30d)"),
        ("bought(within = 2 years)", "bought(within = 730d)"),
        ("bought(within = 90 days)", "bought(within = 90d)"),
        ("bought(within = 90 dias)", "bought(within = 90d)"),
        ("bought(within = 2 meses)", "bought(within = 60d)"),
        ("bought(within = 1 mês)", "bought(within = 30d)"),
        ("bought(within = 1 ano)", "bought(within = 365d)"),
        ("bought(within = 2 semanas)", "bought(within = 2w)"),
        ("bought(within = 36 hours)", "bought(within = 36h)"),
        ("bought(within = 15 minutos)", "bought(within = 15min)"),
        ("bought(within = 30 seconds)", "bought(within = 30s)"),
        ("viewed() then bought() within 7 days", "viewed() then bought() within 7d"),
        ("bought(since = 30 days ago)", "bought(within = 30d)"),
        ("bought(since = 6 meses atrás)", "bought(within = 180d)"),
        ("last_order_at > 30 days ago", "days_since_last_order < 30"),
        ("last_order_at < 2w ago", "days_since_last_order >= 14"),
        ("signed_up_at between 60d ago and 30d ago", "days_since_signed_up between 30 and 59"),
    ],
)
def test_what_people_write_means_what_they_mean(text, means):
    assert print_text(parse(text)) == means


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ('citty = "x"', 0, "did you mean city?"),
        ("city = ", 6, "a text in quotes"),
        ('city = "x" adn age > 3', 11, "expected and, or, the end"),
        ('age > 3 and (city = "x"', 23, "expected )"),
        ('age > "x"', 6, "a whole number between 0 and 150"),
        ('bought(times >= 2, categroy = "x")', 19, "did you mean category?"),
        ('bought(category = "x", times >= "2")', 32, "a number is needed"),
        ("bought(within = 9999d)", 16, "longer than 3650d"),
        ("bought(within = 9d, since = 2026-02-30)", 28, "a date or a time"),
        ("spend > 5.001 BRL", 8, "2 decimal places"),
        ("spend > 5", 0, "did you mean spend_minor?"),
        ("spend_minor > 5", 0, "the currency is missing"),
        ("viewed() then bought() within 9999d", 30, "longer than 3650d"),
        ("viewed() then not bought() within 1d then viewed() within 1d", 18, "only the last step"),
        ('age = 3 or purchased(sku = "x")', 11, "unknown kind of fact purchased"),
        ("last_order_at = 3 days ago", 14, "of a time that moves"),
        ("last_order_at > 5 hours ago", 16, "whole days are needed"),
        ("birth_date > 30 days ago", 13, "a time that moves can't stand here"),
        ("bought(until = 30 days ago)", 15, "a time that moves can't stand here"),
        ("bought(within = 99999999999999999999 years)", 16, "longer than 3650d"),
        ('city = "\\x"', 7, "a backslash"),
        ('"x"', 0, "this can't stand here"),
        ("", 0, "ends too early"),
    ],
)
def test_a_fault_in_a_text_is_shown_by_its_character(text, position, says):
    with pytest.raises(criteria.BadCriteria) as fault:
        parse(text)
    assert fault.value.position == position
    assert says in str(fault.value)


@pytest.mark.parametrize(
    ("text", "excerpt"),
    [
        ("age > 3 and citty = 'x'", "age > 3 and citty = 'x'\n            ^"),
        ("age > 3\nand citty = 'x'", "and citty = 'x'\n    ^"),
        ("age > 3 and", "age > 3 and\n           ^"),
        (f"age in [{'30, ' * 60}x]", None),
    ],
)
def test_a_fault_in_a_text_can_be_shown_under_it(text, excerpt):
    with pytest.raises(criteria.BadCriteria) as fault:
        parse(text)
    line, caret = fault.value.excerpt.split("\n")
    assert len(line) <= 100
    assert caret.strip() == "^"
    assert text[fault.value.position : fault.value.position + 1] == line[len(caret) - 1 : len(caret)]
    if excerpt is not None:
        assert fault.value.excerpt == excerpt


def test_a_fault_in_a_text_of_several_lines_names_the_line():
    with pytest.raises(criteria.BadCriteria, match="at line 2, character 5: unknown field citty; did you mean city"):
        parse("age > 3\nand citty = 'x'")


@pytest.mark.parametrize(
    ("field", "asked", "stands"),
    [
        ("gender", "Female", "female"),
        ("gender", "F", "female"),
        ("gender", "mulher", "female"),
        ("country", "br", "BR"),
        ("country", "Brasil", "BR"),
        ("country", "uk", "GB"),
        ("language", "pt_br", "pt-BR"),
        ("region", "Pernambuco", "PE"),
        ("region", "pernambuco", "PE"),
        ("region", "pe", "PE"),
        ("region", "PE", "Pernambuco"),
        ("region", "ceara", "Ceará"),
        ("region", "ny", "NY"),
        ("sources", "CRM", "crm"),
    ],
)
def test_a_code_is_asked_for_by_any_of_its_names(field, asked, stands):
    assert stands in FIELDS[field].forms(asked)
    assert asked in FIELDS[field].forms(asked) or field in {"country", "language", "gender"}


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        ({"all": [{"field": "city", "op": "=", "value": "x"}, {"field": "age", "op": "="}]}, "all[1]", "`value`"),
        ({"any": [{"none": [{"field": "citty", "op": "=", "value": "x"}]}]}, "any[0].none[0].field", "mean city?"),
        ({"all": []}, "all", "at least 1 item"),
        ({"al": []}, "", "exactly one of all, any"),
        ({"all": [], "any": []}, "", "exactly one of"),
        ([], "", "exactly one of"),
        ({"field": "city", "op": "like", "value": "x"}, "op", "input should be"),
        ({"field": "city", "op": "<", "value": "x"}, "op", "what can is ="),
        ({"field": "city", "op": "=", "value": {}}, "value", "a list of such"),
        ({"field": "city", "op": "=", "value": "x", "valeu": 1}, "valeu", "belongs here"),
        ({"field": "age", "op": "in", "value": [3, "x"]}, "value[1]", "whole number"),
        ({"field": "tags", "op": "known", "value": "yes"}, "value", "true or false"),
        ({"fact": "bought", "where": [{"field": "score", "op": "=", "value": 1}]}, "where[0].field", "unknown field"),
        ({"fact": "answered", "having": [{"measure": "units", "op": "=", "value": 1}]}, "having[0].measure", "times"),
        ({"fact": "bought", "within": "1y"}, "within", "should match pattern"),
        ({"near": {"latitude": 91, "longitude": 0, "km": 1}}, "near.latitude", "less than or equal to 90"),
    ],
)
def test_a_fault_in_a_tree_is_shown_by_its_path(data, path, says):
    with pytest.raises(criteria.BadCriteria) as fault:
        criteria.load(data)
    assert fault.value.path == path
    assert says in str(fault.value)


def _nested(levels):
    data = {"field": "age", "op": "=", "value": 3}
    for _ in range(levels):
        data = {"none": [data]}
    return data


@pytest.mark.parametrize(
    "data",
    [
        _nested(10), _nested(100), _nested(50_000),
        {"any": [{"field": "age", "op": "=", "value": 3}] * 201},
        {"any": [{"any": [{"field": "age", "op": "=", "value": 3}] * 60}] * 4},
        {"field": "city", "op": "in", "value": ["x"] * 1001},
        {"field": "city", "op": "=", "value": "x" * 201},
        {"field": "city", "op": "=", "value": "a\0b"},
        {"field": "city", "op": "=", "value": "\ud800"},
        {"field": "tickets_count", "op": "=", "value": 2**63},
        {"field": "last_nps_score", "op": "=", "value": float("nan")},
        {"field": "last_nps_score", "op": "=", "value": float("inf")},
        {"field": "tickets_count", "op": "=", "value": True},
        {"field": "city", "op": "=", "value": object()},
        {"fact": "bought", "within": "9999999999w"},
    ],
)  # fmt: skip
def test_what_is_too_much_is_refused(data):
    with pytest.raises(criteria.BadCriteria):
        criteria.load(data)


@pytest.mark.parametrize(
    "text",
    ["(" * 60_000, "not " * 15_000 + "age = 3", "x" * 70_000, "age in [" + "1," * 20_000 + "1]", "all(" * 3_000, 'city = "' + "(" * 300],
)  # fmt: skip
def test_a_text_without_end_is_refused(text):
    with pytest.raises(criteria.BadCriteria):
        parse(text)


@pytest.mark.parametrize(
    "document",
    ["a: &a [*a]", "a: &a {b: 1}\nc: *a", "[" * 30_000, "{" * 30_000, "a: !!python/object:os.system x", "? [", "\ud800", "a: 2026-99-99",
     "'"],
)  # fmt: skip
def test_a_document_that_means_harm_is_refused(document):
    with pytest.raises(criteria.BadCriteria):
        criteria.load_text(document)


def test_yaml_and_its_dates_are_read():
    condition = criteria.load_text(
        "all:\n- {field: birth_date, op: '<', value: 1990-01-31}\n- fact: bought\n  since: 2026-01-01\n"
    )
    assert print_text(condition) == 'birth_date < "1990-01-31" and bought(since = "2026-01-01")'


pieces = st.sampled_from(
    ["city", "age", "=", "!=", '"x"', "'", '"', ";", "--", "%s", "%(now)s", "{", "}", "(", ")", "[", "]", ",", "and", "or", "not", "in",
     "bought", "times", "within", "90d", "5", "BRL", "then", "between", "is", "known", "attributes", ".", "\\", "\0", "\ud800", "é",
     "near", "consent", "segment", "2026-01-01", "-", "/*", "$$", "all"]
)  # fmt: skip


@quick
@given(st.text(max_size=60) | st.lists(pieces, max_size=14).map(" ".join) | st.lists(pieces, max_size=14).map("".join))
def test_any_text_gives_a_tree_or_a_clean_fault(text):
    for read in (parse, criteria.load_text):
        try:
            condition = read(text)
        except criteria.BadCriteria as caught:
            fault, condition = caught, None
        if condition is not None:
            assert parse(print_text(condition)) == condition
        else:
            assert fault.position is None or 0 <= fault.position <= len(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | pieces,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["all", "any", "none", "field", "op", "value", "fact", "where", "within", "sequence", "then", "near",
                             "x"])
            | st.text(max_size=3), inner, max_size=3,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@quick
@given(values)
def test_any_json_gives_a_tree_or_a_clean_fault(data):
    try:
        condition = criteria.load(data)
    except criteria.BadCriteria:
        return
    assert parse(print_text(condition)) == condition


@quick
@given(st.text(max_size=30))
def test_no_text_of_a_user_is_in_the_sql(word):
    hostile = f"zq{word}zq"
    try:
        condition = criteria.load(
            {
                "any": [
                    {"field": "city", "op": "=", "value": hostile},
                    {"field": f"attributes.{hostile}", "op": "in", "value": [hostile]},
                    {"segment": hostile},
                    {"consent": hostile},
                    {"fact": "bought", "where": [{"field": "sku", "op": "contains", "value": hostile}]},
                ]
            }
        )
    except criteria.BadCriteria:
        return
    for made in (
        criteria.predicate(condition),
        criteria.members(condition),
        criteria.explanation(condition),
    ):
        assert "zq" not in made.text
        assert hostile in made.parameters.values()


def test_what_a_criterion_reads_is_known():
    condition = parse(
        'city = "x" and spend > 1 BRL and bought() and consent("a") and segment("b") and viewed() then not returned() within 1d'
    )
    assert criteria.reads(condition) == {
        "profiles", "metrics", "orders", "consents", "segment_members", "interactions", "refunds",
    }  # fmt: skip


def test_only_what_time_changes_is_ever_due():
    never = "ARRAY[NULL::timestamptz] AS dues"
    assert never in criteria.explanation(parse("spend > 1 BRL")).text
    for text in ("age = 3", "days_since_last_order < 3", "bought(within = 3d)", 'consent("x")'):
        assert never not in criteria.explanation(parse(text)).text


def test_segments_come_after_those_that_they_name_and_never_contain_themselves():
    known = {"a": parse('segment("b") and not segment("c")'), "b": parse('segment("c")'), "c": parse("age > 3")}
    assert criteria.order(known) == ["c", "b", "a"]
    with pytest.raises(criteria.BadCriteria, match=r"segments contain each other: .*→"):
        criteria.order({**known, "c": parse('age > 3 or segment("a")')})


def test_the_published_schema_follows_from_the_code():
    written = json.loads((ROOT / "docs/reference/criteria.schema.json").read_text())
    assert written == criteria.json_schema(), (
        "run: caudal criteria schema | python -m json.tool --no-ensure-ascii --indent 2 > docs/reference/criteria.schema.json"
    )


def test_the_limits_that_the_docs_name_are_those_of_the_code():
    page = (ROOT / "docs/segments.md").read_text()
    for limit in (tree.MAX_DEPTH, tree.MAX_CONDITIONS, tree.MAX_LIST, tree.MAX_STRING, tree.MAX_WINDOW.days):
        assert f"{limit}" in page.replace(",", "")
