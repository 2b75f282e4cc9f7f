"""What a claim of privacy cannot be: an audit in one run (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846).

Each of m canaries (units that are recognised) is put into the data by a fair coin. After the run somebody who sees what
it released, and not the coins, says for some canaries whether they were in it. Under (epsilon, delta) the number of
right guesses is hardly larger than that of coins of the probability e^epsilon / (1 + e^epsilon). More right guesses
refute the claim. Few refute nothing: a bound from below is no estimate.

One epsilon describes noise badly, so the bound is far below the epsilon of Gaussian noise. A claim of an accountant is
a whole curve, delta for every epsilon. `p_value_of_curve` holds the guesses against it (Mahloujifar, Melis, Chaudhuri
2024, arXiv 2410.22235), and refutes what `p_value` cannot.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.errors import MissingExtra

LARGEST_EPSILON = 60.0
"""Above it no bound is looked for."""
PRECISION = 32
"""Halvings of an interval in a search."""


@dataclass(frozen=True)
class Guesses:
    """The outcome of an audit."""

    canaries: int
    """m, each in the data with a probability of 1/2."""
    made: int
    """r, guesses that were made: their number is fixed before the scores are seen."""
    right: int

    def __post_init__(self) -> None:
        """Refuse numbers that no audit can have; ValueError."""
        if not 0 <= self.right <= self.made <= self.canaries or self.made < 1:
            raise ValueError(f"{self.right} right of {self.made} guesses about {self.canaries} canaries cannot be")


@dataclass(frozen=True)
class Curve:
    """A claim as an accountant makes it: for every epsilon the delta with which it holds."""

    epsilons: Sequence[float]
    """At least 0."""
    deltas: Sequence[float]
    """As many, from 0 to 1."""

    @functools.cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        epsilons, deltas = np.asarray(self.epsilons, dtype=float), np.asarray(self.deltas, dtype=float)
        return np.exp(-epsilons), deltas * np.exp(-epsilons), np.exp(epsilons), 1 - deltas

    def least(self, power: float) -> float:
        """Return the smallest probability, under a neighbour, of an event that has the probability `power`.

        P <= e^epsilon Q + delta holds for the event and, with the sides changed, for its complement.
        """
        shrunk, less, grown, whole = self._lines
        return max(0.0, float((power * shrunk - less).max()), float((whole - grown * (1 - power)).max()))


def guess(scores: np.ndarray, included: np.ndarray, made: int) -> Guesses:
    """Say "in it" of the highest scores and "not in it" of the lowest, as often, and count what is right.

    Args:
        scores: (m,) larger for canaries that seem to be in the data.
        included: (m,) bool, whether they are.
        made: number of guesses, even, at most m.

    Raises:
        ValueError: made is odd, or not from 2 to m.
    """
    if made % 2 or not 2 <= made <= len(scores):
        raise ValueError(f"made is {made}, which has to be even and from 2 to {len(scores)}")
    order = np.argsort(scores, kind="stable")
    below, above = order[: made // 2], order[len(order) - made // 2 :]
    right = int(included[above].sum()) + int((~included[below]).sum())
    return Guesses(len(scores), made, right)


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return a bound of the probability of so many right guesses or more under (epsilon, delta).

    P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i, where B is Binomial(r, e^epsilon / (1 + e^epsilon)).

    Raises:
        MissingExtra: scipy is not installed.
    """
    binomial = _binomial()
    chance, right = 1 / (1 + math.exp(-epsilon)), guesses.right
    found = float(binomial.sf(right - 1, guesses.made, chance))
    if delta and right:
        steps = np.arange(1, right + 1)
        below = np.cumsum(binomial.pmf(right - steps, guesses.made, chance))
        found += 2 * guesses.canaries * delta * float((below / steps).max())
    return min(1.0, found)


def epsilon_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Return the epsilon that is refuted at a delta, with everything below it; 0: none is.

    Args:
        guesses: of an audit.
        delta: of the claim.
        confidence: probability, over the run and the coins, that the bound is one.

    Raises:
        MissingExtra: scipy is not installed.
    """
    return _largest(lambda epsilon: p_value(guesses, epsilon, delta) <= 1 - confidence, LARGEST_EPSILON)


def p_value_of_curve(guesses: Guesses, curve: Curve) -> float:
    """Return a bound of the probability of so many right guesses or more under a claim.

    Let p_w be the probability of w right guesses. Turn the coin of one canary, drawn among all m: an outcome with w
    right guesses, that of the canary among them, has now w - 1 of them and is wrong of it. Hence for every v

        sum_(w >= v) w p_w / m   has the power of an event, and   sum_(w >= v) (r - w + 1) p_(w - 1) / m

    is its probability under a neighbour, which the curve bounds from below. The largest P[w >= v] that leaves a sum of
    probabilities of at most 1 has all of it at v, and below it no more than these bounds ask for: what is put higher
    than it needs to be only makes the bounds further down harder to keep.
    """
    return 1 - _largest(lambda share: not _possible(guesses, curve, 1 - share), 1.0)


def _possible(guesses: Guesses, curve: Curve, tail: float) -> bool:
    """Say whether a claim leaves room for a probability `tail` of so many right guesses or more."""
    m, r = guesses.canaries, guesses.made
    total, right, wrong = tail, guesses.right * tail / m, (r - guesses.right) * tail / m
    for count in range(guesses.right, 0, -1):
        more = max(0.0, (curve.least(right) - wrong) * m / (r - count + 1))
        total += more
        if total > 1:
            return False
        right += (count - 1) * more / m
        wrong += (r - count + 1) * more / m
    return True


def noise_bound(
    guesses: Guesses, curve_of: Callable[[float], Curve], confidence: float = 0.95, most: float = 64.0
) -> float:
    """Return the largest noise multiplier that the guesses leave possible; more is refuted.

    Args:
        guesses: of an audit.
        curve_of: returns the claim of a noise multiplier, which is stronger for a larger one.
        confidence: as of `epsilon_bound`.
        most: `most` or more is not told apart.
    """
    low, high = math.log(1 / most), math.log(most)
    for _ in range(PRECISION // 2):
        middle = (low + high) / 2
        possible = _possible(guesses, curve_of(math.exp(middle)), 1 - confidence)
        low, high = (middle, high) if possible else (low, middle)
    return math.exp(high)


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """Return the largest number from 0 to `most` for which something holds that holds below it too; 0: none."""
    low, high = 0.0, most
    for _ in range(PRECISION):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _binomial() -> Any:
    try:
        from scipy.stats import binom
    except ImportError:
        raise MissingExtra("scipy", "dp", "An audit of differential privacy") from None
    return binom
