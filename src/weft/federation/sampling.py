"""Sampling of clients, as a function of the seed and the round alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from weft.core.secret import Secret
from weft.core.seeds import generator
from weft.core.shares import at_least
from weft.errors import RunError
from weft.federation.conditions import Conditions


def sample_clients(
    population: int,
    count: int,
    *,
    seed: int,
    round: int,
    weights: np.ndarray | None = None,
    among: np.ndarray | None = None,
    draw: int = 0,
) -> list[int]:
    """Return the sorted indexes of `count` different clients.

    Args:
        population: number of clients; all are returned where `count` is not below it.
        count: number of clients to sample.
        seed: the run's seed.
        round: the round, from 0.
        weights: unnormalised sampling probabilities, shape (population,); None: equal ones.
        among: indexes of the candidates; None: all clients.
        draw: number of the draw within the round, from 0.
    """
    candidates = np.arange(population) if among is None else among
    if count >= len(candidates):
        return [int(client) for client in candidates]
    chances = None if weights is None else weights[candidates] / weights[candidates].sum()
    purpose = ("cohort", round, draw) if draw else ("cohort", round)
    clients = generator(seed, *purpose).choice(candidates, size=count, replace=False, p=chances)
    return sorted(int(client) for client in clients)


@dataclass(frozen=True)
class Availability:
    """When clients can be reached: spans of rounds (first, last), counted from 1; a client without spans always can."""

    spans: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    period: int | None = None
    """Rounds after which the trace repeats; None: it does not."""

    _known: list[_Spans] = field(default_factory=list, repr=False, compare=False)

    def reachable(self, clients: Sequence[str], clock: int) -> np.ndarray:
        """Return the indexes of the reachable clients; `clock` counts attempted rounds from 0."""
        now = (clock % self.period if self.period else clock) + 1
        if not self._known or self._known[0].clients is not clients:
            # Names are looked up once, not in every round.
            self._known[:] = [_spans_of(self.spans, clients)]
        known = self._known[0]
        there = np.ones(len(clients), dtype=bool)
        there[known.owners] = False
        there[known.owners[(known.first <= now) & (now <= known.last)]] = True
        return np.flatnonzero(there)


class _Spans(NamedTuple):
    """The spans of a trace as arrays, each of shape (spans,): the client's index, the first and the last round."""

    clients: Sequence[str]
    owners: np.ndarray
    first: np.ndarray
    last: np.ndarray


def _spans_of(spans: Mapping[str, Sequence[tuple[int, int]]], clients: Sequence[str]) -> _Spans:
    # A span that never comes stands for a client whose list is empty, which is never there.
    flat = [(index, *span) for index, name in enumerate(clients) if name in spans for span in spans[name] or [(0, 0)]]
    table = np.array(flat, dtype=np.int64).reshape(-1, 3)
    return _Spans(clients, table[:, 0], table[:, 1], table[:, 2])


def _without(population: int, among: np.ndarray | None, excluded: Collection[int]) -> np.ndarray:
    """Return the indexes of `among`, or of the whole population, that are not excluded; in increasing order."""
    kept = np.ones(population, dtype=bool)
    kept[list(excluded)] = False
    return np.flatnonzero(kept) if among is None else among[kept[among]]


@dataclass(frozen=True)
class Selection:
    """How cohorts are sampled."""

    seed: int
    count: int
    over_selection: float = 0.0
    """Share of clients sampled beyond `count`; the first `count` admitted updates are used."""
    weights: np.ndarray | None = None
    availability: Availability | None = None
    always: tuple[int, ...] = ()
    """Clients that take part in every round, beside the `count`."""
    absent: tuple[int, ...] = ()
    """Clients that never take part."""
    removed: tuple[int, ...] = ()
    """Clients that are drawn as the others are, and then taken out of the cohort, as if they had not answered."""
    poisson: bool = False
    """Every client takes part by a coin of its own, `count` of all on average."""
    secret: Callable[[], Secret] | None = None
    """Chooses instead of the seed, which everybody knows."""

    @property
    def updates_per_round(self) -> int:
        """Number of updates that a round uses."""
        return self.count + len(self.always)

    def cohort(
        self, clients: Sequence[str], round: int, attempt: int, clock: int, aside: Sequence[int] = ()
    ) -> list[int]:
        """Return the indexes of the clients of a round, for its `attempt`-th repetition, without those in `aside`."""
        among = self.availability.reachable(clients, clock) if self.availability else None
        if self.always or self.absent or aside:
            excluded = [*self.always, *self.absent, *aside]
            # Clients that always take part are added below, not drawn.
            among = _without(len(clients), among, excluded)
        if self.poisson or self.secret is not None:
            cohort = self._chosen_apart(len(clients), among, round, attempt)
            return [*cohort, *(client for client in self.always if client not in aside)]
        count = at_least(self.count, 1 + self.over_selection)
        cohort = sample_clients(
            len(clients), count, seed=self.seed, round=round, weights=self.weights, among=among, draw=attempt
        )
        return [*cohort, *(client for client in self.always if client not in aside)]

    def _chosen_apart(self, population: int, among: np.ndarray | None, round: int, attempt: int) -> list[int]:
        """Return clients by a number between 0 and 1 for each: those below the probability, or the `count` smallest."""
        words = ("cohort", round, attempt)
        coins = generator(self.seed, *words).random(population)
        if self.secret is not None:
            coins = self.secret().uniform(population, *words)
        candidates = np.arange(population) if among is None else among
        if self.poisson:
            chosen = candidates[coins[candidates] < self.count / population]
        else:
            chosen = candidates[np.argsort(coins[candidates], kind="stable")[: self.count]]
        return sorted(int(client) for client in chosen)


def arrivals(
    selection: Selection, conditions: Conditions, clients: Sequence[str], buffer: int
) -> Iterator[tuple[list[tuple[int, int]], float]]:
    """Yield for every server step the updates that fill the buffer as (client, version), and the time of the step.

    `selection.count` clients train at any time, each for 1 / speed; a client that has finished is replaced by another,
    which begins from the newest parameters. The times do not depend on the training, so a resumed run replays them.

    Raises:
        RunError: no client can be reached.
    """
    running: list[tuple[float, int, int]] = []
    buffered: list[tuple[int, int]] = []
    version, now, draws = 0, 0.0, 0
    while True:
        busy = {client for _, client, _ in running} | {client for client, _ in buffered} | {*selection.absent}
        reachable = selection.availability.reachable(clients, version) if selection.availability else None
        free = _without(len(clients), reachable, busy)
        missing = selection.count - len(running)
        if missing > 0 and len(free):
            for client in sample_clients(
                len(clients),
                missing,
                seed=selection.seed,
                round=version,
                weights=selection.weights,
                among=free,
                draw=draws,
            ):
                # The client number breaks ties between equal times, so the order is the same in every run.
                heapq.heappush(running, (now + 1.0 / conditions.speed(client), client, version))
            draws += 1
        if not running:
            raise RunError(f"No client can be reached in round {version + 1}: check the availability trace.")
        now = running[0][0]
        # All arrivals of one instant are handled before new clients start, whatever their order in the heap.
        while running and running[0][0] == now:
            _, client, base_version = heapq.heappop(running)
            buffered.append((client, base_version))
            if len(buffered) == buffer:
                yield sorted(buffered), now
                version, draws, buffered = version + 1, 0, []
