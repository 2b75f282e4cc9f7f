"""Federated, local and central runs of a small pre-trained Llama on real data; needs the shared data (WEFT_DATA).

TFNS: financial tweets and their sentiment, dealt to 5 clients. MedQuAD: medical questions, one client an institution.
Everything starts from stories260K and trains all parameters with the same steps a client and round.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
COMMON: dict[str, Any] = {
    "model_name_or_path": str(DATA.parent / "models" / "stories260K"),
    "template": "vicuna",
    "dtype": "float32",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "batch_size": 16,
    "eval_every": 0,
    "save_model_freq": 0,
}


def tfns() -> dict[str, Any]:
    """Return the keys of the runs on tweets; rows are cut on the left, so that tweet and answer stay."""
    return {
        "dataset_name": str(DATA / "instruct" / "tfns_train.jsonl.gz"),
        "eval_fraction": 0.1,
        "num_clients": 5,
        "sample_clients": 5,
        "num_rounds": 20,
        "max_steps": 20,
        "instruction_column": "input",
        "response_column": "output",
        "seq_length": 128,
        "truncation_side": "left",
        "learning_rate": 3e-3,
    }


def medquad(folder: Path) -> dict[str, Any]:
    """Write a file for each institution, and return the keys of the runs on them."""
    rows: dict[str, list[str]] = {}
    with gzip.open(DATA / "instruct" / "medquad_by_institution.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            rows.setdefault(json.loads(line)["source"], []).append(line)
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        "clients": [{"name": name, "data": str(folder / f"{name}.jsonl")} for name in sorted(rows)],
        "eval_fraction": 0.02,
        "sample_clients": len(rows),
        "num_rounds": 6,
        "max_steps": 8,
        "seq_length": 384,
        "learning_rate": 2e-3,
    }


def arms(clients: int) -> dict[str, dict[str, Any]]:
    """Return the runs that are compared; `central` makes as many steps as a client, or sees as many rows as all."""
    return {
        "fedavg": {"fed_alg": "fedavg"},
        "local": {"fed_alg": "local"},
        "central": {"fed_alg": "central"},
        "central, all rows": {"fed_alg": "central", "gradient_accumulation_steps": clients},
    }


def main() -> None:
    """Run what is named (tfns, medquad; then arms), or everything, and print a row for each run."""
    import weft

    print(f"# {machine()}")
    chosen = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in [word for word in chosen if word in ("tfns", "medquad")] or ["tfns", "medquad"]:
            keys = COMMON | (tfns() if name == "tfns" else medquad(folder))
            for arm, changes in arms(keys["sample_clients"]).items():
                if arm in chosen or not set(chosen) & set(arms(1)):
                    began = time.perf_counter()
                    run = weft.train(keys | changes | {"output_dir": str(folder / name / arm)}, quiet=True)
                    print(row(name, arm, run.summary, time.perf_counter() - began), flush=True)


def row(name: str, arm: str, summary: dict[str, Any], seconds: float) -> str:
    """Return the line of a run."""
    found, clients = summary["eval"], summary["clients"]
    worst = max(scores["loss"] for scores in clients.values())
    accuracy = found["accuracy"]
    shown = "" if accuracy is None else f"accuracy {accuracy:.3f}  macro-F1 {found['macro_f1']:.3f}  "
    moved = (summary["bytes_up"] + summary["bytes_down"]) / 1e6
    head = f"{name:<8} {arm:<18} loss {found['loss']:.4f}  worst client {worst:.4f}"
    return f"{head}  {shown}up+down {moved:.1f} MB  {seconds:.0f} s"


if __name__ == "__main__":
    main()
