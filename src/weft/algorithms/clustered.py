"""Several models instead of one, each trained by the clients that it fits best (IFCA, Ghosh et al. 2020, 2006.04088).

Wraps any algorithm: the server runs it once per cluster. A client receives all models, trains the one with the smallest
loss on its own rows, and reports which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar

import torch

from weft.core.capabilities import ModelChoice
from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm
from weft.core.seeds import derive
from weft.core.types import DELTA, ServerState, Streams, Task, Tensors, Total, Update

CHOICE, INDEX = "cluster", "chosen"


@dataclass(frozen=True)
class _Best(ModelChoice):
    """A client chooses the model with the smallest loss, and reports its number."""

    clusters: int
    seed: int

    def other_models(self, state: ServerState) -> Streams:
        parts = _parts(state, self.clusters)
        return {_name(number, DELTA): part.params for number, part in enumerate(parts) if number}

    def choose(self, task: Task, loss: Callable[[Tensors], float]) -> tuple[Task, Streams]:
        models = [task.params, *(task.extra[_name(number, DELTA)] for number in range(1, self.clusters))]
        losses = [loss(params) for params in models]
        # Ties are broken by a seed of the client: if all took the first model, the others would stay untrained.
        best = [number for number, value in enumerate(losses) if value == min(losses)] or [0]
        number = best[derive(self.seed, "cluster", task.client) % len(best)]
        extra = {name: value for name, value in _stripped(number, task.extra).items() if name != DELTA}
        beyond = {name: value for name, value in task.extra.items() if "|" not in name}
        message = {CHOICE: {INDEX: torch.tensor(float(number))}}
        return replace(task, params=models[number], extra=extra | beyond), message


@dataclass(frozen=True)
class Clustered(Algorithm):
    """`clusters` models, trained by `inner`. Between equal losses, as in the first round, a client chooses at random.

    Everything that is not defined here is the wrapped algorithm's: traits, capabilities and methods, also those that
    `Algorithm` or a subclass gains later.
    """

    sums_updates: ClassVar[bool] = False
    inner: Algorithm = field(default_factory=Algorithm)
    clusters: int = 2
    seed: int = 0

    def __getattribute__(self, name: str) -> Any:
        """Return what is defined here, or else the wrapped algorithm's.

        `__getattr__` would not do: Python calls it only for names that the base class does not define either.
        """
        if name.startswith("_") or name in _defined():
            return super().__getattribute__(name)
        return getattr(self.inner, name)

    @property
    def choice(self) -> ModelChoice:
        """The model that fits best."""
        return _Best(self.clusters, self.seed)

    def init(self, params: Tensors) -> ServerState:
        """Begin with as many copies."""
        return _join([self.inner.init(params)] * self.clusters)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send every cluster's task: the first one's, and the others' beside it."""
        tasks = [self.inner.task(part, client, version) for part in _parts(state, self.clusters)]
        extra: Streams = {}
        for number, task in enumerate(tasks):
            extra |= _prefixed(number, task.extra | ({} if number == 0 else {DELTA: task.params}))
        return replace(tasks[0], extra=extra)

    def task_like(self, params: Tensors) -> Streams:
        """Return every cluster's streams, and the parameters of all but the first."""
        like: Streams = {}
        for number in range(self.clusters):
            like |= _prefixed(number, self.inner.task_like(params) | ({DELTA: params} if number else {}))
        return like

    def like(self, params: Tensors) -> Streams:
        """Return the wrapped algorithm's streams, and the choice."""
        return self.inner.like(params) | {CHOICE: {INDEX: torch.zeros(())}}

    def check(self, update: Update) -> None:
        """Check the wrapped algorithm's part of the update."""
        self.inner.check(_without_choice(update))

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Combine the updates of each cluster separately, after all have arrived."""
        groups: dict[int, list[Update]] = {}
        for update in updates:
            # A client may send any number: it is clipped to the clusters that there are.
            number = min(max(int(update.streams[CHOICE][INDEX]), 0), self.clusters - 1)
            groups.setdefault(number, []).append(_without_choice(update))
        streams: Streams = {}
        clients: list[str] = []
        weight = 0.0
        for number, group in sorted(groups.items()):
            total = self.inner.combine(group, aggregator)
            streams |= _prefixed(number, total.streams)
            streams.setdefault(DELTA, total.streams[DELTA])  # says which parameters were trained
            clients += total.clients
            weight += total.weight
        return Total(streams, tuple(clients), weight)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Step every cluster that some client trained."""
        after = []
        for number, part in enumerate(_parts(state, self.clusters)):
            streams = _stripped(number, total.streams)
            result = self.inner.step(part, replace(total, streams=streams)) if streams else part
            after.append(replace(result, round=state.round + 1))
        return _join(after)


@cache
def _defined() -> frozenset[str]:
    """Return the names that `Clustered` defines itself, its fields among them."""
    return frozenset({*vars(Clustered), *(field.name for field in fields(Clustered))})


def _without_choice(update: Update) -> Update:
    """Return an update without the choice, as the wrapped algorithm's clients send it."""
    return replace(update, streams={name: values for name, values in update.streams.items() if name != CHOICE})


def _parts(state: ServerState, clusters: int) -> list[ServerState]:
    """Return the state of every cluster."""
    parts = []
    for number in range(clusters):
        memory = _stripped(number, state.memory)
        params = memory.pop(DELTA) if number else state.params
        parts.append(ServerState(params, memory, state.round))
    return parts


def _join(parts: list[ServerState]) -> ServerState:
    """Return one state: the first cluster's parameters; all else is in the memory, prefixed by the cluster's number."""
    memory: Streams = {}
    for number, part in enumerate(parts):
        memory |= _prefixed(number, part.memory | ({DELTA: part.params} if number else {}))
    return ServerState(parts[0].params, memory, parts[0].round)


def _name(number: int, stream: str) -> str:
    return f"{number}|{stream}"


def _prefixed(number: int, streams: Streams) -> Streams:
    return {_name(number, stream): values for stream, values in streams.items()}


def _stripped(number: int, streams: Streams) -> Streams:
    prefix = _name(number, "")
    return {name.removeprefix(prefix): values for name, values in streams.items() if name.startswith(prefix)}
