"""FedProx: a pull towards the shared parameters (Li et al. 2020, arXiv 1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import Streams, Task, Tensors


class _Pull(LocalRule):
    """Pull towards the parameters at the start of the round."""

    def __init__(self, mu: float, decoupled: bool) -> None:
        self.mu, self.decoupled = mu, decoupled
        self.anchor: Tensors = {}

    def prepare(self, params: Tensors) -> None:
        self.anchor = tensors.copy(params)

    def adjust_grads(self, params: Tensors) -> None:
        if not self.decoupled:
            for name, value in params.items():
                if value.grad is not None:
                    value.grad.add_(value.detach() - self.anchor[name], alpha=self.mu)

    def after_step(self, params: Tensors, lr: float) -> None:
        if self.decoupled:
            tensors.pull_(params, self.anchor, lr * self.mu)


@dataclass(frozen=True)
class FedProx(Algorithm):
    """The local loss gains mu / 2 ||y - w||^2.

    By default the pull is decoupled from AdamW, as its weight decay is: y <- y - lr mu (y - w) after each step. In the
    gradient (form=gradient, the paper's) AdamW's normalisation removes its scale.
    """

    plain_steps: ClassVar[bool] = False
    mu: float = field(default=0.01, metadata={"key": "prox_mu"})
    form: Literal["decoupled", "gradient"] = "decoupled"

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Pull towards the task's parameters."""
        return _Pull(self.mu, self.form == "decoupled")
