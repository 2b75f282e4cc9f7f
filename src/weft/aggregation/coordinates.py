"""Rules by coordinate: median, trimmed mean (Yin et al. 2018, arXiv 1803.01498), sign vote (arXiv 1810.05291)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.aggregation.robust import ByCoordinate
from weft.core.gram import WIDE, ordered
from weft.core.types import SCALARS
from weft.errors import ConfigError


@dataclass(frozen=True)
class Median(ByCoordinate):
    """The median of every coordinate; of an even number of updates the mean of the two in the middle.

    Stands f < n / 2 attackers. Every client counts once.
    """

    def columns(self, stream: str, values: Tensor, attackers: int) -> Tensor:
        """Return the medians."""
        n, columns = len(values), ordered(values)
        return (columns[(n - 1) // 2].to(WIDE) + columns[n // 2]) / 2


@dataclass(frozen=True)
class TrimmedMean(ByCoordinate):
    """The mean of every coordinate without its f largest and f smallest values.

    Stands f < n / 2 attackers. Every client counts once.
    """

    def columns(self, stream: str, values: Tensor, attackers: int) -> Tensor:
        """Return the means of the values in the middle."""
        return ordered(values)[attackers : len(values) - attackers].mean(0, dtype=WIDE)


@dataclass(frozen=True)
class SignVote(ByCoordinate):
    """The sign that most clients send for a coordinate, times `step` (Bernstein et al. 2019, arXiv 1810.05291).

    step 0: the median, over clients, of the mean size of the coordinates that are computed at a time (a tensor, or
    65,536 numbers of it). Single numbers that an algorithm sends beside its parameters have a median instead. Stands
    f < n / 2 attackers where honest clients agree on the sign. Every client counts once.
    """

    step: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 0:
            raise ConfigError(f"step is {self.step:g}, and it is the size of a step, 0 or above: write step=0.")

    def columns(self, stream: str, values: Tensor, attackers: int) -> Tensor:
        """Return the signs of the sums of signs, in the size of a step."""
        if stream == SCALARS:
            return torch.quantile(values, 0.5, dim=0)
        size = torch.quantile(values.abs().mean(1), 0.5) if self.step == 0 else self.step
        return values.sign().sum(0).sign() * size
