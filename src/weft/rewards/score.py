"""Scoring answers: each reward runs in a child process with a time limit; faults are counted and score 0."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from weft.errors import ConfigError
from weft.json_types import JsonObject

STARTING = 60.0
"""Seconds within which a reward must load."""
FAULTS = ("raised", "not_finite", "hung")
"""Faults: the reward raises or its process ends; it returns NaN or infinity; it exceeds its time limit."""


class Claim(NamedTuple):
    """An answer to be scored."""

    prompt: str
    """The last turn of the user."""
    completion: str
    answer: str
    """The reference answer of the row."""


@dataclass(frozen=True)
class Judge:
    """One reward and its child process, which ends when this object is collected."""

    name: str
    """exact, numeric, regex, format, length, or FILE.py[:FUNCTION]."""
    seconds: float
    """Time limit for one answer, in seconds."""
    settings: JsonObject = field(default_factory=dict)
    _running: list[_Child] = field(default_factory=list)

    def start(self) -> None:
        """Start the child process if it is not running.

        Raises:
            ConfigError: the reward cannot be loaded.
        """
        if self._running:
            return
        child = _Child()
        weakref.finalize(self, child.kill)  # holds the child only, so that this object can be collected
        self._running.append(child)
        # To Linux the parent is this thread: of others than the main one the child may outlive the end.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        child.send({"name": self.name, "seconds": self.seconds, "parent": parent, **self.settings})
        reply = child.receive(STARTING)
        if reply is None or "error" in reply:
            self._stop()
            problem = (
                f"took more than {STARTING:.0f} s to load" if reply is None else f"cannot be used ({reply['error']})"
            )
            raise ConfigError(f"The reward '{self.name}' {problem}: mend it, or write another --reward.")

    def score(self, claim: Claim) -> tuple[float, str | None]:
        """Return the reward and None, or 0 and one of `FAULTS`."""
        self.start()
        child = self._running[0]
        child.send(claim._asdict())
        reply = child.receive(self.seconds)
        if reply is None:
            self._stop()
            return 0.0, "hung"
        if "reward" not in reply:
            if child.ended:
                self._stop()
            return 0.0, "raised"
        value = reply["reward"]
        return (value, None) if math.isfinite(value) else (0.0, "not_finite")

    def _stop(self) -> None:
        self._running.pop().kill()


class Scores(NamedTuple):
    """The rewards of some answers."""

    totals: list[float]
    """The weighted sum of rewards of each answer."""
    faults: dict[str, int]
    """Fault -> how many rewards scored 0 because of it."""


def score_all(judges: Sequence[Judge], weights: Sequence[float], claims: Sequence[Claim]) -> Scores:
    """Return the weighted sums of rewards of all answers, and the number of faults."""
    totals = [0.0] * len(claims)
    faults = dict.fromkeys(FAULTS, 0)
    for judge, weight in zip(judges, weights, strict=True):
        for place, claim in enumerate(claims):
            value, fault = judge.score(claim)
            totals[place] += weight * value
            if fault is not None:
                faults[fault] += 1
    return Scores(totals, faults)


class _Child:
    """The child process of a reward, in a new session, so that processes which it starts are killed with it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weft.rewards.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.rest = b""
        self.ended = False

    def send(self, message: JsonObject) -> None:
        """Send a message as a line; if the process has ended, `receive` reports it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self.ended = True

    def receive(self, seconds: float) -> JsonObject | None:
        """Return the next message, {"error": ...} if the process has ended, or None after `seconds`."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if not waiting.select(max(0.0, until - time.monotonic())):
                    return None
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    self.ended = True
                    return {"error": "its process ended"}
                self.rest += chunk
        line, _, self.rest = self.rest.partition(b"\n")
        message: JsonObject = json.loads(line)
        return message

    def kill(self) -> None:
        """Kill the process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the child leads its own process group
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()
