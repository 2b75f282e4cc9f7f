"""A run of one plain step on short texts of made-up words, whose updates are read by audits."""

from __future__ import annotations

import random
from pathlib import Path

from support.rows import write_rows

WORDS = [first + second + third for first in "bdgklmprst" for second in "aeiou" for third in "nrst"]


def one_step_keys(model: Path, folder: Path, *, seq_length: int) -> dict[str, object]:
    """Return the keys of a run of three clients, each of which makes one step of SGD with all parameters."""
    rng = random.Random(0)
    texts = write_rows(folder / "texts.jsonl", [{"text": " ".join(rng.choices(WORDS, k=7))} for _ in range(30)])
    return {
        "model_name_or_path": str(model), "dataset_name": str(texts), "objective": "causal_lm", "num_clients": 3,
        "sample_clients": 3, "num_rounds": 1, "max_steps": 1, "batch_size": 2, "seq_length": seq_length,
        "optimizer": "sgd", "learning_rate": 1.0, "dtype": "float32", "use_peft": False, "eval_fraction": 0.1,
        "eval_every": 0, "output_dir": str(folder / "run"), "threads": 1,
    }  # fmt: skip
