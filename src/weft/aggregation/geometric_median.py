"""The geometric median (RFA; Pillutla et al. 2019, arXiv 1912.13445), found in the space of the Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.aggregation.robust import Robust
from weft.core.gram import WIDE, Gram
from weft.errors import ConfigError


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point with the least sum of distances to the updates, by Weiszfeld's iteration.

    z <- sum of x_i / d_i over the sum of 1 / d_i, where d_i = max(||x_i - z||, smoothing x the median distance). It
    begins at the mean of that half of the updates which is nearest to the one with the least sum of distances. Stands
    f < n / 2 attackers. Every client counts once; one that is far from the others counts little, and is flagged.
    """

    smoothing: float = 1e-6
    iterations: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smoothing <= 0 or self.iterations < 1:
            raise ConfigError(
                f"smoothing is {self.smoothing:g} and iterations {self.iterations}, and both are above 0: write such "
                "as smoothing=1e-6 iterations=1000."
            )

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Iterate until no weight changes by more than rounding."""
        n = len(gram.inner) - 1
        distances = gram.squared_distances[:n, :n].sqrt()
        near = distances[int(distances.sum(1).argmin())].argsort(stable=True)[: n // 2 + 1]
        weights = torch.zeros(n + 1, dtype=WIDE).index_fill_(0, near, 1.0 / len(near))
        for _ in range(self.iterations):
            apart = gram.distances_from(weights)[:n]
            # A quarter of the pairs of updates are honest ones, whatever the others send.
            floor = max(self.smoothing * float(apart.sort().values[(n - 1) // 2]), 1e-300)
            inverse = 1.0 / apart.clamp(min=floor)
            after = torch.cat([inverse / inverse.sum(), torch.zeros(1, dtype=WIDE)])
            change = float((after - weights).abs().max())
            weights = after
            if change < 1e-13:
                break
        return weights, weights[:-1]
