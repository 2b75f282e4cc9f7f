"""FedCM: clients follow the last round's direction (Xu et al. 2021, arXiv 2106.10874). Clients remember nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

DIRECTION, RATES = "direction", "learning_rates"


class _FollowDirection(LocalRule):
    """Blend each step d with the server's direction G: y <- y - lr (own_share d + (1 - own_share) G).

    Where there is no direction yet, own_share is 1. The sum of learning rates is sent too.
    """

    def __init__(self, direction: Tensors, own_share: float) -> None:
        self.server_direction, self.own_share = direction, own_share
        self.direction: Tensors = {}

    def prepare(self, params: Tensors) -> None:
        self.direction = {name: self.server_direction[name].to(value.device) for name, value in params.items()}
        if not any(bool(value.any()) for value in self.direction.values()):
            self.own_share = 1.0

    def lr_factor(self, step: int) -> float:
        return self.own_share

    def after_step(self, params: Tensors, lr: float) -> None:
        for name, value in params.items():
            value.sub_(self.direction[name], alpha=lr * (1 - self.own_share))

    def finish(self, work: LocalWork) -> RuleResult:
        return RuleResult({DELTA: tensors.subtract(work.end, work.start), SCALARS: {RATES: torch.tensor(work.lr)}})


def direction_of(total: Total) -> Tensors:
    """Return -D / (sum of learning rates): the cohort's mean step, in the units of a step."""
    rates = float(total.streams[SCALARS][RATES])
    return tensors.scale(total.streams[DELTA], -1 / rates if rates else 0.0)


@dataclass(frozen=True)
class FedCM(Algorithm):
    """y <- y - lr (alpha d + (1 - alpha) G), w <- w + D; d is AdamW's step, G = -D / (sum of lr) of the last round.

    Weight decay is not part of d: it is applied in full, as without FedCM. In the first round, and where a cluster or a
    factor was never trained before, G is 0 and clients step along d (the paper: along alpha d).
    """

    plain_steps: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = (RATES,)
    alpha: float = 0.1

    def init(self, params: Tensors) -> ServerState:
        """Begin with G = 0."""
        return ServerState(params, {DIRECTION: tensors.zeros(params)})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send G too."""
        return Task(client, state.round, version, state.params, {DIRECTION: state.memory[DIRECTION]})

    def task_like(self, params: Tensors) -> Streams:
        """Return G."""
        return {DIRECTION: params}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Blend the steps."""
        return _FollowDirection(task.extra[DIRECTION], self.alpha)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Add the mean delta and remember its direction."""
        params = tensors.add(state.params, total.streams[DELTA])
        return ServerState(params, {DIRECTION: direction_of(total)}, state.round + 1)
