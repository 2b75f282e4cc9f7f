"""`weft prompt`: federated prompts; the model is frozen and never travels."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.verbs import train_verb

RATES = {"soft": 3e-2, "prefix": 1e-2, "p_tuning": 3e-3, "black_box": 1.0}
"""Default learning rates: high for vectors, which move far from their initial embeddings, lower for the weights of a
net; for the black-box search the initial step size."""


def defaults(keys: JsonObject) -> JsonObject:
    """Return the verb's own defaults."""
    method = keys.get("prompt_method", "soft")
    values: JsonObject = {"prompt_method": method, "learning_rate": RATES.get(method, 3e-2)}
    algorithms = {"black_box": "fedbpt", "text": "fedtext"}
    return values | ({"fed_alg": algorithms[method]} if method in algorithms else {})


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("prompt", "Learn a prompt before a frozen model, federated.", argv, defaults)
