"""The capture edge: signed deliveries accepted, each stored by Kafka with acks=all before its 202."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks import edge_load
from benchmarks._machine import figure
from benchmarks._stage import add_source, address, stage

__all__ = ["measure"]

DELIVERIES = 30_000
CONNECTIONS = 64


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """`edge_deliveries_per_s`, and the latency of a delivery under that load."""
    rates, medians, tails = [], [], []
    with stage() as one:
        secret = add_source(one, "shop", "shopify")
        one.start("edge", CAUDAL_SECRET_SHOP=secret)
        url = f"{address(one, 'edge')}/in/shop"
        asyncio.run(edge_load.load(url, secret, deliveries=2_000, connections=CONNECTIONS))
        for _ in range(runs):
            result = asyncio.run(
                edge_load.load(url, secret, deliveries=int(DELIVERIES * scale), connections=CONNECTIONS)
            )
            if set(result.statuses) != {202} or result.failed:
                raise AssertionError(f"not every delivery was accepted: {result.statuses}, {result.failed} failed")
            rates.append(result.per_second)
            medians.append(result.percentile(50) * 1000)
            tails.append(result.percentile(99) * 1000)
    return [
        figure("edge_deliveries_per_s", "deliveries/s", rates),
        figure("edge_latency_p50_ms", "ms", medians),
        figure("edge_latency_p99_ms", "ms", tails),
    ]
