"""Metrics on the way to the server: counts and sums by name, which can be added up.

What belongs together, and what is never below 0, follows from the declarations of the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.core.declarations import Metric, declared, names, scores

if TYPE_CHECKING:
    from weft.core.types import Metrics

WORK = ("rows", "tokens", "steps")
"""Counts of what was done."""
ENDPOINT_COUNTS = ("endpoint_requests", "endpoint_retries")
"""Counts of a client whose model is behind an endpoint."""
LARGEST = 1e18
"""Of a metric."""


def plus(left: Metrics, right: Metrics) -> Metrics:
    """Return the sum of two counts; what one of them lacks is 0."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in left | right}


class Totals:
    """Sums over clients; those of a metric are over the clients that sent all that it needs.

    A client whose site keeps a sum to itself thus changes no mean of that sum, though it sends what is counted.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Begin with nothing counted of these metrics."""
        self._metrics = tuple(metrics)
        self._sums: dict[str, Metrics] = {metric.name: {} for metric in self._metrics}

    def add(self, part: Metrics) -> None:
        """Add the counts and sums of a client."""
        for metric in self._metrics:
            sums = self._sums[metric.name]
            for name, value in metric.pick(part).items():
                sums[name] = sums.get(name, 0.0) + value

    def add_sum(self, sums: Mapping[str, Metrics]) -> None:
        """Add the counts and sums of some clients together, by the name of the metric that they are for."""
        for metric in self._metrics:
            if metric.name in sums:
                self._sums[metric.name] = plus(self._sums[metric.name], sums[metric.name])

    def value(self, metric: Metric) -> float | None:
        """Return one of the metrics; None: nothing was counted."""
        return metric.value(self._sums[metric.name])


@dataclass(frozen=True)
class ScoreSum:
    """What several clients counted, of which only the sum is known."""

    members: tuple[str, ...]
    """The clients, sorted."""
    rows: float
    sums: Mapping[str, Metrics]
    """Counts and sums by the name of the metric that they are for, over the clients that sent all that it needs."""


def summarise(
    measured: Sequence[Metric], parts: Iterable[Metrics], together: Iterable[ScoreSum] = ()
) -> dict[str, float | int | None]:
    """Return the record of an evaluation, from the counts and sums of clients: metrics by name, and `rows`.

    Args:
        measured: what the run's evaluator declares.
        parts: what each client counted; one client's, or that of all.
        together: what others counted, of whom only sums are known.

    Returns:
        What was measured, and None for what stands in every record.
    """
    totals, rows = Totals(measured), 0.0
    for part in parts:
        totals.add(part)
        rows += part.get("rows", 0.0)
    for one in together:
        totals.add_sum(one.sums)
        rows += one.rows
    own = {metric.name: totals.value(metric) for metric in measured}
    shown = (metric for metric in scores() if metric.always or own.get(metric.name) is not None)
    return {metric.name: own.get(metric.name) for metric in shown} | {"rows": int(rows)}


def complete(metrics: Metrics) -> Metrics:
    """Return metrics without the counts and sums that, as they are here, no declared metric can be derived from."""
    whole = {name for metric in declared() for name in metric.pick(metrics)}
    known = names()
    return {name: value for name, value in metrics.items() if name in whole or known.pattern(name) is None}


def fault(metrics: Metrics) -> str | None:
    """Return why metrics cannot be counted, None: they can."""
    if not all(abs(value) <= LARGEST for value in metrics.values()):
        return "metrics that are not finite"
    known = names()
    counted: set[str] = set()
    for name, value in metrics.items():
        pattern = known.pattern(name)
        if value < 0 and (pattern in known.nonnegative or name in WORK):
            return "a count below 0"
        if pattern is None and name.partition("/")[0] in known.patterns:
            return "metrics of names that cannot be"
        if value and pattern in known.counts:
            counted.add(pattern)
    for pattern in counted:
        if not any(metric.pick(metrics) for metric in known.counts[pattern]):
            return "counts without the sums that belong to them"
    return None
