"""How peak memory grows with rounds, and with the population. Every run is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, make_model, make_rows, report


def run(folder: Path, name: str, **keys: object) -> list[int]:
    """Run `weft sft` in a process of its own; return its peak memory after each round, in bytes."""
    flags = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    out = folder / name
    subprocess.run([sys.executable, "-m", "weft.cli", "sft", "--output_dir", str(out), *flags], check=True)
    return [json.loads(line)["peak_memory_bytes"] for line in (out / "timing.jsonl").read_text().splitlines()]


def main() -> None:
    """Print both growths."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = {
            "model_name_or_path": make_model(folder / "model", hidden=128, layers=4, vocabulary=2048),
            "dataset_name": make_rows(folder / "rows.jsonl", 20000, words=(2, 12)),
            "dataset_sample": 20000,
            "template": "vicuna",
            "use_peft": "true",
            "sample_clients": 5,
            "max_steps": 2,
            "batch_size": 8,
            "seq_length": 256,
            "eval_every": 0,
            "eval_fraction": 0,
            "threads": 2,
        }
        peaks = run(folder, "rounds", num_clients=100, num_rounds=50, **common)
        print(f"# {machine()}")
        print(f"peak memory after round 5 {peaks[4] / 1e6:.1f} MB, after round 50 {peaks[49] / 1e6:.1f} MB")
        report("peak memory, round 50 / round 5", peaks[49] / peaks[4], 1.02, most=True)
        many = run(folder, "many", num_clients=10000, num_rounds=50, **common)
        print(f"peak memory with 100 clients {peaks[49] / 1e6:.1f} MB, with 10,000 {many[49] / 1e6:.1f} MB")
        report("peak memory, 10,000 / 100 clients, the same 20,000 rows", many[49] / peaks[49], 1.05, most=True)
        stateful = common | {"fed_alg": "scaffold", "sample_clients": 20, "num_rounds": 20}
        few = run(folder, "scaffold-20", num_clients=20, **stateful)
        many = run(folder, "scaffold-10000", num_clients=10000, **stateful)
        kept = len(list((folder / "scaffold-10000" / "clients").iterdir()))
        print(f"SCAFFOLD, 20 clients a round: 20 clients {few[-1] / 1e6:.1f} MB, 10,000 {many[-1] / 1e6:.1f} MB")
        print(f"clients of the 10,000 that trained, and so remember anything: {kept}")
        report("peak memory of SCAFFOLD, 10,000 / 20 clients", many[-1] / few[-1], 1.05, most=True)


if __name__ == "__main__":
    main()
