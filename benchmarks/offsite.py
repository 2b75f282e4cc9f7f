"""Offsite tuning: the ends tuned behind an emulator, put back, and tuned in the model itself; needs the shared data.

    python benchmarks/offsite.py OUT.jsonl         run what OUT lacks: three seeds
    python benchmarks/offsite.py table OUT.jsonl   print the table

MedQuAD, dealt at random to five clients; stories260K (five layers), the first and the last trained by FedAvg, 8 rounds
of 8 steps. The emulator has the ends and one or two of the three layers between, as they are or distilled on public
text (300 steps). Loss (nats a token) on everybody's held-out rows: of the emulator before and after, of the model with
the ends put back, and of the model whose ends were tuned in it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
MODEL = DATA.parent / "models" / "stories260K"
SEEDS = (1, 2, 3)
KEYS: dict[str, Any] = {
    "dataset_name": str(DATA / "instruct" / "medquad_by_institution.jsonl.gz"),
    "dataset_sample": 3000,
    "template": "vicuna",
    "num_clients": 5,
    "sample_clients": 5,
    "num_rounds": 8,
    "max_steps": 8,
    "batch_size": 8,
    "seq_length": 256,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "eval_fraction": 0.04,
    "eval_every": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
}
ARMS = {"3 layers": (3, False), "4 layers": (4, False), "4 layers, distilled": (4, True), "in the model": (5, False)}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def loss(model: Path, folder: Path, seed: int) -> float:
    """Return the loss of a model as it is."""
    import weft

    keys = KEYS | {
        "model_name_or_path": str(model),
        "seed": seed,
        "num_rounds": 1,
        "max_steps": 1,
        "learning_rate": 0.0,
    }
    out = folder / f"score-{model.name}"
    return float(weft.train(keys | {"output_dir": str(out)}, quiet=True, overwrite=True).summary["eval"]["loss"])


def run(path: Path) -> None:
    """Run what the file lacks."""
    import weft
    from weft.cli import main

    for seed in SEEDS:
        for arm, (keep, distilled) in ARMS.items():
            if any((row["arm"], row["seed"]) == (arm, seed) for row in read(path)):
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                words = [
                    "emulate",
                    str(MODEL),
                    "--out",
                    str(folder / "emulator"),
                    "--keep_layers",
                    str(keep),
                    "--ends",
                    "1",
                ]
                text = ["--distil", str(DATA / "pretrain" / "wikitext2_valid_test.jsonl.gz"), "--distil_steps", "300",
                        "--distil_rate", "1e-3"]  # fmt: skip
                if main(words + (text if distilled else [])) != 0:
                    raise SystemExit(1)
                before = loss(folder / "emulator", folder, seed)
                keys = KEYS | {"model_name_or_path": str(folder / "emulator"), "seed": seed}
                tuned = weft.train(keys | {"output_dir": str(folder / "run")}, quiet=True)
                main(["export", str(tuned.path), "--plug_in", str(MODEL), "--out", str(folder / "full")])
                row = {"arm": arm, "seed": seed, "machine": machine(), "before": before}
                row |= {"after": tuned.summary["eval"]["loss"], "plugged": loss(folder / "full", folder, seed)}
                sent = (tuned.summary["bytes_up"] + tuned.summary["bytes_down"]) / 1e6
                row |= {"mbytes": sent, "seconds": tuned.summary["seconds"]}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print({key: value for key, value in row.items() if key != "machine"}, flush=True)


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds."""
    rows = read(path)
    print(rows[0]["machine"])
    print("| | before | after | put back | sent, MB |\n|--|--|--|--|--|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        cells = []
        for name in ("before", "after", "plugged"):
            values = [row[name] for row in found]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}")
        print(f"| {arm} | {' | '.join(cells)} | {found[0]['mbytes']:.1f} |")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    else:
        run(Path(verb))
