"""Rows on lines of their own, with logits line by line, where the loss of every single row is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.models.layout import Batch, Row
from weft.models.resident import Resident

NO_TARGET = -100
"""Stands where a line has fewer targets than the longest list of them."""


@dataclass(frozen=True)
class RowLines:
    """Rows of which each has lines of its own."""

    lines: Batch
    """Of `lay_out_lines`."""
    lines_of_row: int = 1
    batch: Any = None
    """What else an objective knows of the rows; it can be moved to a device."""

    def to(self, device: torch.device) -> RowLines:
        """Return the rows on a device."""
        batch = None if self.batch is None else self.batch.to(device)
        return replace(self, lines=self.lines.to(device), batch=batch)


def lay_out_lines(rows: Sequence[Row], step: int = 1) -> Batch:
    """Return a batch of one line for each row, padded on the right, whose index and targets are (lines, most targets).

    Positions are explicit, one row of them for each line: a layer that looks them up then sees lines, too.

    Args:
        rows: token ids and targets.
        step: lines have a multiple of so many positions.
    """
    width = -(-max(len(ids) for ids, _ in rows) // step) * step
    learnt = [np.flatnonzero(learn[1:]) for _, learn in rows]
    most = max(1, *(len(places) for places in learnt))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    index = np.repeat(np.arange(len(rows))[:, None] * width, most, axis=1)
    targets = np.full((len(rows), most), NO_TARGET, dtype=np.int64)
    for line, ((tokens, _), places) in enumerate(zip(rows, learnt, strict=True)):
        ids[line, : len(tokens)] = tokens
        index[line, : len(places)] += places
        targets[line, : len(places)] = tokens[1:][places]
    return Batch(
        torch.from_numpy(ids),
        torch.arange(width).expand(len(rows), -1),
        None,
        torch.from_numpy(index),
        torch.from_numpy(targets),
        len(rows),
        sum(len(tokens) for tokens, _ in rows),
    )


def line_logps(model: Resident, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (lines,) float32: the sum of the log-probabilities (nats) of every line's targets, and their number.

    Args:
        model: computes the logits.
        batch: of `lay_out_lines`, on the model's device.
    """
    logits = model.logits(batch).float()
    losses = F.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NO_TARGET, reduction="none"
    ).view_as(batch.targets)
    return -losses.sum(1), (batch.targets != NO_TARGET).sum(1)
