"""`weft pretrain`: federated pre-training, from nothing or from an open model."""

from __future__ import annotations

from typing import Any

from weft.verbs import train_verb

RECIPE: dict[str, Any] = {
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


def outer_lr(clients: int) -> float:
    """Return DiLoCo's outer learning rate for as many clients in a round (Charles et al. 2025, arXiv 2503.09799)."""
    return {1: 0.4, 2: 0.6, 3: 0.6, 4: 0.6}.get(clients, 0.8)


PHOTON: dict[str, Any] = RECIPE | {"learning_rate": 2e-3, "batch_size": 8}
"""Photon's (Sani et al. 2024, arXiv 2411.02908): nothing stays with clients, small batches, a high learning rate."""


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe; DiLoCo's outer learning rate follows the number of clients."""
    photon = given.get("recipe") == "photon"
    made = dict(PHOTON if photon else RECIPE)
    if given.get("lora_aggregation") == "merge":  # its fresh adapters survive no momentum
        made["fed_alg"] = "fedavg"
    if given.get("fed_alg", made["fed_alg"]) == "diloco" and "fed_args" not in given:
        made["fed_args"] = {"outer_lr": outer_lr(int(given.get("sample_clients", 2))), "momentum": 0.9}
        if photon:
            made["fed_args"] = {"outer_lr": 0.7, "momentum": 0.7, "inner_state": "reset"}
    return made


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("pretrain", "Pre-train a model on plain text, federated.", argv, defaults)
