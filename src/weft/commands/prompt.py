"""`weft prompt`: federated prompts; the model is frozen and never travels."""

from __future__ import annotations

from typing import Any

from weft.verbs import train_verb

RATES = {"soft": 3e-2, "prefix": 1e-2, "p_tuning": 3e-3, "black_box": 1.0}
"""Learning rates: vectors that begin as embeddings move far, a net's weights do not; of a search, its first width."""


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the verb's own defaults."""
    method = given.get("prompt_method", "soft")
    made: dict[str, Any] = {"prompt_method": method, "learning_rate": RATES.get(method, 3e-2)}
    own = {"black_box": "fedbpt", "text": "fedtext"}
    return made | ({"fed_alg": own[method]} if method in own else {})


def run(argv: list[str]) -> int:
    """Train, or describe what would be trained."""
    return train_verb("prompt", "Learn a prompt before a frozen model, federated.", argv, defaults)
