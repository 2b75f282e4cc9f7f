"""FedAvgM: server momentum (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from weft.core import tensors
from weft.core.parts import Algorithm
from weft.core.types import DELTA, ServerState, Total

MOMENTUM = "momentum"


@dataclass(frozen=True)
class FedAvgM(Algorithm):
    """A momentum over the mean deltas D.

    form=average (OpenFedLLM's): m <- beta m + (1 - beta) D, the first m is D itself; w <- w + lr m.
    form=classic (the paper's): m <- beta m + D, from zero; w <- w + lr m.
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    momentum: float = field(default=0.9, metadata={"key": "fedopt_beta1"})
    form: Literal["average", "classic"] = "average"
    server_lr: float = 1.0

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Follow the momentum."""
        delta = total.streams[DELTA]
        previous = state.memory.get(MOMENTUM)
        if previous is None:
            momentum = delta
        else:
            weight = 1 - self.momentum if self.form == "average" else 1.0
            momentum = tensors.add(tensors.scale(previous, self.momentum), delta, weight)
        params = tensors.add(state.params, momentum, self.server_lr)
        return ServerState(params, {MOMENTUM: momentum}, state.round + 1)
