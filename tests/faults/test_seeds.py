"""A few seeds of `make test-faults`: whatever breaks, nothing acknowledged is lost, and the views are what was said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driver import Driver, running, told
from schedule import draw

# between them: a worker is killed, one is stopped in a batch until the other has taken over, connections are cut, a topic is made again,
# records are deleted unread, a profile is larger than its topic takes
SEEDS = (28, 37, 143)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with running() as driver:
        yield driver


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_and_the_views_are_what_was_said(driver: Driver, seed: int) -> None:
    result = driver.run(seed)
    assert not result.wrong, told(result)


def test_a_seed_gives_the_same_faults_again() -> None:
    assert draw(5, 100) == draw(5, 100)
    assert draw(5, 100) != draw(6, 100)
