"""An estimate of the memory that training takes on a device."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from weft.config import RunConfig


class MemoryNeeds(NamedTuple):
    """What decides the memory of one process, beside the configuration."""

    parameters: int
    trained: int
    hidden: int
    layers: int
    vocabulary: int
    width: int
    """Bytes of a number of the arithmetic: 2 or 4."""


def needs_of(model_config: object, parameters: int, trained: int, dtype: str) -> MemoryNeeds:
    """Return what decides the memory of a model."""
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    hidden, layers, words = (
        int(getattr(text, name, 0) or 0) for name in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    return MemoryNeeds(parameters, trained, hidden, layers, words, 4 if dtype == "float32" else 2)


def memory(config: RunConfig, needs: MemoryNeeds, processes: int = 1) -> float:
    """Estimate the bytes on the device of one process: weights, masters, gradients, moments, one batch's activations.

    Activations are taken as 34 s b h bytes a layer (Korthikanti et al. 2022, arXiv 2205.05198, without their attention
    maps), 2 s b h where they are recomputed, logits as 8 bytes each on half of the positions. Weights are split evenly
    over processes; with fsdp the rows are too. Where layers wait elsewhere, two of them are counted.
    """
    frozen_width = 0.55 if config.load_in_4bit else 1.05 if config.load_in_8bit else needs.width
    frozen = needs.parameters - needs.trained
    moments = {"adamw": 8, "sgd": 0, "muon": 4}.get(config.optimizer, 2)
    # Masters in float32, their rounded copies where there are any, gradients, moments.
    training = needs.trained * (4 + (needs.width if needs.width < 4 else 0) + 4 + moments)
    if config.optimizer == "muon" and not config.use_peft:  # the table of tokens has AdamW's two moments
        training += 4 * min(needs.trained, needs.vocabulary * needs.hidden)
    offloaded = config.model_offload != "none"
    layers = max(needs.layers, 1)
    weights = frozen * frozen_width * (2 / layers if offloaded else 1.0)
    static = (weights + training) / processes
    if config.cpu_offload:  # two layers are gathered at a time
        static = (frozen * frozen_width + needs.trained * needs.width) * 2 / layers
    tokens = config.batch_size * config.seq_length / (processes if config.parallel == "fsdp" else 1)
    recomputed = config.gradient_checkpointing is True or offloaded
    activations = tokens * needs.hidden * layers * (2 if recomputed else 17 * needs.width)
    if config.parallel in ("tensor", "pipeline"):
        activations /= processes
    return float(static + activations + tokens / 2 * needs.vocabulary * 8)


def room(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
