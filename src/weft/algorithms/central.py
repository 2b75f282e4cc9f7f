"""Training on the pooled rows of all clients: the baseline for a federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import Algorithm


@dataclass(frozen=True)
class Central(Algorithm):
    """One client has all rows; its rounds, steps and arithmetic are FedAvg's."""

    shares: ClassVar[bool] = False
    pools_data: ClassVar[bool] = True
