"""FoolsGold: sybils push the same way, round after round (Fung et al. 2018, arXiv 1808.04866)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.aggregation.robust import Judgement, Whole
from weft.core import tensors
from weft.core.gram import WIDE, Rows
from weft.core.types import Streams, Update

JOINT = ":"
"""Between the stream and the name of a tensor in a client's history."""


@dataclass(frozen=True)
class FoolsGold(Whole):
    """Clients whose updates, added up over rounds, point the same way count less, down to 0.

    Stands any number of sybils with one aim, and no other attacker: a single one with an aim of its own counts in full.
    Honest clients whose rows are alike point the same way too, so it suits clients that differ. The server keeps the
    sum of every client's updates. Every client counts once; those that are alike are flagged.
    """

    follows_clients: ClassVar[bool] = True

    def needs(self, cohort: int) -> int:
        """Return 2: a client alone is like nobody."""
        return 2

    def settle(self, cohort: list[Update], asked: int) -> Judgement:
        """Add up histories, and weigh by their likeness."""
        before = {} if self._gathering is None else self._gathering.party.memory
        histories = [replace(update, streams=_added(before.get(update.client, {}), update)) for update in cohort]
        shares = self.shares(Rows(histories).gram(anchored=True).cosines)
        total = float(shares.sum())
        weights = torch.cat([shares / total if total else shares, torch.zeros(1, dtype=WIDE)])
        kept = {one.client: before.get(one.client, {}) | _flat(one.streams) for one in histories}
        return Judgement(Rows(cohort).mix(weights), shares, before | kept)

    @staticmethod
    def shares(cosines: Tensor) -> Tensor:
        """Return how much each client counts, (n,) from 0 to 1, by the cosines between histories (n, n)."""
        # The authors' code has 0 on the diagonal: who is unlike everybody has a likeness of 0, and no negative one,
        # whose ratio to that of others would turn a negative cosine into a large positive one.
        alike = cosines.clone().fill_diagonal_(0.0)
        most = alike.max(dim=1).values
        # Pardon: a client that is less like any other than its partner is has come by the likeness honestly.
        ratio = most[:, None] / most[None, :].where(most[None, :] > 0, 1.0)
        pardoned = torch.where(most[None, :] > most[:, None], alike * ratio, alike)
        shares = (1.0 - pardoned.max(dim=1).values).clamp(0.0, 1.0)
        largest = float(shares.max())
        if largest == 0.0:
            return shares
        shares = (shares / largest).clamp(max=0.99)
        return (torch.log(shares.clamp(min=1e-12) / (1 - shares)) + 0.5).clamp(0.0, 1.0)


def _flat(streams: Streams) -> dict[str, Tensor]:
    return {f"{stream}{JOINT}{name}": value for stream, values in streams.items() for name, value in values.items()}


def _added(history: dict[str, Tensor], update: Update) -> Streams:
    """Return the sum of a client's updates, of the tensors of this round."""
    return {
        stream: tensors.add(
            values, {name: history.get(f"{stream}{JOINT}{name}", torch.zeros_like(values[name])) for name in values}
        )
        for stream, values in update.streams.items()
    }
