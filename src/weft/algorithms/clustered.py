"""Several models instead of one, each trained by the clients that it fits best (IFCA, Ghosh et al. 2020, 2006.04088).

Wraps any algorithm: the server runs it once for every cluster. A client is sent all models, takes the one with the
smallest loss on its own rows, trains that one, and says which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm, LocalRule
from weft.core.seeds import derive
from weft.core.types import DELTA, ServerState, Streams, Task, Tensors, Total, Update

CHOICE, CHOSEN = "cluster", "chosen"
TRAITS = [
    name for name, value in vars(Algorithm).items() if not name.startswith("_") and isinstance(value, (bool, tuple))
]
"""What the wrapped algorithm says of itself, this one says too."""


@dataclass(frozen=True)
class Clustered(Algorithm):
    """`clusters` models, trained by `inner`. Equal losses, as before the first round, are decided by lot."""

    inner: Algorithm = field(default_factory=Algorithm)
    clusters: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for trait in TRAITS:
            object.__setattr__(self, trait, getattr(self.inner, trait))
        object.__setattr__(self, "personal", True)
        object.__setattr__(self, "sums_updates", False)
        object.__setattr__(self, "one_model", False)

    @property
    def period(self) -> int:
        """The wrapped algorithm's."""
        return self.inner.period

    def init(self, params: Tensors) -> ServerState:
        """Begin with as many copies."""
        return _join([self.inner.init(params)] * self.clusters)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send every cluster's task: the first one's, and the others' beside it."""
        tasks = [self.inner.task(part, client, version) for part in self._parts(state)]
        extra: Streams = {}
        for number, task in enumerate(tasks):
            extra |= _named(number, task.extra | ({} if number == 0 else {DELTA: task.params}))
        return replace(tasks[0], extra=extra)

    def beside(self, state: ServerState) -> Streams:
        """Send the other models along wherever the first one is sent."""
        parts = self._parts(state)
        return {_name(number, DELTA): part.params for number, part in enumerate(parts) if number}

    def choose(self, task: Task, loss: Callable[[Tensors], float]) -> tuple[Task, Streams]:
        """Take the task of the model with the smallest loss, and say which it is."""
        every = [task.params, *(task.extra[_name(number, DELTA)] for number in range(1, self.clusters))]
        losses = [loss(params) for params in every]
        best = [number for number, value in enumerate(losses) if value == min(losses)] or [0]
        chosen = best[derive(self.seed, "cluster", task.client) % len(best)]
        extra = {name: value for name, value in _of(chosen, task.extra).items() if name != DELTA}
        beyond = {name: value for name, value in task.extra.items() if "|" not in name}
        said = {CHOICE: {CHOSEN: torch.tensor(float(chosen))}}
        return replace(task, params=every[chosen], extra=extra | beyond), said

    def like(self, params: Tensors) -> Streams:
        """What the wrapped algorithm's clients send, and the choice."""
        return self.inner.like(params) | {CHOICE: {CHOSEN: torch.zeros(())}}

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """The wrapped algorithm's, for the chosen task."""
        return self.inner.rule(task, memory)

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Combine the updates of every cluster for itself; they are held until all have come."""
        groups: dict[int, list[Update]] = {}
        for update in updates:
            chosen = min(max(int(update.streams[CHOICE][CHOSEN]), 0), self.clusters - 1)
            plain = {stream: values for stream, values in update.streams.items() if stream != CHOICE}
            groups.setdefault(chosen, []).append(replace(update, streams=plain))
        streams: Streams = {}
        clients: list[str] = []
        weight = 0.0
        for chosen, group in sorted(groups.items()):
            total = self.inner.combine(group, aggregator)
            streams |= _named(chosen, total.streams)
            streams.setdefault(DELTA, total.streams[DELTA])  # says which parameters were trained
            clients += total.clients
            weight += total.weight
        return Total(streams, tuple(clients), weight)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Step every cluster that somebody trained."""
        after = []
        for number, part in enumerate(self._parts(state)):
            streams = _of(number, total.streams)
            done = self.inner.step(part, replace(total, streams=streams)) if streams else part
            after.append(replace(done, round=state.round + 1))
        return _join(after)

    def _parts(self, state: ServerState) -> list[ServerState]:
        """Return the state of every cluster."""
        parts = []
        for number in range(self.clusters):
            memory = _of(number, state.memory)
            params = memory.pop(DELTA) if number else state.params
            parts.append(ServerState(params, memory, state.round))
        return parts


def _join(parts: list[ServerState]) -> ServerState:
    """Return the states as one: the first one's parameters, all else in the memory under its cluster's number."""
    memory: Streams = {}
    for number, part in enumerate(parts):
        memory |= _named(number, part.memory | ({DELTA: part.params} if number else {}))
    return ServerState(parts[0].params, memory, parts[0].round)


def _name(number: int, stream: str) -> str:
    return f"{number}|{stream}"


def _named(number: int, streams: Streams) -> Streams:
    return {_name(number, stream): values for stream, values in streams.items()}


def _of(number: int, streams: Streams) -> Streams:
    prefix = _name(number, "")
    return {name.removeprefix(prefix): values for name, values in streams.items() if name.startswith(prefix)}
