"""Signatures against vectors that others published, and against what an attacker or a careless proxy does to a request."""

from __future__ import annotations

from typing import Any

import pytest
from caudal.connectors import Hmac, SignedRequest, Verdict, get
from caudal.connectors._signatures import fresh, matches

# Origin of each: "published" vectors stand in the cited source and were recomputed; "derived" ones were computed with openssl from the
# scheme that the source describes.
VECTORS: dict[str, tuple[Hmac, str, dict[str, str], str]] = {
    # published: GitHub's documentation, "Validating webhook deliveries"
    "github": (
        Hmac(header="x-hub-signature-256", encoding="hex", prefix="sha256="),
        "It's a Secret to Everybody",
        {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
        "Hello, World!",
    ),
    # published: frain-dev/convoy@2af1902 pkg/verifier/verifier_test.go
    "convoy sha256": (
        Hmac(header="x-hub-signature-256", encoding="hex", prefix="sha256="),
        "Convoy",
        {"x-hub-signature-256": "sha256=d7a154547e7c35e31c4c820e20237650939c3d34dae136e30a7757ca61abb4cf"},
        "Test Payload Body",
    ),
    # published: as above
    "convoy sha512": (
        Hmac(header="x-convoy-signature", digest="sha512"),
        "Convoy",
        {
            "x-convoy-signature": "gzBjgvU2HTU1HW3kWZjyO1L0C8+Wvv5OkvE3wPG/SnEZOIsjjY+dUCrHfm8aiEmkd4JyZn7YjVMMrIBQvR/uLQ=="
        },
        "Test Payload Body",
    ),
    # published: Shopify/shopify_python_api@307fa92 test/session_test.py; the request is a query there, the construction the same
    "shopify oauth": (
        Hmac(header="hmac", encoding="hex"),
        "hush",
        {"hmac": "2cb1a277650a659f1b11e92a4a64275b128e037f2c3390e3c8fd2d8721dac9e2"},
        "code=a94a110d86d2452eb3e2af4cfb8a3828&shop=some-shop.myshopify.com&timestamp=1337178173",
    ),
    # derived: woocommerce/woocommerce-rest-api-docs@13d61967 wp-api-v3/_webhooks.md
    "woocommerce": (
        Hmac(header="x-wc-webhook-signature"),
        "wc-secret",
        {"x-wc-webhook-signature": "A6vjnn7/ZsqrAuBk9kLGS4hcr5/7NeVeLgn+5pq6k5U="},
        '{"id":17,"code":"","amount":"10.00"}',
    ),
    # derived: Intercom's developer documentation, signed notifications
    "intercom": (
        Hmac(header="x-hub-signature", digest="sha1", encoding="hex", prefix="sha1="),
        "intercom-client-secret",
        {"x-hub-signature": "sha1=0713e864426b730a891d8e2d27b61158de568320"},
        '{"type":"notification_event","app_id":"abc123def","topic":"contact.deleted"}',
    ),
    # derived: automatisch's Typeform trigger, rowyio/rowy-hooks src/verifiers/typeform.ts
    "typeform": (
        Hmac(header="typeform-signature", prefix="sha256="),
        "typeform-secret",
        {"typeform-signature": "sha256=V4av01xZQKoXUR6etfPn1a/yOWAHU5vesS2KBVAOzo4="},
        '{"event_id":"01FE7F3QAKZ","event_type":"form_response","form_response":{"token":"tok"}}',
    ),
    # derived: TiendaNube/api-docs@40588234 resources/webhook.md
    "nuvemshop": (
        Hmac(header="x-linkedstore-hmac-sha256", encoding="hex"),
        "secret",
        {"x-linkedstore-hmac-sha256": "81668b14abec79a2b2ea09ec192ba7ea8153ce739d3b231dd697893e1976af23"},
        '{"store_id":123,"event":"order/paid","id":450789469}',
    ),
    # derived: SurveyMonkey's API documentation, v3
    "surveymonkey": (
        Hmac(header="sm-signature", digest="sha1"),
        "cid&csecret",
        {"sm-signature": "Po7UAUD4UIj2WYCz8bUHJXK6J2g="},
        '{"name":"My Survey Webhook","event_type":"response_completed","event_id":"unique-event-id-12345","object_id":"987654321"}',
    ),
}

# derived: https://shopify.dev/docs/apps/build/webhooks/verify-deliveries
SHOPIFY_BODY = b'{"id":820982911946154508,"email":"jon@example.com"}'
SHOPIFY_SIGNATURE = "D0UMXmhjwBRi4y66TmhJrDlhQABD7zI2fm3p6/QLMo8="

each_vector = pytest.mark.parametrize("name", VECTORS)


def verdict(scheme: Any, headers: dict[str, str], body: bytes, *secrets: str) -> bool:
    return bool(scheme.verify(SignedRequest(body=body, headers=headers), secrets).ok)


@each_vector
def test_a_known_vector_holds(name: str) -> None:
    scheme, secret, headers, body = VECTORS[name]
    assert verdict(scheme, headers, body.encode(), secret)


@each_vector
def test_one_changed_byte_breaks_it(name: str) -> None:
    scheme, secret, headers, body = VECTORS[name]
    assert not verdict(scheme, headers, body.encode() + b"\n", secret)
    assert not verdict(scheme, headers, b" " + body.encode(), secret)
    assert not verdict(scheme, headers, body.encode(), secret + "x")


@each_vector
def test_either_of_two_secrets_may_hold(name: str) -> None:
    scheme, secret, headers, body = VECTORS[name]
    assert verdict(scheme, headers, body.encode(), "the new one", secret)
    assert verdict(scheme, headers, body.encode(), secret, "the old one")
    assert not verdict(scheme, headers, body.encode(), "the new one", "the old one")
    assert not verdict(scheme, headers, body.encode())


@each_vector
def test_a_missing_or_mangled_signature_fails_and_says_nothing_secret(name: str) -> None:
    scheme, secret, headers, body = VECTORS[name]
    header, signature = next(iter(headers.items()))
    for mangled in ("", " ", signature[:-1], signature.swapcase() + "=", "é\udcff", "\x00", signature * 100):
        answer = scheme.verify(SignedRequest(body=body.encode(), headers={header: mangled}), [secret])
        assert not answer.ok
        assert answer.reason
        assert secret not in answer.reason
    assert scheme.verify(SignedRequest(body=body.encode(), headers={}), [secret]) == Verdict(
        ok=False, reason=f"header {header} is missing"
    )


def test_a_signature_meant_for_someone_else_fails() -> None:
    # published: webhookx-io/webhookx's tests of integration-auth expect it to be refused
    body = b'{"event_type": "foo.bar","data": {"key": "value"}}'
    headers = {"x-hub-signature-256": "sha256=80522b11f759e2ea6dcc63f78d20675f017030a5d417bd2daf33f9ab96efe42d"}
    assert not verdict(VECTORS["github"][0], headers, body, "test-github-secret")


def test_shopify_signs_the_raw_body_in_base64() -> None:
    scheme, headers = get("shopify").verify, {"x-shopify-hmac-sha256": SHOPIFY_SIGNATURE}
    assert verdict(scheme, headers, SHOPIFY_BODY, "hush")
    assert not verdict(scheme, headers, SHOPIFY_BODY.replace(b",", b", "), "hush")  # the same JSON, written anew


def test_a_shopify_signature_in_hex_is_not_one() -> None:
    # that is how its OAuth redirects are signed
    scheme = get("shopify").verify
    in_hex = Hmac(header="x", encoding="hex").sign(SHOPIFY_BODY, "hush")
    assert not verdict(scheme, {"x-shopify-hmac-sha256": in_hex}, SHOPIFY_BODY, "hush")


def test_candidates_are_compared_with_the_whole_text() -> None:
    assert matches(" abc ", ["x", "abc"])
    assert not matches("abc", ["ab", "abcd", ""])
    assert not matches("abc", [])


@pytest.mark.parametrize("text", ["", "x", "99999999999999999999", "2026-13-01T00:00:00Z", "nan"])
def test_a_signed_timestamp_must_be_a_time(text: str) -> None:
    assert not fresh(text, unit="iso" if "-" in text else "s", now=None, window_s=300).ok
