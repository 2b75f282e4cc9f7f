"""Preferences, federated beside every client alone; needs the shared data and model.

    python benchmarks/preference.py OUT.jsonl         run what OUT lacks: three seeds
    python benchmarks/preference.py table OUT.jsonl   print the table

HH-RLHF's harmless dialogues (2,312 pairs), dealt at random to five clients, 15 % of each held out; stories260K, all
parameters trained by DPO (beta 0.1), 6 rounds of 6 steps of 8 pairs, rows of at most 256 tokens. Everybody's held-out
pairs are measured: by the shared model, and by each client's own (the mean over clients).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
SEEDS = (1, 2, 3)
KEYS: dict[str, Any] = {
    "objective": "preference",
    "model_name_or_path": str(DATA.parent / "models" / "stories260K"),
    "dataset_name": str(DATA / "preference" / "hh_harmless_base_test.jsonl.gz"),
    "dataset_sample": None,
    "template": "vicuna",
    "num_clients": 5,
    "sample_clients": 5,
    "num_rounds": 6,
    "max_steps": 6,
    "batch_size": 8,
    "seq_length": 256,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "eval_fraction": 0.15,
    "eval_every": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
}
ARMS: dict[str, dict[str, Any]] = {
    "local": {"fed_alg": "local", "eval_everybody": True},
    "fedavg": {},
    "fedavg, server_lr 1.5": {"fed_alg": "fedavgm", "fedopt_beta1": 0.0, "fed_args": {"server_lr": 1.5}},
    "fedavgm": {"fed_alg": "fedavgm"},
    "diloco": {"fed_alg": "diloco", "fed_args": {"outer_lr": 0.7, "momentum": 0.9}},
}
SHOWN = ("preference_accuracy", "reward_margin", "loss")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(path: Path) -> None:
    """Run what the file lacks."""
    import weft

    for arm, changes in ARMS.items():
        for seed in SEEDS:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in read(path)):
                continue
            with tempfile.TemporaryDirectory() as out:
                began = time.perf_counter()
                summary = weft.train(KEYS | changes | {"seed": seed, "output_dir": f"{out}/run"}).summary
            found = summary["models"]["own_on_everybody"] if arm == "local" else summary["eval"]
            row = {"arm": arm, "seed": seed, "seconds": time.perf_counter() - began, "machine": machine()}
            row |= {name: found[name] for name in SHOWN}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(arm, seed, *(f"{row[name]:.4f}" for name in SHOWN), f"{row['seconds']:.0f}s", flush=True)


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds."""
    rows = read(path)
    print(rows[0]["machine"])
    print(f"| | {' | '.join(SHOWN)} | seeds |\n|--|--|--|--|--|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = []
        for name in SHOWN:
            values = [row[name] for row in found]
            cells.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}")
        print(f"| {arm} | {' | '.join(cells)} | {len(found)} |")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    else:
        run(Path(verb))
