"""Fed-SB: an r x r matrix between frozen factors (Singhal et al. 2025, arXiv 2502.15436).

The frozen factors are the leading singular vectors of the layer's own weight (LoRA-XS, Balazy et al. 2024, arXiv
2405.17604): every party computes them by itself and no data is needed. The paper takes them from an estimated gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import LoraAggregation


@dataclass(frozen=True)
class FedSB(LoraAggregation):
    """dW = s B R A, R <- sum p_i R_i: exact, and the bytes do not depend on the layer's size."""

    shape: ClassVar[str] = "middle"
    frozen: ClassVar[tuple[str, ...]] = ("A", "B")
