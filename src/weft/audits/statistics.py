"""How well a score tells two groups apart, with intervals: areas below ROC curves, true positive rates, shares.

Sources: DeLong, DeLong, Clarke-Pearson 1988 (the variance of an area); Newcombe 2006, method 5 (the interval of an area
of few); Clopper, Pearson 1934 (intervals of shares);
Carlini et al. 2022, arXiv 2112.03570 (true positive rates at low false positive rates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from weft.audits.settings import CannotAudit
from weft.json_types import JsonObject
from weft.tasks.statistics import QUANTILE, student_quantile


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> JsonObject:
        """Return plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def holds(self, value: float) -> bool:
        """Say whether a value is within the interval."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def auc(positive: np.ndarray, negative: np.ndarray, quantile: float = QUANTILE) -> Estimate:
    """Return the probability that a positive has the larger score (ties count half), with an interval.

    It is DeLong's, or Newcombe's where that is wider: of a handful of scores DeLong's of 95 % misses 0.5 in every sixth
    case, and his has no width where all are told apart.

    Args:
        positive: (P,) scores; at least one.
        negative: (N,) scores; at least one.
        quantile: of the normal distribution, for another interval than 95 %.

    Raises:
        CannotAudit: a score is not a number. They would be ties, and an area of 0.5 would look like chance.
    """
    both = np.concatenate([positive, negative])
    if np.isnan(both).any():
        raise CannotAudit(
            f"{int(np.isnan(both).sum())} of {len(both)} scores are not numbers, because a model computes none for "
            "these rows: audit an earlier --round, or a run with a smaller --learning_rate."
        )
    ranks = _ranks(both)
    own, other = _ranks(positive), _ranks(negative)
    many, few = len(positive), len(negative)
    # The share of negatives below each positive, and of positives above each negative.
    above = (ranks[:many] - own) / few
    below = 1 - (ranks[many:] - other) / many
    value = float(above.mean())
    variance = _variance(above) / many + _variance(below) / few
    half = quantile * math.sqrt(variance)
    least, most = (_newcombe(value, end, many, few, quantile) for end in (0.0, 1.0))
    return Estimate(value, max(0.0, min(least, value - half)), min(1.0, max(most, value + half)))


def _newcombe(value: float, end: float, many: int, few: int, quantile: float) -> float:
    """Return the end of an interval of an area: the last on the way to 0 or 1 that the value is not too far from.

    Newcombe 2006 (Statistics in Medicine 25, 559), method 5: the variance is that of Hanley and McNeil at the area that
    is tried, with the mean of both counts in the place of each.
    """
    more = (many + few) / 2 - 1
    inside, outside = value, end
    for _ in range(50):
        tried = (inside + outside) / 2
        variance = tried * (1 - tried) * (1 + more * ((1 - tried) / (2 - tried) + tried / (1 + tried))) / (many * few)
        near = (value - tried) ** 2 <= quantile**2 * variance
        inside, outside = (tried, outside) if near else (inside, tried)
    return inside


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.25


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1; equal values share the mean of theirs."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: np.ndarray = (ends - (counts - 1) / 2)[codes.reshape(-1)]
    return mean


def tpr_at(positive: np.ndarray, negative: np.ndarray, fpr: float) -> Estimate | None:
    """Return the share of positives above all but a share `fpr` of negatives, with Clopper and Pearson's interval.

    The interval is of the positives alone: the threshold is taken as it is. None: there are too few negatives to
    speak of so small a share.
    """
    if len(negative) * fpr < 1:
        return None
    allowed = math.floor(fpr * len(negative) + 1e-9)
    threshold = np.sort(negative)[len(negative) - allowed - 1]
    return share(int((positive > threshold).sum()), len(positive))


def share(hits: int, of: int) -> Estimate:
    """Return a share with the interval of Clopper and Pearson; (0, 0, 1) of nothing."""
    if not of:
        return Estimate(0.0, 0.0, 1.0)
    low = _solve(lambda p: 1 - _below(hits - 1, of, p), 0.025) if hits else 0.0
    high = _solve(lambda p: 1 - _below(hits, of, p), 0.975) if hits < of else 1.0
    return Estimate(hits / of, low, high)


def _below(most: int, of: int, probability: float) -> float:
    """Return the probability of at most `most` successes among `of`."""
    if probability in (0.0, 1.0):
        return float(probability == 0.0 or most >= of)
    counts = np.arange(most + 1)
    logs = np.array([math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in counts.tolist()])
    logs += counts * math.log(probability) + (of - counts) * math.log1p(-probability)
    return float(min(1.0, np.exp(logs).sum()))


def _solve(rising: object, wanted: float) -> float:
    """Return where a rising function of [0, 1] reaches a value."""
    assert callable(rising)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def mean_of(values: Sequence[float], least: float, most: float) -> Estimate:
    """Return a mean with its 95 % interval by Student's t, as far as the scale of the values goes.

    Of one value the interval is the whole scale. Values that are all equal may hide others (rule of three): with a
    probability of 95 % these are at most 3 of as many.

    Args:
        values: at least one.
        least: the smallest that a value can be.
        most: the largest.
    """
    array = np.asarray(values, dtype=float)
    mean, count = float(array.mean()), len(array)
    if count == 1 or bool((array == array[0]).all()):
        hidden = min(1.0, 3.0 / count)
        return Estimate(mean, mean - hidden * (mean - least), mean + hidden * (most - mean))
    half = student_quantile(0.975, count - 1) * float(array.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, max(least, mean - half), min(most, mean + half))
