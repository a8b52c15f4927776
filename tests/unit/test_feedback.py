"""Signed links and the form behind them: who may answer, what is stored, what people see."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from caudal.connectors import Delivery
from caudal.connectors.feedback import Claims, connector, token
from caudal.producers import edge
from caudal.producers._feedback import language

from caudal.errors import InvalidPayload
from caudal.settings import EdgeSettings, Settings

CUSTOMER = "4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77"


class MemoryLog:
    def __init__(self) -> None:
        self.captures: list[dict[str, Any]] = []

    def start(self) -> None: ...
    async def close(self) -> None: ...
    def prepare(self, source: str) -> None: ...
    def check(self) -> list[str]:
        return []

    def append(self, capture: Mapping[str, Any]) -> asyncio.Future[tuple[int, int]]:
        self.captures.append(dict(capture))
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        future.set_result((0, len(self.captures) - 1))
        return future


def claims(**more: Any) -> Claims:
    return Claims(**{
        "customer": CUSTOMER, "subject": "shop-br:customer:2071", "survey": "2026-05", "kind": "nps",
        "expires": int(time.time()) + 600, **more,
    })  # fmt: skip


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
async def http(tmp_path, log):
    (tmp_path / "caudal.toml").write_text('[sources.feedback]\nconnector = "feedback"\nsecrets = ["new", "old"]\n')
    (tmp_path / "secrets.toml").write_text('[secrets]\nnew = "hush"\nold = "older"\n')
    settings = Settings(home=tmp_path, config_file=tmp_path / "caudal.toml", edge=EdgeSettings(port=0))
    app = edge.build(settings, log=log)
    await app.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://edge") as client:
        yield client
    await app.close()


def events(capture: dict[str, Any]) -> list[Any]:
    return connector.translate(
        Delivery(source="feedback", body=capture["body"], headers=capture["headers"], kind=capture["kind"],
                 delivery_id=capture["delivery_id"], captured_at=capture["captured_at"])
    )  # fmt: skip


async def test_an_answer_of_the_form_becomes_the_feedback_of_its_customer(http, log):
    link = token(claims(product="Sandal"), "hush")
    done = await http.post(
        "/feedback", data={"token": link, "score": "9", "text": "Ótimo"}, headers={"accept-language": "pt-BR,pt;q=0.9"}
    )
    assert (done.status_code, "Obrigado" in done.text) == (200, True)
    [event] = events(log.captures[0])
    assert (event.subject, event.identifiers[0].kind, event.identifiers[0].value) == (
        f"feedback:customer:{CUSTOMER}", "subject", "shop-br:customer:2071",
    )  # fmt: skip
    assert (event.kind, event.score, event.scale_max, event.text) == ("nps", 9.0, 10.0, "Ótimo")
    assert (event.survey, event.product) == ("2026-05", "Sandal")


async def test_a_second_answer_corrects_the_first(http, log):
    link = token(claims(), "older")
    for score in (9, 3):
        answer = await http.post("/feedback", json={"token": link, "score": score})
        assert answer.status_code == 202
    first, second = (events(capture)[0] for capture in log.captures)
    assert first.feedback_id == second.feedback_id
    assert first.event_id != second.event_id
    assert second.occurred_at > first.occurred_at
    assert events(log.captures[0])[0].feedback_id != claims().id, "another link is another answer"


@pytest.mark.parametrize("path", ["/feedback", "/in/feedback"])
async def test_what_is_not_authentic_is_refused(http, log, path):
    good = token(claims(), "hush")
    payload, signature = good.split(".")
    other = token(claims(customer="00000000-0000-0000-0000-000000000000"), "guess")
    swapped = f"{token(claims(kind='review'), 'hush').split('.')[0]}.{signature}"
    expired = token(claims(expires=int(time.time()) - 1), "hush")
    for bad in (payload, f"{payload}.", other, swapped, expired, f"{good}x"):
        answer = await http.post(path, json={"token": bad, "score": 5})
        assert answer.status_code == 401, bad
        page = await http.get("/feedback", params={"token": bad})
        assert (page.status_code, "<form" in page.text) == (403, False)
    for bad in ("", "x", ".", "é.é"):
        assert (await http.post(path, json={"token": bad, "score": 5})).status_code in {401, 422}
    assert log.captures == []


async def test_what_is_no_answer_is_not_stored(http, log):
    link = token(claims(), "hush")
    for body in (
        {"token": link},
        {"token": link, "score": 11},
        {"token": link, "score": "NaN"},
        {"token": link, "score": 5, "text": 7},
        [],
        5,
    ):
        assert (await http.post("/feedback", json=body)).status_code == 422
    page = await http.post(
        "/feedback",
        content=urlencode({"token": link}).encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert (page.status_code, "choose one of the numbers" in page.text) == (422, True)
    assert (await http.post("/feedback", content=b"\xff" * 50)).status_code == 422
    assert (await http.put("/feedback")).status_code == 405
    assert (await http.get("/feedback?" + "a=1&" * 50)).status_code == 403
    assert log.captures == []


class Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict[str, str | None]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "input":
            self.inputs.append(dict(attrs))


@pytest.mark.parametrize(
    ("kind", "numbers"), [("nps", range(11)), ("csat", range(1, 6)), ("ces", range(1, 8)), ("review", range(1, 6))]
)
async def test_the_form_works_without_script_in_two_languages(http, kind, numbers):
    link = token(claims(kind=kind, product='<b>"Sandal"</b>'), "hush")
    for accept, lang, word in (("pt-PT", "pt", "Enviar"), ("de, en;q=0.5", "en", "Send"), ("", "en", "Send")):
        page = await http.get("/feedback", params={"token": link}, headers={"accept-language": accept})
        assert page.status_code == 200
        assert f'<html lang="{lang}">' in page.text
        assert f"<button>{word}</button>" in page.text
        form = Form()
        form.feed(page.text)
        assert not {"script", "img", "b"} & form.tags
        assert [i["value"] for i in form.inputs if i["name"] == "score"] == [str(n) for n in numbers]
        assert [i["value"] for i in form.inputs if i["name"] == "token"] == [link]
        assert page.headers["referrer-policy"] == "no-referrer"
        assert re.search("default-src 'none'", page.headers["content-security-policy"])


def test_the_preferred_language_is_taken():
    assert language("en;q=0.4, pt-BR;q=0.8") == "pt"
    assert language("fr, pt;q=0.1") == "pt"
    assert language("pt;q=x, *") == "en"


def test_a_score_off_the_scale_is_put_aside():
    body = json.dumps({"token": token(claims(kind="csat"), "hush"), "score": 9}).encode()
    with pytest.raises(InvalidPayload, match="between 1 and 5"):
        connector.translate(Delivery(source="feedback", body=body))
