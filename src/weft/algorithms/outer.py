"""The outer step of DiLoCo: its defaults by the number of clients, and its schedule over the rounds of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from weft.core import tensors
from weft.core.types import Tensors
from weft.errors import ConfigError

NESTEROV = 0.9
"""Outer momentum (Douillard et al. 2023, arXiv 2311.08105, section 3)."""


def outer_lr(clients: int) -> float:
    """Return the outer learning rate of Nesterov momentum 0.9 for `clients` clients in a round.

    The best of the scaling laws for DiLoCo (Charles et al. 2025, arXiv 2503.09799), which depends on the number of
    clients and not on the size of the model: 0.4 for one, 0.6 for two to four, 0.8 for more.
    """
    return {1: 0.4, 2: 0.6, 3: 0.6, 4: 0.6}.get(clients, 0.8)


def outer_defaults(clients: int, lr: float | None = None, momentum: float | None = None) -> tuple[float, float]:
    """Return outer learning rate and momentum; those that are given stay.

    One client has nobody to be averaged with: its outer step is the identity, learning rate 1 without momentum, so
    that its rounds are one uninterrupted training. Without momentum, the rate is 1 for any number of clients, which is
    FedAvg's mean.
    """
    if momentum is None:
        momentum = 0.0 if clients == 1 and lr is None else NESTEROV
    if lr is None:
        lr = outer_lr(clients) if momentum else 1.0
    return lr, momentum


class Rates(NamedTuple):
    """Learning rate and momentum of one outer step."""

    lr: float
    momentum: float


@dataclass(frozen=True)
class OuterSchedule:
    """Rates over the rounds of a run.

    The learning rate rises linearly over the first rounds. Over the last ones both fall linearly towards the plain
    mean, learning rate 1 without momentum, which the last round is: what the clients' own falling learning rates gain
    there is neither shortened nor mixed with older rounds.
    """

    rounds: int
    warmup: float = 0.0
    """Share of the rounds in which the learning rate rises."""
    decay: float = 0.0
    """Share of the rounds in which both fall to the plain mean."""

    def __post_init__(self) -> None:
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise ConfigError(
                f"outer_warmup={self.warmup} and outer_decay={self.decay} are shares of the rounds, from 0 to 1 "
                "together: write such as outer_warmup=0.05 and outer_decay=0.2."
            )

    def at(self, round: int, lr: float, momentum: float) -> Rates:
        """Return the rates of a round, counted from 0, given those between warm-up and decay."""
        rising, falling = (int(share * self.rounds + 0.5) for share in (self.warmup, self.decay))
        if round < rising:
            return Rates(lr * (round + 1) / rising, momentum)
        # A run that was extended may stand beyond the rounds of its schedule: these are plain means.
        left = max(0, self.rounds - 1 - round)
        share = min(1.0, left / falling) if falling else 1.0
        return Rates(1 + (lr - 1) * share, momentum * share)


def nesterov(
    delta: Tensors, previous: Tensors | None, momentum: float, weight: float | None = None
) -> tuple[Tensors, Tensors]:
    """Return the direction of the step, D + momentum m, and the new m = momentum m + D.

    Args:
        delta: D, the cohort's mean update, by name.
        previous: the former m; None in the first round.
        momentum: of the round.
        weight: the sum of the weights in m; m is divided by it and multiplied by its limit 1 / (1 - momentum), so
            that it weighs from the first round on what it would after many (as Adam corrects its moments; Kingma and
            Ba 2015, section 3). None: m as it is, which is torch's SGD.
    """
    sum_of_updates = delta if previous is None else tensors.add(tensors.scale(previous, momentum), delta)
    share = momentum if weight is None else momentum / ((1 - momentum) * weight)
    return tensors.add(delta, sum_of_updates, share), sum_of_updates
