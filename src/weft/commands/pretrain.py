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
DECAY = 0.95
"""Of AdamW's second moment and of Muon's momentum, for a step of the whole batch."""
SAMPLED = 2
"""Clients of a round where no number is given."""
PHOTON: JsonObject = RECIPE | {"learning_rate": 2e-3, "batch_size": 8}
"""Photon's (Sani et al. 2024, arXiv 2411.02908): stateless clients, small batches, a high learning rate."""


def defaults(keys: JsonObject) -> JsonObject:
    """Return the recipe, given the keys that are set."""
    photon = keys.get("recipe") == "photon"
    values = dict(PHOTON if photon else RECIPE)
    # Merging gives clients fresh adapters, which the outer momentum of DiLoCo does not fit.
    if keys.get("lora_aggregation") == "merge":
        values["fed_alg"] = "fedavg"
    if keys.get("fed_alg", values["fed_alg"]) == "diloco":
        if photon:
            return values | {"fed_args": {"outer_lr": 0.7, "momentum": 0.7, "inner_state": "reset"}}
        # K clients share the batch of a step. Moments of a K-th of it are as smooth if they last for K times as many
        # steps (Marek et al. 2025, arXiv 2507.07101); what that and the plain mean are worth: docs/benchmarks.md.
        decay = DECAY ** (1 / _cohort(keys))
        values |= {"adam_beta2": decay, "fed_args": {"momentum": 0.0}}
        if keys.get("optimizer") == "muon":
            values["muon_momentum"] = decay
    return values


def _cohort(keys: JsonObject) -> int:
    """Return the clients of a round, as far as keys tell; values that cannot be are refused where keys are checked."""
    given = [str(keys.get(key)) for key in ("sample_clients", "num_clients")]
    sampled, people = (int(text) if text.isdecimal() else 0 for text in given)
    sampled = sampled or SAMPLED
    return min(sampled, people or sampled)


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("pretrain", "Pre-train a model on plain text, federated.", argv, defaults)
