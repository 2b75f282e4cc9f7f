"""`weft sft`: federated instruction tuning."""

from __future__ import annotations

from weft.verbs import train_verb


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("sft", "Fine-tune a model on instructions, federated.", argv)
