"""Who takes part in a round, as a function of (seed, round) alone."""

from __future__ import annotations

import numpy as np

from weft.core.seeds import generator


def sample_clients(
    population: int, count: int, *, seed: int, round: int, weights: np.ndarray | None = None
) -> list[int]:
    """Return the sorted indexes of `count` different clients.

    Args:
        population: how many clients there are; all are taken where `count` is not below it.
        count: how many take part.
        seed: the run's seed.
        round: the round, from 0.
        weights: (population,) chances in any unit, or None for equal ones.
    """
    if count >= population:
        return list(range(population))
    chances = None if weights is None else weights / weights.sum()
    chosen = generator(seed, "cohort", round).choice(population, size=count, replace=False, p=chances)
    return sorted(int(client) for client in chosen)
