"""The site's end of a line to it: light, so that the process which holds it is there at once.

`weft.runtimes.remote` is the server's end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

WAIT = 10.0
"""Seconds that a site holds an answer back for, before it says how far it is."""
UNKNOWN_RUN = b"who are you?"
"""What a site answers that knows of no run: it has begun anew, and is said hello again."""


class TransportBroken(Exception):
    """Nothing was heard."""


class PollResult(NamedTuple):
    """What a site says of a message."""

    progress: int
    """A number that grows while it works."""
    answer: bytes | None
    """Its reply, when it is done."""
    accepted: bool = True
    """It has the message; otherwise it is still busy with another, and has to be given it again."""


class Mailbox:
    """The site's end of a line: it works on one message at a time, in a thread, and keeps the answer until the next."""

    def __init__(self, work: Callable[[bytes], bytes], progress: Callable[[], int]) -> None:
        self._work, self._progress = work, progress
        self._lock = threading.Condition()
        self._ticket = ""
        self._answer: bytes | None = None
        self._busy = False

    def ask(self, ticket: str, raw: bytes | None, wait: float) -> PollResult:
        """Begin with a message that is new, and wait a while for its answer; KeyError for one that is not known."""
        end = time.monotonic() + wait
        with self._lock:
            if ticket != self._ticket:
                if raw is None:
                    raise KeyError(ticket)
                # The one before is not wanted any more, but a model cannot do two things at a time.
                while self._busy:
                    if not self._lock.wait(max(0.0, min(1.0, end - time.monotonic()))) and time.monotonic() >= end:
                        return PollResult(self._progress(), None, accepted=False)
                self._ticket, self._answer, self._busy = ticket, None, True
                threading.Thread(target=self._run, args=(ticket, raw), daemon=True, name="answer").start()
            while self._answer is None:
                if not self._lock.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    break
            return PollResult(self._progress(), self._answer)

    def _run(self, ticket: str, raw: bytes) -> None:
        answer = b""
        with contextlib.suppress(Exception):  # whoever does the work says what went wrong
            answer = self._work(raw)
        with self._lock:
            self._busy = False
            if ticket == self._ticket:
                self._answer = answer
            self._lock.notify_all()
