"""Waiting for a run of sites to end, over all the jobs that it takes (`weft.sites.supervisor` hands it in again)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.config import RunConfig
from weft.errors import RunError, ServerAway
from weft.sites.admin import LEFT, OVER, AdminSession, admin_session

EVERY = 1.0
"""Seconds between two questions."""
AT_ONCE = 30.0
"""Seconds to wait for a run that was ended or never began: the supervisor resubmits it at once, or never."""
PATIENCE = 400.0
"""Seconds that a run which fell is waited for; the supervisor takes at most 300."""


def watch(kit: Path, config: RunConfig, name: str, hear: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Hand a run in, and return its last status: its `state` is "done", "failed" or "stopped".

    Args:
        kit: the administrator's.
        config: the run.
        name: of the run at the server.
        hear: told what the run says, whenever that changes.

    Raises:
        RunError: the server cannot be reached at first, or the run fell and was not handed in again.
    """
    with admin_session(kit) as session:
        watch = _Watcher(name, hear, session.submit(config, name))
    while True:
        try:
            with admin_session(kit) as session:
                while (last := watch.look(session)) is None:
                    time.sleep(EVERY)
                return last
        except ServerAway:  # it is asked until it is back
            watch.fell = 0.0
            time.sleep(EVERY)


def named(job: dict[str, Any]) -> str:
    """Return the name of a job's run."""
    return str(job.get("job_name") or job.get("name"))


@dataclass
class _Watcher:
    """One who waits for a run."""

    name: str
    hear: Callable[[dict[str, Any]], None]
    job: str
    last: dict[str, Any] = field(default_factory=dict)
    """What the job said last."""
    fell: float = 0.0
    """Since when nobody runs it."""

    def look(self, session: AdminSession) -> dict[str, Any] | None:
        """Return the run's last status if it is over; raises as `follow`, and ServerAway."""
        try:
            state = session.state(self.job)
            newest = next(str(job["job_id"]) for job in session.jobs(limit=50) if named(job) == self.name)
        except Exception as error:
            raise ServerAway(f"The server does not answer ({type(error).__name__}).") from None
        if not state.startswith(OVER):
            said = session.status(self.job)
            if said is not None and said != self.last:
                self.hear(said)
                self.last = said
            # FLARE takes some seconds to end a job; the run itself is over before.
            return self.last if self.last.get("state") == "done" or self.last.get("final") else None
        if "COMPLETED" in state and self.last.get("state") != "failed":
            return self.last | {"state": "done"}
        if self.last.get("final"):
            return self.last
        if newest != self.job:
            self.job, self.last, self.fell = newest, {}, 0.0
            return None
        why = self.last.get("error") or f"its job is {state}"
        if not self.fell:
            self.fell = time.monotonic()
            self.hear({"state": f"waits to be handed in again: {why}"})
        soon = "ABORTED" in state or not (self.last or state in LEFT)
        if time.monotonic() - self.fell > (AT_ONCE if soon else PATIENCE):
            raise RunError(
                f"The run '{self.name}' fell ({why}), and its server does not hand it in again: see its log."
            )
        return None
