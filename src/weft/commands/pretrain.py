"""`weft pretrain`: federated pre-training, from scratch or from an open model."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.verbs import train_verb

RECIPE: JsonObject = {
    "objective": "causal_lm",
    "dataset_sample": None,
    "eval_rows": 500,
    "fed_alg": "diloco",
    "max_steps": 50,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.1,
    "decay_matrices_only": True,
    "adam_beta2": 0.95,
}
"""DiLoCo's (Douillard et al. 2023, section 3), with a learning rate for small models."""


PHOTON: JsonObject = RECIPE | {"learning_rate": 2e-3, "batch_size": 8}
"""Photon's (Sani et al. 2024, arXiv 2411.02908): stateless clients, small batches, a high learning rate."""


def defaults(keys: JsonObject) -> JsonObject:
    """Return the recipe; DiLoCo's own defaults follow the number of clients (`weft.algorithms.outer`)."""
    photon = keys.get("recipe") == "photon"
    values = dict(PHOTON if photon else RECIPE)
    # Merging gives clients fresh adapters, which the outer momentum of DiLoCo does not fit.
    if keys.get("lora_aggregation") == "merge":
        values["fed_alg"] = "fedavg"
    if photon and keys.get("fed_alg", values["fed_alg"]) == "diloco" and "fed_args" not in keys:
        values["fed_args"] = {"outer_lr": 0.7, "momentum": 0.7, "inner_state": "reset"}
    return values


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("pretrain", "Pre-train a model on plain text, federated.", argv, defaults)
