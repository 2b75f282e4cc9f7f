"""Rules that clip: by the norm of an update (arXiv 1911.07963), and about the last total (arXiv 2012.10333)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.robust import Robust
from weft.core.gram import WIDE, Gram, cut_factors, lower_median
from weft.core.types import Streams
from weft.errors import ConfigError


@dataclass(frozen=True)
class NormClipping(Robust):
    """The mean of updates that are scaled down to a norm (Sun et al. 2019, arXiv 1911.07963).

    radius 0: the median norm of the round. An attacker moves the mean by radius / n at most, in any direction: f
    attackers are weakened, never left out, which suits back-doors that need large updates. The median stands f < n / 2
    of them. Every client counts once; those are flagged whose update was cut to less than half.
    """

    anchored: ClassVar[bool] = True
    radius: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_radius(self.radius)

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Scale every row, and leave the rest of the weight to the anchor, which is zero."""
        norms = gram.norms
        kept = cut_factors(norms, self.radius or lower_median(norms))
        return torch.cat([kept, (len(kept) - kept.sum())[None]]) / len(kept), kept


@dataclass(frozen=True)
class CenteredClipping(Robust):
    """v <- v + mean of clip(x_i - v), `iterations` times, from the last round's total (Karimireddy et al. 2021).

    radius 0: the median distance from v. Stands f < n / 2 attackers, better over rounds than in one (arXiv 2012.10333).
    The server keeps the last total, as large as an update. Every client counts once; those are flagged whose difference
    from v was cut to less than half.
    """

    anchored: ClassVar[bool] = True
    radius: float = 0.0
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_radius(self.radius)
        if self.iterations < 1:
            raise ConfigError(f"iterations is {self.iterations}, and one is the least: write such as iterations=3.")

    def anchor(self) -> Streams:
        """Return the last total."""
        return {} if self._gathering is None else self._gathering.party.memory

    def remember(self, streams: Streams) -> Streams:
        """Return the total, and what was not part of this round as it was."""
        before = self.anchor()
        return before | {stream: before.get(stream, {}) | values for stream, values in streams.items()}

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Move from the anchor towards the clipped rows."""
        n = len(gram.inner) - 1
        weights = torch.zeros(n + 1, dtype=WIDE)
        weights[-1] = 1.0
        kept = torch.ones(n, dtype=WIDE)
        for _ in range(self.iterations):
            apart = gram.distances_from(weights)[:n]
            kept = cut_factors(apart, self.radius or lower_median(apart))
            weights = weights * (1 - kept.mean()) + torch.cat([kept / n, torch.zeros(1, dtype=WIDE)])
        return weights, kept


def _check_radius(radius: float) -> None:
    if radius < 0:
        raise ConfigError(f"radius is {radius:g}, and it is a norm, or 0 for the round's median: write radius=0.")
