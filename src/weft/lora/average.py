"""FedIT: factors are averaged as any parameters (Zhang et al. 2023, arXiv 2305.05644)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class Average(LoraAggregation):
    """B <- sum p_i B_i, A <- sum p_i A_i: what the base class does. The product of averages is not their average."""

    plain: ClassVar[bool] = True
