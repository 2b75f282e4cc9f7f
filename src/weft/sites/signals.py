"""Signals that ask a process to end: it first ends the processes that it started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a terminal that closes."""
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Let every signal that asks this process to end raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Ignore these signals: a second Ctrl-C would leave processes behind that the first one began to end."""
    with _handled(lambda *_: None):
        yield


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Handle these signals by a function; those that are ignored stay so, as under `nohup`."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may set a handler
        yield
        return
    former = {number: signal.getsignal(number) for number in ENDING}
    former = {number: action for number, action in former.items() if action not in (signal.SIG_IGN, None)}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)
