"""SCAFFOLD: control variates against the drift of clients (Karimireddy et al. 2020, arXiv 1910.06378)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

CONTROL = "control"


class _Correct(LocalRule):
    """Add c - c_i to every gradient (or step), and compute the new c_i."""

    def __init__(self, server: Tensors, control: Tensors, in_gradients: bool) -> None:
        self.control = control
        self.difference = tensors.subtract(server, control)
        self.in_gradients = in_gradients
        self.correction: Tensors = {}
        self.gradient_sum: Tensors = {}

    def prepare(self, params: Tensors) -> None:
        self.correction = {name: self.difference[name].to(value.device) for name, value in params.items()}

    def adjust_grads(self, params: Tensors) -> None:
        if not self.in_gradients:
            return
        for name, value in params.items():
            if value.grad is not None:
                gradient_sum = self.gradient_sum.setdefault(name, torch.zeros_like(value.grad))
                gradient_sum.add_(value.grad)
                value.grad.add_(self.correction[name])

    def after_step(self, params: Tensors, lr: float) -> None:
        if not self.in_gradients:
            for name, value in params.items():
                value.sub_(self.correction[name], alpha=lr)

    def finish(self, work: LocalWork) -> RuleResult:
        delta = tensors.subtract(work.end, work.start)
        if self.in_gradients:
            new = {name: value.cpu() / work.steps for name, value in self.gradient_sum.items()}
        else:
            # (x - y) / sum of lr is the mean step, the correction included.
            # A parameter that did not move was not trained in this round (RoLoRA): its c_i stays.
            nonzero = {name: value for name, value in delta.items() if bool(value.any())}
            new = {name: -value / max(work.lr, 1e-30) - self.difference[name] for name, value in nonzero.items()}
        control = {name: new.get(name, value) for name, value in self.control.items()}
        return RuleResult({DELTA: delta, CONTROL: tensors.subtract(control, self.control)}, {CONTROL: control})


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """Clients step along g + c - c_i; c_i is the mean of the client's gradients, c = sum p_i c_i over all N clients.

    space=gradient (default): the correction is added to the gradient before clipping and AdamW, and c_i <- the mean of
    the gradients as they came. space=update (the paper's option II, as OpenFedLLM has it): the correction is added to
    AdamW's step, c_i <- (x - y) / (sum of lr) - (c - c_i). With SGD and without clipping both are option II.

    c <- c + sum over the cohort of p_i (c_i+ - c_i), p_i = w_i / (the weight of all N clients), not of the cohort:
    otherwise c would not stay sum p_i c_i (the paper's 1 / N is the case of equal weights). So the fixed point is where
    sum p_i grad f_i = 0, whichever clients are sampled or drop out: with `--client_weight size` the optimum of all rows
    together, with `uniform` that of equal clients.
    """

    plain_steps: ClassVar[bool] = False
    stateful_clients: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True
    remembers_coordinates: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = (DELTA, CONTROL)
    space: Literal["gradient", "update"] = "gradient"

    def init(self, params: Tensors) -> ServerState:
        """Begin with c = 0."""
        return ServerState(params, {CONTROL: tensors.zeros(params)})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send c too."""
        return Task(client, state.round, version, state.params, {CONTROL: state.memory[CONTROL]})

    def task_like(self, params: Tensors) -> Streams:
        """Return c."""
        return {CONTROL: params}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Correct by c - c_i; a client that never trained has c_i = 0."""
        control = memory.get(CONTROL) or tensors.zeros(task.params)
        return _Correct(task.extra[CONTROL], control, self.space == "gradient")

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Add the mean delta, and the cohort's share of the change of c."""
        control = tensors.add(state.memory[CONTROL], total.streams[CONTROL], total.weight_fraction)
        params = tensors.add(state.params, total.streams[DELTA])
        return ServerState(params, {CONTROL: control}, state.round + 1)
