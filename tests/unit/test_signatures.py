"""Signatures against vectors that others published, and against what an attacker or a careless proxy does to a request."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from caudal.connectors import Hmac, SignedRequest, Verdict, get, registry
from caudal.connectors._signatures import described, fresh, matches

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
    assert not matches("", [""])


@each_vector
def test_a_signature_written_otherwise_is_another(name: str) -> None:
    """One delivery has one signature: another case, alphabet or padding, a list, an algorithm of the sender's choice are refused."""
    scheme, secret, headers, body = VECTORS[name]
    header, signature = next(iter(headers.items()))
    bare = signature.removeprefix(scheme.prefix)
    digest = bytes.fromhex(bare) if scheme.encoding == "hex" else base64.b64decode(bare)
    other = base64.b64encode(digest).decode() if scheme.encoding == "hex" else digest.hex()
    forms = {
        scheme.prefix + other, bare.upper(), bare.rstrip("="), f"{bare}=", f"{signature}, {signature}", f"{signature},x", f"md5={bare}",
        f"sha1={bare}", f"none={bare}", bare.replace("+", "-").replace("/", "_"), f"SHA256={bare}", f'"{signature}"', f"\u00a0{signature}",
        hmac.new(secret.encode(), body.encode(), "md5").hexdigest(),
    } - {signature}  # fmt: skip
    assert len(forms) > 9
    for form in forms:
        assert not verdict(scheme, {header: form}, body.encode(), secret), form


@each_vector
@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u3000"])
def test_anyone_can_sign_with_an_empty_secret_so_it_proves_nothing(name: str, blank: str) -> None:
    scheme, _, headers, body = VECTORS[name]
    forged = scheme.prefix + scheme.sign(body.encode(), blank)
    assert not verdict(scheme, {next(iter(headers)): forged}, body.encode(), blank)


@pytest.mark.parametrize("name", ["hubspot", "zendesk"])
def test_a_blank_secret_proves_nothing_where_a_time_is_signed(name: str) -> None:
    body, stamp = b"{}", "1700000000000"
    message = {"hubspot": b"POST" + body + stamp.encode(), "zendesk": stamp.encode() + body}[name]
    signature = base64.b64encode(hmac.new(b"", message, hashlib.sha256).digest()).decode()
    headers = {
        "x-hubspot-signature-v3": signature,
        "x-hubspot-request-timestamp": stamp,
        "x-zendesk-webhook-signature": signature,
        "x-zendesk-webhook-signature-timestamp": stamp,
    }
    assert not verdict(get(name).verify, headers, body, "")
    older = {"x-hubspot-signature": hashlib.sha256(body).hexdigest()}
    assert not verdict(get("hubspot").verify, older, body, "")


@pytest.mark.parametrize(
    "text",
    [
        "-1700000000",
        "+1700000000",
        " 1700000000",
        "1_700_000_000",
        "1700000000.0",
        "1e9",
        "٠١٢٣٤٥٦٧٨٩",
        "0x10",
        "1" * 17,
        "١" * 10,
    ],
)
def test_a_number_that_no_vendor_writes_is_no_time(text: str) -> None:
    for unit in ("s", "ms"):
        assert not fresh(text, unit=unit, now=None, window_s=300).ok  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    "text", ["2026-12-01", "20261201T100000Z", "2026-W49-2", "2026-12-01 10:00:00Z", "2026-12-01T10Z"]
)
def test_a_time_is_written_in_full(text: str) -> None:
    assert not fresh(text, unit="iso", now=None, window_s=300).ok


def test_far_from_now_is_outside_the_window_on_both_sides() -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    for text in ("2026-12-01T00:05:01Z", "2026-11-30T23:54:59Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"):
        assert "window" in fresh(text, unit="iso", now=now, window_s=300).reason
    assert fresh("2026-12-01T00:04:59Z", unit="iso", now=now, window_s=300).ok
    # seconds where milliseconds are meant are 1970, and the other way round no time at all
    assert "window" in fresh(str(int(now.timestamp())), unit="ms", now=now, window_s=300).reason
    assert not fresh(str(int(now.timestamp() * 1000)), unit="s", now=now, window_s=300).ok


def test_every_connector_says_how_its_deliveries_are_signed() -> None:
    for name, connector in registry().items():
        assert len(described(connector.verify)) > 40, name
        assert set(connector.topics) <= set(connector.kinds), name
        if name != "feedback":
            assert connector.setup is not None, name
            assert connector.setup.elsewhere <= set(connector.kinds), name


@pytest.mark.parametrize("text", ["", "x", "99999999999999999999", "2026-13-01T00:00:00Z", "nan"])
def test_a_signed_timestamp_must_be_a_time(text: str) -> None:
    assert not fresh(text, unit="iso" if "-" in text else "s", now=None, window_s=300).ok
