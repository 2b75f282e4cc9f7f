"""Enforces at a site, for every message, the limits of the run that the site agreed to; the server is not trusted.

A site agrees to a run once, by its keys. Every later message names a round and a task, and is compared with that
agreement here. Messages are counted in a file beside the run before they are answered, and hours while it works, so
that a process that is killed and restarted continues the count.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.core.types import Message, Probe, ProtectionRequest, Task, Undo
from weft.errors import ClientFailed

DAY = "day.json"
"""Name of the file, beside the runs' folders, that holds the work of the current day."""
WORK = "work.json"
"""Name of the file in a run's folder at a site that holds the counts."""
REPEATS = 10
"""Times, on average, that a round may be repeated: a server that was killed resumes from its last checkpoint."""
MOST_REPEATS = 100
"""The same where the run asks for more attempts."""
EACH = {"Task": 1, "Undo": 2, "Probe": 4, "ProtectionRequest": 16}
"""Messages of each kind that one attempt at a round can need, those that are sent again included."""
RESERVE = 5.0
"""Seconds of work between two writes of the count, which are counted in advance: a kill takes nothing back."""


class Spent(ClientFailed):
    """The run has used up the hours that the site policy allows it."""


class Day:
    """The work of a site on the current day, for all its runs: a run under another name gets no more of it."""

    def __init__(self, file: Path, max_hours: float | None) -> None:
        """Name the file of the count, which all processes of the site share, and the limit; None: unlimited."""
        self.file, self.max_hours = file, max_hours
        self.seconds = 0.0
        """Work of today, when it was last counted."""

    def count(self, seconds: float) -> None:
        """Add work to that of today."""
        if self.max_hours is None:
            return
        today = date.today().isoformat()
        counts = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        # Of a day that has just begun, nothing was counted in advance.
        self.seconds = max(0.0, seconds + (float(counts["seconds"]) if counts.get("day") == today else 0.0))
        write_atomic(self.file, json.dumps({"day": today, "seconds": round(self.seconds, 3)}).encode())

    def spent(self, more: float) -> str | None:
        """Return the sentence that today's hours are used up, with `more` seconds; None: they are not."""
        hours = (self.seconds + more) / 3600
        if self.max_hours is None or hours < self.max_hours:
            return None
        return f"the site has worked {hours:.2f} hours today, and accepts {self.max_hours:g} a day"


class Bounds:
    """The limits of a site's work for one run, and what it has worked so far.

    Messages are counted for each birth of a run: a run that begins anew needs all its rounds again. Hours are counted
    for all runs of one name together, or a server would get them anew with every birth.
    """

    def __init__(
        self,
        file: Path,
        run: RunConfig,
        max_hours: float | None = None,
        *,
        birth: str = "",
        day: Day | None = None,
        reserve: float = RESERVE,
    ) -> None:
        """Read the counts of an earlier process, if there are any.

        Args:
            file: holds the counts.
            run: the run that the site agreed to.
            max_hours: hours of work that the site policy allows the run; None: unlimited.
            birth: identifies the run among runs of the same name.
            day: the work of the site on the current day; None: it is not counted.
            reserve: seconds of work between two writes of the count, which are counted in advance.
        """
        self.day, self.reserve = day or Day(file, None), reserve
        self._lock = threading.Lock()
        """Of the counts and their files."""
        self.file, self.rounds, self.max_hours, self.birth = file, run.num_rounds, max_hours, birth
        self.protected = run.protection != "none"
        self.repeats = min(max(REPEATS, run.max_attempts), MOST_REPEATS)
        self.tasks = run.num_rounds * self.repeats
        """Trainings that the rounds can need, repeated ones included."""
        self.messages: Counter[str] = Counter()
        """Messages so far, by kind."""
        self.seconds = 0.0
        """Work so far, that of the current message not included."""
        self._begun: float | None = None
        """When the current work began, by `time.monotonic`; None: there is none."""
        self._works = 0
        """Works at this moment: a message may be answered while a training goes on."""
        self._entrance = threading.Lock()
        self._done = threading.Event()
        self._counter = threading.Thread()
        self._written, self._reserved = 0.0, 0.0
        """When the count was last written, and the seconds that it holds in advance."""
        if file.exists():
            counts = json.loads(file.read_text(encoding="utf-8"))
            self.seconds = float(counts["seconds"])
            if counts.get("birth", birth) == birth:
                self.messages.update({kind: int(count) for kind, count in counts.get("messages", {}).items()})

    def spent(self) -> str | None:
        """Return the sentence that the hours of the run are used up; None: they are not."""
        hours = (self.seconds + self._elapsed()) / 3600
        if self.max_hours is None or hours < self.max_hours:
            with self._lock:
                more = 0.0 if self._begun is None else time.monotonic() - self._written
                return self.day.spent(more - self._reserved)
        return f"the site has worked {hours:.2f} hours for this run, and accepts {self.max_hours:g}"

    def refusal(self, message: Message) -> str | None:
        """Return the reason to refuse a message, which holds no data; None: the message is answered."""
        # A probe names the version that it evaluates: after the last round that is the number of rounds.
        scored = isinstance(message, Probe) or (isinstance(message, ProtectionRequest) and message.evaluation)
        last = self.rounds if scored else self.rounds - 1
        if not 0 <= message.round <= last:
            return f"the message is of round {message.round + 1}, and the site agreed to {self.rounds} rounds"
        if not self.rounds and _delivers_result(message):
            return "the run that the site agreed to trains nothing, so that it has no result to deliver"
        if isinstance(message, Task) and not 0 <= message.base_version <= message.round:
            return f"the task begins at version {message.base_version}, which round {message.round + 1} cannot have"
        if isinstance(message, (Task, Probe, ProtectionRequest)) and not 0 <= message.attempt <= self.tasks:
            return f"the message is of attempt {message.attempt + 1}, which the run the site agreed to cannot need"
        if isinstance(message, ProtectionRequest) and not self.protected:
            return "the message is one of secure aggregation, and the run has none"
        kind = type(message).__name__
        # After the last round there is one more version to evaluate, and the result to deliver.
        limit = EACH[kind] * self.repeats * (self.rounds + 1) if kind != "Task" else self.tasks
        if self.messages[kind] >= limit:
            done = "trained" if kind == "Task" else f"answered a message of the kind {kind}"
            return f"the site has {done} {self.messages[kind]} times, which is all that the run it agreed to can need"
        self.day.count(0.0)  # since the last message, a new day may have begun
        return None if _delivers_result(message) or isinstance(message, Undo) else self.spent()

    @contextmanager
    def work(self, message: Message | None) -> Iterator[None]:
        """Count a message, and the time of its answer; failed work counts too. None: the work of a handshake.

        The time is counted by a thread: a model that is loaded and rows that are tokenized make no steps, and a server
        may end the process in the middle of it.
        """
        if message is not None:
            self.messages[type(message).__name__] += 1
        with self._entrance:
            self._works += 1
            if self._works == 1:
                self._begun, self._done = time.monotonic(), threading.Event()
                self._counter = threading.Thread(target=self._count, args=(self._done,), daemon=True, name="hours")
                self._counter.start()
            self._write(self.reserve)
        try:
            yield
        finally:
            with self._entrance:
                self._works -= 1
                if not self._works:
                    self._done.set()
                    self._counter.join()
                    self._write()
                    self.seconds, self._begun = self.seconds + self._elapsed(), None

    def step(self) -> None:
        """Look at the hours; called while the model works.

        Raises:
            Spent: the hours are used up, so the work ends here.
        """
        if self._begun is None:
            return
        if (why := self.spent()) is not None:
            raise Spent(why)

    def _count(self, done: threading.Event) -> None:
        """Write the counts again and again, until the work is done."""
        while not done.wait(self.reserve):
            with contextlib.suppress(OSError):  # of a full disk, which the end of the work reports
                self._write(self.reserve)

    def _elapsed(self) -> float:
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    def _write(self, reserve: float = 0.0) -> None:
        """Write the counts, with some seconds that are still to be worked."""
        with self._lock:
            now = time.monotonic()
            self.day.count(now - max(self._begun or now, self._written) + reserve - self._reserved)
            self._written, self._reserved = now, reserve
            seconds = round(self.seconds + self._elapsed() + reserve, 3)
            counts = {"birth": self.birth, "messages": dict(self.messages), "seconds": seconds}
            write_atomic(self.file, json.dumps(counts).encode())


def _delivers_result(message: Message) -> bool:
    """Return whether a message delivers the run's result to the site, which costs no work."""
    return isinstance(message, Probe) and message.export
