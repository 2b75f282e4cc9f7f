"""Scores as a fixed list of numbers, the same at every client, so that sealed sums can hold them.

Which counts of a family a client has, such as confusion/RIGHT/GIVEN, would tell something of its rows: in a list, each
has its place, whether it is 0 or not. Metrics that need the same counts and sums share places; others do not, so that a
client whose site keeps a part of what a metric needs to itself changes nothing of that metric.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product

from weft.core.declarations import Metric
from weft.core.metrics import ScoreSum
from weft.core.types import Metrics
from weft.errors import ClientFailed

CLASSES = 20
"""Answers of a closed set that a run does not name, at most."""
MOST_CLASSES = 100
"""The same of one that it names: a sum has a place for each pair of them."""
ROWS = "rows"


def places_of(metrics: Iterable[Metric], classes: int) -> tuple[str, ...]:
    """Return the places, sorted: `NEEDS:NAME` for every count and sum, and ROWS.

    Args:
        metrics: what the run's evaluator declares.
        classes: numbers that a `*` in a name may stand for: those below it.
    """
    names = {(metric.needs, name) for metric in metrics for need in metric.needs for name in _names(need, classes)}
    return tuple(sorted([*(_place(needs, name) for needs, name in names), ROWS]))


def placed(metrics: Sequence[Metric], part: Metrics, places: Collection[str]) -> Metrics:
    """Return the number at every place, of what a client counted.

    Raises:
        ClientFailed: something that it counted has no place.
    """
    values = dict.fromkeys(places, 0.0) | {ROWS: part.get(ROWS, 0.0)}
    for metric in metrics:
        for name, value in metric.pick(part).items():
            if (place := _place(metric.needs, name)) not in values:
                raise ClientFailed("counted what a sealed sum of scores has no place for")
            values[place] = value
    return values


def sum_of(metrics: Iterable[Metric], values: Mapping[str, float], members: Iterable[str]) -> ScoreSum:
    """Return what clients counted together, of the sums at all places."""
    split = [(*place.partition(":")[::2], value) for place, value in values.items() if place != ROWS]
    sums = {
        metric.name: {name: value for needs, name, value in split if needs == _needs(metric.needs)}
        for metric in metrics
    }
    return ScoreSum(tuple(sorted(members)), values[ROWS], sums)


def _place(needs: Sequence[str], name: str) -> str:
    return f"{_needs(needs)}:{name}"


def _needs(needs: Sequence[str]) -> str:
    return " ".join(needs)


def _names(need: str, classes: int) -> list[str]:
    """Return the names of a count, or of a family of counts."""
    parts = [[str(number) for number in range(classes)] if part == "*" else [part] for part in need.split("/")]
    return ["/".join(words) for words in product(*parts)]
