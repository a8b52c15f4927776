"""Load for the capture edge: signed Shopify-like deliveries over keep-alive connections, one at a time on each.

`python -m benchmarks.edge_load http://127.0.0.1:8470/in/shop SECRET` sends to an edge that runs already.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import orjson
import uvloop

BODIES = 500
"""Different bodies; every delivery has an id of its own."""


@dataclass
class Result:
    """What came of one run. Latencies are seconds, in the order of the answers."""

    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def per_second(self) -> float:
        """Accepted deliveries per second."""
        return self.statuses.get(202, 0) / self.seconds

    def percentile(self, p: float) -> float:
        """Latency at `p` (0 to 100), seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


def order(n: int, customer: int | None = None) -> bytes:
    """Order `n` as Shopify's webhooks have it, 2 KB; its customer is `n` too, or the one given."""
    who = n if customer is None else customer
    line = {
        "sku": "TEE-M-BLK",
        "title": "T-shirt",
        "variant_title": "M / Black",
        "quantity": 1,
        "price": "59.90",
        "vendor": "Acme",
    }
    return orjson.dumps(
        {
            "id": 820_982_911_946_154_500 + n,
            "admin_graphql_api_id": f"gid://shopify/Order/{820_982_911_946_154_500 + n}",
            "email": f"person{who}@example.com",
            "created_at": "2026-01-05T10:00:00-03:00",
            "updated_at": f"2026-01-05T10:{n % 60:02}:00-03:00",
            "currency": "BRL",
            "financial_status": "paid",
            "total_price": "179.70",
            "subtotal_price": "179.70",
            "total_tax": "0.00",
            "customer": {
                "id": 115_310_627_314_723_950 + who,
                "email": f"person{who}@example.com",
                "first_name": "Ana",
                "last_name": f"Silva {who}",
                "phone": f"+55119{who % 100_000_000:08}",
                "state": "enabled",
                "tags": "vip, newsletter",
                "default_address": {
                    "address1": "Rua Augusta 1500",
                    "city": "São Paulo",
                    "province": "SP",
                    "zip": "01304-001",
                },
            },
            "shipping_address": {
                "address1": "Rua Augusta 1500",
                "city": "São Paulo",
                "province": "SP",
                "country_code": "BR",
            },
            "line_items": [{"id": n * 10 + i, "product_id": 632_910_392 + i, **line} for i in range(8)],
            "note_attributes": [{"name": "utm_campaign", "value": "summer"}] * 4,
        }
    )


def requests(url: str, secret: str, topic: str = "orders/create") -> Iterator[bytes]:
    """Whole HTTP requests, without end; signatures are made beforehand."""
    parts = urlsplit(url)
    templates = []
    for n in range(BODIES):
        body = order(n)
        signature = base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha256).digest()).decode()
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: Shopify-Captain-Hook\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Shopify-Topic: {topic}\r\n"
            f"X-Shopify-Hmac-Sha256: {signature}\r\nX-Shopify-Shop-Domain: acme.myshopify.com\r\n"
            "X-Shopify-API-Version: 2025-01\r\nX-Shopify-Webhook-Id: "
        )
        templates.append((head.encode(), b"\r\n\r\n" + body))
    run = f"{time.time_ns():x}"
    n = 0
    while True:
        head, rest = templates[n % BODIES]
        yield head + f"{run}-{n}".encode() + rest
        n += 1


class _Connection(asyncio.Protocol):
    def __init__(self, source: Iterator[bytes], result: Result, done: asyncio.Future[None]) -> None:
        self._source, self._result, self._done = source, result, done
        self._sent = 0.0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._next()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._answer.endswith(b"}"):  # every answer of the edge ends its JSON here
            return
        status = int(self._answer[9:12])
        self._answer = b""
        self._result.statuses[status] = self._result.statuses.get(status, 0) + 1
        self._result.latencies.append(time.perf_counter() - self._sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._result.failed += 1
            self._done.set_result(None)

    def _next(self) -> None:
        request = next(self._source, None)
        if request is None:
            self._done.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)


async def load(url: str, secret: str, *, deliveries: int, connections: int) -> Result:
    """Send `deliveries` over `connections` as fast as they are accepted."""
    parts = urlsplit(url)
    made = requests(url, secret)
    bounded = (request for _, request in zip(range(deliveries), made, strict=False))
    result = Result()
    loop = asyncio.get_running_loop()
    done: list[asyncio.Future[None]] = []
    next(made)  # the templates are made before the clock starts
    started = time.perf_counter()
    for _ in range(connections):
        finished = loop.create_future()
        done.append(finished)
        await loop.create_connection(
            lambda finished=finished: _Connection(bounded, result, finished), parts.hostname, parts.port
        )
    await asyncio.gather(*done)
    result.seconds = time.perf_counter() - started
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("secret")
    parser.add_argument("--deliveries", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=64)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(load(args.url, args.secret, deliveries=args.deliveries, connections=args.connections))
    print(
        f"{result.per_second:,.0f} deliveries/s, p50 {result.percentile(50) * 1000:.1f} ms, "
        f"p99 {result.percentile(99) * 1000:.1f} ms, statuses {result.statuses}, failed {result.failed}"
    )


if __name__ == "__main__":
    main()
