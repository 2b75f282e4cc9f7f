"""`weft dpo`: federated alignment with preferences, by DPO and its family."""

from __future__ import annotations

from typing import Any

from weft.verbs import train_verb

BETAS = {"simpo": 2.0}
"""Where a loss wants another beta than DPO's 0.1 (Meng et al. 2024, table 8)."""


FLOOR = 1e-5
"""Where OpenFedLLM's schedule ends in DPO; in fine-tuning it is 1e-6."""


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the verb's own defaults; dropout would put noise on the comparison with the reference."""
    made: dict[str, Any] = {"objective": "preference", "peft_lora_dropout": 0.0, "min_learning_rate": FLOOR}
    if given.get("loss") in BETAS:
        made["dpo_beta"] = BETAS[given["loss"]]
    return made


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("dpo", "Align a model with preferences, federated.", argv, defaults)
