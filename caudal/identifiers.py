"""Normal forms of the values that identify people. Pure, and total: what has no normal form gives None, nothing raises.

Two texts that mean the same e-mail address, phone number or document have one normal form; normalising it again changes nothing.
Which values are evidence at all is not decided here but by the rules of the identity step.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import phonenumbers
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat
from stdnum.br import cnpj as _cnpj
from stdnum.br import cpf as _cpf
from stdnum.exceptions import ValidationError

__all__ = ["KINDS", "LONGEST", "normalise"]

LONGEST = 512
"""Characters. Longer values identify nobody, and would not fit into an index row."""


def normalise(kind: str, value: str, region: str = "BR") -> str | None:
    """The normal form of `value`, or None when it isn't a valid identifier of its kind.

    Args:
        kind: one of `KINDS`; any other kind gives None.
        value: as a source wrote it.
        region: ISO 3166 country of phone numbers without a country code.
    """
    if kind == "phone":
        return phone(value, region)
    normal = _NORMAL.get(kind)
    return normal(value) if normal else None


@lru_cache(maxsize=65_536)
def email(value: str) -> str | None:
    """Trimmed, NFKC, lower case, the domain in its Unicode form (as IDNA 2008 reads it), the local part kept as it is.

    Lower-casing the local part is against the letter of RFC 5321 and what every mailbox provider does.
    """
    text = _clean(value)
    if text is None or "@" not in text:
        return None
    text = text.lower()
    if _PLAIN_EMAIL.fullmatch(text) and text.rpartition(".")[2] not in _SPECIAL_DOMAINS:
        return text
    try:
        return validate_email(text, check_deliverability=False, test_environment=True).normalized.lower()
    except (EmailNotValidError, ValueError):
        return None


_ATOM = r"[a-z0-9_+&=-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PLAIN_EMAIL = re.compile(
    rf"(?=[^@]{{1,64}}@)(?=.{{6,200}}$){_ATOM}(?:\.{_ATOM})*@(?:(?!..--){_LABEL}\.)+[a-z]{{2,24}}"
)
"""Addresses that validate_email would give back as they are, which is nearly all of them, at a hundredth of the time."""
_SPECIAL_DOMAINS = frozenset(name.rpartition(".")[2] for name in SPECIAL_USE_DOMAIN_NAMES) - {"test"}


@lru_cache(maxsize=65_536)
def phone(value: str, region: str = "BR") -> str | None:
    """E.164, when the number is valid in its country's numbering plan.

    Brazil put a 9 before mobile numbers between 2012 and 2016, and old records still lack it. A Brazilian number that is not valid
    without the 9 and valid with it gets it (https://www.gov.br/anatel, resolution 553/2010). `00` before a country code is read
    as `+`, although Brazil's own dialling plan wants a carrier code between them.
    """
    text = _clean(value)
    if text is None:
        return None
    candidates = [text]
    if text.startswith("00"):
        candidates.insert(0, "+" + text[2:])
    for candidate in candidates:
        try:
            number = phonenumbers.parse(candidate, region)
        except NumberParseException:
            continue
        valid = number if phonenumbers.is_valid_number(number) else _with_ninth_digit(number)
        if valid is not None:
            return phonenumbers.format_number(valid, PhoneNumberFormat.E164)
    return None


def _with_ninth_digit(number: PhoneNumber) -> PhoneNumber | None:
    national = str(number.national_number)
    if number.country_code != 55 or len(national) != 10:
        return None
    longer = PhoneNumber(country_code=55, national_number=int(f"{national[:2]}9{national[2:]}"))
    return longer if phonenumbers.is_valid_number(longer) else None


@lru_cache(maxsize=65_536)
def cpf(value: str) -> str | None:
    """Eleven digits with right check digits; leading zeros that a spreadsheet ate are given back."""
    text = _clean(value)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and 9 <= len(text) < 11:
        text = text.zfill(11)
    return _document(_cpf.validate, text)


@lru_cache(maxsize=65_536)
def cnpj(value: str) -> str | None:
    """Fourteen characters with right check digits, also the alphanumeric form issued since July 2026."""
    text = _clean(value)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and 12 <= len(text) < 14:
        text = text.zfill(14)
    return _document(_cnpj.validate, text)


def _document(validate: Callable[[str], str], text: str) -> str | None:
    if not text.isascii():
        return None
    try:
        number = validate(text)
    except (ValidationError, ValueError):
        return None
    return number if len(set(number)) > 1 else None  # 111.111.111-11 has right check digits and is nobody's


def opaque(value: str) -> str | None:
    """Trimmed and otherwise as given: ids are case-sensitive and mean something only within their scope."""
    return _clean(value, form="NFC")


def _clean(value: str, form: Literal["NFC", "NFKC"] = "NFKC") -> str | None:
    if not value or len(value) > LONGEST:
        return None
    if value.isascii() and value.isprintable():
        return " ".join(value.split()) or None
    # invisible characters, such as zero-width spaces and bidi marks, come along when people copy and paste
    visible = "".join(c for c in unicodedata.normalize(form, value) if unicodedata.category(c) != "Cf")
    text = " ".join(visible.split())
    if not text or len(text) > LONGEST or any(unicodedata.category(c) in {"Cc", "Cs", "Cn", "Co"} for c in text):
        return None
    return text


_NORMAL: dict[str, Callable[[str], str | None]] = {
    "email": email,
    "cpf": cpf,
    "cnpj": cnpj,
    "external_id": opaque,
    "device": opaque,
    "subject": opaque,
}

KINDS = frozenset({*_NORMAL, "phone"})
"""Every kind of identifier."""
