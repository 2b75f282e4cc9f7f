"""FedBPT: one search distribution for all clients of a black box (Sun et al. 2023, arXiv 2310.01467)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.core.evolution import COMMON, Search, common_chance
from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm, LocalRule
from weft.core.types import SEARCH, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total, Update

SOLUTIONS, FITNESS, SCALE = "solutions", "fitness", "scale"


class _Try(LocalRule):
    """Search from the server's distribution, and send the last generation; of a common one, the losses alone."""

    def __init__(self, distribution: Tensors, *, common: bool) -> None:
        self.distribution, self.common = distribution, common

    def search(self) -> Tensors:
        return self.distribution | ({COMMON: torch.tensor(True)} if self.common else {})

    def finish(self, work: LocalWork) -> RuleResult:
        found = work.moments[SEARCH]
        return RuleResult({SEARCH: {FITNESS: found[FITNESS]} if self.common else found})


@dataclass(frozen=True)
class FedBPT(Algorithm):
    """Clients search for some generations from N(m, s^2 diag(v)) and send their last generation with its losses.

    The server updates its own CMA-ES with all candidates. Losses are standardised per client, so that a client of easy
    rows does not dominate; s is set so that the mean scale of a coordinate equals the clients' mean.

    With `common` all clients score the same candidates, one generation a round, and send standardised losses alone.
    The server needs their sum and nothing else, so that noise and secure aggregation cost one number for a candidate.
    """

    sums_with: ClassVar[str] = "common=true"
    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = (SEARCH,)
    local: ClassVar[str] = "search"
    population: int = field(default=20, metadata={"key": "population"})
    sigma: float = field(default=0.1, metadata={"key": "learning_rate"})
    seed: int = field(default=0, metadata={"key": "seed"})
    common: bool = False

    @property
    def sums_updates(self) -> bool:  # type: ignore[override]
        """Where candidates are common."""
        return self.common

    def init(self, params: Tensors) -> ServerState:
        """Start with one scale for all coordinates."""
        return self._state(Search.at(_flat(params), self.sigma), params, 0)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send mean and scales."""
        search = state.memory[SEARCH]
        return Task(client, state.round, version, state.params, {SEARCH: {n: search[n] for n in ("sigma", "variance")}})

    def task_like(self, params: Tensors) -> Streams:
        """Return the scales of the distribution."""
        size = sum(value.numel() for value in params.values())
        return {SEARCH: {"sigma": torch.zeros(()), "variance": torch.zeros(size)}}

    def like(self, params: Tensors) -> Streams:
        """Return a generation, its losses, and the scales of the client's search; of a common one, the losses."""
        if self.common:
            return {SEARCH: {FITNESS: torch.zeros(self.population)}}
        size = sum(value.numel() for value in params.values())
        shapes = {SOLUTIONS: (self.population, size), FITNESS: (self.population,), SCALE: (size,)}
        return {SEARCH: {name: torch.zeros(shape) for name, shape in shapes.items()}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Search, and send the last generation."""
        return _Try(task.extra[SEARCH], common=self.common)

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Concatenate all clients' candidates, and take the mean of their scales; of common ones, that of losses."""
        if self.common:
            return aggregator.combine(updates)
        solutions: list[Tensor] = []
        scores: list[Tensor] = []
        clients: list[str] = []
        scale, weight = None, 0.0
        for update in updates:
            generation = update.streams[SEARCH]
            losses = generation[FITNESS].double()
            solutions.append(generation[SOLUTIONS])
            scores.append((losses - losses.mean()) / losses.std().clamp(min=1e-12))
            clients.append(update.client)
            weight += update.weight
            share = update.weight / weight
            scale = generation[SCALE] if scale is None else scale + share * (generation[SCALE] - scale)
        if scale is None:
            return Total({}, (), 0.0)
        streams = {SEARCH: {SOLUTIONS: torch.cat(solutions), FITNESS: torch.cat(scores), SCALE: scale}}
        return Total(streams, tuple(clients), weight)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Update the server's search."""
        total_values = {name: value.double().numpy() for name, value in total.streams[SEARCH].items()}
        saved_search = {name: value.numpy() for name, value in state.memory[SEARCH].items()}
        search = Search(
            _flat(state.params),
            float(saved_search["sigma"]),
            saved_search["variance"],
            saved_search["path"],
            saved_search["step_path"],
            int(saved_search["count"]),
        )
        if self.common:
            candidates = search.ask(self.population, common_chance(self.seed, state.round))
            return self._state(search.tell(candidates, total_values[FITNESS]), state.params, state.round + 1)
        search = search.tell(total_values[SOLUTIONS], total_values[FITNESS])
        wide = float(total_values[SCALE].mean() / np.sqrt(search.variance).mean())
        return self._state(replace(search, sigma=wide), state.params, state.round + 1)

    def _state(self, search: Search, like: Tensors, round: int) -> ServerState:
        arrays = {"variance": search.variance, "path": search.path, "step_path": search.step_path}
        memory = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        memory |= {"sigma": torch.tensor(search.sigma, dtype=torch.float64), "count": torch.tensor(search.count)}
        flat = torch.from_numpy(search.mean).float()
        parts = flat.split([value.numel() for value in like.values()])  # type: ignore[no-untyped-call]
        mean = {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
        return ServerState(mean, {SEARCH: memory}, round)


def _flat(params: Tensors) -> np.ndarray:
    return np.concatenate([value.double().numpy().ravel() for value in params.values()])
