"""Means of items with their standard errors, and differences between two models on the same items.

Source: Miller 2024, Adding Error Bars to Evals (arXiv 2411.00640), sections 2.2 (clusters), 4.2 (pairs) and 5 (power).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUANTILE = 1.959963984540054
"""Of the normal distribution at 97.5 %: a two-sided interval of 95 %."""
POWER_QUANTILE = 0.8416212335729143
"""At 80 %: the usual chance to see a difference that is there."""


@dataclass(frozen=True)
class Measure:
    """A number over items."""

    value: float
    error: float | None = None
    """Standard error; None: there is none, as of one item."""
    count: int = 0
    clusters: int = 0
    """Independent groups of items; as many as items where each is independent."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the value; None without a standard error."""
        if self.error is None:
            return None
        return self.value - QUANTILE * self.error, self.value + QUANTILE * self.error


def mean(values: Sequence[float], clusters: Sequence[str] | None = None) -> Measure:
    """Return the mean with its standard error, clustered where items share a cluster.

    Args:
        values: (n,) one for each item.
        clusters: of each item; None, or all different, or all the same: items are independent.
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
        return Measure(average, None, count, len(sums))
    if len(sums) == count:
        variance = math.fsum((value - average) ** 2 for value in values) / (count - 1) / count
    else:
        # Equation 4: the squares of the sums within each cluster, as the products of its items are kept.
        variance = math.fsum(total**2 for total in sums.values()) / count**2
    return Measure(average, math.sqrt(variance), count, len(sums))


@dataclass(frozen=True)
class Difference:
    """The difference of two models on the same items."""

    value: float
    """Mean of the second model's values less the first one's."""
    error: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None without a standard error."""
        return Measure(self.value, self.error).interval

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        interval = self.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)

    @property
    def smallest_visible(self) -> float | None:
        """The smallest true difference that would be shown with a chance of 80 %."""
        return None if self.error is None else (QUANTILE + POWER_QUANTILE) * self.error


def difference(
    first: Mapping[int, float], second: Mapping[int, float], clusters: Mapping[int, str] | None = None
) -> Difference:
    """Return the paired difference over the items that both models were asked.

    Args:
        first: value by the item's number.
        second: the other model's.
        clusters: of items, by number; None: items are independent.
    """
    numbers = sorted(first.keys() & second.keys())
    names = [clusters[number] for number in numbers] if clusters else None
    result = mean([second[number] - first[number] for number in numbers], names)
    return Difference(result.value, result.error, len(numbers))
