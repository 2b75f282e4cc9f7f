"""The sites of a run, kept beside it: a run that is resumed waits for those that took part before.

A server that was killed is often back before its sites. Without this the run would go on with the first that connects,
and the update of one site alone would be "the mean".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from weft.core.files import write_atomic
from weft.errors import RunError

STALE = 900.0
"""Seconds after which a wait counts as given up: between two looks of the supervisor there are at most 300."""


class Rejoin:
    """The sites that took part in a run when it was last served, and since when some of them are waited for."""

    def __init__(self, file: Path, *, resume: bool, clock: Callable[[], float] = time.time) -> None:
        """Read the file, if there is one; one that cannot be read counts as none.

        Args:
            file: holds the names, and the times of the first and the last look in vain, in seconds since 1970.
            resume: the run may be there; otherwise it begins anew, and the file is not read.
            clock: returns these seconds: they are compared over processes.
        """
        self.file, self.clock = file, clock
        self.sites: list[str] = []
        self._since, self._last = 0.0, 0.0
        if not resume:
            return
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            times = float(saved.get("since", 0.0)), float(saved.get("last", 0.0))
            self.sites, (self._since, self._last) = [str(name) for name in saved["sites"]], times
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass

    def order(self, asked: list[str] | None, connected: Iterable[str]) -> list[str]:
        """Return all sites in the order of their numbers; a site keeps its number while it is away."""
        return asked or sorted({*connected, *self.sites})

    def check(self, asked: Collection[str] | None, connected: Collection[str], timeout: float) -> None:
        """Raise RunError, so that the run is resubmitted, while sites of the run are missing.

        Args:
            asked: the sites that the run names; None: all.
            connected: the sites that can be asked now.
            timeout: seconds that missing sites are waited for, from the first look in vain on.
        """
        missing = [site for site in self.sites if site not in connected and (asked is None or site in asked)]
        if not missing:
            return
        now = self.clock()
        if not 0 <= now - self._last <= STALE:  # never looked, or the server was away for long
            self._since = now
        self._last = now
        if now - self._since >= timeout:
            return
        self._write()
        raise RunError(
            f"{', '.join(missing)} took part in this run and {'is' if len(missing) == 1 else 'are'} not connected: the "
            f"run goes on when they are back, or without them in {timeout - (now - self._since):.0f} s "
            "(--rejoin_timeout)."
        )

    def keep(self, sites: Iterable[str]) -> None:
        """Write down the sites that take part from now on; nobody is waited for any more."""
        self.sites, self._since, self._last = list(sites), 0.0, 0.0
        self._write()

    def _write(self) -> None:
        content = {"sites": self.sites, "since": self._since, "last": self._last}
        write_atomic(self.file, json.dumps(content).encode())
