"""FedNova: clients that made more steps do not pull more (Wang et al. 2020, arXiv 2007.07481)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import DELTA, SCALARS, LocalWork, RuleResult, ServerState, Streams, Task, Total

RATIO = "step_ratio"


@dataclass(frozen=True)
class _Normalise(LocalRule):
    """Send D_i K / tau_i and tau_i / K: for a client that made all K steps, both factors are exactly 1."""

    nominal: int

    def finish(self, work: LocalWork) -> RuleResult:
        delta = tensors.scale(tensors.subtract(work.end, work.start), self.nominal / work.steps)
        return RuleResult({DELTA: delta, SCALARS: {RATIO: torch.tensor(work.steps / self.nominal)}})


@dataclass(frozen=True)
class FedNova(Algorithm):
    """w <- w + (sum p_i tau_i) sum p_i D_i / tau_i, with tau_i the steps of client i (AdamW: its number of steps)."""

    adds_mean: ClassVar[bool] = False
    scalars: ClassVar[tuple[str, ...]] = (RATIO,)
    steps: int = field(default=1, metadata={"key": "max_steps"})

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Normalise the update."""
        return _Normalise(max(1, self.steps))

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Go the mean number of steps along the mean step."""
        params = tensors.add(state.params, total.streams[DELTA], float(total.streams[SCALARS][RATIO]))
        return ServerState(params, state.memory, state.round + 1)
