"""Separable CMA-ES: a search distribution N(m, s^2 diag(v)) that needs values only, no gradients.

The constants are those of Hansen's tutorial (2016, arXiv 1604.00772, table 1) with c_1 and c_mu times (d + 2) / 3 (Ros
and Hansen 2008, "A simple modification in CMA-ES achieving linear time and space complexity"). All state is plain
numbers, so a search is resumed by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from weft.core.seeds import generator

COMMON = "common"
"""What a rule's `search` holds where all clients score the same candidates or texts."""


def common_chance(seed: int, round: int) -> np.random.Generator:
    """Return the public random numbers of the candidates that all clients of a round have in common."""
    return generator(seed, "candidates", "all", round)


def standardised(losses: Tensor) -> Tensor:
    """Return losses (n,) with the mean 0 and the deviation 1, so that no client of hard rows decides alone; float64.

    A loss that is far above the others (1e30 stands for one that is not finite) counts as their largest, and a little.
    """
    losses = losses.double()
    usual = losses[losses < 1e29]
    if not len(usual):
        return torch.zeros_like(losses)
    losses = losses.clamp(max=float(usual.max()) + float(usual.max() - usual.min()))
    centred = losses - losses.mean()
    scale = float(centred.square().mean().sqrt())
    return centred / scale if scale > 0 else centred


@dataclass(frozen=True)
class Search:
    """A search distribution over R^d; arrays are float64 of shape (d,)."""

    mean: np.ndarray
    sigma: float
    variance: np.ndarray
    path: np.ndarray
    """p_c, the evolution path of the covariance."""
    step_path: np.ndarray
    """p_s, that of the step size."""
    count: int = 0
    """Generations so far."""

    @classmethod
    def at(cls, mean: np.ndarray, sigma: float, variance: np.ndarray | None = None) -> Search:
        """Return a new search around `mean` (d,)."""
        mean = np.asarray(mean, dtype=np.float64)
        ones, zeros = np.ones_like(mean), np.zeros_like(mean)
        return cls(mean, sigma, ones if variance is None else np.asarray(variance, dtype=np.float64), zeros, zeros)

    def ask(self, count: int, chance: np.random.Generator) -> np.ndarray:
        """Return `count` candidate solutions, shape (count, d)."""
        noise = chance.standard_normal((count, len(self.mean)))
        solutions: np.ndarray = self.mean + self.sigma * np.sqrt(self.variance) * noise
        return solutions

    def tell(self, solutions: np.ndarray, fitness: np.ndarray) -> Search:
        """Return the new search, given solutions (count, d) and their losses `fitness` (count,); lower is better."""
        dimension, count = len(self.mean), len(solutions)
        half = count // 2
        # Log weights of the better half, which sum to 1 (table 1 of the tutorial).
        raw = math.log((count + 1) / 2) - np.log(np.arange(1, half + 1))
        weights = raw / raw.sum()
        effective = 1 / float((weights**2).sum())
        c_sigma = (effective + 2) / (dimension + effective + 5)
        damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (dimension + 1)) - 1) + c_sigma
        c_path = (4 + effective / dimension) / (dimension + 4 + 2 * effective / dimension)
        # A diagonal has d parameters instead of d^2 / 2, so it can be learnt faster by this factor.
        faster = (dimension + 2) / 3
        c_1 = 2 / ((dimension + 1.3) ** 2 + effective)
        c_mu = min(1 - c_1, 2 * (effective - 2 + 1 / effective) / ((dimension + 2) ** 2 + effective))
        c_1, c_mu = min(0.5, c_1 * faster), min(0.5, c_mu * faster)
        length = math.sqrt(dimension) * (1 - 1 / (4 * dimension) + 1 / (21 * dimension**2))  # E |N(0, I)|

        best = (solutions[np.argsort(fitness, kind="stable")[:half]] - self.mean) / self.sigma
        step = weights @ best
        step_path = (1 - c_sigma) * self.step_path
        step_path = step_path + math.sqrt(c_sigma * (2 - c_sigma) * effective) * step / np.sqrt(self.variance)
        norm = float(np.linalg.norm(step_path))
        # Early on the path is short because it starts at zero, not because the search has stalled.
        maturity = 1 - (1 - c_sigma) ** (2 * (self.count + 1))
        stalled = norm / math.sqrt(maturity) >= (1.4 + 2 / (dimension + 1)) * length
        path = (1 - c_path) * self.path
        if not stalled:
            path = path + math.sqrt(c_path * (2 - c_path) * effective) * step
        correction = c_1 * c_path * (2 - c_path) if stalled else 0.0
        variance = (1 - c_1 - c_mu + correction) * self.variance + c_1 * path**2 + c_mu * (weights @ best**2)
        return replace(
            self,
            mean=self.mean + self.sigma * step,
            # At most a factor e per generation.
            sigma=self.sigma * math.exp(min(1.0, (c_sigma / damping) * (norm / length - 1))),
            variance=variance,
            path=path,
            step_path=step_path,
            count=self.count + 1,
        )
