"""FFA-LoRA: A stays as it was drawn, only B is trained and travels (Sun et al. 2024, arXiv 2403.12313)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class FFA(LoraAggregation):
    """B <- sum p_i B_i with one A for all: the average is exact, at half the bytes."""

    frozen: ClassVar[tuple[str, ...]] = ("A",)
