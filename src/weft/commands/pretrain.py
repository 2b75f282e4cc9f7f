"""`weft pretrain`: federated pre-training, from scratch or from an open model."""

from __future__ import annotations

from weft.config import RunConfig
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
HALF_LIFE = 12_500
"""Tokens of a client after which half of what a step brings to its moments is left, at the least. Smaller batches would
make moments that forget sooner (Marek et al. 2025, arXiv 2507.07101); measured in docs/benchmarks.md."""
PHOTON: JsonObject = RECIPE | {"learning_rate": 2e-3, "batch_size": 8}
"""Photon's (Sani et al. 2024, arXiv 2411.02908): stateless clients, small batches, a high learning rate."""


def defaults(keys: JsonObject) -> JsonObject:
    """Return the recipe, given the keys that are set."""
    photon = keys.get("recipe") == "photon"
    values = dict(PHOTON if photon else RECIPE)
    # Merging gives clients fresh adapters, which the outer momentum of DiLoCo does not fit.
    if keys.get("lora_aggregation") == "merge":
        values["fed_alg"] = "fedavg"
    tokens = min(_tokens(values | keys), HALF_LIFE)
    decay = values["adam_beta2"] = max(values["adam_beta2"], 0.5 ** (tokens / HALF_LIFE))
    if keys.get("optimizer") == "muon":
        values["muon_momentum"] = decay
    if keys.get("fed_alg", values["fed_alg"]) == "diloco":
        # The plain mean was best in runs of up to 60 rounds (docs/benchmarks.md).
        values["fed_args"] = {"outer_lr": 0.7, "momentum": 0.7, "inner_state": "reset"} if photon else {"momentum": 0.0}
    return values


def _tokens(keys: JsonObject) -> int:
    """Return the most tokens of a client's step; what cannot be a number is refused where keys are checked."""
    count = 1
    for name in ("batch_size", "seq_length", "gradient_accumulation_steps"):
        value = keys.get(name)
        text = str(RunConfig.model_fields[name].default if value is None else value)
        count *= int(text) if text.isdecimal() else HALF_LIFE
    return count


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("pretrain", "Pre-train a model on plain text, federated.", argv, defaults)
