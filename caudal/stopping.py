"""What ends a program: Ctrl-C, SIGTERM, a terminal that closes. Each runs the `finally` blocks, which a bare SIGTERM would not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

__all__ = ["arm", "held_back"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INSIST_S = 1.0
"""Several signals of one occasion come at once (a shell and the kernel both tell that the terminal is gone); who asks later insists."""


def arm() -> None:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does, by an exception: exit status 143. Ignored ones (`nohup`) stay ignored."""
    first: list[float] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if first and (number != signal.SIGINT or time.monotonic() - first[0] < _INSIST_S):
            return
        first.append(time.monotonic())
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)  # to whoever waits for that by now

    for number, handler in zip(_ENDING, (end, end, hang_up), strict=True):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let nothing end the program before the block is through: what is begun to be stopped is stopped, what starts is written down.

    The signal is then raised again. Only the main thread is ever interrupted, so others need no protection.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    before = {number: handler for number, handler in before.items() if handler not in {signal.SIG_IGN, None}}
    _exchange(dict.fromkeys(before, note))
    try:
        yield
    finally:
        _exchange(before)
        if came:
            signal.raise_signal(came[0])


def _exchange(handlers: Mapping[signal.Signals, object]) -> None:
    """All of them or none: nothing comes in between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what getsignal gave
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
