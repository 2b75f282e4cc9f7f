"""Covering arrays: the fewest combinations, nearly, in which every pair of values that may go together does."""

from __future__ import annotations

import functools
import heapq
import itertools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence

Row = tuple[str, ...]
Pair = tuple[tuple[int, str], tuple[int, str]]


def pairs_in(rows: Collection[Row]) -> set[Pair]:
    """Return the pairs of values that some combinations have."""
    width = len(next(iter(rows)))
    return {
        ((first, one), (second, other))
        for first, second in itertools.combinations(range(width), 2)
        for one, other in {(row[first], row[second]) for row in rows}
    }


def covering(axes: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Return combinations that have every pair which an allowed combination has; always the same ones.

    Greedy: the next is one with the most pairs that no earlier one has. What a combination would add only gets less, so
    an old count that is still the highest after it was taken anew is the highest of all.
    """
    rows = [row for row in itertools.product(*axes.values()) if allowed(row)]
    masks = _masks(rows, axes)
    left = functools.reduce(operator.or_, masks)
    heap = [(-mask.bit_count(), place) for place, mask in enumerate(masks)]
    heapq.heapify(heap)
    chosen = []
    while left:
        _, place = heapq.heappop(heap)
        gain = (masks[place] & left).bit_count()
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, place))
            continue
        chosen.append(rows[place])
        left &= ~masks[place]
    return chosen


def _masks(rows: list[Row], axes: Mapping[str, Sequence[str]]) -> list[int]:
    """Return the pairs of each combination as bits of an integer: every process counts those of 100,000 of them."""
    bits: dict[Pair, int] = {}
    for (first, some), (second, others) in itertools.combinations(enumerate(axes.values()), 2):
        for one, other in itertools.product(some, others):
            bits[(first, one), (second, other)] = 1 << len(bits)

    def added(row: Row) -> int:
        last = (len(row) - 1, row[-1])
        return sum(bits[value, last] for value in enumerate(row[:-1]))

    @functools.cache
    def mask(start: Row) -> int:
        return mask(start[:-1]) | added(start) if start else 0

    return [mask(row[:-1]) | added(row) for row in rows]
