"""No federation: clients that train alone, the baseline that a federation should beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.algorithms.moments import ContinuesMoments, KeepMoments, merged
from weft.core.capabilities import PersonalModels
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total

OWN = "own"


class _KeepOwn(KeepMoments):
    """Continue from the client's own parameters, and send nothing."""

    def __init__(self, memory: Streams, keep_moments: bool) -> None:
        super().__init__({key: values for key, values in memory.items() if key != OWN} if keep_moments else {})
        self.own, self.wants_moments = memory.get(OWN), keep_moments

    def begin(self, params: Tensors) -> Tensors:
        return params if self.own is None else self.own

    def finish(self, work: LocalWork) -> RuleResult:
        return RuleResult({}, {OWN: work.end} | merged(self.former, work.moments))


class _Instead(PersonalModels):
    """The client's own model, or the starting one before its first round."""

    def params(self, shared: Tensors, memory: Streams) -> Tensors:
        return memory.get(OWN, shared)


@dataclass(frozen=True)
class Local(Algorithm):
    """Every client trains a model of its own in every round; no parameters travel.

    keep_moments: its optimizer's moments go on from round to round.
    """

    stateful_clients: ClassVar[bool] = True
    shares: ClassVar[bool] = False
    streams: ClassVar[tuple[str, ...]] = ()
    remembers_coordinates: ClassVar[bool] = True
    keep_moments: bool = field(default=False, metadata={"key": "keep_moments"})

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """Return all clients."""
        return range(population)

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Train the client's own model."""
        return _KeepOwn(memory, self.keep_moments)

    @property
    def personal(self) -> PersonalModels:
        """A personal model instead of a shared one."""
        return _Instead()

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Count the round; the server's parameters stay."""
        return replace(state, round=state.round + 1)


@dataclass(frozen=True)
class OnlyClient(ContinuesMoments):
    """One client trains alone, and its model is the result (OpenFedLLM's `local0`, `local1`, ...).

    keep_moments: its optimizer's moments go on from round to round.
    """

    shares: ClassVar[bool] = False
    client: int = 0
    keep_moments: bool = False

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """The one client, in every round."""
        return [self.client]
