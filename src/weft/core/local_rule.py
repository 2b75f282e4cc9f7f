"""The client half of an algorithm: hooks into the local loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.core import tensors
from weft.core.types import DELTA, Finished, LocalWork, Streams, Tensors


class LocalRule:
    """The client half of an algorithm: hooks into the local loop. The defaults are plain local training.

    A rule sees the parameters that are shared; what a client keeps to itself is trained beside them, plainly.
    """

    wants_moments: bool = False
    """Tell `finish` the optimizer's moments."""
    clips: bool = True
    """Gradients are clipped at the client."""

    def begin(self, params: Tensors) -> Tensors:
        """Return what the client starts from, given the task's parameters."""
        return params

    def moments(self) -> Streams:
        """Return AdamW's moments to start with (`exp_avg`, `exp_avg_sq`, `step`), or nothing for fresh ones."""
        return {}

    def search(self) -> Tensors:
        """Return how wide a search without gradients begins (`sigma` (), `variance` (d,)), or nothing for a sphere."""
        return {}

    def prepare(self, params: Tensors) -> None:
        """Look at the parameters that are trained in this round, on their device, before the first step.

        The hooks below see the same ones.
        """

    def loss_term(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return what is added to the mean loss of every micro-batch."""
        return 0.0

    def adjust_grads(self, params: Tensors) -> None:
        """Change `.grad` of the parameters in place, before clipping and the optimizer's step."""

    def lr_factor(self, step: int) -> float:
        """Return what the optimizer's step is multiplied by, but not its weight decay; `step` counts from 0.

        With 0 the optimizer changes nothing at all.
        """
        return 1.0

    def after_step(self, params: Tensors, lr: float) -> None:
        """Change the parameters in place after the optimizer's step; `lr` is the schedule's learning rate."""

    def finish(self, work: LocalWork) -> Finished:
        """Return what travels and what stays."""
        return Finished({DELTA: tensors.subtract(work.end, work.start)})
