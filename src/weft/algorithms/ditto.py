"""Ditto: a personal model beside the shared one (Li et al. 2021, arXiv 2012.04221)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core import tensors
from weft.core.capabilities import PersonalModels
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import LocalWork, RuleResult, Streams, Task, Tensors

OWN = "own"


class _PullToShared(LocalRule):
    """Train the client's own model, pulled towards the shared one."""

    def __init__(self, personal: Tensors, shared: Tensors, strength: float) -> None:
        self.personal, self.shared, self.strength = personal, shared, strength
        self.anchor: Tensors = {}

    def begin(self, params: Tensors) -> Tensors:
        return self.personal

    def prepare(self, params: Tensors) -> None:
        self.anchor = {name: self.shared[name].to(value.device) for name, value in params.items()}

    def after_step(self, params: Tensors, lr: float) -> None:
        tensors.pull_(params, self.anchor, lr * self.strength)

    def finish(self, work: LocalWork) -> RuleResult:
        return RuleResult({}, {OWN: work.end})


@dataclass(frozen=True)
class _Beside(PersonalModels):
    """A personal model beside the shared one, from which it starts."""

    strength: float

    def params(self, shared: Tensors, memory: Streams) -> Tensors:
        return memory.get(OWN, shared)

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        return _PullToShared(self.params(task.params, memory), task.params, self.strength)


@dataclass(frozen=True)
class Ditto(Algorithm):
    """The shared w is FedAvg's; beside it every client trains v_i <- v_i - lr (grad F_i(v_i) + strength (v_i - w)).

    `strength` is the paper's lambda; the pull is decoupled from AdamW, as FedProx's is.
    """

    plain_steps: ClassVar[bool] = False
    stateful_clients: ClassVar[bool] = True
    remembers_coordinates: ClassVar[bool] = True
    strength: float = 1.0

    @property
    def personal(self) -> PersonalModels:
        """A personal model beside the shared one."""
        return _Beside(self.strength)
