"""`weft grpo`: federated reinforcement learning with verifiable rewards."""

from __future__ import annotations

from typing import Any

from weft.verbs import train_verb


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the verb's own defaults: a batch is of prompts, each with its answers, so it is small."""
    return {"objective": "grpo", "peft_lora_dropout": 0.0, "batch_size": 4}


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb(
        "grpo", "Let a model answer, and learn from rewards that are computed, federated.", argv, defaults
    )
