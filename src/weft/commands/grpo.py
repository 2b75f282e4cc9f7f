"""`weft grpo`: federated reinforcement learning with verifiable rewards."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.verbs import train_verb


def defaults(keys: JsonObject) -> JsonObject:
    """Return the verb's own defaults: batches are small, as each prompt in one has several answers."""
    return {"objective": "grpo", "peft_lora_dropout": 0.0, "batch_size": 4}


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb(
        "grpo", "Let a model answer, and learn from rewards that are computed, federated.", argv, defaults
    )
