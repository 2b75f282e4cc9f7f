"""FedKSeed: only one number for each of K directions travels (Qin et al. 2023, arXiv 2312.06353)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from weft.core.capabilities import FromSeeds
from weft.core.directions import digest, rebuild
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import SEARCH, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total
from weft.errors import ClientFailed

SUMS, BASE, START = "sums", "base", "start"


class _Along(LocalRule):
    """Step along the K directions, and send the sum of the steps along each, shape (K,)."""

    def __init__(self, count: int, epsilon: float, seed: int) -> None:
        self.search_settings = {
            "count": torch.tensor(count),
            "epsilon": torch.tensor(epsilon, dtype=torch.float64),
            "seed": torch.tensor(seed),
        }

    def search(self) -> Tensors:
        return self.search_settings

    def finish(self, work: LocalWork) -> RuleResult:
        return RuleResult({SEARCH: {SUMS: work.moments[SEARCH][SUMS]}})


class _Start(NamedTuple):
    """The w0 of a client, and its digest, which costs a pass over all of it."""

    params: Tensors
    digest: Tensor


class _Rebuilt(NamedTuple):
    """The w of some sums A (K,)."""

    sums: Tensor
    params: Tensors


class _Sums(FromSeeds):
    """w from A, and a check that it is counted from the client's own w0.

    The last w is cached: all clients of a round that one process simulates are sent the same A.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._start: _Start | None = None
        self._last: _Rebuilt | None = None

    def recipe(self, state: ServerState) -> Streams:
        return {SEARCH: state.memory[SEARCH]}

    def params(self, recipe: Streams, start: Tensors) -> Tensors:
        sums, base = recipe[SEARCH][SUMS], recipe[SEARCH][BASE]
        if self._start is None or self._start.params is not start:
            self._start, self._last = _Start(start, digest(start)), None
        if not torch.equal(base, self._start.digest):
            raise ClientFailed("has another base model than the one that the seeds refer to")
        if self._last is None or not torch.equal(self._last.sums, sums):
            self._last = _Rebuilt(sums.clone(), rebuild(start, sums, self.seed))
        return self._last.params


@dataclass(frozen=True)
class FedKSeed(Algorithm):
    """w = w0 - sum_j A_j z_j: clients are sent A (K,), and send back the sum of lr rho along each direction.

    w is rebuilt from w0 and A, directions in the order of their numbers, so every client with w0 gets the same bits,
    whether it took part before or not. `seeds` is K; `epsilon` the step of the finite difference of the loss.
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    local: ClassVar[str] = "directions"
    streams: ClassVar[tuple[str, ...]] = (SEARCH,)
    seeds: int = 1024
    epsilon: float = 1e-3
    seed: int = field(default=0, metadata={"key": "seed"})

    def init(self, params: Tensors) -> ServerState:
        """Start with A = 0, and save w0."""
        start = {name: value if value.is_meta else value.detach().cpu().clone() for name, value in params.items()}
        return ServerState(params, {START: start, SEARCH: {SUMS: torch.zeros(self.seeds), BASE: digest(start)}})

    @cached_property
    def rebuild(self) -> FromSeeds:
        """From w0 and A; one object for all calls, since it caches its last result."""
        return _Sums(self.seed)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send A instead of parameters."""
        return Task(client, state.round, version, {}, self.rebuild.recipe(state))

    def task_like(self, params: Tensors) -> Streams:
        """Return A, and the digest of w0."""
        return {SEARCH: {SUMS: torch.zeros(self.seeds), BASE: torch.zeros(32, dtype=torch.uint8)}}

    def like(self, params: Tensors) -> Streams:
        """Return K numbers."""
        return {SEARCH: {SUMS: torch.zeros(self.seeds)}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Step along directions."""
        return _Along(self.seeds, self.epsilon, self.seed)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Add the mean to A, and rebuild w."""
        search = state.memory[SEARCH]
        sums = search[SUMS] + total.streams[SEARCH][SUMS]
        params = rebuild(state.memory[START], sums, self.seed)
        memory = {START: state.memory[START], SEARCH: {SUMS: sums, BASE: search[BASE]}}
        return ServerState(params, memory, state.round + 1)
