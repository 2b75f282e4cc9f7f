"""How well a score tells two groups apart, with intervals: areas below ROC curves, true positive rates, shares.

Sources: DeLong, DeLong, Clarke-Pearson 1988 (the variance of an area); Clopper, Pearson 1934 (intervals of shares);
Carlini et al. 2022, arXiv 2112.03570 (true positive rates at low false positive rates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from weft.json_types import JsonObject

QUANTILE = 1.959963984540054
"""Of the normal distribution at 97.5 %."""


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
    """Return the probability that a positive has the larger score (ties count half), with DeLong's interval.

    Args:
        positive: (P,) scores; at least one.
        negative: (N,) scores; at least one.
        quantile: of the normal distribution, for another interval than 95 %.
    """
    both = np.concatenate([positive, negative])
    ranks = _ranks(both)
    own, other = _ranks(positive), _ranks(negative)
    many, few = len(positive), len(negative)
    # The share of negatives below each positive, and of positives above each negative.
    above = (ranks[:many] - own) / few
    below = 1 - (ranks[many:] - other) / many
    value = float(above.mean())
    variance = _variance(above) / many + _variance(below) / few
    half = quantile * math.sqrt(variance)
    if variance == 0:  # all are told apart, or none: as in so many pairs of coins (rule of three)
        half = min(1.0, 3.0 / min(many, few))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


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


def mean_of(values: Sequence[float]) -> Estimate:
    """Return a mean with its 95 % interval by the normal distribution; of one value the interval is that value."""
    array = np.asarray(values, dtype=float)
    half = QUANTILE * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return Estimate(float(array.mean()), float(array.mean()) - half, float(array.mean()) + half)
