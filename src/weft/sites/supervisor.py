"""Beside a server of sites: a run whose job ended before it did is handed in again, to go on where it was.

NVIDIA FLARE ends a job with the process of its server, and gives none to a site that comes later. The supervisor is a
process of its own with an identity of its own, which may end jobs and repeat them as they are, not hand in others.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.errors import RunError
from weft.sites.admin import LEFT, OVER, AdminSession, admin_session
from weft.sites.watcher import named

EVERY = 1.0
"""Seconds between two looks."""
LONGEST = 300.0
"""Seconds before a run is handed in again that fell, and fell, without a round; other sites make it sooner."""
TOGETHER = 20.0
"""Seconds that the sites of a run have to connect to a server that was started again."""
FALLS = 5
"""How often a run may fall without a round and without saying why."""


@dataclass
class RunState:
    """What is known of a run."""

    job: str = ""
    falls: int = 0
    """In a row, without a round."""
    since: float = 0.0
    """When its job was seen to be over; 0: it is not."""
    there: set[str] = field(default_factory=set)
    """The sites that were connected then."""
    quiet: dict[str, float] = field(default_factory=dict)
    """When each site that is missed had last been heard as it was missed first."""
    back: dict[str, int] = field(default_factory=dict)
    """The round in which it was heard again."""


class Supervisor:
    """Looks after the runs of one server."""

    def __init__(self, kit: Path, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Take the server's kit, which holds the supervisor's own, who is told what is done, and a clock in seconds."""
        self.kit, self.note, self.clock = kit, note, clock
        self.runs: dict[str, RunState] = {}

    def tend(self) -> None:
        """Look after them for ever."""
        while True:
            try:
                with admin_session(self.kit / "supervisor") as session:
                    while True:
                        self.look(session)
                        time.sleep(EVERY)
            except Exception as error:  # most often the server is away: it is asked until it is back
                if not isinstance(error, RunError):
                    self.note(f"{type(error).__name__}: {error}")
                time.sleep(EVERY)

    def look(self, session: AdminSession) -> None:
        """Look once at the newest job of every run."""
        newest: dict[str, dict[str, Any]] = {}
        for job in session.jobs(limit=50):
            newest.setdefault(named(job), job)
        for name, job in newest.items():
            care = self.runs.setdefault(name, RunState())
            number, state = str(job["job_id"]), str(job.get("status"))
            if care.job != number:
                care.job, care.since, care.quiet, care.back = number, 0.0, {}, {}
            if state.startswith(OVER):
                self._over(session, name, care, state)
            elif "RUNNING" in state and (back := returned(care, session.status(number), session.sites)):
                self.note(f"{name}: {', '.join(back)} came back; it is handed in again.")
                session.stop(number)
                session.again(number)

    def _over(self, session: AdminSession, name: str, care: RunState, state: str) -> None:
        """Hand a run in again whose job is over, if it is not."""
        said = last_status(self.kit, name)
        began = said.get("job") == care.job
        if (began and (said.get("state") == "done" or said.get("final"))) or (not began and state not in LEFT):
            return
        said, there = said if began else {}, set(session.sites())
        silent = said.get("state") != "failed"
        if not care.since:
            rounds = any("round" in one for one in said.get("rounds", []))
            care.falls = 0 if rounds else care.falls + 1
            care.since, care.there = self.clock(), there
            why = said.get("error") or "its process ended"
            then = "is left alone" if silent and care.falls > FALLS else "is handed in again"
            self.note(f"{name}: its job is over ({why}); it {then}.")
        if silent and care.falls > FALLS:
            return
        waited = self.clock() - care.since
        missing = set(said.get("sites", {})) - there
        due = waited >= min(LONGEST, 2.0**care.falls - 1) or there - care.there
        if due and (not missing or waited >= TOGETHER):
            session.again(care.job)


def last_status(kit: Path, name: str) -> dict[str, Any]:
    """Return what a run last said, by the file that its process keeps."""
    try:
        return dict(json.loads((kit / "runs" / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def returned(care: RunState, said: dict[str, Any] | None, sites: Callable[[], dict[str, float]]) -> list[str]:
    """Return the sites that are missed in a run and connected again, for two rounds at least.

    One whose line was cut for a while is found again by itself, in the round after.
    """
    rounds = [one["round"] for one in (said or {}).get("rounds", []) if "round" in one]
    if said is None or not rounds:
        return []
    last = rounds[-1]["round"]
    missed = {site for site, why in rounds[-1]["failures"].items() if "could not be reached" in why}
    missed |= {site for site, why in said.get("refused", {}).items() if "connected" in why or "reached" in why}
    now = sites() if missed else {}
    care.quiet = {site: since for site, since in care.quiet.items() if site in missed}
    care.back = {site: round for site, round in care.back.items() if site in missed}
    for site in missed:
        if site not in care.quiet:
            care.quiet[site] = now.get(site, 0.0)
        elif now.get(site, 0.0) != care.quiet[site] and site in now:  # its heart beats again
            care.back.setdefault(site, last)
    return sorted(site for site, round in care.back.items() if last >= round + 2)


def main(words: list[str]) -> int:
    """Look after the runs of the server whose kit is named, until the process ends that began this one."""
    parent = os.getppid()
    supervisor = Supervisor(Path(words[0]), lambda said: print(time.strftime("%Y-%m-%d %H:%M:%S"), said, flush=True))
    threading.Thread(target=supervisor.tend, daemon=True).start()
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
