"""Signals that end a program, and blocks that they don't interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caudal.stopping import arm, held_back

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)]
)
def test_each_ends_the_program_by_an_exception(number: signal.Signals, ends: type[BaseException]) -> None:
    arm()
    with pytest.raises(ends) as raised:
        os.kill(os.getpid(), number)
    if ends is SystemExit:
        assert raised.value.args == (143,)


def test_several_at_once_interrupt_the_clean_up_of_the_first_no_more() -> None:
    arm()
    done: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            done.append("cleaned")

    with pytest.raises(SystemExit):
        work()
    assert done == ["cleaned"]


@pytest.mark.parametrize("number", ENDING)
def test_a_block_is_finished_first(number: signal.Signals) -> None:
    arm()
    done: list[str] = []

    def work() -> None:
        with held_back():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("all of it")

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        work()
    assert done == ["all of it"]


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    arm()
    with held_back():
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_child_does_not_inherit_that_signals_are_held_back() -> None:
    arm()
    with held_back():
        code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (-signal.SIGTERM, "")
