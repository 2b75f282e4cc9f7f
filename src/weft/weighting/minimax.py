"""Minimax weights: clients with the largest losses weigh more (Mohri et al. 2019, arXiv 1902.00146)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weft.core.exchange import Weighting
from weft.core.types import Metrics, Tensors

MAX_LOG_WEIGHT = 5.0


@dataclass(frozen=True)
class Minimax(Weighting):
    """Exponentiated gradient ascent on the mixture: log w_i <- log w_i + rate (loss_i - mean loss).

    The loss is the client's training loss of the round, the mean that of all clients in their last rounds; log w_i is
    within -5 and 5. Clients that are not sampled keep their weight.
    """

    by_rows: ClassVar[bool] = False
    single_updates: ClassVar[bool] = True
    rate: float = field(default=1.0, metadata={"key": "weight_rate"})

    def factor(self, client: str, metrics: Metrics, memory: Tensors) -> tuple[float, Tensors]:
        """Return the client's new weight, and remember it with the client's loss."""
        log_weight = float(memory.get(f"log/{client}", torch.zeros(())))
        if not {"loss_tokens", "loss_sum"} <= metrics.keys():  # the site policy does not report it
            return math.exp(log_weight), {}
        loss = metrics["loss_sum"] / max(1.0, metrics["loss_tokens"])
        losses = {name: float(value) for name, value in memory.items() if name.startswith("loss/")} | {
            f"loss/{client}": loss
        }
        new_log_weight = log_weight + self.rate * (loss - sum(losses.values()) / len(losses))
        new_log_weight = max(-MAX_LOG_WEIGHT, min(MAX_LOG_WEIGHT, new_log_weight))
        return math.exp(new_log_weight), {
            f"loss/{client}": torch.tensor(loss),
            f"log/{client}": torch.tensor(new_log_weight),
        }
