"""Weights by relative gain: clients that improved most in the last round weigh more.

After the idea of FGRPO (Chen et al. 2026, arXiv 2606.03094), whose formula was not available; this one is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weft.core.exchange import Weighting
from weft.core.types import Metrics, Tensors


@dataclass(frozen=True)
class Gain(Weighting):
    """w_i = rows_i exp(rate g_i), g_i = (s_i - h_i) / |h_i| within -1 and 1, h_i <- (h_i + s_i) / 2.

    s is the round's mean reward of the client's answers, or its negative training loss where there is no reward; h is
    its running mean, so that different scales of rewards cancel. A client's first round has g = 0.
    """

    single_updates: ClassVar[bool] = True
    rate: float = field(default=1.0, metadata={"key": "weight_rate"})

    def factor(self, client: str, metrics: Metrics, memory: Tensors) -> tuple[float, Tensors]:
        """Return the factor of the client's rows, and remember its history."""
        if metrics.get("answers") and "reward_sum" in metrics:
            score = metrics["reward_sum"] / metrics["answers"]
        elif "loss_tokens" in metrics and "loss_sum" in metrics:
            score = -metrics["loss_sum"] / max(1.0, metrics["loss_tokens"])
        else:  # the site policy does not report it
            return 1.0, {}
        if client not in memory:
            return 1.0, {client: torch.tensor(score)}
        history = float(memory[client])
        gain = max(-1.0, min(1.0, (score - history) / max(abs(history), 1e-6)))
        return math.exp(self.rate * gain), {client: torch.tensor((history + score) / 2)}
