"""FedSGD: clients send the gradient of every step (McMahan et al. 2017, arXiv 1602.05629): data-parallel training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

RATE, FIRST, SECOND, COUNT = "learning_rate", "exp_avg", "exp_avg_sq", "step"


class _Gradient(LocalRule):
    """Compute the gradient of the only step without stepping, and send its negative as the delta."""

    clips = False

    def __init__(self) -> None:
        self.gradient: Tensors = {}

    def adjust_grads(self, params: Tensors) -> None:
        self.gradient = {name: value.grad for name, value in params.items() if value.grad is not None}
        self.gradient = tensors.copy(self.gradient, "cpu")

    def lr_factor(self, step: int) -> float:
        return 0.0

    def finish(self, work: LocalWork) -> RuleResult:
        down = tensors.scale(tensors.zeros(work.start) | self.gradient, -1.0)
        return RuleResult({DELTA: down, SCALARS: {RATE: torch.tensor(work.lr, dtype=torch.float64)}})


@dataclass(frozen=True)
class FedSGD(Algorithm):
    """g = sum p_i g_i, clipped to max_grad_norm; then the run's optimizer makes its step at the server: AdamW, or SGD.

    The baseline of communication: the model and its gradient travel at every step.
    """

    plain_steps: ClassVar[bool] = False
    adds_mean: ClassVar[bool] = False
    one_step: ClassVar[bool] = True
    partial_work: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    optimizer: str = field(default="adamw", metadata={"key": "optimizer"})
    max_norm: float = field(default=1.0, metadata={"key": "max_grad_norm"})
    weight_decay: float = field(default=0.0, metadata={"key": "weight_decay"})
    matrices_only: bool = field(default=False, metadata={"key": "decay_matrices_only"})
    beta1: float = field(default=0.9, metadata={"key": "adam_beta1"})
    beta2: float = field(default=0.999, metadata={"key": "adam_beta2"})
    epsilon: float = field(default=1e-8, metadata={"key": "adam_epsilon"})

    @property
    def uses_moments(self) -> bool:  # type: ignore[override]
        """The server's optimizer is AdamW in full precision, or SGD."""
        return self.optimizer != "sgd"

    def like(self, params: Tensors) -> Streams:
        """Return the gradient, and the schedule's learning rate."""
        return {DELTA: params, SCALARS: {RATE: torch.zeros((), dtype=torch.float64)}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Send the gradient."""
        return _Gradient()

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Clip the mean gradient and make the optimizer's step."""
        lr, gradient = float(total.streams[SCALARS][RATE]), tensors.scale(total.streams[DELTA], -1.0)
        norm = tensors.squared_norm(gradient) ** 0.5
        if self.max_norm and norm > self.max_norm:
            gradient = tensors.scale(gradient, self.max_norm / norm)
        if self.optimizer == "sgd":
            # SGD's weight decay is coupled: it is part of the gradient, after clipping, as in torch.
            gradient = {n: g.add(state.params[n], alpha=self._decay(g)) for n, g in gradient.items()}
            return ServerState(tensors.add(state.params, gradient, -lr), {}, state.round + 1)
        count = {n: state.memory.get(COUNT, {}).get(n, torch.zeros(())) + 1 for n in gradient}
        moments = [state.memory.get(key) or tensors.zeros(gradient) for key in (FIRST, SECOND)]
        first = {n: moments[0][n].lerp(g, 1 - self.beta1) for n, g in gradient.items()}
        second = {n: moments[1][n].mul(self.beta2).addcmul(g, g, value=1 - self.beta2) for n, g in gradient.items()}
        params = {}
        for name, g in gradient.items():
            share = [1 - beta ** float(count[name]) for beta in (self.beta1, self.beta2)]
            scale = second[name].div(share[1]).sqrt_().add_(self.epsilon)
            decayed = state.params[name] * (1 - lr * self._decay(g))
            params[name] = decayed.addcdiv_(first[name], scale, value=-lr / share[0])
        return ServerState(params, {FIRST: first, SECOND: second, COUNT: count}, state.round + 1)

    def _decay(self, value: torch.Tensor) -> float:
        return self.weight_decay if value.dim() > 1 or not self.matrices_only else 0.0
