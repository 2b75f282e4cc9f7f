"""FLAME: the largest group of like directions, clipped, with noise (Nguyen et al. 2021, arXiv 2101.02281)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.aggregation.robust import Judgement, Robust
from weft.core.gram import WIDE, Rows, cut_factors, lower_median
from weft.core.types import Streams, Update
from weft.errors import ConfigError

ROUNDING = 1e-12
"""Cosine distances that differ by no more are the same one."""


@dataclass(frozen=True)
class Flame(Robust):
    """Keep the densest group of more than half of the clients by cosine distance, clip to the median norm, average.

    The group is the one that HDBSCAN finds whose clusters have more than n / 2 members: single linkage, cut where the
    group first has that many; all that are as near belong to it. `noise` is the paper's lambda: normal noise of lambda
    x the median norm on every coordinate, from the server's secret. It is 0 by default, since at a million coordinates
    0.001 is already as large as the update. Stands f < n / 2 attackers. Every client counts once; those outside the
    group are flagged.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ConfigError(f"noise is {self.noise:g}, and it is 0 or above: write such as noise=0.001.")
        if self.before != "none":
            raise ConfigError("flame groups the clients' own updates, so nothing goes before it: leave out before.")

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Group, clip, average, add noise."""
        n, rows = len(cohort), Rows(cohort)
        gram = rows.gram(self.base(), anchored=True)
        inside = torch.zeros(n, dtype=WIDE)
        inside[largest_group(1.0 - gram.cosines, n // 2 + 1)] = 1.0
        norms = gram.norms
        middle = lower_median(norms)
        kept = inside * cut_factors(norms, middle) / inside.sum()
        streams = rows.mix(torch.cat([kept, torch.zeros(1, dtype=WIDE)]))
        return Judgement(self._noised(streams, self.noise * middle) if self.noise else streams, inside)

    def _noised(self, streams: Streams, deviation: float) -> Streams:
        if self._gathering is None:
            return streams
        party = self._gathering.party
        return {
            stream: {
                name: value
                + deviation
                * party.secret.normal(tuple(value.shape), "flame", party.round, party.attempt, stream, name).to(
                    value.device, value.dtype
                )
                for name, value in values.items()
            }
            for stream, values in streams.items()
        }


def largest_group(distances: Tensor, size: int) -> list[int]:
    """Return the rows of the first group of `size` or more that single linkage makes, in order of their numbers.

    Pairs at the same distance, up to rounding, are joined together: no order of the rows decides who is outside.
    """
    n = len(distances)
    group_of = {row: {row} for row in range(n)}
    left, right = torch.triu_indices(n, n, 1)
    apart = distances[left, right]
    order = apart.argsort(stable=True)
    found, reach = list(range(n)), math.inf
    for one, other, distance in zip(left[order].tolist(), right[order].tolist(), apart[order].tolist(), strict=True):
        if distance > reach + ROUNDING:
            break
        if group_of[one] is group_of[other]:
            continue
        joint = group_of[one] | group_of[other]
        for row in joint:
            group_of[row] = joint
        if len(joint) >= size:
            found, reach = sorted(joint), min(reach, distance)
    return found
