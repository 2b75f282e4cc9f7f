"""Attacks along a direction from the mean of honest updates; their strength is given, bounded or searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.attacks.vectors import deviation, mean, moved, scaled, sent
from weft.core.attack import Attack, Scene
from weft.core.gram import Gram, Rows
from weft.core.types import Streams, Update

TRIALS = 12
"""Trials of a search at growing strengths, and as many between the best ones."""


@dataclass(frozen=True)
class Directed(Attack):
    """All attackers send mu + strength x direction, mu the mean of honest updates.

    `search` looks for the strength that moves the total of the deployed rule farthest from mu, as an attacker can who
    knows the rule (adaptive; Shejwalkar and Houmansadr 2021).
    """

    changes_updates: ClassVar[bool] = True
    search: bool = False

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Return one vector for all attackers; where nobody is honest, of what they would have sent themselves."""
        seen = honest or own
        centre = mean(seen)
        way = self.direction(seen, centre)

        def at(strength: float) -> list[Update]:
            streams = moved(centre, way, strength)
            return [sent(one, streams) for one in own]

        if not self.search:
            return at(self.strength(seen, len(own), centre, way))
        return at(searched(lambda strength: _moved_by(at(strength), honest, centre, scene)))

    def direction(self, honest: Sequence[Update], centre: Streams) -> Streams:
        """Return the direction."""
        return scaled(centre, -1.0)

    def strength(self, honest: Sequence[Update], attackers: int, centre: Streams, way: Streams) -> float:
        """Return the strength where it is not searched."""
        raise TypeError(f"{type(self).__name__} must define strength")


@dataclass(frozen=True)
class SignFlip(Directed):
    """Send -scale x the mean of honest updates."""

    scale: float = 1.0

    def strength(self, honest: Sequence[Update], attackers: int, centre: Streams, way: Streams) -> float:
        """Return 1 + scale, which leads to -scale mu."""
        return 1.0 + self.scale


@dataclass(frozen=True)
class InnerProduct(SignFlip):
    """Send -scale x the mean, short enough to look like the others (IPM; Xie et al. 2019, arXiv 1903.03936)."""

    scale: float = 0.5


@dataclass(frozen=True)
class Alie(Directed):
    """Send mu - z x the standard deviation (A Little Is Enough; Baruch et al. 2019, arXiv 1902.06156).

    z 0: the largest z with which enough honest clients lie farther from mu for the attackers to be in a majority.
    """

    z: float = 0.0

    def direction(self, honest: Sequence[Update], centre: Streams) -> Streams:
        """Return minus the standard deviation of every number."""
        return scaled(deviation(honest), -1.0)

    def strength(self, honest: Sequence[Update], attackers: int, centre: Streams, way: Streams) -> float:
        """Return z."""
        if self.z:
            return self.z
        n = len(honest) + attackers
        supporters = n // 2 + 1 - attackers
        share = (len(honest) - supporters) / len(honest)
        return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))


@dataclass(frozen=True)
class MinMax(Directed):
    """The strongest vector that is no farther from any honest update than two of them are (Shejwalkar 2021)."""

    along: Literal["mean", "deviation"] = "deviation"

    def direction(self, honest: Sequence[Update], centre: Streams) -> Streams:
        """Return minus the mean, or minus the standard deviation."""
        return scaled(centre if self.along == "mean" else deviation(honest), -1.0)

    def strength(self, honest: Sequence[Update], attackers: int, centre: Streams, way: Streams) -> float:
        """Bisect; distances along the direction follow from one Gram matrix."""
        gram = Rows(honest, anchor=moved(centre, way, 1.0)).gram()
        n = len(honest)
        between = gram.squared_distances[:n, :n]
        most = float(self.measure(between).max())
        low, high = 0.0, 1.0
        while float(self.measure(_apart(gram, high)[None])[0]) <= most and high < 1e12:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            fits = float(self.measure(_apart(gram, middle)[None])[0]) <= most
            low, high = (middle, high) if fits else (low, middle)
        return low

    @staticmethod
    def measure(squared_distances: Tensor) -> Tensor:
        """Return the largest squared distance of every row."""
        return squared_distances.max(dim=1).values


@dataclass(frozen=True)
class MinSum(MinMax):
    """As min_max, by the sum of squared distances to all honest updates (Shejwalkar 2021)."""

    @staticmethod
    def measure(squared_distances: Tensor) -> Tensor:
        """Return the sum of the squared distances of every row."""
        return squared_distances.sum(dim=1)


def _apart(gram: Gram, strength: float) -> Tensor:
    """Return the squared distances of all rows from mu + strength x (anchor - mu), (n,)."""
    n = len(gram.inner) - 1
    weights = torch.full((n + 1,), (1 - strength) / n, dtype=gram.inner.dtype)
    weights[-1] = strength
    return gram.distances_from(weights)[:n].square()


def _moved_by(bad: Sequence[Update], honest: Sequence[Update], centre: Streams, scene: Scene) -> float:
    """Return how far the rule's total is from mu; 0 where it makes none."""
    total = scene.rule([*honest, *bad])
    if not total.streams:
        return 0.0
    squares = [
        (total.streams[stream][name].double() - value.double()).square().sum()
        for stream, values in centre.items()
        for name, value in values.items()
    ]
    return math.sqrt(float(sum(squares)))


def searched(effect: Callable[[float], float]) -> float:
    """Return the strength of the largest effect: of powers of 2 from 1/8 on, then between the best one's neighbours."""
    found = {strength: effect(strength) for strength in (2.0**k / 8 for k in range(TRIALS))}
    best = max(found, key=lambda strength: found[strength])
    for step in range(1, TRIALS):
        strength = best / 2 + (2 * best - best / 2) * step / TRIALS
        found[strength] = effect(strength)
    return max(found, key=lambda strength: found[strength])
