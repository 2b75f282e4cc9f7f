"""Who takes part in a round, as a function of the seed and the round alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
    again: int = 0,
) -> list[int]:
    """Return the sorted indexes of `count` different clients.

    Args:
        population: how many clients there are; all are taken where `count` is not below it.
        count: how many take part.
        seed: the run's seed.
        round: the round, from 0.
        weights: (population,) chances in any unit, or None for equal ones.
        among: the indexes to choose from, or None for all.
        again: which draw of the round it is, from 0.
    """
    candidates = np.arange(population) if among is None else among
    if count >= len(candidates):
        return [int(client) for client in candidates]
    chances = None if weights is None else weights[candidates] / weights[candidates].sum()
    words = ("cohort", round, again) if again else ("cohort", round)
    chosen = generator(seed, *words).choice(candidates, size=count, replace=False, p=chances)
    return sorted(int(client) for client in chosen)


@dataclass(frozen=True)
class Availability:
    """When clients can be reached: spans of rounds (first, last), counted from 1; not listed: always."""

    spans: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    period: int | None = None
    """After so many rounds it begins again."""

    def there(self, clients: Sequence[str], clock: int) -> np.ndarray:
        """Return the indexes of the clients that can be reached at a clock, counted from 0 in rounds begun."""
        now = (clock % self.period if self.period else clock) + 1
        return np.array(
            [
                index
                for index, name in enumerate(clients)
                if name not in self.spans or any(first <= now <= last for first, last in self.spans[name])
            ],
            dtype=np.int64,
        )


@dataclass(frozen=True)
class Selection:
    """How cohorts are chosen."""

    seed: int
    count: int
    over: float = 0.0
    """Share of clients asked beyond `count`; the first `count` good replies are used."""
    weights: np.ndarray | None = None
    availability: Availability | None = None
    always: tuple[int, ...] = ()
    """Clients that take part in every round, beside the `count`."""
    absent: tuple[int, ...] = ()
    """Clients that take no part at all."""

    @property
    def used(self) -> int:
        """Good replies that make a round."""
        return self.count + len(self.always)

    def cohort(
        self, clients: Sequence[str], round: int, attempt: int, clock: int, aside: Sequence[int] = ()
    ) -> list[int]:
        """Return the indexes of the clients that are asked in a round, begun for the `attempt`-th time.

        Those set `aside` are not.
        """
        among = self.availability.there(clients, clock) if self.availability else None
        if self.always or self.absent or aside:
            others = [*self.always, *self.absent, *aside]
            among = np.setdiff1d(np.arange(len(clients)) if among is None else among, others)
        asked = at_least(self.count, 1 + self.over)
        sampled = sample_clients(
            len(clients), asked, seed=self.seed, round=round, weights=self.weights, among=among, again=attempt
        )
        return [*sampled, *(client for client in self.always if client not in aside)]


def arrivals(
    selection: Selection, conditions: Conditions, clients: Sequence[str], buffer: int
) -> Iterator[tuple[list[tuple[int, int]], float]]:
    """Yield for every server step the clients whose updates fill the buffer, and the time of the step.

    `selection.count` clients train at any time, each for 1 / speed; one that is done is replaced by another, which
    begins from the newest parameters. Nothing here depends on what is learnt, so the versions follow from the seed.

    Raises:
        RunError: nobody can be reached.
    """
    running: list[tuple[float, int, int]] = []
    held: list[tuple[int, int]] = []
    version, now, draws = 0, 0.0, 0
    while True:
        busy = {client for _, client, _ in running} | {client for client, _ in held}
        reachable = (
            selection.availability.there(clients, version) if selection.availability else np.arange(len(clients))
        )
        free = np.array([client for client in reachable if int(client) not in busy], dtype=np.int64)
        wanted = selection.count - len(running)
        if wanted > 0 and len(free):
            for client in sample_clients(
                len(clients),
                wanted,
                seed=selection.seed,
                round=version,
                weights=selection.weights,
                among=free,
                again=draws,
            ):
                heapq.heappush(running, (now + 1.0 / conditions.speed(client), client, version))
            draws += 1
        if not running:
            raise RunError(f"No client can be reached in round {version + 1}: check the availability trace.")
        now = running[0][0]
        while running and running[0][0] == now:
            _, client, began = heapq.heappop(running)
            held.append((client, began))
            if len(held) == buffer:
                yield sorted(held), now
                version, draws, held = version + 1, 0, []
