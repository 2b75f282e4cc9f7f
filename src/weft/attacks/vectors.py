"""What honest updates look like to an attacker, and the vectors that attacks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weft.core.gram import Rows
from weft.core.types import SCALARS, Streams, Update


def columnwise(updates: Sequence[Update], columns: Callable[[Tensor], Tensor]) -> Streams:
    """Return streams of which every number is computed from that of all updates, (n, c) to (c,)."""
    return Rows(updates).map(lambda _, block: columns(block[:-1]))


def mean(updates: Sequence[Update]) -> Streams:
    """Return the plain mean of updates."""
    return columnwise(updates, lambda values: values.mean(0))


def deviation(updates: Sequence[Update]) -> Streams:
    """Return the standard deviation of every number over updates, of n - 1 degrees of freedom; of one update 0."""
    return columnwise(updates, lambda v: v.std(0) if len(v) > 1 else torch.zeros_like(v[0]))


def scaled(streams: Streams, factor: float) -> Streams:
    """Return streams times a factor."""
    return {stream: {name: value * factor for name, value in values.items()} for stream, values in streams.items()}


def moved(start: Streams, way: Streams, length: float) -> Streams:
    """Return start + length * way."""
    return {
        stream: {name: value + length * way[stream][name] for name, value in values.items()}
        for stream, values in start.items()
    }


def sent(own: Update, streams: Streams) -> Update:
    """Return an attacker's update with other content; the single numbers beside the parameters stay as they were."""
    return replace(own, streams=own.streams | {name: values for name, values in streams.items() if name != SCALARS})
