"""The supervisor: a process beside a server that resubmits a run whose job ended early, so that the run resumes.

NVIDIA FLARE ends a job with the process of its server, and sends no job to a site that connects later. The supervisor
has its own identity in the federation, which may end jobs and repeat them unchanged, but not submit others.
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

from weft.errors import RunError
from weft.json_types import JsonObject
from weft.sites.admin import OVER, RESUBMITTABLE, AdminSession, admin_session
from weft.sites.watcher import run_name

EVERY = 1.0
"""Seconds between two looks at the jobs."""
LONGEST = 300.0
"""Longest back-off in seconds before a run is resubmitted; it ends early if another site connects."""
TOGETHER = 20.0
"""Seconds that the sites of a run have to reconnect to a restarted server."""
FALLS = 5
"""How often in a row a run's job may end without a round and without an error."""


@dataclass
class RunState:
    """What the supervisor remembers of a run."""

    job: str = ""
    """Id of its newest job."""
    falls: int = 0
    """Jobs in a row that ended without a round."""
    since: float = 0.0
    """When the end of the job was noticed, by the supervisor's clock; 0: it has not ended."""
    sites: set[str] = field(default_factory=set)
    """The sites that were connected then."""
    last_contact: dict[str, float] = field(default_factory=dict)
    """For each missing site, the time of its last connection when it was first missing."""
    reconnected: dict[str, int] = field(default_factory=dict)
    """The round in which a missing site connected again."""


class Supervisor:
    """Watches the runs of one server, and resubmits those whose jobs ended early."""

    def __init__(self, kit: Path, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any runs.

        Args:
            kit: the server's kit, which contains the supervisor's.
            note: called with a sentence for the log.
            clock: returns seconds.
        """
        self.kit, self.note, self.clock = kit, note, clock
        self.runs: dict[str, RunState] = {}

    def tend(self) -> None:
        """Watch the runs forever."""
        while True:
            try:
                with admin_session(self.kit / "supervisor") as session:
                    while True:
                        self.look(session)
                        time.sleep(EVERY)
            except Exception as error:  # usually the server is away: retry until it is back
                if not isinstance(error, RunError):
                    self.note(f"{type(error).__name__}: {error}")
                time.sleep(EVERY)

    def look(self, session: AdminSession) -> None:
        """Look once at the newest job of every run."""
        newest: dict[str, JsonObject] = {}
        for job in session.jobs(limit=50):
            newest.setdefault(run_name(job), job)  # jobs are listed newest first
        for name, job in newest.items():
            care = self.runs.setdefault(name, RunState())
            number, state = str(job["job_id"]), str(job.get("status"))
            if care.job != number:
                care.job, care.since, care.last_contact, care.reconnected = number, 0.0, {}, {}
            if state.startswith(OVER):
                self._over(session, name, care, state)
            elif "RUNNING" in state and (back := sites_back(care, session.status(number), session.sites)):
                if not self._is_over(name, number):
                    session.stop(number)
                # An administrator may have stopped the run while FLARE still lists its job as running.
                if not self._is_over(name, number):
                    self.note(f"{name}: {', '.join(back)} reconnected; the run is resubmitted.")
                    session.resubmit(number)

    def _is_over(self, name: str, job: str) -> bool:
        """Return whether a run was stopped, is done or cannot go on, as its job itself says."""
        status = last_status(self.kit, name)
        return status.get("job") == job and (status.get("state") == "done" or bool(status.get("final")))

    def _over(self, session: AdminSession, name: str, care: RunState, state: str) -> None:
        """Resubmit a run whose job is over, unless the run is over too."""
        status = last_status(self.kit, name)
        started = status.get("job") == care.job  # else the file is of an earlier job of the run
        if self._is_over(name, care.job):
            return
        if not started and state not in RESUBMITTABLE:
            return
        status, connected = status if started else {}, set(session.sites())
        crashed = status.get("state") != "failed"  # a run that ends by an error says so first
        if not care.since:
            rounds = any("round" in entry for entry in status.get("rounds", []))
            care.falls = 0 if rounds else care.falls + 1
            care.since, care.sites = self.clock(), connected
            why = str(status.get("error") or "its process ended").rstrip(".")
            then = "left alone" if crashed and care.falls > FALLS else "resubmitted"
            self.note(f"{name}: its job is over ({why}); the run is {then}.")
        if crashed and care.falls > FALLS:
            return
        waited = self.clock() - care.since
        missing = set(status.get("sites", {})) - connected
        due = waited >= min(LONGEST, 2.0**care.falls - 1) or connected - care.sites
        if due and (not missing or waited >= TOGETHER):
            session.resubmit(care.job)


def last_status(kit: Path, name: str) -> JsonObject:
    """Return the last status of a run, from the file that the run writes beside its folder; {} if there is none."""
    try:
        return dict(json.loads((kit / "runs" / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def sites_back(care: RunState, status: JsonObject | None, sites: Callable[[], dict[str, float]]) -> list[str]:
    """Return the sites that a run still misses two rounds after they connected again.

    A site whose connection was interrupted for a while is reached again without help, in the next round. One whose
    process was restarted has no job any more, so the run has to be resubmitted for it.

    Args:
        care: what the supervisor remembers of the run; changed here.
        status: the run's status; None: it reports none.
        sites: returns the connected sites, and when each last connected.
    """
    rounds = [entry["round"] for entry in (status or {}).get("rounds", []) if "round" in entry]
    if status is None or not rounds:
        return []
    newest = rounds[-1]["round"]
    missing = {site for site, why in rounds[-1]["failures"].items() if "could not be reached" in why}
    missing |= {site for site, why in status.get("refused", {}).items() if "connected" in why or "reached" in why}
    contacts = sites() if missing else {}
    care.last_contact = {site: contact for site, contact in care.last_contact.items() if site in missing}
    care.reconnected = {site: round for site, round in care.reconnected.items() if site in missing}
    for site in missing:
        if site not in care.last_contact:
            care.last_contact[site] = contacts.get(site, 0.0)
        elif contacts.get(site, 0.0) != care.last_contact[site] and site in contacts:  # it sends heartbeats again
            care.reconnected.setdefault(site, newest)
    return sorted(site for site, round in care.reconnected.items() if newest >= round + 2)


def main(argv: list[str]) -> int:
    """Supervise the runs of the server whose kit is `argv[0]`, until the parent process ends."""
    parent = os.getppid()
    supervisor = Supervisor(Path(argv[0]), lambda note: print(time.strftime("%Y-%m-%d %H:%M:%S"), note, flush=True))
    threading.Thread(target=supervisor.tend, daemon=True).start()
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(0)  # the thread never ends by itself


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
