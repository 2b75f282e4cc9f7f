"""FedDyn: a dynamic regulariser that aligns the clients' optima (Acar et al. 2021, arXiv 2111.04263)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, Finished, LocalWork, ServerState, Streams, Task, Tensors, Total

DUAL = "dual"


class _Regularised(LocalRule):
    """Step along g - h_i + alpha (y - w)."""

    def __init__(self, alpha: float, own: Tensors, decoupled: bool) -> None:
        self.alpha, self.own, self.decoupled = alpha, own, decoupled
        self.anchor: Tensors = {}
        self.dual: Tensors = {}

    def prepare(self, params: Tensors) -> None:
        self.anchor = tensors.copy(params)
        self.dual = {name: self.own[name].to(value.device) for name, value in params.items()}

    def adjust_grads(self, params: Tensors) -> None:
        if self.decoupled:
            return
        for name, value in params.items():
            if value.grad is not None:
                value.grad.sub_(self.dual[name]).add_(value.detach() - self.anchor[name], alpha=self.alpha)

    def after_step(self, params: Tensors, lr: float) -> None:
        if not self.decoupled:
            return
        for name, value in params.items():
            if value.requires_grad:
                force = (value - self.anchor[name]).mul_(self.alpha).sub_(self.dual[name])
                value.sub_(force, alpha=lr)

    def finish(self, work: LocalWork) -> Finished:
        delta = tensors.subtract(work.end, work.start)
        return Finished({DELTA: delta}, {DUAL: tensors.add(self.own, delta, -self.alpha)})


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """h_i <- h_i - a (w_i - w), h <- h - a / N sum D_i, w <- mean of w_i - h / a (a = 0: plain averaging).

    form=decoupled (default): the force a (y - w) - h_i acts after AdamW's step, times its learning rate; `alpha` is in
    units of 1 / (learning rate x steps), so that 1 pulls a client back about as far as a round takes it.
    form=gradient (the paper's): it is added to the gradient, and `alpha` is the paper's.
    """

    plain_steps: ClassVar[bool] = False
    adds_mean: ClassVar[bool] = False
    stateful_clients: ClassVar[bool] = True
    remembers_coordinates: ClassVar[bool] = True
    alpha: float = 0.3
    form: Literal["decoupled", "gradient"] = "decoupled"
    learning_rate: float = field(default=1.0, metadata={"key": "learning_rate"})
    steps: int = field(default=1, metadata={"key": "max_steps"})

    @property
    def strength(self) -> float:
        """The a of the rule."""
        reach = self.learning_rate * max(1, self.steps)
        return self.alpha if self.form == "gradient" or reach == 0 else self.alpha / reach

    def init(self, params: Tensors) -> ServerState:
        """Begin with h = 0."""
        return ServerState(params, {DUAL: tensors.zeros(params)})

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Regularise by what the client remembers; one that never trained has h_i = 0."""
        own = memory.get(DUAL) or tensors.zeros(task.params)
        return _Regularised(self.strength, own, self.form == "decoupled")

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Average, and correct by h / a."""
        delta, a = total.streams[DELTA], self.strength
        share = len(total.clients) / max(total.population, len(total.clients))
        dual = tensors.add(state.memory[DUAL], delta, -a * share)
        params = tensors.add(state.params, delta)
        if a > 0:
            params = tensors.add(params, dual, -1 / a)
        return ServerState(params, {DUAL: dual}, state.round + 1)
