"""Adversarial training: any loss, averaged over perturbations of the input embeddings (FreeLB, 1909.11764).

A perturbation starts at random within a ball, and each step moves it up the gradient of the loss and back into the
ball; the parameters learn from the loss of every step. The ball is relative: its radius is a share of the norm of a
line's embeddings, so that one value suits models of any width. Rows that share a line share its ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weft.core.objective import Loss
from weft.models.resident import Resident
from weft.objectives.wrapped import Wrapped

STRIDE = 2.0
"""Length of all steps of a perturbation together, in radii: it can cross the ball."""


@dataclass(frozen=True)
class Adversarial(Wrapped):
    """Another objective under perturbed input embeddings, in training alone."""

    separable_with: ClassVar[str] = "leave out --adversarial_training"
    radius: float
    """Largest norm of a perturbation, as a share of the norm of the line's embeddings."""
    steps: int
    """Losses that are averaged; the perturbation moves between them."""

    def loss(self, model: Resident, batch: Any) -> Loss:
        """Return the mean loss over the steps of a perturbation; the plain loss where nothing is learnt from it."""
        if self.radius == 0 or not torch.is_grad_enabled():
            return self.inner.loss(model, batch)
        perturbation = Perturbation(self.radius)
        total: Tensor | None = None
        for step in range(self.steps):
            with perturbation.on(model.base.get_input_embeddings()):
                loss = self.inner.loss(model, batch)
            # The mean over the steps, so that a gradient is as large as without perturbations.
            total = loss.total / self.steps if total is None else total + loss.total / self.steps
            if step + 1 < self.steps:
                perturbation.ascend(loss.total, STRIDE / self.steps)
        assert total is not None
        return Loss(total, loss.targets)


class Perturbation:
    """What is added to the outputs of the input embeddings, one tensor for each time that they are computed."""

    def __init__(self, radius: float) -> None:
        """Start without values: they are drawn when the embeddings are computed for the first time."""
        self.radius = radius
        self.values: list[Tensor] = []
        self.limits: list[Tensor] = []
        """Of each, the largest norm of a line, (B, 1, 1)."""
        self._calls = 0

    @contextmanager
    def on(self, embeddings: nn.Module) -> Iterator[None]:
        """Perturb the embeddings inside the context."""
        self._calls = 0
        handle = embeddings.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        call, self._calls = self._calls, self._calls + 1
        if call == len(self.values):
            limit = self.radius * _norms(output.detach().float())
            drawn = torch.rand_like(output, dtype=torch.float32) * 2 - 1
            # A random direction, at a random distance within the ball.
            value = drawn * limit * torch.rand_like(limit) / _norms(drawn).clamp_min(1e-12)
            self.values.append(value.requires_grad_())
            self.limits.append(limit)
        return output + self.values[call].to(output.dtype)

    def ascend(self, loss: Tensor, stride: float) -> None:
        """Move up the gradient of a loss, by `stride` radii, and back into the ball."""
        # The loss is learnt from as well: its graph stays.
        gradients = torch.autograd.grad(loss, self.values, retain_graph=True)
        moved = []
        for value, limit, gradient in zip(self.values, self.limits, gradients, strict=True):
            direction = gradient.float() / _norms(gradient.float()).clamp_min(1e-12)
            new = value.detach() + stride * limit * direction
            moved.append((new * (limit / _norms(new).clamp_min(1e-12)).clamp_max(1.0)).requires_grad_())
        self.values = moved


def _norms(values: Tensor) -> Tensor:
    """Return the norm of each line, (B, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return norms
