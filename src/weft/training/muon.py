"""Muon for the matrices inside a model, AdamW for everything else (Jordan et al. 2024).

Muon's step of a matrix is its momentum with all singular values near 1, scaled to the size that AdamW's steps have
(0.2 sqrt(larger side); Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both. It is torch's Muon,
which multiplies in bfloat16 on any hardware: a CPU without such products takes 20 times as long as in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weft.models.precision import multiplies_bfloat16
from weft.models.resident import Resident

Groups = list[dict[str, Any]]
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5, which bring singular values of up to 1 near 1 in five iterations (Jordan 2024)."""
ITERATIONS = 5
LEAST_NORM = 1e-7


def matrices_of(model: Resident) -> frozenset[str]:
    """Return the names of the trained matrices inside a model: not those of embeddings and of the output layer."""
    tables = {id(parameter) for parameter in model.base.get_output_embeddings().parameters()}
    for module in model.model.modules():
        # Adapters of embeddings and prompts are tables of tokens too, whatever their classes are called.
        if isinstance(module, nn.Embedding) or "Embedding" in type(module).__name__:
            tables |= {id(parameter) for parameter in module.parameters()}
    return frozenset(
        name for name, parameter in model.params.items() if parameter.dim() == 2 and id(parameter) not in tables
    )


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return U V^T of a matrix U S V^T, about: its singular values become 0.7 to 1.2 (Newton-Schulz).

    Args:
        matrix: (m, n).
        dtype: of the products and of what is returned.
    """
    wide = (matrix.T if len(matrix) > matrix.shape[1] else matrix).to(dtype)
    wide = wide / wide.norm().clamp(min=LEAST_NORM)
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.T if len(matrix) > matrix.shape[1] else wide


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's), made orthogonal; its state has the names of torch's."""

    def __init__(self, matrices: Groups, momentum: float, dtype: torch.dtype | None = None) -> None:
        """Make it for groups of matrices, each with its `weight_decay`; the learning rate is set before each step.

        Args:
            matrices: the groups.
            momentum: in [0, 1).
            dtype: of products. None: bfloat16 where the device multiplies it natively, else float32.
        """
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum})
        native = multiplies_bfloat16(self.param_groups[0]["params"][0].device)
        self.dtype = dtype or (torch.bfloat16 if native else torch.float32)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step along the gradients that are there."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, group)

    def _move(self, matrix: Tensor, group: dict[str, Any]) -> None:
        gradient, momentum = matrix.grad, group["momentum"]
        assert gradient is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        ahead = gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(orthogonal(ahead, self.dtype), alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer made of two, which share groups and state."""

    def __init__(
        self, matrices: Groups, others: Groups, momentum: float, adamw: Callable[[Groups], torch.optim.Optimizer]
    ) -> None:
        """Make both.

        Args:
            matrices: groups of matrices, each with its `weight_decay`.
            others: groups of the other parameters.
            momentum: of Muon.
            adamw: makes the optimizer of `others`.
        """
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, momentum))
        if others:
            self.parts.append(adamw(others))
        super().__init__([dict(group) for part in self.parts for group in part.param_groups], {})
        # The very groups and state of the parts: what the loop sets here, they read.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make the step of both."""
        for part in self.parts:
            part.step()
