"""The client half of an algorithm: hooks into the local loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.core import tensors
from weft.core.types import DELTA, LocalWork, RuleResult, Streams, Tensors


class LocalRule:
    """The client half of an algorithm: hooks into the local loop. The defaults are plain local training.

    A rule sees the shared parameters only; those that never leave the client are trained beside them without it.
    """

    wants_moments: bool = False
    """Pass the optimizer's moments to `finish`."""
    clips: bool = True
    """Gradients are clipped at the client."""

    def begin(self, params: Tensors) -> Tensors:
        """Return the parameters to start from, given the task's."""
        return params

    def moments(self) -> Streams:
        """Return AdamW's initial moments (`exp_avg`, `exp_avg_sq`, `step`); empty: zeros."""
        return {}

    def search(self) -> Tensors:
        """Return the initial width of a search without gradients (`sigma` (), `variance` (d,)); empty: a sphere."""
        return {}

    def prepare(self, params: Tensors) -> None:
        """Receive the parameters that are trained in this round, on their device, before the first step.

        The hooks below receive the same ones.
        """

    def loss_term(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return a term that is added to the mean loss of every micro-batch."""
        return 0.0

    def adjust_grads(self, params: Tensors) -> None:
        """Change `.grad` of the parameters in place, before clipping and the optimizer's step."""

    def lr_factor(self, step: int) -> float:
        """Return a factor of the optimizer's step, without its weight decay; `step` counts from 0.

        With 0 the optimizer changes nothing at all.
        """
        return 1.0

    def after_step(self, params: Tensors, lr: float) -> None:
        """Change the parameters in place after the optimizer's step; `lr` is the schedule's learning rate."""

    def finish(self, work: LocalWork) -> RuleResult:
        """Return the streams to send, and the client's new memory."""
        return RuleResult({DELTA: tensors.subtract(work.end, work.start)})
