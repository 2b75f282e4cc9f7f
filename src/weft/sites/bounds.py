"""What a site has agreed to holds for every message of a run, and not on the server's word alone.

A run is agreed to once, from its keys. Afterwards a message says which round it is of and what is to be done; here it
is compared with the agreement. What has been done is kept beside the run, so that a process that begins again counts
on.
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
"""The file, in a run's folder at a site, that keeps the count."""
REPEATS = 10
"""How often, on average, a round may be asked for again: a server that was killed begins at its last checkpoint."""


class Bounds:
    """How much of a run a site takes part in."""

    def __init__(self, file: Path, run: RunConfig, max_hours: float | None = None) -> None:
        """Go on counting where a former process stopped.

        Args:
            file: where the count is kept.
            run: as it was agreed to.
            max_hours: hours of work that the site's policy allows the run; None: any.
        """
        self.file, self.rounds, self.max_hours = file, run.num_rounds, max_hours
        self.tasks = run.num_rounds * max(REPEATS, run.max_attempts)
        """Trainings that the rounds can need, those included that are begun again."""
        self.done, self.seconds = 0, 0.0
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.done, self.seconds = int(kept["tasks"]), float(kept["seconds"])

    def refusal(self, message: Message) -> str | None:
        """Return why a message is not answered, in words without any data; None: it is."""
        if isinstance(message, Undo):
            return None
        last = self.rounds if isinstance(message, Probe) else self.rounds - 1
        if not 0 <= message.round <= last:
            return f"the message is of round {message.round + 1}, and the site agreed to {self.rounds} rounds"
        if isinstance(message, Task):
            if not 0 <= message.base_version <= message.round:
                return f"the task begins at version {message.base_version}, which round {message.round + 1} cannot have"
            if self.done >= self.tasks:
                return f"the site has trained {self.done} times, which is all that the run it agreed to can need"
        if self.max_hours is not None and self.seconds >= self.max_hours * 3600 and not _keeps(message):
            return f"the site has worked {self.seconds / 3600:.2f} hours for this run, and accepts {self.max_hours:g}"
        return None

    @contextmanager
    def work(self, message: Message) -> Iterator[None]:
        """Count the time of an answer, and a training."""
        begin = time.monotonic()
        try:
            yield
        finally:
            if isinstance(message, (Task, Probe)):
                self.seconds += time.monotonic() - begin
                self.done += isinstance(message, Task)
                counts = {"tasks": self.done, "seconds": round(self.seconds, 3)}
                write_atomic(self.file, json.dumps(counts).encode())


def _keeps(message: Message) -> bool:
    """Say whether a message hands the site its result, which costs no work."""
    return isinstance(message, Probe) and message.export
