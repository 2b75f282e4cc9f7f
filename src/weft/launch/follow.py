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
        self.quiet: dict[str, float] = {}
        """When each site that is missed had last been heard as it was missed first."""
        self.back: dict[str, int] = {}
        """The round in which it was heard again."""

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
            self.quiet, self.back, self.began = {}, {}, desk.since()
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
                    self.quiet, self.back = {}, {}
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
        """Return the sites that are missed in the run and connected again, for two rounds at least.

        One whose line was cut for a while is found again by itself, in the round after.
        """
        rounds = [one["round"] for one in said.get("rounds", []) if "round" in one]
        if not rounds:
            return []
        last = rounds[-1]["round"]
        missed = {site for site, why in rounds[-1]["failures"].items() if "could not be reached" in why}
        missed |= {site for site, why in said.get("refused", {}).items() if "connected" in why or "reached" in why}
        now = desk.sites() if missed else {}
        self.quiet = {site: since for site, since in self.quiet.items() if site in missed}
        self.back = {site: round for site, round in self.back.items() if site in missed}
        for site in missed:
            if site not in self.quiet:
                self.quiet[site] = now.get(site, 0.0)
            elif now.get(site, 0.0) != self.quiet[site] and site in now:  # its heart beats again
                self.back.setdefault(site, last)
        return sorted(site for site, round in self.back.items() if last >= round + 2)
