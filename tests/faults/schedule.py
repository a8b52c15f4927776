"""Which faults happen in the run of a seed, in which order, and at what progress."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from stack import SESSION_MS, WORKERS, Stack, Stuck, backend_worker, until

from caudal import kafka
from caudal.errors import BrokerUnavailable

_WEIGHTS = {
    "kill worker": 6,
    "kill edge": 3,
    "kill api": 2,
    "pause worker": 3,
    "pause edge": 2,
    "pause api": 2,
    "expire session": 3,
    "zombie": 4,
    "cut postgres": 4,
    "cut kafka": 4,
    "slow postgres": 2,
    "slow kafka": 2,
    "hold postgres": 2,
    "hold kafka": 2,
    "kill postgres": 2,
    "kill a session of postgres": 1,
    "pause postgres": 2,
    "kill kafka": 2,
    "pause kafka": 1,
    "fill postgres": 1,
    "fill kafka": 1,
}


@dataclass(frozen=True)
class Fault:
    """Something that breaks when so many deliveries are acknowledged, or so many changes published since the seed began."""

    kind: str
    target: str
    seconds: float
    measure: str
    after: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} ({self.target}){lasting} after {self.after} {self.measure}"


def draw(seed: int, deliveries: int) -> list[Fault]:
    """The faults of a seed, in the order of their happening."""
    chance = random.Random(f"faults {seed}")
    number = chance.choice((1, 2, 2, 3))
    kinds = chance.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()), k=number)
    progress = sorted(chance.uniform(0.05, 0.95) for _ in kinds)
    return [_fault(chance, kind, part, deliveries) for kind, part in zip(kinds, progress, strict=True)]


def _fault(chance: random.Random, kind: str, part: float, deliveries: int) -> Fault:
    verb, _, named = kind.partition(" ")
    target = {
        "worker": chance.choice(WORKERS),
        "session": chance.choice(WORKERS),
        "postgres": chance.choice((*WORKERS, "api")) if verb in {"cut", "slow", "hold"} else "postgres",
        "a session of postgres": "postgres",
        "": chance.choice(WORKERS),
    }.get(named, named)
    lasting = {
        "pause": (0.2, 1.2),
        "slow": (0.5, 2.0),
        "hold": (0.3, 1.5),
        "fill": (0.5, 2.0),
        "expire": (1.3, 1.8),
    }.get(verb)
    seconds = chance.uniform(*lasting) if lasting else 0.0
    if verb == "expire":
        seconds *= SESSION_MS / 1000
    measure = chance.choice(("acknowledged", "acknowledged", "published"))
    return Fault(kind, target, round(seconds, 2), measure, int(part * deliveries))


def strike(stack: Stack, fault: Fault) -> None:
    """Let it happen. What lasts goes on by itself; `stack.settle` waits for its end."""
    _ACTS[fault.kind](stack, fault)


def _zombie(stack: Stack, _fault: Fault) -> None:
    """Stop a worker in the middle of a batch, let the other take over, and let it go on."""
    with stack.connect() as holder, stack.connect() as looking:
        holder.execute("BEGIN")
        holder.execute("SET LOCAL lock_timeout = '5s'")
        holder.execute("LOCK TABLE live.profiles IN SHARE MODE")
        pid = holder.info.backend_pid
        victim: list[str] = []

        def waiting() -> bool:
            rows = looking.execute(
                "SELECT client_port FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", (pid,)
            )
            victim.extend(name for (port,) in rows.fetchall() if (name := backend_worker(stack, port)))
            return bool(victim)

        try:
            until(waiting, "batch", 2)
        except Stuck:  # nothing is projected just now: any worker will do
            victim.append(WORKERS[0])
        with stack.paused(victim[0]):
            holder.execute("ROLLBACK")
            ends = until(lambda: _ends(stack), "answer of Kafka")
            until(lambda: _projected(looking, ends), "takeover from a worker that stands still in a batch", 60)


def _ends(stack: Stack) -> dict[int, int]:
    with contextlib.suppress(BrokerUnavailable):
        return kafka.end_offsets(stack.settings.kafka, [kafka.CHANGES])[kafka.CHANGES]
    return {}


def _projected(looking: psycopg.Connection[Any], ends: dict[int, int]) -> bool:
    """Whether all that lay before `ends` is in the views."""
    done: dict[int, int] = dict(looking.execute("SELECT partition, next_offset FROM live.offsets").fetchall())
    return all(done.get(partition, 0) >= end for partition, end in ends.items())


def _slow(stack: Stack, target: str, seconds: float, delay_s: float) -> None:
    proxy = stack.proxy(target)
    proxy.slow(delay_s)
    stack.later(seconds, lambda: proxy.slow(0))


def _hold(stack: Stack, target: str, seconds: float) -> None:
    """The connections carry nothing, and then they are gone."""
    proxy = stack.proxy(target)
    proxy.hold(seconds)
    stack.later(seconds, proxy.cut)


_ACTS: dict[str, Callable[[Stack, Fault], None]] = {
    **{f"kill {name}": lambda stack, fault: stack.kill(fault.target) for name in ("worker", "edge", "api")},
    **{
        f"pause {name}": lambda stack, fault: stack.pause(fault.target, fault.seconds)
        for name in ("worker", "edge", "api")
    },
    "expire session": lambda stack, fault: stack.pause(fault.target, fault.seconds),
    "zombie": _zombie,
    "cut postgres": lambda stack, fault: stack.proxy(fault.target).cut(),
    "cut kafka": lambda stack, _: stack.proxy("kafka").cut(),
    "slow postgres": lambda stack, fault: _slow(stack, fault.target, fault.seconds, 0.02),
    "slow kafka": lambda stack, fault: _slow(stack, "kafka", fault.seconds, 0.05),
    "hold postgres": lambda stack, fault: _hold(stack, fault.target, fault.seconds),
    "hold kafka": lambda stack, fault: _hold(stack, "kafka", fault.seconds),
    "fill postgres": lambda stack, fault: stack.fill("postgres", fault.seconds),
    "fill kafka": lambda stack, fault: stack.fill("kafka", fault.seconds),
    "kill postgres": lambda stack, _: stack.kill_server("postgres"),
    "kill a session of postgres": lambda stack, _: stack.kill_backend(),
    "pause postgres": lambda stack, fault: stack.pause_server("postgres", fault.seconds),
    "kill kafka": lambda stack, _: stack.kill_server("kafka"),
    "pause kafka": lambda stack, fault: stack.pause_server("kafka", fault.seconds),
}
