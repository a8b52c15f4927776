"""Codes that stand for a value with many names: countries, languages, genders, the states of Brazil.

Connectors bring what vendors write to these codes, and criteria what people ask for. Pure; what can't be read gives None.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["country", "gender", "language", "region", "state"]

_GENDERS = {
    **dict.fromkeys(("f", "female", "feminino", "femenino", "mulher", "mujer", "woman"), "female"),
    **dict.fromkeys(("m", "male", "masculino", "homem", "hombre", "man"), "male"),
    **dict.fromkeys(("other", "outro", "otro"), "other"),
}

_COUNTRIES = {
    name: code
    for code, names in {
        "AO": "angola",
        "AR": "argentina",
        "AU": "australia|austrália",
        "AT": "austria|áustria",
        "BE": "belgium|bélgica",
        "BO": "bolivia|bolívia",
        "BR": "brazil|brasil",
        "CA": "canada|canadá",
        "CL": "chile",
        "CN": "china",
        "CO": "colombia|colômbia",
        "CV": "cape verde|cabo verde",
        "DE": "germany|alemanha|alemania|deutschland",
        "DK": "denmark|dinamarca",
        "EC": "ecuador|equador",
        "ES": "spain|espanha|españa",
        "FR": "france|frança|francia",
        "GB": "united kingdom|reino unido|great britain|england|uk",
        "IE": "ireland|irlanda",
        "IN": "india|índia",
        "IT": "italy|itália|italia",
        "JP": "japan|japão",
        "LU": "luxembourg|luxemburgo",
        "MX": "mexico|méxico",
        "MZ": "mozambique|moçambique",
        "NL": "netherlands|the netherlands|países baixos|holanda",
        "NO": "norway|noruega",
        "NZ": "new zealand|nova zelândia",
        "PE": "peru|perú",
        "PL": "poland|polônia|polónia",
        "PT": "portugal",
        "PY": "paraguay|paraguai",
        "SE": "sweden|suécia",
        "CH": "switzerland|suíça",
        "US": "united states|united states of america|usa|estados unidos",
        "UY": "uruguay|uruguai",
        "VE": "venezuela",
    }.items()
    for name in names.split("|")
}

_STATES = {
    "AC": "Acre", "AL": "Alagoas", "AM": "Amazonas", "AP": "Amapá", "BA": "Bahia", "CE": "Ceará", "DF": "Distrito Federal",
    "ES": "Espírito Santo", "GO": "Goiás", "MA": "Maranhão", "MG": "Minas Gerais", "MS": "Mato Grosso do Sul", "MT": "Mato Grosso",
    "PA": "Pará", "PB": "Paraíba", "PE": "Pernambuco", "PI": "Piauí", "PR": "Paraná", "RJ": "Rio de Janeiro",
    "RN": "Rio Grande do Norte", "RO": "Rondônia", "RR": "Roraima", "RS": "Rio Grande do Sul", "SC": "Santa Catarina",
    "SE": "Sergipe", "SP": "São Paulo", "TO": "Tocantins",
}  # fmt: skip
"""ISO 3166-2:BR, without the country."""


def country(value: object) -> str | None:
    """ISO 3166 alpha-2, from the code itself or the English, Portuguese or Spanish name of the countries we meet most."""
    text = str(value).strip()
    if re.fullmatch(r"[A-Za-z]{2}", text) and text.lower() != "uk":
        return text.upper()
    return _COUNTRIES.get(text.lower())


def language(value: object) -> str | None:
    """BCP 47 with its usual capitals: `pt-br` and `pt_BR` become `pt-BR`."""
    parts = str(value).strip().replace("_", "-").split("-")
    if not re.fullmatch(r"[A-Za-z]{2,3}", parts[0]) or not all(re.fullmatch(r"[A-Za-z0-9]{2,8}", p) for p in parts[1:]):
        return None
    shape = {2: str.upper, 4: str.title}
    return "-".join([parts[0].lower(), *(shape.get(len(part), str.lower)(part) for part in parts[1:])])


def gender(value: object) -> str | None:
    """female, male, other, or the source's own word in lower case."""
    text = str(value).strip().lower()
    return _GENDERS.get(text, text) or None


def region(value: object) -> str | None:
    """The code of a state of Brazil, from the code itself (`pe`, `BR-PE`) or its name, with or without accents.

    A name alone doesn't tell the country: Amazonas is a state of Venezuela, too.
    """
    text = _folded(str(value)).removeprefix("br-").removeprefix("estado de ").removeprefix("estado do ")
    return _STATE_CODES.get(text)


def state(code: str) -> str | None:
    """The name of a state of Brazil."""
    return _STATES.get(code)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", " ".join(text.split()).lower())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


_STATE_CODES = {_folded(name): code for code, name in _STATES.items()} | {code.lower(): code for code in _STATES}
