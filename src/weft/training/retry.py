"""Repeating a step that did not fit into a GPU's memory, with activations recomputed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weft.models.resident import Resident


def within_memory(model: Resident, backward: Callable[[], Tensor]) -> Tensor:
    """Return the result of `backward`, which accumulates gradients; repeat it once if the GPU's memory is full.

    Before the second try activations are recomputed from then on, gradients are cleared, and the random numbers are
    set back, so that the step has the numbers that it would have had.

    Args:
        model: whose gradients are empty before the call.
        backward: forward and backward pass of one optimizer step.

    Raises:
        torch.OutOfMemoryError: recomputation is on already, or may not be switched on.
    """
    if model.recomputation.is_on or not model.recomputation.allowed:
        return backward()
    state = _random_state(model.device)
    try:
        return backward()
    except torch.OutOfMemoryError:
        if not model.recomputation.switch_on("A step did not fit into the memory of the GPU"):
            raise
    # Outside the handler: the exception's frames hold the activations.
    for value in (*model.masters.values(), *model.params.values()):
        value.grad = None
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    _set_random_state(model.device, state)
    return backward()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
