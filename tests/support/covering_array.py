"""Covering arrays: the fewest combinations, nearly, in which every pair of values that may go together does."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence

Row = tuple[str, ...]
Pair = tuple[tuple[int, str], tuple[int, str]]


def pairs_of(row: Row) -> set[Pair]:
    """Return the pairs of values that a combination has."""
    return set(itertools.combinations(enumerate(row), 2))


def covering(axes: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Return combinations that have every pair which an allowed combination has; always the same ones.

    Greedy: the next is one with the most pairs that no earlier one has. What a combination would add only gets less, so
    an old count that is still the highest after it was taken anew is the highest of all.
    """
    rows = [row for row in itertools.product(*axes.values()) if allowed(row)]
    left = set().union(*map(pairs_of, rows))
    heap = [(-len(pairs_of(row)), place) for place, row in enumerate(rows)]
    heapq.heapify(heap)
    chosen = []
    while left:
        _, place = heapq.heappop(heap)
        gain = len(pairs_of(rows[place]) & left)
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, place))
            continue
        chosen.append(rows[place])
        left -= pairs_of(rows[place])
    return chosen
