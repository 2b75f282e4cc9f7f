"""What robust aggregation rules share: the attackers that they stand, and the steps between updates and their total.

A rule sees the updates as vectors over all streams. Every client counts once: rows are what a client says that it has,
and a weight by rows would let an attacker outweigh the others. All updates of a round are in memory at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from weft.core.exchange import Aggregator
from weft.core.gram import WIDE, Base, Gram, Rows
from weft.core.party import Gathering
from weft.core.types import Streams, Total, Update
from weft.errors import ConfigError


class Judgement(NamedTuple):
    """What a rule makes of a cohort."""

    streams: Streams
    shares: Tensor | None = None
    """How much each client counts, (n,), in any unit; None: the rule judges coordinates, not clients."""
    memory: Streams | None = None
    """The rule's memory after the round; None: it has none."""


@dataclass(frozen=True)
class Whole(Aggregator):
    """An aggregator that looks at all updates of a round together and counts every client once."""

    counts_clients: ClassVar[bool] = True
    _gathering: Gathering | None = field(default=None, init=False, repr=False, compare=False)

    def for_round(self, gathering: Gathering) -> Self:
        """Return a copy that knows the round."""
        one = copy.copy(self)
        object.__setattr__(one, "_gathering", gathering)
        return one

    def combine(self, updates: Iterable[Update]) -> Total:
        """Return the rule's combination, with the clients that counted for less than half of an equal share."""
        cohort = list(updates)
        clients = tuple(name for update in cohort for name in update.members or (update.client,))
        weight = sum(update.weight for update in cohort)
        asked = len(cohort) if self._gathering is None else self._gathering.cohort
        if not cohort or len(cohort) < self.needs(asked):
            return Total({}, clients, weight)
        found = self.settle(cohort, asked)
        flagged: tuple[str, ...] = ()
        if found.shares is not None:
            equal, trusted = float(found.shares.sum()) / len(cohort), self._gathering and self._gathering.trusted
            little = [not share >= equal / 2 > 0 for share in found.shares.tolist()]
            low = [update.members or (update.client,) for update, low in zip(cohort, little, strict=True) if low]
            flagged = tuple(name for names in low for name in names if name != trusted)
        return Total(found.streams, clients, weight, flagged=flagged, memory=found.memory or {})

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Judge the updates of a round for which `asked` clients were asked; there are as many as the rule needs."""
        raise TypeError(f"{type(self).__name__} must define settle")


@dataclass(frozen=True)
class Robust(Whole):
    """A rule that stands a number of attackers among the clients of a round, whatever these send.

    `before` replaces the updates by means of some of them: of the n - f nearest to each (nnm; Allouah et al. 2023,
    arXiv 2302.01772), or of `bucket` at random (bucketing; Karimireddy et al. 2022, arXiv 2006.09365). Both help where
    the rows of clients differ. `distance` products compares LoRA adapters by their products B A, which stay the same
    where a client rotates its factors; parameters compares the numbers that it sent. Products are for rules whose
    result is one update: in a mean of factors, a client whose product is like the others' can hide factors like none.
    """

    anchored: ClassVar[bool] = False
    """It measures from the anchor, not between updates."""
    chooses_one: ClassVar[bool] = False
    """Its result is one of the updates."""
    attackers: float = 0.2
    """Attackers that are to be stood: below 0.5 a share of the clients asked, rounded down but 1 at least, from 1 on
    their number, 0 none."""
    before: Literal["none", "nnm", "bucketing"] = "none"
    bucket: int = 2
    """Updates of a bucket."""
    distance: Literal["parameters", "products"] = "parameters"

    def __post_init__(self) -> None:
        share, count = 0 <= self.attackers < 0.5, self.attackers >= 1 and float(self.attackers).is_integer()
        if not (share or count):
            raise ConfigError(
                f"attackers is {self.attackers:g}, and that is neither a share of the clients below 0.5 nor a whole "
                "number of them: write such as attackers=0.2 or attackers=2."
            )
        if self.distance == "products" and not (self.chooses_one and self.before == "none"):
            raise ConfigError(
                "distance=products compares adapters by their products, and this rule averages factors, in which a "
                "client can hide anything behind a product like the others': write distance=parameters, or "
                "--aggregator krum without before."
            )
        if self.bucket < 1:
            raise ConfigError(f"bucket is {self.bucket}, and a bucket has an update at least: write such as bucket=2.")

    def tolerated(self, asked: int) -> int:
        """Return the number of attackers to stand in a round for which `asked` clients were asked.

        Drop-outs do not change it: they may all be of honest clients.
        """
        if self.attackers >= 1 or not self.attackers:
            return int(self.attackers)
        return max(1, math.floor(self.attackers * asked + 1e-9))

    def least(self, attackers: int) -> int:
        """Return the smallest number of updates among which the rule stands so many attackers: its breakdown point."""
        return 2 * attackers + 1

    def needs(self, cohort: int) -> int:
        """Return the updates that a round needs, so that as many are left after `before` as the rule needs."""
        least = self.least(self.tolerated(cohort))
        return self.bucket * (least - 1) + 1 if self.before == "bucketing" else least

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Weigh the updates, or means of them, by their Gram matrix, and add them up."""
        anchor, f = self.anchor(), self.tolerated(asked)
        rows = Rows(cohort, anchor)
        gram = rows.gram(self.base(), anchored=self.anchored)
        mixture = self.mixture(gram, f)
        weights, shares = self.weigh(gram if mixture is None else gram.mixed(mixture), f)
        if mixture is not None:
            weights = torch.cat([weights[:-1] @ mixture, weights[-1:]])
            shares = None if shares is None else shares @ mixture
        streams = rows.mix(weights)
        return Judgement(streams, shares, self.remember(streams))

    def weigh(self, gram: Gram, attackers: int) -> tuple[Tensor, Tensor | None]:
        """Return the weights of the rows and the anchor, (n + 1,), and how much each row counts, (n,) or None."""
        raise TypeError(f"{type(self).__name__} must define weigh")

    def anchor(self) -> Streams:
        """Return the vector beside the updates; by default zero."""
        return {}

    def remember(self, streams: Streams) -> Streams:
        """Return the rule's memory after a round with this result."""
        return {}

    def base(self) -> Base | None:
        """Return what LoRA products are made of, where distances are to be between them."""
        seen = self._gathering
        if self.distance == "parameters" or seen is None or seen.scale is None:
            return None
        return Base(seen.params, seen.scale)

    def mixture(self, gram: Gram, attackers: int) -> Tensor | None:
        """Return the weights (m, n) of the means that stand for the updates; None: they stand for themselves."""
        n = len(gram.inner) - 1
        if self.before == "nnm":
            return nearest_means(gram, n - attackers)
        if self.before == "bucketing":
            return buckets(self._lots(n), self.bucket)
        return None

    def _lots(self, n: int) -> np.ndarray:
        """Return a random order of n updates, which attackers cannot foresee."""
        if self._gathering is None:
            return np.random.default_rng().permutation(n)
        party = self._gathering.party
        return np.argsort(party.secret.uniform(n, "buckets", party.round, party.attempt), kind="stable")


@dataclass(frozen=True)
class ByCoordinate(Robust):
    """A rule that takes every coordinate for itself."""

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Apply the rule to every column of the updates, or of means of them."""
        f, rows = self.tolerated(asked), Rows(cohort)
        mixture = None if self.before == "none" else self.mixture(rows.gram(self.base()), f)

        def columns(stream: str, block: Tensor) -> Tensor:
            values = block[:-1] if mixture is None else mixture @ block[:-1]
            return self.columns(stream, values, f)

        return Judgement(rows.map(columns, wide=mixture is not None))

    def columns(self, stream: str, values: Tensor, attackers: int) -> Tensor:
        """Return a number for every column of (n, c)."""
        raise TypeError(f"{type(self).__name__} must define columns")


def nearest_means(gram: Gram, count: int) -> Tensor:
    """Return the weights (n, n) of the mean of the `count` rows nearest to each row, itself among them.

    Rows that are equally far share the places that are left: no order of the rows decides which of them counts.
    """
    distances = gram.squared_distances[:-1, :-1]
    farthest = distances.sort(dim=1).values[:, count - 1 : count]
    nearer, level = (distances < farthest).to(WIDE), (distances == farthest).to(WIDE)
    places = (count - nearer.sum(dim=1, keepdim=True)) / level.sum(dim=1, keepdim=True)
    return (nearer + level * places) / count


def buckets(order: np.ndarray, size: int) -> Tensor:
    """Return the weights (m, n) of the means of `size` rows each, in an order; the last bucket may be smaller."""
    n = len(order)
    mixture = torch.zeros(-(-n // size), n, dtype=WIDE)
    for number, start in enumerate(range(0, n, size)):
        part = order[start : start + size]
        mixture[number, part.copy()] = 1.0 / len(part)
    return mixture
