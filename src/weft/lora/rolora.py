"""RoLoRA: B and A are trained in turn (Chen et al. 2024, arXiv 2409.02346)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class RoLoRA(LoraAggregation):
    """The first, third, ... round trains B with A frozen, the others A with B frozen, so every average is exact."""

    alternates: ClassVar[bool] = True

    def trains(self, kind: str, round: int) -> bool:
        """B in even rounds (counted from 0: B starts at zero, so A would have no gradient), A in odd ones."""
        return kind not in ("A", "B") or kind == ("B" if round % 2 == 0 else "A")
