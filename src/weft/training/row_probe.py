"""A probe, before anybody trains: whether the rows of a batch influence each other in a model.

The bound of what one row adds holds only if its loss is its own. Batch normalisation, or experts that drop the tokens
which are too many, make it a function of the rows beside it, without a trace in the shapes of tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.core.objective import Objective
from weft.core.tensors import seed_used_devices
from weft.errors import ConfigError
from weft.models.resident import Resident
from weft.training.job import RowTable

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest relative difference of a loss that rounding may make; other number formats: 0.02."""


def check_apart(model: Resident, objective: Objective, rows: RowTable) -> None:
    """Refuse a model in which the loss of a row depends on the rows beside it.

    Args:
        model: as it is trained, dropout included; it is left as it was.
        objective: has losses of single rows.
        rows: at least one; the first two are computed.

    Raises:
        ConfigError: it does; with what can be trained instead.
    """
    one, other = rows[0], rows[min(1, len(rows) - 1)]
    devices = [model.device] if model.device.type == "cuda" else []
    was_training = model.model.training
    model.model.train()
    try:
        with torch.random.fork_rng(devices=devices):
            alone, leak = _first_loss(model, objective, [one, one])
            beside, leak_beside = _first_loss(model, objective, [one, other])
    finally:
        model.model.train(was_training)
    close = CLOSE.get(model.dtype, 0.02)
    if leak or leak_beside or abs(alone - beside) > close * (1 + abs(alone)):
        raise ConfigError(
            f"In the model {type(model.base).__name__} the loss of a row depends on the rows beside it in a batch "
            "(as by batch normalisation), so that no bound of one row holds: write --privacy_unit client, or choose "
            "another model."
        )


def _first_loss(model: Resident, objective: Objective, rows: list[Any]) -> tuple[float, bool]:
    """Return the loss of the first of two rows, and whether a gradient of it reaches the embeddings of the second."""
    batch = objective.separate(rows, model.line_step).to(model.device)
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        embedded.append(output if output.requires_grad else output.requires_grad_())

    seed_used_devices(0)  # both calls have the same dropout
    handle = model.base.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            loss = objective.row_losses(model, batch)[0]
            gradients = torch.autograd.grad(loss, embedded, allow_unused=True)
    finally:
        handle.remove()
    own = batch.lines_of_row
    return float(loss.detach()), any(found is not None and bool(found[own:].any()) for found in gradients)
