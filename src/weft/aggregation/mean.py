"""The weighted mean, streamed: one update in memory beside the mean itself, however large the cohort."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from weft.core import tensors
from weft.core.exchange import Aggregator
from weft.core.types import Streams, Total, Update


@dataclass(frozen=True)
class Mean(Aggregator):
    """mean <- mean + (w / W) (update - mean), W the weight so far.

    In this form the mean of one update is that update to the last bit; a sum divided by its weight need not be.
    """

    additive: ClassVar[bool] = True

    def combine(self, updates: Iterable[Update]) -> Total:
        """Return the weighted mean of every stream over the updates."""
        mean: Streams = {}
        clients: list[str] = []
        weight = 0.0
        for update in updates:
            weight += update.weight
            share = update.weight / weight
            for name, values in update.streams.items():
                if name in mean:
                    tensors.lerp_(mean[name], values, share)
                else:
                    mean[name] = tensors.copy(values)
            clients += update.senders
        return Total(mean, tuple(clients), weight)
