"""Writes f1.json: scikit-learn's macro-F1 of random answers.

pip install scikit-learn==1.9.1 && python tests/oracles/f1.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import f1_score

CASES = 60


def main() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for number in range(CASES):
        # Few rows of many classes: some are given and never right, some right and never given.
        classes, rows = int(rng.integers(1, 7)), int(rng.integers(1, 12 if number % 2 else 60))
        right = rng.integers(0, classes, rows).tolist()
        given = rng.integers(0, classes, rows).tolist()
        if number % 3 == 0:
            given = [r if rng.random() < 0.7 else g for r, g in zip(right, given, strict=True)]
        score = f1_score(right, given, average="macro", zero_division=0)
        cases.append({"right": right, "given": given, "macro_f1": float(score)})
    told = {"scikit-learn": sklearn.__version__, "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
