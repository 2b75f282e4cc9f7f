"""DiLoCo: AdamW inside, Nesterov momentum outside (Douillard et al. 2023, arXiv 2311.08105)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, Finished, LocalWork, ServerState, Streams, Task, Tensors, Total

MOMENTUM, FIRST, SECOND, COUNT = "momentum", "exp_avg", "exp_avg_sq", "step"


class _Inner(LocalRule):
    """Go on with AdamW's moments, those of the client or those of the cohort."""

    wants_moments = True

    def __init__(self, given: Streams, send: bool, params: Tensors) -> None:
        self.given, self.send, self.params = given, send, params

    def moments(self) -> Streams:
        return self.given

    def finish(self, work: LocalWork) -> Finished:
        delta = tensors.subtract(work.end, work.start)
        if not self.send:
            return Finished({DELTA: delta}, self.given | work.moments)
        zeros = tensors.zeros(self.params)
        moments = {key: zeros | work.moments.get(key, {}) for key in (FIRST, SECOND)}
        counts = list(work.moments.get(COUNT, {}).values())
        count = counts[0] if counts else torch.tensor(float(work.steps))
        return Finished({DELTA: delta, SCALARS: {COUNT: count.clone()}, **moments})


@dataclass(frozen=True)
class DiLoCo(Algorithm):
    """g = -D, m <- momentum m + g, w <- w - outer_lr (g + momentum m), as torch's SGD with nesterov.

    inner_state: what becomes of AdamW's moments between rounds: keep (they stay with the client, the paper's), reset
    (made anew), average (they travel and are averaged, at three times the bytes).
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    outer_lr: float = 0.7
    momentum: float = 0.9
    inner_state: Literal["keep", "reset", "average"] = "keep"

    @property
    def stateful_clients(self) -> bool:  # type: ignore[override]
        """Clients remember their moments where they keep them."""
        return self.inner_state == "keep"

    @property
    def uses_moments(self) -> bool:  # type: ignore[override]
        """Moments are averaged as AdamW's."""
        return self.inner_state == "average"

    def like(self, params: Tensors) -> Streams:
        """The moments too, where they are averaged."""
        like = super().like(params)
        if self.inner_state == "average":
            like |= {FIRST: params, SECOND: params, SCALARS: {COUNT: torch.zeros(())}}
        return like

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send averaged moments along."""
        extra = {key: state.memory[key] for key in (FIRST, SECOND, COUNT) if key in state.memory}
        return Task(client, state.round, version, state.params, extra)

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Go on with the moments."""
        if self.inner_state == "reset":
            return LocalRule()
        if self.inner_state == "keep":
            return _Inner(memory, False, task.params)
        given = {key: task.extra[key] for key in (FIRST, SECOND) if key in task.extra}
        if given:
            given[COUNT] = dict.fromkeys(task.params, task.extra[COUNT][COUNT])
        return _Inner(given, True, task.params)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Take the outer step."""
        delta = total.streams[DELTA]
        former = state.memory.get(MOMENTUM)
        momentum = delta if former is None else tensors.add(tensors.scale(former, self.momentum), delta)
        params = tensors.add(state.params, tensors.add(delta, momentum, self.momentum), self.outer_lr)
        memory = {MOMENTUM: momentum}
        if self.inner_state == "average":
            memory |= {FIRST: total.streams[FIRST], SECOND: total.streams[SECOND]}
            memory[COUNT] = {COUNT: total.streams[SCALARS][COUNT].round()}
        return ServerState(params, memory, state.round + 1)
