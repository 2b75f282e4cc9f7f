"""What every audit is: a question to a finished run, an answer in numbers, and what the numbers mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from weft.audits.needs import require_canaries, require_rows
from weft.audits.scene import Scene
from weft.json_types import JsonObject


@dataclass(frozen=True)
class Findings:
    """The outcome of an audit."""

    numbers: JsonObject
    """All that was measured, as plain data."""
    heads: list[str] = field(default_factory=list)
    """Of a table for people: the names of its columns."""
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences on how far the numbers can be trusted."""

    def as_json(self) -> JsonObject:
        """Return the findings as plain data."""
        return {"numbers": self.numbers, "heads": self.heads, "rows": self.rows, "notes": self.notes}


class Audit(ABC):
    """An audit; it has no state, and is found by its name in `weft.registry.AUDITS`."""

    title: ClassVar[str]
    means: ClassVar[str]
    """What its number means, in one sentence."""
    defence: ClassVar[str]
    """Which defence would change it, in one sentence."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What the run must have: "canaries", "rows" (here, and not at sites)."""

    @abstractmethod
    def findings(self, scene: Scene) -> Findings:
        """Ask the run.

        Raises:
            CannotAudit: the run does not allow it, or its control failed, so that the number would mean nothing.
        """

    def check(self, scene: Scene) -> None:
        """Refuse a run that lacks what the audit needs, before anything is loaded."""
        if "canaries" in self.needs:
            require_canaries(scene)
        if "rows" in self.needs:
            require_rows(scene)
