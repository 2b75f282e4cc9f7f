"""The site's end of a connection with the server; `weft.runtimes.remote` is the server's end.

It imports nothing heavy, so that the process which holds it can answer as soon as it has started.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

WAIT = 10.0
"""Longest poll in seconds: without an answer by then, the site replies with its progress."""
Packed = bytes | memoryview
"""A message or an answer as a transport carries it; nobody writes to its memory."""
UNKNOWN_RUN = b"who are you?"
"""Answer of a site whose process was restarted and has no run; the server then repeats the handshake."""


class TransportBroken(Exception):
    """The site did not answer; the request may be sent again."""


class PollResult(NamedTuple):
    """A site's reply to a poll."""

    progress: int
    """Progress counter, which grows while the site works."""
    answer: Packed | None
    """The reply to the message; None: not finished."""
    accepted: bool = True
    """The site has the message; otherwise it is busy with an earlier one, and the message must be sent again."""


class Mailbox:
    """Works on one message at a time, in a thread, and keeps the answer until the next message.

    The server may poll again after a lost reply: the ticket identifies the message, so no work is repeated.
    """

    def __init__(self, work: Callable[[Packed], Packed], progress: Callable[[], int]) -> None:
        self._work, self._progress = work, progress
        self._lock = threading.Condition()
        self._ticket = ""
        self._answer: Packed | None = None
        self._busy = False

    def ask(self, ticket: str, raw: Packed | None, wait: float) -> PollResult:
        """Start work on a new message, and wait up to `wait` seconds for its answer.

        Args:
            ticket: identifier of the message.
            raw: the message; None: only poll for its answer.
            wait: seconds.

        Raises:
            KeyError: a poll with an unknown ticket: this process was restarted.
        """
        end = time.monotonic() + wait
        with self._lock:
            if ticket != self._ticket:
                if raw is None:
                    raise KeyError(ticket)
                # The server has given up the message before, but the model cannot work on two at a time.
                while self._busy:
                    if not self._lock.wait(max(0.0, min(1.0, end - time.monotonic()))) and time.monotonic() >= end:
                        return PollResult(self._progress(), None, accepted=False)
                self._ticket, self._answer, self._busy = ticket, None, True
                threading.Thread(target=self._run, args=(ticket, raw), daemon=True, name="answer").start()
            while self._answer is None:
                if not self._lock.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    break
            return PollResult(self._progress(), self._answer)

    def _run(self, ticket: str, raw: Packed) -> None:
        answer: Packed = b""
        with contextlib.suppress(Exception):  # `work` reports its errors; an empty answer is refused at the server
            answer = self._work(raw)
        with self._lock:
            self._busy = False
            if ticket == self._ticket:
                self._answer = answer
            self._lock.notify_all()
