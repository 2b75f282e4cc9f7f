"""Muon for the matrices inside a model, AdamW for everything else (Jordan et al. 2024; torch.optim.Muon).

Muon's step of a matrix is its momentum with all singular values near 1, scaled to the size that AdamW's steps have
(0.2 sqrt(larger side); Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from weft.errors import ConfigError
from weft.models.resident import Resident

Groups = list[dict[str, Any]]
SINCE = "2.9"
"""The first release of torch that has Muon."""


def check_torch() -> None:
    """Raise ConfigError where this release of torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optimizer is muon, and torch {torch.__version__} has none: install torch {SINCE} or newer, or write "
            "--optimizer adamw."
        )


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
            how: dict[str, Any] = {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
            self.parts.append(torch.optim.Muon(matrices, lr=0.0, **how))
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
