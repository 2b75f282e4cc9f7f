"""Cross-entropy of many targets over a large vocabulary, a chunk of logits at a time.

Logits of 8,192 targets over 128,000 tokens take 4 GB in float32, and as much again for their gradients. The logits of a
chunk are dropped after the forward pass and computed again in the backward pass, so that those of one chunk exist at a
time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weft.models.layout import Batch
from weft.models.resident import Resident

MOST = 1 << 27
"""Logits from which a loss is computed in chunks, and logits of a chunk: 0.5 GB in float32."""


def _summed(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden[None])[0].float()
    return F.cross_entropy(logits, targets, reduction="sum")


def summed_cross_entropy(model: Resident, batch: Batch, most: int | None = None) -> Tensor:
    """Return the summed cross-entropy (nats) of a batch's targets, in float32.

    Args:
        model: computes the logits.
        batch: on the model's device.
        most: logits of a chunk; None: `MOST`.
    """
    # A model in several processes has no output layer of its own here.
    size = max(1, (most or MOST) // model.vocabulary) if model.one_process else len(batch.targets)
    if len(batch.targets) <= size or not ends_with_head(model, batch):
        return F.cross_entropy(model.logits(batch).float(), batch.targets, reduction="sum")
    hidden, head = model.hidden(batch), model.base.get_output_embeddings()
    total = torch.zeros((), device=hidden.device)
    for part, targets in zip(torch.split(hidden, size), torch.split(batch.targets, size), strict=True):
        total = total + checkpoint(_summed, head, part, targets, use_reentrant=False)
    return total


def ends_with_head(model: Resident, batch: Batch) -> bool:
    """Return whether a model's logits are what its output layer computes, with nothing after it (soft caps, scaling).

    The answer is tested once with some positions of a batch, and kept.
    """
    if model.ends_with_head is None:
        few = batch.first_targets(8)
        with model.evaluating():
            logits = model.logits(few)
            model.ends_with_head = torch.equal(logits, model.base.get_output_embeddings()(model.hidden(few)[None])[0])
    return model.ends_with_head
