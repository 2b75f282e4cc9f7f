"""Whether a site has left a run, in a file of the run's folder, so that a restarted process does not come back."""

from __future__ import annotations

import json
from pathlib import Path

from weft.core.files import write_atomic

LEFT = "left.json"
"""Name of the file in a run's folder at a site."""


class Departure:
    """Says whether the site has left the run, by the run's birth: one that begins anew is tested anew."""

    def __init__(self, folder: Path, birth: str) -> None:
        """Read what an earlier process wrote.

        Args:
            folder: of the run at the site; it need not be there yet.
            birth: identifies the run among runs of the same name.
        """
        self.file, self.birth = folder / LEFT, birth
        self.round: int | None = None
        if self.file.exists():
            saved = json.loads(self.file.read_text(encoding="utf-8"))
            self.round = int(saved["round"]) if saved["birth"] == birth else None

    def leave(self, round: int) -> None:
        """Write down that the site leaves in a round, counted from 0."""
        self.round = round + 1
        write_atomic(self.file, json.dumps({"birth": self.birth, "round": self.round}).encode())

    def reason(self) -> str | None:
        """Return what the server is told; None: the site takes part."""
        if self.round is None:
            return None
        return f"it left the run in round {self.round}, as the shared model failed a test of its own"
