"""FedKSeed: what travels is a number for each of K directions (Qin et al. 2023, arXiv 2312.06353)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

from weft.core.capabilities import FromSeeds
from weft.core.directions import digest, rebuild
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import SEARCH, Finished, LocalWork, ServerState, Streams, Task, Tensors, Total
from weft.errors import ClientFailed

SUMS, BASE, START = "sums", "base", "start"


class _Along(LocalRule):
    """Step along the K directions, and send how far along each."""

    def __init__(self, count: int, epsilon: float, seed: int) -> None:
        self.told = {
            "count": torch.tensor(count),
            "epsilon": torch.tensor(epsilon, dtype=torch.float64),
            "seed": torch.tensor(seed),
        }

    def search(self) -> Tensors:
        return self.told

    def finish(self, work: LocalWork) -> Finished:
        return Finished({SEARCH: {SUMS: work.moments[SEARCH][SUMS]}})


class _Sums(FromSeeds):
    """w from A, and which w0 it is counted from."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.last: dict[str, Any] = {}
        """What was made last: all clients of a round, in one process, are sent the same."""

    def recipe(self, state: ServerState) -> Streams:
        return {SEARCH: state.memory[SEARCH]}

    def params(self, recipe: Streams, start: Tensors) -> Tensors:
        sent, last = recipe[SEARCH], self.last
        if last.get("of") is not start:
            last |= {"of": start, "digest": digest(start), "sums": None}
        if not torch.equal(sent[BASE], last["digest"]):
            raise ClientFailed("has another base model than the seeds are counted from")
        if last["sums"] is None or not torch.equal(last["sums"], sent[SUMS]):
            last |= {"sums": sent[SUMS].clone(), "made": rebuild(start, sent[SUMS], self.seed)}
        params: Tensors = last["made"]
        return params


@dataclass(frozen=True)
class FedKSeed(Algorithm):
    """w = w0 - sum_j A_j z_j: clients are sent A (K,), and send back the sum of lr rho along each direction.

    w is made anew from w0 and A, directions in the order of their numbers, so every client that has w0 has the same
    bits, whether it took part before or not. `seeds` is K; `epsilon` how far the loss is looked at on either side.
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    local: ClassVar[str] = "directions"
    streams: ClassVar[tuple[str, ...]] = (SEARCH,)
    seeds: int = 1024
    epsilon: float = 1e-3
    seed: int = field(default=0, metadata={"key": "seed"})

    def init(self, params: Tensors) -> ServerState:
        """Begin with A = 0, and keep w0."""
        start = {name: value if value.is_meta else value.detach().cpu().clone() for name, value in params.items()}
        return ServerState(params, {START: start, SEARCH: {SUMS: torch.zeros(self.seeds), BASE: digest(start)}})

    @cached_property
    def rebuild(self) -> FromSeeds:
        """From w0 and A; one object, for it keeps what it made last."""
        return _Sums(self.seed)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send A instead of parameters."""
        return Task(client, state.round, version, {}, self.rebuild.recipe(state))

    def like(self, params: Tensors) -> Streams:
        """K numbers."""
        return {SEARCH: {SUMS: torch.zeros(self.seeds)}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Step along directions."""
        return _Along(self.seeds, self.epsilon, self.seed)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Add the mean to A, and make w anew."""
        kept = state.memory[SEARCH]
        sums = kept[SUMS] + total.streams[SEARCH][SUMS]
        params = rebuild(state.memory[START], sums, self.seed)
        memory = {START: state.memory[START], SEARCH: {SUMS: sums, BASE: kept[BASE]}}
        return ServerState(params, memory, state.round + 1)
