"""What a customer with very many orders, and a phone number that very many subjects share, cost everyone else.

`project_batch_*_ms`: a batch of 10 orders, applied and committed, where `x` orders of one customer are known: none of the batch is
that customer's (`alone`), or one is (`beside`). `identity_batch_*_ms`: a batch of 500 new subjects after `x` others, each with a phone
of its own or all with the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from caudal.processors import rules
from caudal.processors._links import Links, Mention
from caudal.processors.evidence import Said
from caudal.processors.identity import Key
from caudal.projections import Runner
from caudal.schemas import OrderLine, OrderStated
from caudal.schemas.codec import Codec, Registry

from benchmarks import _generate
from benchmarks._machine import figure
from benchmarks._stage import Stage, stage
from caudal import postgres

__all__ = ["measure"]

ORDERS = 100_000
SUBJECTS = 50_000
BATCH = 10
BATCHES = 10
RESOLVED = 500
MANY = 9_000_000
"""Number of the customer with many orders."""


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Medians of batches, each run on a database of its own."""
    orders, subjects = int(ORDERS * scale), int(SUBJECTS * scale)
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        with stage() as one:
            for name, value in {**_projected(one, orders), **_resolved(one, subjects)}.items():
                found.setdefault(name, []).append(value)
    return [
        figure(name, "ms", values) | {"x": orders if name.startswith("project") else subjects}
        for name, values in found.items()
    ]


def _order(number: int, person: int) -> OrderStated:
    at = _generate.START + timedelta(seconds=number)
    line = OrderLine(line_id="1", quantity=1, unit_price_minor=1_000, category=f"c{number % 20}")
    return OrderStated(
        event_id=f"o-{number}", source="shop", subject=f"shop:customer:{person}", customer_id=_generate.customer_id(person), link_seq=1,
        occurred_at=at, captured_at=at, order_id=str(number), status="paid", currency="BRL", total_minor=1_000, placed_at=at, lines=(line,),
    )  # fmt: skip


def _projected(one: Stage, orders: int) -> dict[str, float]:
    registry = Registry(one.settings)
    codec = Codec(registry)
    runner = Runner(one.settings, codec, feed=False)
    runner.positions([0])
    place = 0

    def apply(events: Sequence[OrderStated]) -> float:
        nonlocal place
        batch = runner.decode(
            [_generate.Record((0, place + n), codec.encode_event(event)) for n, event in enumerate(events)]
        )
        place += len(events)
        started = time.perf_counter()
        runner.apply(batch)
        return (time.perf_counter() - started) * 1000

    try:
        for first in range(0, orders, 10_000):
            apply([_order(number, MANY) for number in range(first, min(first + 10_000, orders))])
        one.conn.execute("ANALYZE live.orders")
        number, alone, beside = orders, [], []
        for _ in range(BATCHES):
            for times, people in ((alone, range(BATCH)), (beside, [MANY, *range(BATCH - 1)])):
                times.append(apply([_order(number + n, person) for n, person in enumerate(people)]))
                number += BATCH
    finally:
        runner.close()
        registry.close()
    return {"project_batch_alone_ms": _middle(alone), "project_batch_beside_ms": _middle(beside)}


def _resolved(one: Stage, subjects: int) -> dict[str, float]:
    found = {}
    with postgres.connect(one.settings.postgres, role="benchmark", schema="hub") as conn:
        links = Links(lambda: conn, rules.load(one.settings))
        for name, shared in (("own", False), ("shared", True)):
            times = []
            for first in range(0, subjects + RESOLVED * BATCHES, RESOLVED):
                mentions = [
                    _mention(name, number, 0 if shared else number) for number in range(first, first + RESOLVED)
                ]
                started = time.perf_counter()
                links.published(links.resolve(mentions).batches)
                times.append((time.perf_counter() - started) * 1000)
            found[f"identity_batch_{name}_phone_ms"] = _middle(times[-BATCHES:])
    return found


def _mention(source: str, number: int, phone: int) -> Mention:
    at = _generate.START + timedelta(seconds=number)
    return Mention(
        f"{source}:customer:{number}", source, at, at, f"e-{number}", Said((Key("phone", f"+55119{phone:08}"),))
    )


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
