"""What one client can do to a round's mean: limits of its update's norm and of its share of the weight.

Both compare a client with the others of its round, so they are known when the last update has come. Until then the
updates wait in a file (`weft.federation.spool`). Without a limit nothing waits: updates pass as they come.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import NamedTuple

from weft.algorithms.clustered import CHOICE
from weft.core import tensors
from weft.core.types import SCALARS, Streams, Update
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.spool import Spool
from weft.federation.weigher import Weigher

COMPARABLE = 3
"""Updates that a median needs: of two, nobody can say which is the outlier."""


class Norm(NamedTuple):
    """The norm of a stream."""

    value: float
    power: int = 1
    """2 for single numbers, which may be squares of a norm: honest clients then differ by the square too."""


def limited(
    plan: Plan, updates: Iterable[Update], weigher: Weigher, max_updates: int, record: RoundRecord
) -> Iterator[Update]:
    """Yield the updates that are averaged, with their weights in the mean, and count them in the record.

    Args:
        plan: has the limits.
        updates: admitted, in order of arrival; read one at a time.
        weigher: gives updates their weights.
        max_updates: number of updates that are used; 0: all.
        record: of the round; an update whose norm is too large is a failure of its client.
    """
    if not plan.max_update_norm and plan.max_client_share >= 1.0:
        yield from map(weigher, map(record.add, islice(updates, max_updates or None)))
        return
    with Spool() as spool:
        used = _of_usual_norm(plan.max_update_norm, updates, spool, max_updates, record)
        # Metrics and weights of refused updates count nowhere, so the others are weighed after the judgement.
        weights = [weigher(record.add(spool.head(number))).weight for number in used]
        for number, weight in zip(used, capped(weights, plan.max_client_share), strict=True):
            yield replace(spool.read(number), weight=weight)


def _of_usual_norm(
    factor: float, updates: Iterable[Update], spool: Spool, max_updates: int, record: RoundRecord
) -> list[int]:
    """Spool updates until `max_updates` of them are of a usual norm, or all have come; return the numbers of those."""
    source, found = iter(updates), list[dict[str, Norm]]()
    refused: dict[int, str] = {}
    while True:
        wanted = max(0, max_updates - len(found) + len(refused)) if max_updates else None
        before = len(found)
        for update in islice(source, wanted):
            found.append(norms(update.streams))
            spool.add(update)
        refused = _judge(factor, found)
        if not wanted or len(found) - before < wanted:
            break
    for number, reason in refused.items():
        record.failures |= dict.fromkeys(spool.head(number).senders, reason)
    return [number for number in range(len(found)) if number not in refused][: max_updates or None]


def norms(streams: Streams) -> dict[str, Norm]:
    """Return the norm of every stream by its name, and the size of each number in SCALARS by its own name."""
    found = {name: Norm(abs(float(value)), 2) for name, value in streams.get(SCALARS, {}).items()}
    for stream, values in streams.items():
        if stream not in (SCALARS, CHOICE):
            power = 1 if any(value.dim() for value in values.values()) else 2
            found[stream] = Norm(tensors.squared_norm(values) ** 0.5, power)
    return found


def _judge(factor: float, found: Sequence[dict[str, Norm]]) -> dict[int, str]:
    """Return why updates are refused, by their numbers; `factor` 0 refuses none.

    Streams are judged one by one: a control variate is larger than a delta by the learning rate, and would hide it.
    """
    refused: dict[int, str] = {}
    if not factor or len(found) < COMPARABLE:
        return refused
    for name, (_, power) in found[0].items():
        sizes, most = [one[name].value for one in found], factor**power
        median = statistics.median(sizes)
        for number, size in enumerate(sizes):
            # A median of 0 says nothing: in a warm-up from a learning rate of 0, most clients have not moved yet.
            if median > 0 and size > most * median:
                refused.setdefault(
                    number,
                    f"its {name} has a norm of {size:.3g}, above {most:g} times the round's median of {median:.3g}",
                )
    return refused


def capped(weights: Sequence[float], share: float) -> list[float]:
    """Return weights of which none is above `share` of their sum: the largest ones are cut to one common weight.

    Where there are too few clients for such shares, all get the same weight. Weights that are not cut stay as they are.
    """
    total, largest_first = sum(weights), sorted(weights, reverse=True)
    if not weights or largest_first[0] <= share * total:
        return list(weights)
    # Sums of the smallest 1, 2, ... weights: the total minus the largest would lose the digits of the small ones.
    of_smallest = list(accumulate(reversed(largest_first)))
    for count in range(1, len(weights)):
        room, rest = 1.0 - count * share, of_smallest[-1 - count]
        if room <= 0:
            break
        cap = share * rest / room  # so that cap = share * (count * cap + rest)
        if largest_first[count] <= cap:
            return [min(weight, cap) for weight in weights]
    return [total / len(weights)] * len(weights)
