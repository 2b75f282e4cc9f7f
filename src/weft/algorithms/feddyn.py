"""FedDyn: a dynamic regulariser that aligns the clients' optima (Acar et al. 2021, arXiv 2111.04263)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

DUAL, STEPS = "dual", "steps"


class _Regularise(LocalRule):
    """Step along g - h_i + a (y - w); with a strength of 0, along g."""

    def __init__(self, strength: float, dual_of_client: Tensors, decoupled: bool, sends_steps: bool) -> None:
        self.strength, self.dual_of_client, self.decoupled, self.sends_steps = (
            strength,
            dual_of_client,
            decoupled,
            sends_steps,
        )
        self.anchor: Tensors = {}
        self.dual: Tensors = {}

    def prepare(self, params: Tensors) -> None:
        self.anchor = tensors.copy(params)
        self.dual = {name: self.dual_of_client[name].to(value.device) for name, value in params.items()}

    def adjust_grads(self, params: Tensors) -> None:
        if self.decoupled:
            return
        for name, value in params.items():
            if value.grad is not None:
                value.grad.sub_(self.dual[name]).add_(value.detach() - self.anchor[name], alpha=self.strength)

    def after_step(self, params: Tensors, lr: float) -> None:
        if not self.decoupled:
            return
        for name, value in params.items():
            force = (value - self.anchor[name]).mul_(self.strength).sub_(self.dual[name])
            value.sub_(force, alpha=lr)

    def finish(self, work: LocalWork) -> RuleResult:
        delta = tensors.subtract(work.end, work.start)
        scalars = {SCALARS: {STEPS: torch.tensor(float(work.steps))}} if self.sends_steps else {}
        return RuleResult({DELTA: delta} | scalars, {DUAL: tensors.add(self.dual_of_client, delta, -self.strength)})


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """h_i <- h_i - a (w_i - w), h <- h - a sum p_i D_i, w <- mean of w_i - h / a (alpha = 0: plain averaging).

    p_i = w_i / (the weight of all N clients), so that h stays sum p_i h_i whoever is in the cohort (the paper's 1 / N
    is the case of equal weights). The fixed point is where sum p_i grad f_i = 0: with `--client_weight size` the
    optimum of all rows together, with `uniform` that of equal clients.

    form=decoupled (default): the force a (y - w) - h_i acts after AdamW's step, times its learning rate; `alpha` is in
    units of 1 / (learning rate x steps), so that 1 pulls a client back about as far as a round takes it. Where clients
    make passes over their rows (max_steps -1), steps are the mean of the first cohort's, whose round is FedAvg's.
    form=gradient (the paper's): it is added to the gradient before clipping, and `alpha` is the paper's.
    """

    plain_steps: ClassVar[bool] = False
    adds_mean: ClassVar[bool] = False
    stateful_clients: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True
    remembers_coordinates: ClassVar[bool] = True
    alpha: float = 0.3
    form: Literal["decoupled", "gradient"] = "decoupled"
    learning_rate: float = field(default=1.0, metadata={"key": "learning_rate"})
    steps: int = field(default=1, metadata={"key": "max_steps"})

    @property
    def measures(self) -> bool:
        """Whether the number of steps of a round must be measured."""
        return self.form == "decoupled" and self.steps < 1

    @property
    def scalars(self) -> tuple[str, ...]:  # type: ignore[override]
        """The client's number of steps, where it must be measured."""
        return (STEPS,) if self.measures else ()

    def strength(self, memory: Streams) -> float:
        """Return the a of the rule, given the task's extra streams or the server's memory; 0: not measured yet."""
        if self.form == "gradient":
            return self.alpha
        steps = float(memory[STEPS][STEPS]) if STEPS in memory else max(0, self.steps)
        reach = self.learning_rate * steps
        return self.alpha / reach if reach else 0.0

    def init(self, params: Tensors) -> ServerState:
        """Begin with h = 0."""
        return ServerState(params, {DUAL: tensors.zeros(params)})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send the measured number of steps, if there is one."""
        extra = {STEPS: state.memory[STEPS]} if STEPS in state.memory else {}
        return Task(client, state.round, version, state.params, extra)

    def task_like(self, params: Tensors) -> Streams:
        """Return the measured number of steps, where they are measured."""
        return {STEPS: {STEPS: torch.zeros(())}} if self.measures else {}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Regularise by the client's h_i, which is 0 before its first round."""
        dual = memory.get(DUAL) or tensors.zeros(task.params)
        return _Regularise(self.strength(task.extra), dual, self.form == "decoupled", self.measures)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Average, and correct by h / a."""
        delta, a = total.streams[DELTA], self.strength(state.memory)
        dual = tensors.add(state.memory[DUAL], delta, -a * total.weight_fraction)
        params = tensors.add(state.params, delta)
        # a is 0 for alpha 0, and in a first round that measures the steps: then the step is FedAvg's.
        if a > 0:
            params = tensors.add(params, dual, -1 / a)
        measured = {STEPS: state.memory[STEPS]} if STEPS in state.memory else {}
        if self.measures and not measured:
            measured = {STEPS: {STEPS: total.streams[SCALARS][STEPS]}}
        return ServerState(params, {DUAL: dual} | measured, state.round + 1)
