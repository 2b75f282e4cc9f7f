"""FedBuff: a server that does not wait (Nguyen et al. 2022, arXiv 2106.06639)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from weft.core import tensors
from weft.core.capabilities import UpdateBuffer
from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm
from weft.core.types import DELTA, ServerState, Task, Total, Update

VERSION = "version."


@dataclass(frozen=True)
class FedBuff(Algorithm):
    """With K updates in the buffer: w <- w + server_lr mean of s(t_i) D_i, s(t) = (1 + t)^-staleness_power.

    t_i is the number of server steps since client i began. The mean is weighted as FedAvg's and not divided by the
    s(t_i), so that stale cohorts move the server less. sample_clients clients train at any time.
    """

    adds_mean: ClassVar[bool] = False
    sums_updates: ClassVar[bool] = False
    buffer_size: int = 0
    """K; 0: as many as clients train at a time."""
    server_lr: float = 1.0
    staleness_power: float = 0.5
    max_staleness: int = 10
    """Versions that the server keeps; a client that began earlier is treated as beginning from the oldest."""

    @property
    def buffer(self) -> UpdateBuffer:
        """K updates make a step."""
        return UpdateBuffer(self.buffer_size)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send the version that the client began from."""
        base_version = max(version, state.round - self.max_staleness)
        # A round without a usable update saves no version: the next saved one has the same parameters.
        candidates = (f"{VERSION}{number}" for number in range(base_version, state.round))
        stream = next((name for name in candidates if name in state.memory), None)
        return Task(client, state.round, base_version, state.memory[stream] if stream else state.params)

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Weigh the updates by their staleness."""
        return aggregator.combine(self._discounted(updates))

    def _discounted(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            late = update.round - update.base_version
            share = (1 + late) ** -self.staleness_power
            delta = tensors.scale(update.streams[DELTA], share)
            yield replace(update, streams=update.streams | {DELTA: delta})

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Step, and save the version before the step for the clients that still train from it."""
        params = tensors.add(state.params, total.streams[DELTA], self.server_lr)
        # Versions cost a copy of the parameters each, so those that no client can begin from are dropped.
        oldest = state.round + 1 - self.max_staleness
        memory = {name: values for name, values in state.memory.items() if int(name.removeprefix(VERSION)) >= oldest}
        if self.max_staleness > 0:
            memory[f"{VERSION}{state.round}"] = state.params
        return ServerState(params, memory, state.round + 1)
