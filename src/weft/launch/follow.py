"""Waiting for a run of sites to end: it is handed in again, to go on, where its job fell or a site has come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.config import RunConfig
from weft.errors import RunError
from weft.launch.errands import OVER, Errands, errands

EVERY = 1.0
"""Seconds between two questions."""


class Follower:
    """One who waits for a run."""

    def __init__(self, kit: Path, config: RunConfig, name: str, hear: Callable[[dict[str, Any]], None]) -> None:
        """Hand nothing in yet.

        Args:
            kit: the administrator's.
            config: the run.
            name: of the run at the server.
            hear: told what the run says, whenever that changes.
        """
        self.kit, self.config, self.name, self.hear = kit, config, name, hear
        self.last: dict[str, Any] = {}
        self.began = ""
        """Since when the server ran then."""
        self.there: dict[str, float] = {}
        """Since when each site was connected as the job was handed in."""

    def follow(self, lives: int = 50) -> dict[str, Any]:
        """Hand the run in, as often as it takes, and return its last status: its `state` is "done" or "failed".

        Raises:
            RunError: the server cannot be reached at first, or the run fell too often.
        """
        job = self._submit()
        for _ in range(lives):
            self.last = {}
            while True:
                try:
                    with errands(self.kit) as desk:
                        self._watch(desk, job)
                    break
                except RunError:
                    time.sleep(EVERY)  # the server is away: it is asked until it is back
            if self.last.get("state") == "done" or self.last.get("final"):
                return self.last
            why = self.last.get("error") or "its server or a site went away"
            self.hear({"state": f"the job ended ({why}); it begins anew"})
            job = ""
            while not job:
                with contextlib.suppress(RunError):
                    job = self._submit()
                time.sleep(EVERY)
        raise RunError(f"The run '{self.name}' fell {lives} times: see its log at the server.")

    def _submit(self) -> str:
        with errands(self.kit) as desk:
            self.there, self.began = desk.sites(), desk.since()
            return desk.submit(self.config, self.name)

    def _watch(self, desk: Errands, job: str) -> None:
        """Ask for a job until it is over; end it where a site has come back, which takes part from the next one on."""
        if desk.since() != self.began:
            return  # it has been started again, and with it no job
        while True:
            said = desk.status(job)
            if said is not None and said != self.last:
                self.hear(said)
                self.last = said
                if back := self._returned(desk, said):
                    self.hear({"state": f"{', '.join(back)} came back"})
                    desk.stop(job)
            try:
                state = desk.state(job)
            except Exception as error:
                raise RunError(f"the server does not answer ({type(error).__name__})") from None
            if state.startswith(OVER):
                done = "COMPLETED" in state and self.last.get("state") != "failed"
                self.last = self.last | {"state": "done" if done else str(self.last.get("state", state))}
                return
            time.sleep(EVERY)

    def _returned(self, desk: Errands, said: dict[str, Any]) -> list[str]:
        """Return the sites of the run that are missed in it, and have connected since it was handed in."""
        rounds = [one["round"] for one in said.get("rounds", []) if "round" in one]
        if not rounds:
            return []
        missed = {site for site, why in rounds[-1]["failures"].items() if "could not be reached" in why}
        missed |= set(self.config.sites or ()) - set(said.get("sites", ())) - set(said.get("refused", ()))
        now = desk.sites() if missed else {}
        return sorted(site for site in missed if site in now and now[site] != self.there.get(site))
