"""Prompts beside LoRA and beside no tuning: what they are worth, and what travels; needs the shared data.

    python benchmarks/prompts.py OUT.jsonl         run what OUT lacks: three seeds
    python benchmarks/prompts.py table OUT.jsonl   print the tables

TFNS (10 clients by Dirichlet 0.3 and at random, macro-F1) and MedQuAD (7 institutions, loss), data and bases as in
bases.py: a Llama of 0.4 M parameters, for TFNS after 150 batches of public labels. Ten vectors a prompt; 15 rounds
of 5 steps (MedQuAD 10). Each method alone at every client (its own model on everybody's held-out rows, the mean over
clients), federated by FedAvg, and on the pooled rows.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from algorithms import LORA, SEEDS, TASKS
from bases import COMMON, base, warm
from common import machine

LEAD = 10
WORK: dict[str, dict[str, Any]] = {**TASKS, "tfns iid": TASKS["tfns"] | {"split_strategy": "iid"}}
METHODS: dict[str, dict[str, Any]] = {
    "soft": {"prompt_method": "soft", "num_virtual_tokens": LEAD},
    "prefix": {"prompt_method": "prefix", "num_virtual_tokens": LEAD},
    "p_tuning": {"prompt_method": "p_tuning", "num_virtual_tokens": LEAD, "prompt_hidden_size": 64},
    "LoRA": LORA,
    "black_box": {"prompt_method": "black_box", "num_virtual_tokens": LEAD, "fed_alg": "fedbpt"},
    "text": {"prompt_method": "text", "fed_alg": "fedtext", "prompt_length": 60},
}
WORDS = {
    "tfns": [
        "What is the mood of this tweet about a company?",
        "Say whether this news is good, bad or neither.",
        "bearish, bullish or neutral",
        "You are a careful financial analyst.",
        "Will the price rise or fall?",
        "Answer with one word.",
    ],
    "medquad": [
        "You are a doctor who explains things to patients.",
        "Answer the question about a disease.",
        "Answer in whole sentences.",
        "symptoms, causes, treatment",
        "Say what it is and who should see a doctor.",
        "A page of a public health institute:",
    ],
}
"""Instructions that are dealt to the clients; a model of this size writes no others that are of use."""
RATES = {
    ("tfns", "soft"): 1e-2,
    ("tfns", "prefix"): 3e-1,
    ("tfns", "p_tuning"): 3e-3,
    ("tfns", "LoRA"): 4e-3,
    ("tfns", "black_box"): 1.0,
    ("tfns", "text"): 1.0,
    ("medquad", "soft"): 1e-1,
    ("medquad", "prefix"): 3e-1,
    ("medquad", "p_tuning"): 3e-2,
    ("medquad", "LoRA"): 6e-3,
    ("medquad", "black_box"): 1.0,
    ("medquad", "text"): 1.0,
}
"""The best of some on one seed, by the federation's score."""
WAYS = {"local": {"fed_alg": "local"}, "federated": {}, "central": {"fed_alg": "central"}}
SCORE = {"tfns": "macro_f1", "tfns iid": "macro_f1", "medquad": "loss"}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def keys_of(task: str, method: str, rate: float | None = None) -> dict[str, Any]:
    """Return the keys of a run; rows are as long as without a prompt, whose vectors count too."""
    keys = COMMON | WORK[task] | {"model_name_or_path": str(base() if task == "medquad" else warm())}
    if method == "none":
        return keys | {"learning_rate": 0.0, "num_rounds": 1, "max_steps": 1}
    lead = 0 if method in ("prefix", "LoRA", "text") else LEAD
    keys |= METHODS[method] | {"learning_rate": RATES[task.split()[0], method] if rate is None else rate}
    if method == "text":
        keys |= {"prompt_candidates": WORDS[task.split()[0]]}
    return keys | {"seq_length": keys["seq_length"] + lead}


def measure(task: str, method: str, way: str, seed: int, rate: float | None = None) -> dict[str, Any]:
    """Run once and return its numbers."""
    import weft

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = WAYS[way] | {"seed": seed, "output_dir": f"{folder}/run"}
        changes |= {"eval_everybody": True} if way == "local" else {}
        summary = weft.train(keys_of(task, method, rate) | changes, quiet=True).summary
    found = summary["models"]["own_on_everybody"] if way == "local" else summary["eval"]
    row = {"task": task, "method": method, "way": way, "seed": seed, "machine": machine()}
    clients = 7 if task == "medquad" else 10
    sent = (summary["bytes_up"] + summary["bytes_down"]) / summary["rounds"] / clients / 2
    return row | {name: found[name] for name in ("loss", "accuracy", "macro_f1")} | {
        "sent": sent if way == "federated" and method != "none" else None,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def run(path: Path) -> None:
    """Run what the file lacks."""
    import torch

    torch.set_num_threads(1)
    jobs = [(task, "none", "federated") for task in SCORE]
    jobs += [(task, method, way) for task in SCORE for method in METHODS for way in WAYS]
    for seed in SEEDS:
        for task, method, way in jobs:
            key = (task, method, way, seed)
            if any((row["task"], row["method"], row["way"], row["seed"]) == key for row in read(path)):
                continue
            row = measure(*key)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(*key, f"{row[SCORE[task]]:.4f} {row['seconds']:.0f}s", flush=True)


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds, for each task."""
    rows = read(path)
    print(rows[0]["machine"])
    for task, name in SCORE.items():
        print(f"\n{task}, {name}\n\n| | {' | '.join(WAYS)} | bytes up (as many down) a client and round |")
        print("|--|--|--|--|--|")
        for method in ("none", *METHODS):
            cells = []
            for way in WAYS:
                values = [r[name] for r in rows if (r["task"], r["method"], r["way"]) == (task, method, way)]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
            sent = next((r["sent"] for r in rows if (r["task"], r["method"]) == (task, method) and r["sent"]), 0)
            print(f"| {method} | {' | '.join(cells)} | {sent:,.0f} |")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    elif verb == "tune":
        for task, method in [word.split(":") for word in rest]:
            for rate in (3e-3, 1e-2, 3e-2, 1e-1, 3e-1):
                row = measure(task, method, "federated", SEEDS[0], rate)
                print(task, method, rate, row[SCORE[task]], row["loss"], f"{row['seconds']:.0f}s", flush=True)
    else:
        run(Path(verb))
