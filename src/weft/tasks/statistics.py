"""Means of items with their standard errors, and differences between two models on the same items.

Sources: Miller 2024, Adding Error Bars to Evals (arXiv 2411.00640), sections 2.2 (clusters), 4.2 (pairs) and 5
(power); Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference (intervals of shares).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

QUANTILE = 1.959963984540054
"""Of the normal distribution at 97.5 %: a two-sided interval of 95 %."""
ROUNDING = 1e-12
"""A standard error of values that are all alike, but for their rounding."""


@dataclass(frozen=True)
class Measure:
    """A number over items."""

    value: float
    error: float | None = None
    """Standard error; None: there is none, as of one item."""
    count: int = 0
    clusters: int = 0
    """Independent groups of items; as many as items where each is independent."""
    bounds: tuple[float, float] | None = None
    """The least and the largest value of an item; None: it has none."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the value; None without a standard error.

        Where items have bounds, it is Wilson's, which stays within them and has a width even where all items have the
        same score.
        """
        if self.error is None:
            return None
        if self.bounds is None:
            return self.value - QUANTILE * self.error, self.value + QUANTILE * self.error
        low, high = self.bounds
        ends = _wilson((self.value - low) / (high - low), self.error / (high - low), self.count, self.clusters)
        return low + (high - low) * ends[0], low + (high - low) * ends[1]


def _wilson(share: float, error: float, count: int, clusters: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, of as many independent items as have its standard error."""
    share = min(1.0, max(0.0, share))
    spread = share * (1 - share)
    # Items that are all alike do not show how much those of a cluster have in common: each cluster counts once.
    size = spread / error**2 + (clusters == count) if error and spread else float(max(1, clusters))
    square = QUANTILE**2 / size
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (spread + square / 4)) / (1 + square)
    # Rounding could otherwise leave the value, or the bounds, by a hair.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean(
    values: Sequence[float], clusters: Sequence[str] | None = None, bounds: tuple[float, float] | None = None
) -> Measure:
    """Return the mean with its standard error, clustered where items share a cluster.

    Args:
        values: (n,) one for each item.
        clusters: of each item; None, or all different, or all the same: items are independent.
        bounds: the least and the largest value that an item can have; None: it has none.
    """
    count = len(values)
    if not count:
        return Measure(math.nan)
    average = math.fsum(values) / count
    clusters = None if clusters is None or len(set(clusters)) < 2 else clusters
    sums: dict[str, float] = {}
    for number, value in enumerate(values):
        name = clusters[number] if clusters else str(number)
        sums[name] = sums.get(name, 0.0) + value - average
    if count < 2:
        return Measure(average, None, count, len(sums), bounds)
    if len(sums) == count:
        variance = math.fsum((value - average) ** 2 for value in values) / (count - 1) / count
    else:
        # Equation 4: the squares of the sums within each cluster, as the products of its items are kept.
        variance = math.fsum(total**2 for total in sums.values()) / count**2
    return Measure(average, math.sqrt(variance), count, len(sums), bounds)


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences: of two models on the same items, or of two runs with the same seeds."""

    value: float
    """Mean of the second one's values less the first one's."""
    error: float | None
    """Standard error; None: there is none, as of one pair."""
    count: int
    clusters: int = 0
    """Independent groups of pairs; 0: every pair is independent."""
    span: float | None = None
    """The largest difference that a pair can have; None: there is none."""

    @property
    def degrees(self) -> int:
        """The degrees of freedom of Student's distribution: the independent groups less one."""
        return max(1, (self.clusters or self.count) - 1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, by Student's distribution; None without a standard error.

        Where all pairs have the same difference and it has a largest value, the interval has the width of the rule of
        three: ten items on which two models agree do not show that they agree on all others.
        """
        if self.error is None:
            return None
        if self.span is not None and self.error < ROUNDING:
            half = 3 * self.span / (self.clusters or self.count)
            return max(-self.span, self.value - half), min(self.span, self.value + half)
        half = student_quantile(0.975, self.degrees) * self.error
        return self.value - half, self.value + half

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        interval = self.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)

    @property
    def smallest_visible(self) -> float | None:
        """The smallest true difference that would be shown with a chance of 80 %; None where no pair differs."""
        if not self.error:
            return None
        return (student_quantile(0.975, self.degrees) + student_quantile(0.8, self.degrees)) * self.error


def difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    clusters: Mapping[int, str] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Return the paired difference over what both have a value of.

    Args:
        first: value by the number of an item, or by seed.
        second: the other model's.
        clusters: of items, by number; None: items are independent.
        bounds: the least and the largest value; None: there is none.
    """
    numbers = sorted(first.keys() & second.keys())
    names = [clusters[number] for number in numbers] if clusters else None
    result = mean([second[number] - first[number] for number in numbers], names)
    groups, error = result.clusters, result.error
    if error is not None and 1 < groups < result.count:
        # Squares of few sums are too small by (groups - 1) / groups, as those of few items are.
        error *= math.sqrt(groups / (groups - 1))
    return Difference(result.value, error, len(numbers), groups, None if bounds is None else bounds[1] - bounds[0])


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, to nine digits.

    Args:
        probability: between 0.5 and 1.
        degrees: of freedom, 1 or more.
    """
    z = NormalDist().inv_cdf(probability)
    if degrees > 200:  # Abramowitz and Stegun 26.7.5
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
        return z + first / degrees + second / degrees**2 + third / degrees**3 + fourth / degrees**4
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _student_within(angle: float, degrees: int) -> float:
    """Return the probability that |t| is at most sqrt(degrees) tan(angle): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees == 1:
        return angle * 2 / math.pi
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for number in range(3 if odd else 2, degrees, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
