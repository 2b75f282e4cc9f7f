"""Waits for a run of sites to end, over all the jobs that it takes (`weft.sites.supervisor` resubmits it)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from weft.config import RunConfig
from weft.errors import RunError, ServerAway
from weft.json_types import JsonObject
from weft.sites.admin import OVER, RESUBMITTABLE, AdminSession, admin_session

EVERY = 1.0
"""Seconds between two requests for the status."""
AT_ONCE = 30.0
"""Seconds to wait for the resubmission of a run that was ended or never began: it comes at once, or never."""
PATIENCE = 400.0
"""Seconds to wait for the resubmission of a run that failed; the supervisor takes at most 300."""


def watch(kit: Path, config: RunConfig, name: str, hear: Callable[[JsonObject], None]) -> JsonObject:
    """Submit a run, wait for its end, and return its last status: its `state` is "done", "failed" or "stopped".

    Args:
        kit: folder of the administrator's kit.
        config: the run.
        name: name of the run at the server.
        hear: called with the run's status whenever it changes.

    Raises:
        RunError: the server cannot be reached at first, or the run ended early and was not resubmitted.
    """
    with admin_session(kit) as session:
        watcher = _Watcher(name, hear, session.submit(config, name))
    while True:
        try:
            with admin_session(kit) as session:
                while (last := watcher.look(session)) is None:
                    time.sleep(EVERY)
                return last
        except ServerAway:  # retry until it is back
            watcher.over_since = 0.0  # the supervisor cannot resubmit anything meanwhile either
            time.sleep(EVERY)


def run_name(job: JsonObject) -> str:
    """Return the name of the run that a job belongs to."""
    return str(job.get("job_name") or job.get("name"))


@dataclass
class _Watcher:
    """What is remembered of a run while it is waited for."""

    name: str
    hear: Callable[[JsonObject], None]
    job: str
    last: JsonObject = field(default_factory=dict)
    """The last status of the job."""
    over_since: float = 0.0
    """When the end of the job was noticed (`time.monotonic`); 0: it has not ended, or another took its place."""

    def look(self, session: AdminSession) -> JsonObject | None:
        """Return the run's last status if the run is over, else None; raises as `watch`, and ServerAway."""
        try:
            state = session.state(self.job)
            newest = next(str(job["job_id"]) for job in session.jobs(limit=50) if run_name(job) == self.name)
        except Exception as error:
            raise ServerAway(f"The server does not answer ({type(error).__name__}).") from None
        status = session.status(self.job)
        if status is not None and status != self.last:
            self.hear(status)
            self.last = status
        if not state.startswith(OVER):
            # FLARE takes some seconds to end a job after the run itself is over.
            return self.last if self.last.get("state") == "done" or self.last.get("final") else None
        if "COMPLETED" in state and self.last.get("state") != "failed":
            return self.last | {"state": "done"}
        if self.last.get("final"):
            return self.last
        if newest != self.job:
            self.job, self.last, self.over_since = newest, {}, 0.0
            return None
        why = self.last.get("error") or f"its job is {state}"
        if not self.over_since:
            self.over_since = time.monotonic()
            self.hear({"state": f"waits to be resubmitted: {why}"})
        soon = "ABORTED" in state or not (self.last or state in RESUBMITTABLE)
        if time.monotonic() - self.over_since > (AT_ONCE if soon else PATIENCE):
            raise RunError(
                f"The run '{self.name}' ended early ({why}) and was not resubmitted: see supervisor.log in the "
                "server's kit."
            )
        return None
