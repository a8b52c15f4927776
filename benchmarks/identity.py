"""The identity step alone: which customer is each subject of a batch, decided and committed in PostgreSQL.

Four kinds of batches of `BATCH` subjects: never seen before; known, with nothing new; of a second system, each with the e-mail address of
one that is known; and of two systems that turn out to be one person, so that customers merge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from caudal.processors import rules
from caudal.processors._links import Links, Mention
from caudal.processors.evidence import Said
from caudal.processors.identity import Key

from benchmarks import _generate
from benchmarks._machine import repeated
from benchmarks._stage import Stage, stage
from caudal import postgres

__all__ = ["measure"]

SUBJECTS = 20_000
BATCH = 2_000


def measure(*, runs: int, scale: float) -> list[dict[str, Any]]:
    """Subjects per second: new, known, joining a known customer, merging two customers."""
    return repeated(runs, lambda _: _once(int(SUBJECTS * scale)))


def _once(count: int) -> dict[str, float]:
    with (
        stage() as one,
        postgres.connect(one.settings.postgres, role="benchmark", schema="hub") as conn,
    ):
        links = Links(lambda: conn, rules.load(one.settings))
        found = {}
        kinds: tuple[tuple[str, Callable[[int], Mention]], ...] = (
            ("new", lambda n: _mention("shop", n, n)),
            ("known", lambda n: _mention("shop", n, n)),
            ("joining", lambda n: _mention("crm", n, n)),
            ("strange", lambda n: _mention("desk", n, n + count)),  # customers of their own, to be merged next
            ("merging", lambda n: _mention("desk", n, n, n + count)),
        )
        for kind, mention in kinds:
            seconds = 0.0
            for mentions in _batches(count, mention):
                started = time.perf_counter()
                resolved = links.resolve(mentions)
                links.published(resolved.batches)
                seconds += time.perf_counter() - started
            if kind != "strange":
                found[f"identity_{kind}_subjects_per_s"] = count / seconds
        _check(one, count)
        return found


def _mention(source: str, number: int, *people: int) -> Mention:
    """A subject that states the e-mail addresses of these people."""
    at = _generate.START + timedelta(seconds=number)
    keys = tuple(Key("email", f"u{person}@example.com") for person in people)
    return Mention(f"{source}:customer:{number}", source, at, at, f"{source}-{number}", Said(keys))


def _batches(count: int, mention: Callable[[int], Mention]) -> Iterator[list[Mention]]:
    for first in range(0, count, BATCH):
        yield [mention(number) for number in range(first, min(first + BATCH, count))]


def _check(one: Stage, count: int) -> None:
    """In the end three subjects of each person are one customer."""
    row = one.conn.execute("SELECT count(*), count(DISTINCT customer_id) FROM hub.subjects").fetchone()
    if row != (3 * count, count):
        raise AssertionError(f"{row} subjects and customers, not {3 * count} and {count}")
