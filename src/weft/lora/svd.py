"""FlexLoRA: the best factors of the average product (Bai et al. 2024, arXiv 2402.11505)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from weft.core import lowrank
from weft.core.lowrank import Product
from weft.core.parts import LoraAggregation
from weft.core.types import DELTA, ServerState, Total


@dataclass(frozen=True)
class SVD(LoraAggregation):
    """s B A <- the best approximation of sum p_i s B_i A_i of the adapter's rank, by falling singular values.

    A client of a smaller rank receives the leading components, which are the best of its rank. The part beyond the rank
    is lost; the record has it as the round's product error.
    """

    single_updates: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = False
    scale: float = field(default=1.0, metadata={"key": "lora_scale"})

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return the step from the old factors to the new ones."""
        delta = dict(total.streams[DELTA])
        for module, factors in lowrank.modules(state.params).items():
            former_b, former_a = state.params[factors["B"]], state.params[factors["A"]]
            b, a = lowrank.truncate(products[module], former_a.shape[0])
            # Where the product has a smaller rank, B is zero; with A zero too, that component would get no gradient.
            a = torch.where(a.norm(dim=1, keepdim=True) > 0, a, former_a * self.scale**0.5)
            delta[factors["B"]] = b / self.scale**0.5 - former_b
            delta[factors["A"]] = a / self.scale**0.5 - former_a
        return replace(total, streams=total.streams | {DELTA: delta})
