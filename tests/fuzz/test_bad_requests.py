"""What may arrive at the edge's socket: nothing ends in a failure, holds up others, lives for ever, or is stored without a signature."""

from __future__ import annotations

import contextlib
import gzip
import re
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest
from edge_server import MAX_BODY, Running, running, signed
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from record_values import RANDOMS

REFUSED = {b"400", b"401", b"404", b"405", b"408", b"413", b"431"}
BODY = b'{"id": 1, "email": "ana@example.com"}'


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("edge")) as server:
        yield server


def head(body: bytes = BODY, *more: bytes, length: int | None = None, target: bytes = b"/in/shopify") -> bytes:
    """The head of a signed request."""
    lines = [f"{name}: {value}".encode() for name, value in signed("shopify", body, 0).items()]
    size = b"content-length: %d" % (len(body) if length is None else length)
    kept = [] if any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in more) else [size]
    return b"\r\n".join([b"POST %s HTTP/1.1" % target, b"host: x", *lines, *kept, *more, b"", b""])


def in_pieces(body: bytes, size: int) -> bytes:
    """A chunked body."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def exchange(edge: Running, sent: bytes) -> bytes:
    """What is answered until the connection ends, which it must."""
    with edge.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
    return bytes(answer)


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)


SLOW = {
    "says nothing": (b"", b""),
    "an empty line now and then": (b"\r\n", b"\r\n"),
    "a byte of the head at a time": (b"POST /in/shopify HTTP/1.1\r\nx: ", b"x"),
    "header after header": (b"POST /in/shopify HTTP/1.1\r\n", b"x: y\r\n"),
    "a byte of the body at a time": (head(length=MAX_BODY), b" "),
    "chunk after chunk": (head(BODY, b"transfer-encoding: chunked"), b"1\r\n \r\n"),
    "trailer after trailer": (head(BODY, b"transfer-encoding: chunked") + in_pieces(BODY, 9)[:-2], b"x: y\r\n"),
    "more of a body that was refused": (head(length=MAX_BODY + 10**9), b" "),
    "more after an unknown source": (head(length=10**9, target=b"/in/nobody"), b" "),
}


def test_slow_senders_are_cut_off_and_hold_up_nobody(edge: Running) -> None:
    lived: dict[str, float] = {}

    def send(kind: str) -> None:
        first, then = SLOW[kind]
        started = time.monotonic()
        with edge.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(first)
            client.settimeout(0.1)
            while time.monotonic() - started < 60:
                with contextlib.suppress(TimeoutError):
                    if not client.recv(4096):
                        break
                client.sendall(then)
        lived[kind] = time.monotonic() - started

    threads = [threading.Thread(target=send, args=(kind,)) for kind in SLOW for _ in range(5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert edge.well()
    for thread in threads:
        thread.join()
    assert {kind: seconds for kind, seconds in lived.items() if seconds > 50} == {}


ENDLESS = {
    "address": (b"POST /in/", b"x" * 65536),
    "header": (b"POST /in/shopify HTTP/1.1\r\nx: ", b"x" * 65536),
    "headers": (b"POST /in/shopify HTTP/1.1\r\n", b"x: y\r\n" * 10_000),
    "trailers": (head(BODY, b"transfer-encoding: chunked") + in_pieces(BODY, 9)[:-2], b"x: y\r\n" * 10_000),
    "chunk extension": (head(BODY, b"transfer-encoding: chunked") + b"1;", b"x" * 65536),
    "body": (head(BODY, b"transfer-encoding: chunked"), b"10000\r\n" + b"x" * 65536 + b"\r\n"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_does_not_end_is_ended(edge: Running, kind: str) -> None:
    first, then = ENDLESS[kind]
    before = len(edge.log.captures)
    answer, started = bytearray(), time.monotonic()
    with edge.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(first)
        client.settimeout(0.05)
        while time.monotonic() - started < 60:
            client.sendall(then)
            with contextlib.suppress(TimeoutError):
                if not (part := client.recv(4096)):
                    break
                answer += part
    assert time.monotonic() - started < 50
    assert set(statuses(bytes(answer))) <= REFUSED
    assert len(edge.log.captures) == before
    assert edge.well()


def test_a_head_of_its_full_size_is_taken_and_a_larger_one_refused(edge: Running) -> None:
    wide = [b"x-%d: %s" % (n, b"y" * 1000) for n in range(60)]
    assert statuses(exchange(edge, head(BODY, *wide, b"connection: close") + BODY)) == [b"202"]
    sent = head(BODY, *[b"x-%d: %s" % (n, b"y" * 1000) for n in range(1000)], b"connection: close") + BODY
    assert set(statuses(exchange(edge, sent))) <= {b"431"}


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_not(edge: Running, over: int, chunked: bool) -> None:
    body = b"x" * (MAX_BODY + over)
    more = [b"transfer-encoding: chunked"] if chunked else []
    sent = head(body, *more, b"connection: close") + (in_pieces(body, 1000) if chunked else body)
    assert statuses(exchange(edge, sent)) == [b"413" if over else b"202"]


def test_a_gzip_bomb_is_stored_as_it_came_and_never_unpacked_here(edge: Running) -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 40_000_000))
    started = time.process_time()
    assert statuses(exchange(edge, head(bomb, b"content-encoding: gzip", b"connection: close") + bomb)) == [b"202"]
    assert edge.log.captures[-1]["body"] == bomb
    assert time.process_time() - started < 5


def test_a_request_may_begin_in_the_packet_that_ends_the_one_before(edge: Running) -> None:
    first, body = head() + BODY, b"x" * MAX_BODY
    with edge.connect() as client:
        client.sendall(first[:-1])
        client.sendall(first[-1:] + head(body, b"connection: close") + body[:1])
        for at in range(1, MAX_BODY, MAX_BODY // 3):
            time.sleep(0.01)  # so that they are packets of their own
            client.sendall(body[at : at + MAX_BODY // 3])
        answer = bytearray()
        while part := client.recv(4096):
            answer += part
    assert statuses(bytes(answer)) == [b"202", b"202"]


_oddities = st.sampled_from(
    [
        b"content-length: 5",
        b"content-length: -1",
        b"content-length: 1e3",
        b"content-length: 99999999999999999999",
        b"content-length: 0x10",
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: chunked, chunked",
        b"Transfer-Encoding : chunked",
        b"transfer-encoding: \x0bchunked",
        b"content-encoding: gzip",
        b"content-encoding: br, zstd, what",
        b"content-type: application/json; charset=utf-7",
        b"content-type: \xff\xfe",
        b"expect: 100-continue",
        b"expect: 200-maybe",
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings",
        b"upgrade: websocket\r\nconnection: upgrade",
        b" folded: line",
        b": no name",
        b"no colon",
        b"nul: \0",
        b"x: \x80\xff",
        b"host: y",
        b"x-shopify-hmac-sha256: AAAA",
        b"x-shopify-webhook-id: " + b"\xff" * 3000,
        b"x-shopify-topic: \xe9\xe9",
        b"connection: close",
        b"connection: keep-alive, close, \xff",
    ]
)
_targets = st.sampled_from(
    [b"/in/shopify", b"/in/shopify?" + b"a" * 9000, b"/in/shopify/", b"/in/%00", b"/in/%ff%fe", b"/in/..%2fhealth", b"http://y/in/shopify",
     b"/in/shopify#x", b"//in/shopify", b"*", b"/in/\xff", b"/health", b"/ready", b"/metrics"]
)  # fmt: skip


@examples(150)
@given(
    target=_targets,
    oddities=st.lists(_oddities, max_size=3),
    sent=st.sampled_from(
        [
            BODY,
            BODY + b"x",
            BODY[:-1],
            in_pieces(BODY, 5),
            in_pieces(BODY, 5)[:-1],
            b"ffffffffffffffffff\r\n",
            b"-1\r\n",
            b"",
        ]
    ),
    rng=RANDOMS,
)
def test_odd_requests_are_taken_or_refused_and_stored_only_as_they_were_signed(
    edge: Running, target: bytes, oddities: list[bytes], sent: bytes, rng: Random
) -> None:
    del edge.log.captures[:]
    request = head(BODY, *oddities, target=target) + sent
    if rng.random() < 0.3:
        at = rng.randrange(len(request))
        request = request[:at] + rng.choice((b"", b"\0", b"\n", b"\r", b"\xff", rng.randbytes(3))) + request[at + 1 :]
    with edge.connect() as client:
        client.sendall(request)
        client.shutdown(1)  # so that what is cut short is seen to be
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
    got = statuses(bytes(answer))
    assert set(got) <= REFUSED | {b"100", b"200", b"202", b"503"}
    assert b"503" not in got or target == b"/ready"
    assert len(edge.log.captures) >= got.count(b"202")
    assert {capture["body"] for capture in edge.log.captures} <= {BODY}
    assert edge.well()
