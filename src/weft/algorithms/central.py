"""Training on the pooled rows of all clients: the baseline for a federation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from weft.algorithms.moments import ContinuesMoments


@dataclass(frozen=True)
class Central(ContinuesMoments):
    """One client has all rows; its rounds, steps and arithmetic are FedAvg's.

    keep_moments: its optimizer's moments go on from round to round, so that rounds leave no trace.
    """

    shares: ClassVar[bool] = False
    pools_data: ClassVar[bool] = True
    keep_moments: bool = field(default=False, metadata={"key": "keep_moments"})
