"""How much memory a run needs on a device, and what would make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch

from weft.config import RunConfig
from weft.runs.text import human_bytes

PROCESSES = (2, 4, 8, 16, 32, 64)


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
    quantised = 0.55 if config.load_in_4bit else 1.05 if config.load_in_8bit else needs.width
    frozen = needs.parameters - needs.trained
    moments = {"adamw": 8, "sgd": 0}.get(config.optimizer, 2)
    # Masters in float32, their rounded copies where there are any, gradients, moments.
    training = needs.trained * (4 + (needs.width if needs.width < 4 else 0) + 4 + moments)
    waiting = config.model_offload != "none"
    layers = max(needs.layers, 1)
    weights = frozen * quantised * (2 / layers if waiting else 1.0)
    held = (weights + training) / processes
    if config.cpu_offload:  # two layers are gathered at a time
        held = (frozen * quantised + needs.trained * needs.width) * 2 / layers
    tokens = config.batch_size * config.seq_length / (processes if config.parallel == "fsdp" else 1)
    recomputed = config.gradient_checkpointing or waiting
    inside = tokens * needs.hidden * layers * (2 if recomputed else 17 * needs.width)
    if config.parallel in ("tensor", "pipeline"):
        inside /= processes
    return float(held + inside + tokens / 2 * needs.vocabulary * 8)


def room(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_memory(config: RunConfig, needs: MemoryNeeds, device: torch.device, space: int | None = None) -> str:
    """Say what a run needs, what the device has, and what would make it fit."""
    space = room(device) if space is None else space
    processes = int(os.environ.get("WORLD_SIZE", "1")) if config.parallel != "none" else 1
    needed = memory(config, needs, processes)
    said = f"about {human_bytes(needed)} for weights, optimizer and one batch, of {human_bytes(space)}"
    if needed <= space:
        return said
    ways = [f"{words} ({human_bytes(size)})" for words, size in remedies(config, needs, device, space)]
    if not ways:
        return f"{said}: it does not fit; write a smaller --batch_size or --seq_length, or choose a smaller model"
    return f"{said}: it does not fit. It would with {'; or '.join(ways)}"


def remedies(
    config: RunConfig, needs: MemoryNeeds, device: torch.device, space: int, most: int = 3
) -> Iterator[tuple[str, float]]:
    """Yield the flags that make a run fit, the fewest first, and the bytes that it then takes."""
    single = [one for one in _changes(config, device) if getattr(config, one[1]) != one[2]]
    found = 0
    for count in (1, 2, 3):
        for chosen in combinations(single, count):
            keys = [key for _, key, _ in chosen]
            if len(set(keys)) < count or {"load_in_4bit", "model_offload"} <= set(keys):
                continue
            changed = config.model_copy(update={key: value for _, key, value in chosen})
            size = memory(changed, needs)
            if size <= space:
                yield " ".join(words for words, _, _ in chosen), size
                found += 1
        if found:
            break
    spread = {"parallel": "fsdp", "gradient_checkpointing": True, "load_in_4bit": False, "model_offload": "none"}
    for offload in (False, True):
        changed = config.model_copy(update=spread | {"cpu_offload": offload, "optimizer": "adamw"})
        for processes in PROCESSES if found < most else ():
            if config.batch_size >= processes and (size := memory(changed, needs, processes)) <= space:
                words = "--parallel fsdp" + (" --cpu_offload true" if offload else "")
                yield f"{words} --gradient_checkpointing true in {processes} processes (torchrun)", size
                found += 1
                break


def _changes(config: RunConfig, device: torch.device) -> list[tuple[str, str, object]]:
    """Return the flags that may save memory in one process: (as written, key, value)."""
    changes: list[tuple[str, str, object]] = [("--gradient_checkpointing true", "gradient_checkpointing", True)]
    if config.optimizer == "adamw" and not config.use_peft:
        changes.append(("--optimizer adamw_8bit", "optimizer", "adamw_8bit"))
    if config.use_peft and config.model_offload == "none" and not (config.load_in_4bit or config.load_in_8bit):
        if device.type == "cuda":
            changes += [("--load_in_4bit true", "load_in_4bit", True), ("--model_offload cpu", "model_offload", "cpu")]
        changes.append(("--model_offload disk", "model_offload", "disk"))
    return changes
