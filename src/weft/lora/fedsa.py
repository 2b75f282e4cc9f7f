"""FedSA-LoRA: A is shared, B stays with its client (Guo et al. 2024, arXiv 2410.01463)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class FedSA(LoraAggregation):
    """A <- sum p_i A_i; every client has a B of its own. Products are never averaged, so they have no error."""

    personal_kinds: ClassVar[tuple[str, ...]] = ("B",)
