"""Recomputed activations (gradient checkpointing), where Weft itself decides about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.config import RunConfig
from weft.core.model_types import CausalModel
from weft.keys.privacy import unit_kind
from weft.models.compat import recompute_activations
from weft.models.memory import memory, needs_of, room
from weft.models.notes import Note, ignore_note


@dataclass
class Recomputation:
    """Whether a model recomputes its activations in the backward pass, and whether that may be switched on."""

    model: CausalModel
    """The model inside peft's wrapper."""
    is_on: bool = False
    allowed: bool = False
    note: Note = ignore_note
    """Called with a sentence when it is switched on."""

    def switch_on(self, reason: str) -> bool:
        """Recompute activations from now on if that may be decided here; return whether anything changed.

        The numbers stay the same: the forward pass is repeated with the same random numbers.
        """
        if self.is_on or not self.allowed:
            return False
        recompute_activations(self.model)
        self.is_on = True
        self.note(f"{reason}: activations are recomputed from here on (--gradient_checkpointing auto).")
        return True


def recomputation_of(config: RunConfig, model: CausalModel, note: Note) -> Recomputation:
    """Return the recomputation of a model that was loaded by a configuration."""
    is_on = config.gradient_checkpointing is True or config.model_offload != "none"
    # A prefix is a cache, which recomputation does not support; and gradients of single rows are noted by layers as
    # they are called: one that is called twice would note them twice.
    once = config.prompt_method == "prefix" or unit_kind(config.privacy_unit) in ("row", "column")
    allowed = config.gradient_checkpointing == "auto" and not once
    return Recomputation(model, is_on, allowed, note)


def fits(config: RunConfig, model: CausalModel, trained: int, dtype: torch.dtype, space: int) -> bool:
    """Return whether a step is estimated to fit into `space` bytes without recomputation."""
    count = sum(parameter.numel() for parameter in model.parameters())
    # Two numbers of four bits share an element of bitsandbytes' parameters.
    count *= 2 if config.load_in_4bit else 1
    needs = needs_of(model.config, count, trained, str(dtype).removeprefix("torch."))
    return memory(config, needs) <= space


def check_room(
    config: RunConfig, current: Recomputation, trained: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Switch recomputation on where a step is estimated not to fit into the memory of a GPU.

    Args:
        config: the run.
        current: of the loaded model.
        trained: number of trained values.
        dtype: of the arithmetic.
        device: of the model.
    """
    if device.type == "cuda" and not fits(config, current.model, trained, dtype, room(device)):
        current.switch_on("A step is estimated to need more memory than the GPU has")
