"""Rows of tiny data sets, and files of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

LABELS = ("red", "green", "blue")
THINGS = ["apple", "leaf", "sky", "brick", "grass", "sea", "rose", "frog", "jay", "ruby", "moss", "ice"]


def colour_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose answer, one of three, follows from the question's noun."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        place = rng.randrange(len(THINGS))
        question = f"What colour is the {'big ' * rng.randint(0, 6)}{THINGS[place]}?"
        rows.append({"instruction": question, "input": "", "output": LABELS[place % 3]})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
