"""Enforces at a site, for every message, the limits of the run that the site agreed to; the server is not trusted.

A site agrees to a run once, by its keys. Every later message names a round and a task, and is compared with that
agreement here. The work is counted in a file beside the run, so that a restarted process continues the count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.core.types import Message, Probe, Task, Undo

WORK = "work.json"
"""Name of the file in a run's folder at a site that holds the counts."""
REPEATS = 10
"""Times, on average, that a round may be repeated: a server that was killed resumes from its last checkpoint."""


class Bounds:
    """The limits of a site's work for one run, and what it has worked so far."""

    def __init__(self, file: Path, run: RunConfig, max_hours: float | None = None) -> None:
        """Read the counts of an earlier process, if there are any.

        Args:
            file: holds the counts.
            run: the run that the site agreed to.
            max_hours: hours of work that the site policy allows the run; None: unlimited.
        """
        self.file, self.rounds, self.max_hours = file, run.num_rounds, max_hours
        self.tasks = run.num_rounds * max(REPEATS, run.max_attempts)
        """Trainings that the rounds can need, repeated ones included."""
        self.trainings, self.seconds = 0, 0.0
        if file.exists():
            counts = json.loads(file.read_text(encoding="utf-8"))
            self.trainings, self.seconds = int(counts["tasks"]), float(counts["seconds"])

    def refusal(self, message: Message) -> str | None:
        """Return the reason to refuse a message, which holds no data; None: the message is answered."""
        if isinstance(message, Undo):
            return None
        # A probe names the version that it evaluates: after the last round that is the number of rounds.
        last = self.rounds if isinstance(message, Probe) else self.rounds - 1
        if not 0 <= message.round <= last:
            return f"the message is of round {message.round + 1}, and the site agreed to {self.rounds} rounds"
        if isinstance(message, Task):
            if not 0 <= message.base_version <= message.round:
                return f"the task begins at version {message.base_version}, which round {message.round + 1} cannot have"
            if self.trainings >= self.tasks:
                return f"the site has trained {self.trainings} times, which is all that the run it agreed to can need"
        if self.max_hours is not None and self.seconds >= self.max_hours * 3600 and not _delivers_result(message):
            return f"the site has worked {self.seconds / 3600:.2f} hours for this run, and accepts {self.max_hours:g}"
        return None

    @contextmanager
    def work(self, message: Message) -> Iterator[None]:
        """Add the time of an answer to the counts, and the training if it is one."""
        begin = time.monotonic()
        try:
            yield
        finally:
            # Failed work counts too: a server cannot make a site work without end by provoking errors.
            if isinstance(message, (Task, Probe)):
                self.seconds += time.monotonic() - begin
                self.trainings += isinstance(message, Task)
                counts = {"tasks": self.trainings, "seconds": round(self.seconds, 3)}
                write_atomic(self.file, json.dumps(counts).encode())


def _delivers_result(message: Message) -> bool:
    """Return whether a message delivers the run's result to the site, which costs no work."""
    return isinstance(message, Probe) and message.export
