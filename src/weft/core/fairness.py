"""How unequally a metric is spread over clients: the worst client, the spread and Jain's index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from weft.core.declarations import Metric
from weft.json_types import JsonObject

NUMBERS = ("mean", "worst", "spread", "jain")
"""What is known of a metric over clients, beside the name of the worst one."""


def jain(values: Sequence[float]) -> float | None:
    """Return Jain's index, (sum x)^2 / (n sum x^2): 1 where all values are equal, 1/n where all but one are 0.

    None where a value is below 0, of which the index says nothing. Jain, Chiu, Hawe 1984, DEC-TR-301.
    """
    if min(values) < 0:
        return None
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


def over_clients(metric: Metric, values: Mapping[str, float]) -> JsonObject:
    """Return how a metric, whose better values are known, is spread over clients.

    Args:
        metric: of what.
        values: of each client, at least one.

    Returns:
        `mean`, in which every client counts the same; `worst` and `worst_client`; `spread`, the standard deviation over
        these clients (divided by n: they are all there are, no sample); `jain`.
    """
    mean = math.fsum(values.values()) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values.values()) / len(values))
    choose = max if metric.better == "lower" else min
    worst = choose(values, key=values.__getitem__)
    numbers = {"mean": mean, "worst": values[worst], "worst_client": worst, "spread": spread}
    return numbers | {"jain": jain(list(values.values()))}


def fairness(metrics: Iterable[Metric], clients: Mapping[str, JsonObject]) -> JsonObject:
    """Return by metric how it is spread over clients; empty with fewer than two of them.

    Args:
        metrics: of these, those by which models are compared and of which some values are better.
        clients: the records of all clients.
    """
    found: JsonObject = {}
    for metric in metrics:
        values = {name: float(one[metric.name]) for name, one in clients.items() if one.get(metric.name) is not None}
        if metric.shown == "models" and metric.better is not None and len(values) > 1:
            found[metric.name] = over_clients(metric, values)
    return found
