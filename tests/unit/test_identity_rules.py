"""Normal forms of identifiers, and the rules that come with Caudal."""

from __future__ import annotations

import pytest
from caudal.processors import rules as identity_rules
from caudal.schemas import Identifier
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from caudal import settings
from caudal.errors import BadSettings
from caudal.identifiers import KINDS, cnpj, cpf, email, normalise, phone

DIGITS = st.text("0123456789 ()-+./", max_size=22)
ADDRESSES = st.builds(
    "{}@{}".format,
    st.text("abcXYZ019.+-_' ü\u200b", max_size=20),
    st.text("abcXYZ019.-ü", max_size=20).map(lambda domain: domain + ".com"),
)
VALUES = st.one_of(st.text(max_size=60), DIGITS, ADDRESSES, st.emails())


@pytest.fixture
def rules(tmp_path):
    return identity_rules.load(settings.load(config_file=tmp_path / "caudal.toml"))


@hypothesis_settings(deadline=None)  # shared machines stall
@given(kind=st.sampled_from(sorted(KINDS)), value=VALUES, region=st.sampled_from(["BR", "PT", "US", "XX"]))
def test_normalising_never_raises_and_again_changes_nothing(kind, value, region):
    normal = normalise(kind, value, region)
    if normal is not None:
        assert normalise(kind, normal, region) == normal
        assert len(normal) <= 512
        assert "\x00" not in normal


@hypothesis_settings(deadline=None)  # shared machines stall
@given(value=st.one_of(ADDRESSES, st.emails()))
def test_plain_addresses_are_what_the_full_check_would_give(value):
    quick = email.__wrapped__(value)
    text = " ".join(value.replace("\u200b", "").split()).lower()
    try:
        full = validate_email(text, check_deliverability=False, test_environment=True).normalized.lower()
    except (EmailNotValidError, ValueError):
        full = None
    assert quick == full


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (" Ana.Souza@Exemplo.COM.br\n", "ana.souza@exemplo.com.br"),
        ("ana+news@exemplo.com", "ana+news@exemplo.com"),
        ("ana@xn--bcher-kva.example", "ana@bücher.example"),
        ("ａｎａ@exemplo.com", "ana@exemplo.com"),
        ("ana\u200b@exemplo.com", "ana@exemplo.com"),
        ("ana@localhost", None),
        ("ana@@exemplo.com", None),
        ("ana souza@exemplo.com", None),
        ("mailto:ana@exemplo.com", None),
        ("", None),
    ],
)
def test_email(written, normal):
    assert email(written) == normal


@pytest.mark.parametrize(
    ("written", "region", "normal"),
    [
        ("(81) 99234-5678", "BR", "+5581992345678"),
        ("081 99234 5678", "BR", "+5581992345678"),
        ("+55 81 9234-5678", "BR", "+5581992345678"),  # the ninth digit is missing
        ("81 9234 5678", "BR", "+5581992345678"),
        ("551192345678", "BR", "+5511992345678"),
        ("0055 81 99234-5678", "BR", "+5581992345678"),
        ("(81) 3234-5678", "BR", "+558132345678"),  # a landline has eight digits
        ("(11) 7123-4567", "BR", "+551171234567"),  # so has a trunked radio
        ("912 345 678", "PT", "+351912345678"),
        ("+351 912 345 678", "BR", "+351912345678"),
        ("12345", "BR", None),
        ("81 99234", "BR", None),
        ("call me", "BR", None),
    ],
)
def test_phone(written, region, normal):
    assert phone(written, region) == normal


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("529.982.247-25", "52998224725"),
        (" 52998224725 ", "52998224725"),
        ("529.982.247-26", None),
        ("111.111.111-11", None),
        ("000.000.000-00", None),
        ("٥٢٩٩٨٢٢٤٧٢٥", None),
    ],
)
def test_cpf(written, normal):
    assert cpf(written) == normal


def test_a_cpf_whose_leading_zero_a_spreadsheet_ate_gets_it_back():
    assert cpf("01234567890") == cpf("1234567890") == "01234567890"


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("11.222.333/0001-81", "11222333000181"),
        ("12.abc.345/01de-35", "12ABC34501DE35"),  # the Federal Revenue's own example of the alphanumeric form
        ("12.ABC.345/01DE-36", None),
        ("00.000.000/0000-00", None),
    ],
)
def test_cnpj(written, normal):
    assert cnpj(written) == normal


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "test@test.com"),
        ("email", "NoReply@loja.com.br"),
        ("email", "no-reply+123@loja.com.br"),
        ("email", "email@example.com"),
        ("email", "naotem@loja.com.br"),
        ("phone", "(11) 99999-9999"),
        ("phone", "+55 11 3333-3333"),
        ("external_id", "0000"),
        ("external_id", "NULL"),
        ("cpf", "000.000.000-00"),
        ("device", "00000000-0000-0000-0000-000000000000"),
        ("horoscope", "aries"),
    ],
)
def test_placeholders_are_no_evidence(rules, kind, value):
    assert rules.evidence(kind, value) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "ana@example.com"),
        ("email", "noreplyana@gmail.com"),
        ("email", "contato@testes.com.br"),
        ("phone", "+55 11 98888-1234"),
        ("external_id", "100"),
        ("subject", "shop:customer:1"),
    ],
)
def test_people_s_values_are_evidence(rules, kind, value):
    assert rules.evidence(kind, value) is not None


def test_usable_identifiers_are_normalised_once_each_in_the_order_given(rules):
    given = [("phone", "81 9234-5678"), ("email", "A@x.com"), ("email", "a@X.com"), ("email", "nobody"), ("cpf", "1")]
    assert rules.usable([Identifier(kind=kind, value=value) for kind, value in given]) == (
        Identifier(kind="phone", value="+5581992345678"),
        Identifier(kind="email", value="a@x.com"),
    )


def test_a_file_beside_the_configuration_takes_the_place_of_the_rules(tmp_path):
    kinds = ", ".join(f'"{kind}"' for kind in sorted(KINDS))
    (tmp_path / "identity.toml").write_text(f'priority = [{kinds}]\n[kinds.email]\nmost = 3\nblocked = ["x@.*"]\n')
    rules = identity_rules.load(settings.load(config_file=tmp_path / "caudal.toml", default_region="PT"))
    assert rules.most("email") == 3
    assert rules.shared_by("email") is None
    assert rules.evidence("email", "x@y.com") is None
    assert rules.evidence("phone", "912 345 678") == Identifier(kind="phone", value="+351912345678")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("priority = [", "identity.toml"),
        ('priority = ["email"]\n[kinds]', "each kind"),
        ("priority = []\n[kinds.email]\nmost = 0\n", "kinds.email.most"),
        ('priority = []\n[kinds.email]\nblocked = ["("]\n', "not a regular expression"),
        ("priority = []\nkinds = {}\nsurprise = 1\n", "surprise"),
    ],
)
def test_a_damaged_rules_file_is_refused_with_the_place(tmp_path, text, fault):
    (tmp_path / "identity.toml").write_text(text)
    with pytest.raises(BadSettings, match=fault):
        identity_rules.load(settings.load(config_file=tmp_path / "caudal.toml"))


def test_a_text_of_no_sensible_length_is_no_evidence(rules):
    assert rules.evidence("external_id", "x" * 512) is not None
    assert rules.evidence("external_id", "x" * 513) is None
