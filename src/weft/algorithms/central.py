"""Training on the pooled rows of all clients: the baseline for a federation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from weft.algorithms.moments import KeepMoments
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import Streams, Task


@dataclass(frozen=True)
class Central(Algorithm):
    """One client has all rows; its rounds, steps and arithmetic are FedAvg's.

    keep_moments: its optimizer's moments go on from round to round, so that rounds leave no trace.
    """

    shares: ClassVar[bool] = False
    pools_data: ClassVar[bool] = True
    keep_moments: bool = field(default=False, metadata={"key": "keep_moments"})

    @property
    def stateful_clients(self) -> bool:  # type: ignore[override]
        """The client remembers its moments where it keeps them."""
        return self.keep_moments

    @property
    def remembers_coordinates(self) -> bool:  # type: ignore[override]
        """Moments are values for each coordinate."""
        return self.keep_moments

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Continue the moments where they are kept."""
        return KeepMoments(memory) if self.keep_moments else LocalRule()
