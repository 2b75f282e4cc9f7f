"""Groups whose values differ: one model for all, and the ways out; needs the shared data and model.

    python benchmarks/opposed.py OUT.jsonl         run what OUT lacks: three seeds
    python benchmarks/opposed.py table OUT.jsonl   print the table

20 personas of 200 statements each, every one a client, 25 % of each held out; stories260K first learns to answer Yes or
No (any, drawn at random), then a LoRA (r 16, all linear layers) is trained by DPO (beta 0.1), 10 rounds of 6 steps of 8
pairs. Accuracy: on each client's own held-out pairs, by what the client uses; mean over the 20 and the worst of them.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
SEEDS = (1, 2, 3)
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""The statements say themselves where the answer goes."""
KEYS: dict[str, Any] = {
    "objective": "preference",
    "dataset_sample": None,
    "template": "chat",
    "num_clients": 0,
    "split_strategy": "by",
    "split_column": "persona",
    "sample_clients": 20,
    "num_rounds": 10,
    "max_steps": 6,
    "batch_size": 8,
    "seq_length": 256,
    "use_peft": True,
    "peft_lora_r": 16,
    "peft_lora_alpha": 32,
    "peft_lora_dropout": 0.0,
    "peft_lora_target_modules": "all-linear",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "eval_fraction": 0.25,
    "eval_every": 0,
    "eval_everybody": False,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
}
ARMS: dict[str, dict[str, Any]] = {
    "alone": {"fed_alg": "local"},
    "shared": {},
    "minimax": {"client_weight": "minimax"},
    "cluster 4": {"cluster": 4},
    "dual": {"lora_aggregation": "dual"},
    "personal steps": {"personal_steps": 60},
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def prepare(folder: Path, seed: int) -> tuple[str, str]:
    """Return a model that answers statements by Yes or No, whichever, and the file of the preferences."""
    from transformers import AutoTokenizer

    import weft

    base = folder / "base"
    shutil.copytree(DATA.parent / "models" / "stories260K", base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(base)
    rng = random.Random(seed)
    with gzip.open(DATA / "preference" / "personas.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    either = [{"prompt": row["prompt"], "answer": rng.choice(["Yes", "No"])} for row in rows]
    data, start = folder / "personas.jsonl", folder / "either.jsonl"
    for path, content in ((data, rows), (start, either)):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    run = weft.train(
        {
            "model_name_or_path": str(base),
            "dataset_name": str(start),
            "num_clients": 1,
            "sample_clients": 1,
            "num_rounds": 1,
            "max_steps": 60,
            "batch_size": 16,
            "seq_length": 256,
            "learning_rate": 1e-3,
            "eval_every": 0,
            "seed": seed,
            "output_dir": str(folder / "start"),
        },
        quiet=True,
    )
    return str(run.path / "model"), str(data)


def accuracies(arm: str, summary: dict[str, Any]) -> list[float]:
    """Return the accuracy of every client, of what it uses."""
    found = summary["models"].get("clients") or {}
    if arm not in ("shared", "minimax") and found:
        return [client["own"]["preference_accuracy"] for client in found.values()]
    return [client["preference_accuracy"] for client in summary["clients"].values()]


def run(path: Path) -> None:
    """Run what the file lacks."""
    import weft

    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            missing = [arm for arm in ARMS if not any((row["arm"], row["seed"]) == (arm, seed) for row in read(path))]
            if not missing:
                continue
            base, data = prepare(folder, seed)
            for arm in missing:
                keys = KEYS | {"model_name_or_path": base, "dataset_name": data, "seed": seed} | ARMS[arm]
                began = time.perf_counter()
                summary = weft.train(keys | {"output_dir": str(folder / arm.replace(" ", "_"))}, quiet=True).summary
                each = accuracies(arm, summary)
                row = {"arm": arm, "seed": seed, "seconds": time.perf_counter() - began, "machine": machine()}
                row |= {"mean": statistics.mean(each), "worst": min(each), "each": each}
                row["mbytes"] = (summary["bytes_up"] + summary["bytes_down"]) / 1e6
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(arm, seed, f"mean {row['mean']:.4f} worst {row['worst']:.4f} {row['seconds']:.0f}s", flush=True)


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds."""
    rows = read(path)
    print(rows[0]["machine"])
    print("| | mean of 20 groups | worst group | sent, MB | seeds |\n|--|--|--|--|--|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = []
        for name in ("mean", "worst"):
            values = [row[name] for row in found]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}")
        print(f"| {arm} | {' | '.join(cells)} | {found[0]['mbytes']:.0f} | {len(found)} |")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    else:
        run(Path(verb))
