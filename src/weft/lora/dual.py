"""A shared and a personal adapter (FDLoRA, Qi et al. 2024, arXiv 2406.07925; FedDPA, arXiv 2403.19211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class Dual(LoraAggregation):
    """y = W x + s B A x + g s B' A' x: B and A are averaged; B', A' and the gate g never leave the client."""

    shape: ClassVar[str] = "twin"
