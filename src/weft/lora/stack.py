"""FLoRA: factors are stacked into a side adapter, a fresh adapter follows (Wang et al. 2024, arXiv 2409.05976)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.core import lowrank, tensors
from weft.core.lowrank import Product
from weft.core.parts import LoraAggregation
from weft.core.types import DELTA, SIDE, ServerState, Total


@dataclass(frozen=True)
class Stack(LoraAggregation):
    """W <- W + s [B_1 .. B_K] [p_1 A_1; ..; p_K A_K]; then B = 0 and A is drawn anew.

    The paper adds the stack to W. Here it stays beside W as a frozen side adapter, so that a quantised base loses
    no precision; its rank grows up to that of W unless `side_rank` bounds it.
    """

    single_updates: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = False
    shape: ClassVar[str] = "side"
    side_rank: int | None = field(default=None, metadata={"key": "lora_side_rank"})
    seed: int = field(default=0, metadata={"key": "seed"})

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return the step to a fresh adapter, and the side adapter with the stack added."""
        side = lowrank.side_products(state.memory.get(SIDE, {}))
        for module, product in products.items():
            parts = [side[module], product] if module in side else [product]
            side[module] = lowrank.truncate(lowrank.total(parts), self.side_rank)
        fresh = lowrank.fresh(state.params, self.seed, state.round)
        streams = total.streams | {DELTA: tensors.subtract(fresh, state.params), SIDE: lowrank.side_tensors(side)}
        return replace(total, streams=streams)
