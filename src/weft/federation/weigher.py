"""Weights of a round's updates, and the memory of the weighting."""

from __future__ import annotations

from dataclasses import replace

from weft.core.exchange import Weighting
from weft.core.types import WEIGHTS, Streams, Tensors, Update


class Weigher:
    """Multiplies each update's weight by the weighting's factor."""

    def __init__(self, weighting: Weighting, memory: Tensors) -> None:
        self._weighting, self._memory = weighting, memory

    def __call__(self, update: Update) -> Update:
        """Return the update with its weight."""
        factor, memory = self._weighting.factor(update.client, update.metrics, self._memory)
        self._memory = self._memory | memory
        return update if factor == 1.0 else replace(update, weight=update.weight * factor)

    @property
    def memory(self) -> Streams:
        """The weighting's memory as a stream of the server's state; empty where it remembers nothing."""
        return {WEIGHTS: self._memory} if self._memory else {}
