"""Putting weights on a round's updates, and remembering what they were made of."""

from __future__ import annotations

from dataclasses import replace

from weft.core.exchange import Weighting
from weft.core.types import WEIGHTS, Streams, Tensors, Update


class Weigher:
    """Multiplies the weight of every update that it is called with."""

    def __init__(self, weighting: Weighting, memory: Tensors) -> None:
        self._weighting, self._memory = weighting, memory

    def __call__(self, update: Update) -> Update:
        """Return the update with its weight."""
        factor, kept = self._weighting.factor(update.client, update.metrics, self._memory)
        self._memory = self._memory | kept
        return update if factor == 1.0 else replace(update, weight=update.weight * factor)

    @property
    def memory(self) -> Streams:
        """What the server's state remembers of it: nothing, where it needs nothing."""
        return {WEIGHTS: self._memory} if self._memory else {}
