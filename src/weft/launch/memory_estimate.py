"""How much memory a run needs on a device, and what would make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations

import torch

from weft.config import RunConfig
from weft.models.memory import MemoryNeeds, memory, room
from weft.runs.text import human_bytes

PROCESSES = (2, 4, 8, 16, 32, 64)


def describe_memory(config: RunConfig, needs: MemoryNeeds, device: torch.device, space: int | None = None) -> str:
    """Say what a run needs, what the device has, and what would make it fit."""
    space = room(device) if space is None else space
    processes = int(os.environ.get("WORLD_SIZE", "1")) if config.parallel != "none" else 1
    total = memory(config, needs, processes)
    text = f"about {human_bytes(total)} for weights, optimizer and one batch, of {human_bytes(space)}"
    if total <= space:
        return text
    advice = [f"{words} ({human_bytes(size)})" for words, size in remedies(config, needs, device, space)]
    if not advice:
        return f"{text}: it does not fit; write a smaller --batch_size or --seq_length, or choose a smaller model"
    return f"{text}: it does not fit. It would with {'; or '.join(advice)}"


def remedies(
    config: RunConfig, needs: MemoryNeeds, device: torch.device, space: int, most: int = 3
) -> Iterator[tuple[str, float]]:
    """Yield the flags that make a run fit, the fewest first, and the bytes that it then takes."""
    single_changes = [one for one in _changes(config, device) if getattr(config, one[1]) != one[2]]
    solutions = 0
    for count in (1, 2, 3):
        for changes in combinations(single_changes, count):
            keys = [key for _, key, _ in changes]
            if len(set(keys)) < count or {"load_in_4bit", "model_offload"} <= set(keys):
                continue
            changed = config.model_copy(update={key: value for _, key, value in changes})
            size = memory(changed, needs)
            if size <= space:
                yield " ".join(words for words, _, _ in changes), size
                solutions += 1
        if solutions:
            break
    spread = {"parallel": "fsdp", "gradient_checkpointing": True, "load_in_4bit": False, "model_offload": "none"}
    for offload in (False, True):
        changed = config.model_copy(update=spread | {"cpu_offload": offload, "optimizer": "adamw"})
        for processes in PROCESSES if solutions < most else ():
            if config.batch_size >= processes and (size := memory(changed, needs, processes)) <= space:
                words = "--parallel fsdp" + (" --cpu_offload true" if offload else "")
                yield f"{words} --gradient_checkpointing true in {processes} processes (torchrun)", size
                solutions += 1
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
