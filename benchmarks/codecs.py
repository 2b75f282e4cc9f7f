"""Loss against bytes for every codec, both ways, on paired seeds; needs the shared data (WEFT_DATA).

    python benchmarks/codecs.py lora OUT.jsonl [SEEDS]    tweets (TFNS), LoRA of rank 16 on every linear layer
    python benchmarks/codecs.py full OUT.jsonl [SEEDS]    next tokens of encyclopedia articles, all parameters
    python benchmarks/codecs.py table OUT.jsonl ...       print the tables
    python benchmarks/codecs.py speed                     CPU seconds and bytes of 8 M parameters

Everything starts from stories260K and has 4 clients, all in each of 30 rounds of 5 steps. Every arm has the same rows,
steps and seeds as `none`, float32 both ways, so each loss is divided by that of `none` on the same seed; the interval
is Student's over the seeds. Arms that OUT has are not run again. A round's seconds are those that one client's line
needs for its task and its update, without training.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine
from real import COMMON, DATA, tfns

SEEDS = (1, 2, 3)
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""97.5 % quantiles of Student's distribution, by the number of seeds."""
LINES = (10, 100, 1000)
"""Mbit/s."""
ROUNDS, CLIENTS = 30, 4
RUN: dict[str, Any] = {
    "num_rounds": ROUNDS,
    "num_clients": CLIENTS,
    "sample_clients": CLIENTS,
    "max_steps": 5,
    "batch_size": 8,
    "seq_length": 64,
    "checkpoint_seconds": 1e6,
}
TASKS: dict[str, dict[str, Any]] = {
    "lora": {
        "use_peft": True,
        "peft_lora_r": 16,
        "peft_lora_alpha": 32,
        "peft_lora_dropout": 0.0,
        "peft_lora_target_modules": ["all-linear"],
        "learning_rate": 3e-3,
        "product_error": "none",
    },
    "full": {
        "dataset_name": str(DATA / "pretrain" / "wikitext2_valid_test.jsonl.gz"),
        "objective": "causal_lm",
        "use_peft": False,
        "eval_fraction": 0.05,
        "learning_rate": 3e-3,
    },
}


def both(name: str, **args: object) -> dict[str, Any]:
    """Return the keys of one codec both ways."""
    given = {"codec_args": args, "codec_down_args": args} if args else {}
    return {"codec": name, "codec_down": name, **given}


ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "int4": both("int4"),
    "sparse_loco, 128 of 4096": both("sparse_loco", keep=128),
    "sparse_loco, 512 of 4096, momentum 1": both("sparse_loco", keep=512, momentum=1.0),
    "sign": both("sign"),
    "sparse_loco, 512 of 4096": both("sparse_loco", keep=512),
    "low_rank, 2": both("low_rank", rank=2),
    "int8": both("int8"),
    "topk, 128 of 4096": both("topk", keep=128),
    "bf16": both("bf16"),
}


def measure(task: str, arm: str, seed: int) -> dict[str, Any]:
    """Run one arm once; return its numbers."""
    import weft

    began = time.perf_counter()
    keys = COMMON | (tfns() if task == "lora" else {"template": None}) | RUN | TASKS[task] | ARMS[arm] | {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        run = weft.train(keys | {"output_dir": f"{folder}/run"}, quiet=True)
        summary = run.summary
    scores = {name: summary["eval"].get(name) for name in ("loss", "accuracy", "macro_f1")}
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        **scores,
        "up": summary["bytes_up"],
        "down": summary["bytes_down"],
        "seconds": time.perf_counter() - began,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(task: str, out: Path, seeds: tuple[int, ...]) -> None:
    """Run what the file lacks."""
    import torch

    torch.set_num_threads(1)
    print(f"# {machine()}")
    known = {(found["task"], found["arm"], found["seed"]) for found in read(out)}
    for arm in ARMS:
        for seed in seeds:
            if (task, arm, seed) in known:
                continue
            found = measure(task, arm, seed)
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of the 95 % interval of paired ratios."""
    mean = statistics.mean(ratios)
    if len(ratios) < 2:
        return mean, float("nan"), float("nan")
    half = STUDENT[len(ratios)] * statistics.stdev(ratios) / len(ratios) ** 0.5
    return mean, mean - half, mean + half


def table(paths: list[Path]) -> None:
    """Print a table for each task."""
    results = [found for path in paths for found in read(path)]
    for task in ("lora", "full"):
        of = {arm: {f["seed"]: f for f in results if (f["task"], f["arm"]) == (task, arm)} for arm in ARMS}
        if not of["none"]:
            continue
        print(f"\n| {task} | loss | loss / none - 1, 95 % | macro-F1 | fewer bytes up, down, both | "
              f"s a round at {', '.join(map(str, LINES))} Mbit/s | aim |\n|---|---|---|---|---|---|---|")  # fmt: skip
        for arm, found in of.items():
            seeds = sorted(found.keys() & of["none"].keys())
            if not seeds:
                continue
            plain = [of["none"][seed] for seed in seeds]
            mine = [found[seed] for seed in seeds]
            mean, low, high = interval([a["loss"] / b["loss"] - 1 for a, b in zip(mine, plain, strict=True)])
            sums = {way: (sum(b[way] for b in plain), sum(a[way] for a in mine)) for way in ("up", "down")}
            less = [b / a for b, a in sums.values()]
            less.append(sum(b for b, _ in sums.values()) / sum(a for _, a in sums.values()))
            each = sum(a for _, a in sums.values()) / len(seeds) / ROUNDS / CLIENTS
            times = ", ".join(f"{each * 8 / line / 1e6:.3g}" for line in LINES)
            f1 = statistics.mean(one["macro_f1"] or 0.0 for one in mine)
            reached = "-" if arm == "none" else "yes" if less[-1] >= 30 and high < 0.01 else "no"
            print(f"| {arm} | {statistics.mean(one['loss'] for one in mine):.4f} | "
                  f"{100 * mean:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}] | {(f1 and round(f1, 3)) or '-'} | "
                  f"{', '.join(f'{one:.1f}' for one in less)} | {times} | {reached} |")  # fmt: skip


def speed() -> None:
    """Print what it costs to encode and decode eight matrices of 1024 x 1024."""
    import torch

    from weft import registry
    from weft.core.party import Coding
    from weft.core.tensors import num_bytes, squared_norm, subtract

    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = {f"layers.{n}.weight": torch.randn(1024, 1024) for n in range(8)}
    print(f"# {machine()}")
    print("| codec | bytes | times fewer | s to encode | s to decode | relative error |\n|---|---|---|---|---|---|")
    for name in registry.CODECS:
        for args in ({}, {"zstd": True}):
            if name == "none":
                continue
            codec = registry.load(registry.CODECS, name, "codec")(**args)
            coding = Coding("client", 0, 0, 1, {"delta": values}, 2)
            codec.shrink(values, coding)
            began = time.process_time()
            packed, sent = codec.shrink(values, coding)
            middle = time.process_time()
            codec.grow(packed, values)
            end = time.process_time()
            error = (squared_norm(subtract(values, sent)) / squared_norm(values)) ** 0.5
            print(f"| {name}{', zstd' * bool(args)} | {packed.numel()} | {num_bytes(values) / packed.numel():.1f} "
                  f"| {middle - began:.2f} | {end - middle:.2f} | {error:.3f} |")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "speed":
        speed()
    elif sys.argv[1] == "table":
        table([Path(path) for path in sys.argv[2:]])
    else:
        run(sys.argv[1], Path(sys.argv[2]), tuple(map(int, sys.argv[3:])) or SEEDS)
