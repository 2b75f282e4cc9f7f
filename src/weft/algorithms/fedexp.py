"""FedExP: a server step as long as the clients disagree (Jhunjhunwala et al. 2023, arXiv 2301.09604)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Total

SQUARE = "squared_norm"


class _WithNorm(LocalRule):
    """Send the squared norm of the update beside it."""

    def finish(self, work: LocalWork) -> RuleResult:
        delta = tensors.subtract(work.end, work.start)
        return RuleResult({DELTA: delta, SCALARS: {SQUARE: torch.tensor(tensors.squared_norm(delta))}})


@dataclass(frozen=True)
class FedExP(Algorithm):
    """w <- w + eta D with eta = max(1, mean of ||D_i||^2 / (2 (||D||^2 + epsilon))), D the mean of the D_i."""

    adds_mean: ClassVar[bool] = False
    scalars: ClassVar[tuple[str, ...]] = (SQUARE,)
    epsilon: float = 0.0

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Measure the update."""
        return _WithNorm()

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Extrapolate."""
        delta = total.streams[DELTA]
        mean = tensors.squared_norm(delta) + self.epsilon
        eta = max(1.0, float(total.streams[SCALARS][SQUARE]) / (2 * mean)) if mean > 0 else 1.0
        return ServerState(tensors.add(state.params, delta, eta), state.memory, state.round + 1)
