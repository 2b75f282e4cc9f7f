"""FedEx-LoRA: averaged factors, and the error of their product beside W (Singhal et al. 2024, arXiv 2410.09432)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.core import lowrank, tensors
from weft.core.lowrank import Product
from weft.core.parts import LoraAggregation
from weft.core.types import DELTA, SIDE, ServerState, Total


@dataclass(frozen=True)
class Residual(LoraAggregation):
    """B and A are averaged, and W <- W + s (sum p_i B_i A_i - B A).

    The residual stays beside W as a frozen side adapter and is never added to it, so that a quantised base loses no
    precision. Its rank grows up to that of W unless `side_rank` bounds it.
    """

    single_updates: ClassVar[bool] = True
    any_rank: ClassVar[bool] = False
    shape: ClassVar[str] = "side"
    scale: float = field(default=1.0, metadata={"key": "lora_scale"})
    side_rank: int | None = field(default=None, metadata={"key": "lora_side_rank"})

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return the averages, and the side adapter with the residual added."""
        side = lowrank.side_products(state.memory.get(SIDE, {}))
        params = tensors.add(state.params, total.streams[DELTA])
        for module, factors in lowrank.modules(params).items():
            product_of_means = lowrank.product_of(params, factors, -self.scale)
            parts = [products[module], product_of_means]
            if module in side:
                parts.insert(0, side[module])
            side[module] = lowrank.truncate(lowrank.total(parts), self.side_rank)
        return replace(total, streams=total.streams | {SIDE: lowrank.side_tensors(side)})
