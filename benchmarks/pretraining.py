"""Federated pre-training from nothing beside central and data-parallel training; needs the shared data.

    python benchmarks/pretraining.py OUT.jsonl [ARM ...]    run what OUT lacks
    python benchmarks/pretraining.py table OUT.jsonl        print the tables

Nine domains of text (at most 1.2 MB of each, and 40 kB held out: the same for every arm), a Llama of 4.3 M
parameters, a tokenizer of 4,096 tokens from a sample of all domains, bfloat16 arithmetic. Every arm sees the same
number of tokens: STEPS x 16 rows of at most 128, dealt to the clients of a round, at one learning rate. DiLoCo's outer
learning rate is the scaling laws' (0.4, 0.6, 0.6, 0.8 for 1, 2, 4, 8 clients), its momentum 0.9, its rounds INNER
steps. Central training is a single round, since AdamW is made anew in every round of FedAvg's kind.
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
from domains import DATA, domain_of, prepare

CACHE = Path(os.environ.get("WEFT_CACHE", Path(tempfile.gettempdir()) / "weft-benchmarks")) / "pretraining-domains"
LARGEST, HELD, STEPS, ROWS, LENGTH, INNER = 1_200_000, 40_000, 600, 16, 128, 50
RATE = 2e-3
SEEDS = (1, 2)


def tokenizer() -> Path:
    """Return the folder of the tokenizer; made once, with the text."""
    prepare(CACHE, largest=LARGEST, held=HELD)
    return CACHE / "tokenizer"


def federated(clients: int, **more: Any) -> dict[str, Any]:
    """Return the keys of a run of so many clients, which share the batch."""
    keys = {"num_clients": clients, "sample_clients": clients, "batch_size": ROWS // clients, "max_steps": INNER}
    data = {"dataset_name": str(CACHE / "train"), "eval_dataset_name": str(CACHE / "held.jsonl.gz")}
    return keys | data | {"num_rounds": STEPS // INNER, "split_strategy": "iid"} | more


def domain(**more: Any) -> dict[str, Any]:
    """Return the keys of a run with a client for each of the nine domains, with 2 rows a step."""
    clients = [
        {
            "name": name,
            "data": str(CACHE / "train" / f"{name}.jsonl.gz"),
            "eval": str(CACHE / "held" / f"{name}.jsonl.gz"),
        }
        for name in sorted(map(domain_of, DATA.glob("*.jsonl.gz")))
    ]
    keys = {"clients": clients, "sample_clients": 9, "client_weight": "uniform", "batch_size": 2, "max_steps": INNER}
    return keys | {"num_rounds": round(STEPS * ROWS / (9 * 2) / INNER)} | more


def outer(clients: int) -> dict[str, Any]:
    from weft.algorithms.outer import outer_lr

    return {"fed_alg": "diloco", "fed_args": {"outer_lr": outer_lr(clients), "momentum": 0.9}}


ARMS: dict[str, dict[str, Any]] = {
    "central": federated(1, fed_alg="central") | {"num_rounds": 1, "max_steps": STEPS},
    "central, AdamW anew every 50 steps": federated(1, fed_alg="central"),
    "DiLoCo, 4 clients": federated(4, **outer(4)),
    "FedAvg, 4 clients": federated(4, fed_alg="fedavg"),
    "DiLoCo, 1 client": federated(1, **outer(1)),
    "DiLoCo, 2 clients": federated(2, **outer(2)),
    "domains: local": domain(fed_alg="local", eval_everybody=True),
    "domains: DiLoCo": domain(**outer(9)),
    "domains: FedAvg": domain(fed_alg="fedavg"),
    "domains: central": domain(fed_alg="central", batch_size=18) | {"num_rounds": 1, "max_steps": STEPS * ROWS // 18},
    "DiLoCo, 8 clients": federated(8, **outer(8)),
    "central, 300 steps": federated(1, fed_alg="central") | {"num_rounds": 1, "max_steps": 300},
    "DiLoCo, 4 clients, 300 steps": federated(4, **outer(4)) | {"num_rounds": 300 // INNER},
    "data parallel, 4 clients": federated(4, fed_alg="fedsgd", max_steps=1, num_rounds=STEPS),
}


def one(arm: str, seed: int) -> dict[str, Any]:
    """Run an arm; return what is kept of it."""
    import weft
    from weft.commands.pretrain import RECIPE

    with tempfile.TemporaryDirectory() as out:
        keys = RECIPE | {
            "size": "5m",
            "tokenizer": str(tokenizer()),
            "dataset_sample": None,
            "eval_rows": None,
            "seq_length": LENGTH,
            "dtype": "bfloat16",
            "eval_every": 0,
            "save_model_freq": 0,
            "checkpoint_seconds": 1e6,
            "learning_rate": RATE,
            "seed": seed,
            "output_dir": f"{out}/run",
        }
        began = time.perf_counter()
        run = weft.train(keys | ARMS[arm])
        summary = run.summary
        each = {name: found["bits_per_byte"] for name, found in summary["clients"].items()}
        return {
            "arm": arm,
            "seed": seed,
            "loss": summary["eval"]["loss"],
            "bits_per_byte": summary["eval"]["bits_per_byte"],
            "domains": each,
            "models": summary["models"],
            "tokens": summary["tokens"],
            "bytes": summary["bytes_up"] + summary["bytes_down"],
            "seconds": summary["seconds"],
            "whole": time.perf_counter() - began,
            "flop_utilisation": summary["flop_utilisation"],
            "machine": machine(),
        }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(path: Path, arms: list[str]) -> None:
    """Run what the file lacks."""
    tokenizer()
    for seed in SEEDS:
        for arm in arms or ARMS:
            keep(path, arm, seed)


def keep(path: Path, arm: str, seed: int) -> None:
    if any((row["arm"], row["seed"]) == (arm, seed) for row in read(path)):
        return
    made = one(arm, seed)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    print(arm, seed, f"{made['loss']:.4f}", f"{made['bits_per_byte']:.4f}", f"{made['whole']:.0f}s", flush=True)


def table(path: Path) -> None:
    """Print the arms: mean over the seeds."""
    rows = [row for row in read(path) if row["seed"] in SEEDS]
    central = {(row["arm"].startswith("domains"), row["seed"]): row for row in rows if row["arm"].endswith("central")}
    per_step = next((row["bytes"] for row in rows if row["arm"].startswith("data parallel")), None)
    print(f"{rows[0]['tokens']:.0f} tokens, {rows[0]['machine']}\n")
    print("| arm | seeds | loss | against central | bits per byte | mean over domains | MB | seconds |")
    print("|--|--|--|--|--|--|--|--|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        kind = arm.startswith("domains")
        more = [row["loss"] / central[kind, row["seed"]]["loss"] - 1 for row in found if (kind, row["seed"]) in central]
        domain = f"{mean([mean(row['domains'].values()) for row in found]):.3f}" if kind else ""
        loss = mean(row["loss"] for row in found)
        print(
            f"| {arm} | {len(found)} | {loss:.4f} | {mean(more):+.2%} | "
            f"{mean(row['bits_per_byte'] for row in found):.4f} | {domain} | {found[0]['bytes'] / 1e6:.0f} | "
            f"{mean(row['seconds'] for row in found):.0f} |"
        )
    for row in rows:
        if row["arm"] == "DiLoCo, 4 clients" and per_step and row["seed"] == SEEDS[0]:
            print(f"\nData parallel sends {per_step / row['bytes']:.0f} times the bytes of DiLoCo with 4 clients.")
        if row["models"]:
            losses = {where: f"{row['models'][where]['loss']:.4f}" for where in ("own", "own_on_everybody")}
            print(f"seed {row['seed']}, each client's own model: loss", json.dumps(losses))


def mean(values: Any) -> float:
    return statistics.mean(list(values))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    else:
        run(Path(verb), rest)
