"""Rules with rows of the server's own: FLTrust (Cao et al. 2020, arXiv 2012.13995), and a gate by the loss on them.

The server's own rows are those of `--public_data`: the client that has them takes part in every round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.aggregation.robust import Judgement, Whole
from weft.core import tensors
from weft.core.gram import WIDE, Rows, cut_factors, lower_median
from weft.core.types import DELTA, Total, Update
from weft.errors import ConfigError


@dataclass(frozen=True)
class Rooted(Whole):
    """What both rules share: the update of the server's own rows."""

    wants_root: ClassVar[bool] = True

    def needs(self, cohort: int) -> int:
        """Return 2: the server's own update, and one of a client."""
        return 2

    def root(self, cohort: list[Update]) -> int | None:
        """Return the place of the server's own update; None where it is not there."""
        trusted = "" if self._gathering is None else self._gathering.trusted
        return next((place for place, update in enumerate(cohort) if update.client == trusted), None)

    def weighed(self, cohort: list[Update], shares: torch.Tensor, lengths: torch.Tensor) -> Judgement:
        """Return the mean of the updates by their shares (n,), each multiplied by its factor of length (n,)."""
        total = float(shares.sum())
        weights = shares * lengths / total if total else torch.zeros_like(shares)
        return Judgement(Rows(cohort).mix(torch.cat([weights, torch.zeros(1, dtype=WIDE)])), shares)


@dataclass(frozen=True)
class FLTrust(Rooted):
    """The mean of ||g|| / ||x_i|| x_i, weighted by ReLU(cos(x_i, g)); g is the update of the server's own rows.

    Stands any number of attackers, as far as the server's rows are like those of honest clients. Where no update points
    its way, the server does not step. Every client counts once, by its cosine; those that count little are flagged.
    """

    def combine(self, updates: Iterable[Update]) -> Total:
        """Combine, or return no client where the server's own update is missing: the round is repeated."""
        cohort = list(updates)
        if cohort and self.root(cohort) is None:
            why = "was not used: the update of the server's own rows, which counts, is missing"
            return Total({}, (), 0.0, reason=why)
        return super().combine(cohort)

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Weigh the clients by their cosines with the server's own update."""
        place = self.root(cohort)
        assert place is not None
        gram = Rows(cohort).gram(anchored=True)
        shares = gram.cosines[place].clamp(min=0.0)
        shares[place] = 0.0
        return self.weighed(cohort, shares, gram.norms[place] / gram.norms.clamp(min=1e-300))


class _NoLoss(Exception):
    """There is no loss that an update could lower."""


@dataclass(frozen=True)
class LossGate(Rooted):
    """An update counts by how much it lowers the loss on the server's own rows; one that does not, counts nothing.

    This is how open networks score contributors. Each update is tried alone, which costs an evaluation of the server's
    rows a client. `power` 0 lets all that lower the loss count the same. Before it is tried, an update is cut to the
    norm of the server's own (to the round's median where that is missing), so that a huge one in a good direction gains
    nothing. Stands any number of attackers who do harm that the server's rows show; a back-door on inputs that they
    lack passes. Every client counts once.
    """

    wants_loss: ClassVar[bool] = True
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ConfigError(f"power is {self.power:g}, and it is 0 or above: write such as power=1.")

    def combine(self, updates: Iterable[Update]) -> Total:
        """Combine, or return no client where there is no loss to lower: the round is repeated."""
        try:
            return super().combine(updates)
        except _NoLoss:
            why = "was not used: the loss on the server's own rows, which decides, cannot be computed"
            return Total({}, (), 0.0, reason=why)

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Try every update but the server's own."""
        seen = self._gathering
        assert seen is not None
        assert seen.loss is not None
        norms, place = Rows(cohort).gram(anchored=True).norms, self.root(cohort)
        lengths = cut_factors(norms, lower_median(norms) if place is None else float(norms[place]))
        before = seen.loss({})
        if not math.isfinite(before):
            raise _NoLoss
        gains = []
        for update, length in zip(cohort, lengths.tolist(), strict=True):
            delta = update.streams[DELTA]
            if update.client == seen.trusted:
                gains.append(0.0)
                continue
            params = tensors.add({name: seen.params[name] for name in delta}, delta, length)
            gain = before - seen.loss(params)
            gains.append(gain if 0 < gain < math.inf else 0.0)
        shares = torch.tensor(gains, dtype=WIDE)
        # Relative to the largest gain: of a high power of the gains themselves, float64 has no number.
        shares = torch.where(shares > 0, (shares / shares.max().clamp(min=1e-300)) ** self.power, shares)
        return self.weighed(cohort, shares, lengths)
