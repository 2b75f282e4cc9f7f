"""Rows whose shorter answer is preferred, and the losses that learn from such rows."""

from __future__ import annotations

import random

LOSSES = ["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"]


def preference_rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Short answers are preferred."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        question = f"What colour is the {rng.choice(['sky', 'sea', 'leaf', 'rose'])}?"
        made.append({"prompt": question, "chosen": rng.choice(["red", "blue"]), "rejected": "green green leaf"})
    return made


def judged_rows(count: int) -> list[dict[str, object]]:
    """One answer a row, and whether it is good."""
    found = []
    for number, row in enumerate(preference_rows(count)):
        good = number % 2 == 0
        found.append({"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good})
    return found
