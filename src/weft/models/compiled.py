"""Decoder layers compiled by torch.compile, for training steps alone.

A compiled layer computes the same operations fused, so numbers differ from those of plain layers in their last bits.
Tests of the loaded model, evaluation and generation run the plain layers.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from weft.config import RunConfig
from weft.core.model_types import CausalModel
from weft.errors import ConfigError
from weft.models.emulator import decoder_layers
from weft.models.kernels import is_fused
from weft.models.notes import Note, ignore_note

PAYS_AFTER = 2000
"""Steps from which `auto` compiles on a GPU without fused kernels. At 7 B width it gains 23 ms of 129 ms a step and
takes up to 17 s (docs/log.md), which 740 steps repay there; smaller models gain less."""
GRAPHS = 64
"""Variants of a layer that are compiled at most: by widths, with and without masks. torch's own limit is 8."""


def compile_layers(
    model: CausalModel, config: RunConfig, device: torch.device, note: Note = ignore_note, *, steps: int = 0
) -> bool:
    """Compile a model's decoder layers where the run says so; return whether they are.

    Compiling itself happens in the first steps.

    Args:
        model: the model inside peft's wrapper, with its adapter.
        config: of the run; `compile` decides.
        device: of the model.
        note: called with a sentence where layers are compiled.
        steps: of this process in the whole run, at most; 0: not known.

    Raises:
        ConfigError: compiled layers are demanded, and this machine has no C++ compiler or the model no list of layers.
    """
    if config.compile == "off" or (config.compile == "auto" and not _pays(model, config, device, steps)):
        return False
    if device.type == "cpu" and find_compiler() is None:
        raise ConfigError(
            "compile is on, and compiling for a CPU takes a C++ compiler, which is not on this machine: install g++, "
            "or leave out --compile."
        )
    try:
        layers = decoder_layers(model)[2]
    except ConfigError:
        raise ConfigError(
            f"compile is {config.compile}, and this model has no list of layers to compile: leave out --compile."
        ) from None
    # Of torch's compiler itself, about its own code and about tensors between parts of a layer.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not", category=UserWarning)
    from torch._dynamo import config as limits

    limits.recompile_limit = max(GRAPHS, limits.recompile_limit)
    for layer in layers:
        layer.compile(dynamic=True)
    note("The decoder layers are compiled in the first steps (--compile off: they are not).")
    return True


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that torch would call; None: there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "c++"))), None)


def _pays(model: CausalModel, config: RunConfig, device: torch.device, steps: int) -> bool:
    """Return whether compiling repays itself. No clock decides, so that equal runs compute alike."""
    whole = config.model_offload == "none" and not (config.load_in_8bit or config.load_in_4bit)
    return device.type == "cuda" and whole and not is_fused(model) and steps >= PAYS_AFTER


@contextmanager
def plain_layers(compiled: bool) -> Iterator[None]:
    """Compute with plain layers inside the context.

    Args:
        compiled: the model has compiled layers; False: there is nothing to do.
    """
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
