"""The pooled data at one place: the baseline that a federation is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import Algorithm


@dataclass(frozen=True)
class Central(Algorithm):
    """One client that has everybody's rows; the round, its steps and its arithmetic are FedAvg's."""

    shares: ClassVar[bool] = False
    pools_data: ClassVar[bool] = True
