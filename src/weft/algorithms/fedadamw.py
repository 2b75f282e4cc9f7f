"""FedAdamW: AdamW whose second moments are shared (Liu et al. 2025, arXiv 2510.27486)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

MEANS, DIRECTION, COUNT, RATES = "second_moments", "direction", "steps", "learning_rates"


class _ContinueMoments(LocalRule):
    """Start with m = 0 and v at the cohort's mean, continue its step count; follow the last round's direction."""

    wants_moments = True

    def __init__(self, means: Tensors, direction: Tensors, counts: Tensors, beta1: float, alpha: float) -> None:
        self.means, self.server_direction, self.counts, self.beta1, self.alpha = means, direction, counts, beta1, alpha
        self.start: Tensors = {}
        self.direction: Tensors = {}
        self.previous_steps = 0

    def begin(self, params: Tensors) -> Tensors:
        self.start = params
        return params

    def moments(self) -> Streams:
        params = {name: value for name, value in self.start.items() if float(self.counts[name])}
        if not params:
            return {}
        return {
            "exp_avg": {name: torch.zeros_like(value) for name, value in params.items()},
            # One number per tensor travels, so every element starts with the mean.
            "exp_avg_sq": {n: torch.full_like(value, float(self.means[n])) for n, value in params.items()},
            "step": {name: self.counts[name].float() for name in params},
        }

    def prepare(self, params: Tensors) -> None:
        self.direction = {name: self.server_direction[name].to(value.device) for name, value in params.items()}
        # Parameters that are trained together have the same count.
        self.previous_steps = max((int(self.counts[name]) for name in params), default=0)

    def lr_factor(self, step: int) -> float:
        # AdamW divides m by 1 - beta1^t with the continued count t, but m starts at 0 in every round.
        return (1 - self.beta1 ** (self.previous_steps + step + 1)) / (1 - self.beta1 ** (step + 1))

    def after_step(self, params: Tensors, lr: float) -> None:
        for name, value in params.items():
            value.sub_(self.direction[name], alpha=lr * self.alpha)

    def finish(self, work: LocalWork) -> RuleResult:
        squares = work.moments.get("exp_avg_sq", {})
        means = {n: squares[n].mean() if n in squares else self.means[n].clone() for n in work.start}
        scalars = {RATES: torch.tensor(work.lr), COUNT: torch.tensor(float(work.steps))}
        return RuleResult({DELTA: tensors.subtract(work.end, work.start), MEANS: means, SCALARS: scalars})


@dataclass(frozen=True)
class FedAdamW(Algorithm):
    """y <- y - lr (m^ / (sqrt v^ + eps) + alpha G + weight_decay y), then w <- w + D, G = -D / (sum of lr).

    Every client starts with m = 0 and v = the mean of the last cohort's v, sent as one number per tensor (the paper's
    blocks), and continues the step count; m^ is corrected by the steps of the round, v^ by all steps of the tensor.
    Learning rate 3e-4 and weight decay 0.01 are the paper's.
    """

    plain_steps: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    uses_moments: ClassVar[bool] = True
    partial_work: ClassVar[bool] = False
    streams: ClassVar[tuple[str, ...]] = (DELTA,)
    scalars: ClassVar[tuple[str, ...]] = (RATES, COUNT)
    alpha: float = 0.5
    beta1: float = field(default=0.9, metadata={"key": "adam_beta1"})

    def like(self, params: Tensors) -> Streams:
        """Return the delta, and one number per tensor."""
        return super().like(params) | {MEANS: {name: torch.zeros(()) for name in params}}

    def init(self, params: Tensors) -> ServerState:
        """Start with zeros."""
        zeros = {name: torch.zeros(()) for name in params}
        return ServerState(params, {MEANS: zeros, DIRECTION: tensors.zeros(params), COUNT: dict(zeros)})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send the means, the direction and the counts too."""
        # Only these: the memory also counts other clients' bad updates.
        extra = {stream: state.memory[stream] for stream in (MEANS, DIRECTION, COUNT)}
        return Task(client, state.round, version, state.params, extra)

    def task_like(self, params: Tensors) -> Streams:
        """Return the means, the direction and the counts."""
        numbers = {name: torch.zeros(()) for name in params}
        return {MEANS: numbers, DIRECTION: params, COUNT: numbers}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Continue from the last cohort's moments."""
        means, direction, counts = (task.extra[stream] for stream in (MEANS, DIRECTION, COUNT))
        return _ContinueMoments(means, direction, counts, self.beta1, self.alpha)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Add the mean delta; remember its direction and the mean second moments."""
        numbers = total.streams[SCALARS]
        rates = float(numbers[RATES])
        memory = {
            # Of honest clients none is below 0; of a root of one that is, every client's model would be lost.
            MEANS: {name: mean.clamp(min=0) for name, mean in total.streams[MEANS].items()},
            DIRECTION: tensors.scale(total.streams[DELTA], -1 / rates if rates else 0.0),
            COUNT: {name: (count + numbers[COUNT]).round() for name, count in state.memory[COUNT].items()},
        }
        return ServerState(tensors.add(state.params, total.streams[DELTA]), memory, state.round + 1)
