"""ReLoRA: factors are averaged, and merged from time to time, so that the rank grows (Lialin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.core import lowrank, tensors
from weft.core.lowrank import Product
from weft.core.parts import LoraAggregation
from weft.core.types import DELTA, SIDE, ServerState, Total


@dataclass(frozen=True)
class Merge(LoraAggregation):
    """B and A are averaged; after every `every` rounds W <- W + s B A, B = 0, and A is drawn anew (arXiv 2307.05695).

    The merged products stay beside W as a frozen side adapter: a quantised base loses no precision. The side
    adapter's rank grows with each merge by that of the adapter, up to that of W unless `side_rank` bounds it.
    """

    keeps_basis: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    shape: ClassVar[str] = "side"
    every: int = field(default=10, metadata={"key": "lora_merge_every"})
    scale: float = field(default=1.0, metadata={"key": "lora_scale"})
    side_rank: int | None = field(default=None, metadata={"key": "lora_side_rank"})
    seed: int = field(default=0, metadata={"key": "seed"})

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return the averages; in a merge round the step to a fresh adapter, with the old one in the side adapter."""
        if (state.round + 1) % self.every:
            return total
        side = lowrank.side_products(state.memory.get(SIDE, {}))
        params = tensors.add(state.params, total.streams[DELTA])
        for module, factors in lowrank.modules(params).items():
            product = lowrank.product_of(params, factors, self.scale)
            parts = [side[module], product] if module in side else [product]
            side[module] = lowrank.truncate(lowrank.total(parts), self.side_rank)
        fresh = lowrank.fresh(state.params, self.seed, state.round)
        streams = {DELTA: tensors.subtract(fresh, state.params), SIDE: lowrank.side_tensors(side)}
        return replace(total, streams=total.streams | streams)
