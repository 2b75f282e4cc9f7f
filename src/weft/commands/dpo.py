"""`weft dpo`: federated alignment with preferences, by DPO and its family."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.verbs import train_verb

BETAS = {"simpo": 2.0}
"""Default beta of losses for which it is not DPO's 0.1 (Meng et al. 2024, table 8)."""
FLOOR = 1e-5
"""Learning rate at the end of OpenFedLLM's schedule for DPO; for fine-tuning it is 1e-6."""


def defaults(keys: JsonObject) -> JsonObject:
    """Return the verb's own defaults; dropout would put noise on the comparison with the reference."""
    values: JsonObject = {"objective": "preference", "peft_lora_dropout": 0.0, "min_learning_rate": FLOOR}
    if keys.get("loss") in BETAS:
        values["dpo_beta"] = BETAS[keys["loss"]]
    return values


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("dpo", "Align a model with preferences, federated.", argv, defaults)
