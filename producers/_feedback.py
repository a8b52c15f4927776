"""The form that a signed link opens: a page without script, and the answer as a delivery of the source `feedback`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from urllib.parse import parse_qs

import orjson
from caudal.connectors import SignedRequest
from caudal.connectors.feedback import MAX_TEXT, SCALES, Claims, connector, read

from caudal.errors import InvalidPayload

__all__ = ["HEADERS", "answered", "claimed", "form", "language", "message", "token_in"]

HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy",
     b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
)  # fmt: skip

Words = Mapping[str, str]
_WORDS: Mapping[str, Words] = {
    "en": {
        "nps": "How likely are you to recommend us?", "csat": "How satisfied are you?", "ces": "How easy was it?",
        "review": "How many stars do you give?", "low_nps": "not at all", "high_nps": "very likely", "low_csat": "not at all",
        "high_csat": "very", "low_ces": "hard", "high_ces": "easy", "low_review": "poor", "high_review": "excellent",
        "text": "Anything to add?", "send": "Send", "thanks": "Thank you for your answer.", "again": "You can change it by the same link.",
        "refused": "This link is not valid, or not any more.", "missing": "Please choose one of the numbers.",
        "unavailable": "Your answer could not be stored. Please try again in a moment.",
    },
    "pt": {
        "nps": "Qual é a probabilidade de nos recomendar?", "csat": "Qual é o seu grau de satisfação?", "ces": "Foi fácil?",
        "review": "Quantas estrelas dá?", "low_nps": "nenhuma", "high_nps": "muita", "low_csat": "nada satisfeito",
        "high_csat": "muito satisfeito", "low_ces": "difícil", "high_ces": "fácil", "low_review": "ruim", "high_review": "excelente",
        "text": "Quer acrescentar algo?", "send": "Enviar", "thanks": "Obrigado pela resposta.", "again": "Pode alterá-la pelo mesmo link.",
        "refused": "Este link não é válido, ou já não é.", "missing": "Escolha um dos números.",
        "unavailable": "Não foi possível guardar a resposta. Tente de novo daqui a pouco.",
    },
}  # fmt: skip

_STYLE = (
    "body{font:18px/1.5 system-ui,sans-serif;max-width:34em;margin:2em auto;padding:0 1em}fieldset{border:0;padding:0}"
    "label.n{display:inline-block;padding:.3em .7em}textarea{width:100%}button{font:inherit;padding:.4em 1.5em}"
)


def language(accept: str) -> str:
    """`pt` or `en`, whichever the header `Accept-Language` prefers (RFC 9110, 12.5.4); English for all others."""
    best, weight = "en", 0.0
    for part in accept.lower().split(",")[:20]:
        name, _, quality = part.strip().partition(";q=")
        try:
            q = float(quality or 1)
        except ValueError:
            continue
        if name.split("-")[0] in _WORDS and q > weight:
            best, weight = name.split("-")[0], q
    return best


def claimed(token: str, secrets: Sequence[str], now: datetime) -> Claims | None:
    """What an authentic link that hasn't expired says."""
    body = orjson.dumps({"token": token, "score": 0})
    if not connector.verify.verify(SignedRequest(body, {}), secrets, now=now).ok:
        return None
    return read(token)


def token_in(query: bytes) -> str:
    """The token in an address; empty without one."""
    try:
        return parse_qs(query.decode("latin-1"), max_num_fields=10).get("token", [""])[-1]
    except ValueError:
        return ""


def answered(content_type: str, body: bytes) -> bytes | None:
    """An answer in the form in which it is stored; None when it isn't one."""
    try:
        if content_type.partition(";")[0].strip().lower() == "application/json":
            given = orjson.loads(body)
        else:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
            given = {name: values[-1] for name, values in fields.items()}
        score = float(given["score"])
        claims = read(given["token"])
        low, high = SCALES[claims.kind]
        text = given.get("text")
        if not low <= score <= high or not (text is None or (isinstance(text, str) and len(text) <= MAX_TEXT)):
            return None
        return orjson.dumps({"token": given["token"], "score": score, **({"text": text} if text else {})})
    except (ValueError, KeyError, TypeError, AttributeError, InvalidPayload):
        return None


def form(claims: Claims, token: str, lang: str) -> bytes:
    """The page with the form."""
    words = _WORDS[lang]
    low, high = SCALES[claims.kind]
    choices = "".join(
        f'<label class="n"><input type="radio" name="score" value="{n}" required> {n}</label>'
        for n in range(low, high + 1)
    )
    about = f"<p><strong>{escape(claims.product)}</strong></p>" if claims.product else ""
    return _page(
        lang,
        f'<form method="post" action="/feedback"><input type="hidden" name="token" value="{escape(token)}">{about}'
        f"<fieldset><legend>{escape(words[claims.kind])}</legend>"
        f"<p>{low} = {escape(words[f'low_{claims.kind}'])}, {high} = {escape(words[f'high_{claims.kind}'])}</p>{choices}</fieldset>"
        f'<p><label>{escape(words["text"])}<textarea name="text" rows="4" maxlength="{MAX_TEXT}"></textarea></label></p>'
        f"<button>{escape(words['send'])}</button></form>",
    )


def message(lang: str, *names: str) -> bytes:
    """A page that says something."""
    return _page(lang, "".join(f"<p>{escape(_WORDS[lang][name])}</p>" for name in names))


def _page(lang: str, body: str) -> bytes:
    return (
        f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Feedback</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>"
    ).encode()
