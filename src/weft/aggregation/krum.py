"""Krum, Multi-Krum (Blanchard et al. 2017, arXiv 1703.02757) and Bulyan (El Mhamdi et al. 2018, arXiv 1802.07927)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.robust import Judgement, Robust
from weft.core.gram import WIDE, Gram, Rows, ordered
from weft.core.types import Update
from weft.errors import ConfigError


def scores(squared_distances: Tensor, neighbours: int) -> Tensor:
    """Return for every row the mean squared distance of its `neighbours` nearest rows, itself not among them."""
    others = squared_distances.clone().fill_diagonal_(float("inf"))
    return others.sort(dim=1).values[:, :neighbours].mean(dim=1)


def with_twins(chosen: Tensor, squared_distances: Tensor) -> Tensor:
    """Return 1 for the chosen rows and for those that equal one of them, 0 for others, (n,): who is no outlier.

    Args:
        chosen: numbers of rows.
        squared_distances: of the rows and the anchor, (n + 1, n + 1).
    """
    return (squared_distances[:-1, chosen] == 0).any(dim=1).to(WIDE)


@dataclass(frozen=True)
class Krum(Robust):
    """The update whose n - f - 1 nearest others are nearest to it.

    Stands f attackers of n > 2 f + 2 clients. Every client counts once. Of the clients, the f farthest from the others
    are flagged, although one update alone is used; one whose update equals that of a nearer one is not.
    """

    chooses_one: ClassVar[bool] = True

    def least(self, attackers: int) -> int:
        """Return 2 f + 3."""
        return 2 * attackers + 3 if attackers else 2

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Choose the first of the order."""
        order = self.order(gram, attackers)
        return self._equal(len(order), order[:1]), with_twins(order[: len(order) - attackers], gram.squared_distances)

    def order(self, gram: Gram, attackers: int) -> Tensor:
        """Return the numbers of the rows, those nearest to the others first."""
        distances = gram.squared_distances[:-1, :-1]
        return scores(distances, max(1, len(distances) - attackers - 1)).argsort(stable=True)

    @staticmethod
    def _equal(n: int, chosen: Tensor) -> Tensor:
        """Return weights (n + 1,) that are equal for the chosen rows and 0 for the others and the anchor."""
        return torch.zeros(n + 1, dtype=WIDE).index_fill_(0, chosen, 1.0 / len(chosen))


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the n - f updates that Krum takes to be nearest to the others; `keep` of them where it is given.

    In a round with drop-outs n - f may be smaller than `keep`; then n - f are used.
    Stands f attackers of n > 2 f + 2 clients. Every client counts once; those that are not used are flagged, unless
    they sent the same as one that is.
    """

    chooses_one: ClassVar[bool] = False
    keep: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep < 0:
            raise ConfigError(f"keep is {self.keep}, and that is no number of updates: write such as keep=3.")

    def most_kept(self, asked: int) -> int:
        """Return the most updates, or buckets of them, that are used of a round in which so many clients answer."""
        rows = -(-asked // self.bucket) if self.before == "bucketing" else asked
        return rows - self.tolerated(asked)

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Choose the first ones of the order."""
        order = self.order(gram, attackers)
        most = len(order) - attackers
        chosen = order[: min(self.keep, most) or most]
        return self._equal(len(order), chosen), with_twins(chosen, gram.squared_distances)


@dataclass(frozen=True)
class Bulyan(Krum):
    """Choose n - 2 f updates by Krum, one after the other; of every coordinate, average the n - 4 f nearest the median.

    Stands f attackers of n >= 4 f + 3 clients: an attacker that is near the others in all but one coordinate gets past
    a distance, and not past the second step. Every client counts once; those that are not chosen are flagged, unless
    they sent the same as one that is.
    """

    chooses_one: ClassVar[bool] = False

    def least(self, attackers: int) -> int:
        """Return 4 f + 3."""
        return 4 * attackers + 3

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Choose by distances, then average by coordinate."""
        f, rows = self.tolerated(asked), Rows(cohort)
        gram = rows.gram(self.base())
        mixture = self.mixture(gram, f)
        distances = (gram if mixture is None else gram.mixed(mixture)).squared_distances
        chosen = self._choose(distances[:-1, :-1], f)
        middle = len(chosen) - 2 * f

        def columns(stream: str, block: Tensor) -> Tensor:
            values = ordered((block[:-1] if mixture is None else mixture @ block[:-1])[chosen])
            median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
            # In order, the nearest to the median lie beside one another, in the window whose distances add up to least.
            # Its farther end does not tell it where values repeat: a, a, a, m has two windows of three with the end a.
            apart = (values - median).abs().unfold(0, middle, 1).sum(dim=-1)
            window = apart.argmin(dim=0) + torch.arange(middle)[:, None]
            return values.gather(0, window).mean(0)

        counted = with_twins(chosen, distances)
        return Judgement(rows.map(columns), counted if mixture is None else counted @ mixture)

    def _choose(self, distances: Tensor, attackers: int) -> Tensor:
        left = list(range(len(distances)))
        chosen = []
        for _ in range(len(distances) - 2 * attackers):
            among = torch.tensor(left)
            near = scores(distances[among][:, among], max(1, len(left) - attackers - 1)) if len(left) > 1 else among
            chosen.append(left.pop(int(near.argmin())))
        return torch.tensor(sorted(chosen))
