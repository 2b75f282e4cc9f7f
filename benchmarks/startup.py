"""How long `weft --help` takes, and how much of a CPU a command needs until its first round is done."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import follow, machine, make_model, make_rows, median, report, seconds


def first_round(folder: Path) -> list[float]:
    """Return the CPU seconds from a command to its first round, of three tiny runs, after one to warm the disk."""
    keys: dict[str, object] = {
        "model_name_or_path": make_model(folder / "model", hidden=32, layers=2, vocabulary=640),
        "dataset_name": make_rows(folder / "rows.jsonl", 100, words=(2, 6)),
        "template": "vicuna",
        "use_peft": True,
        "num_clients": 4,
        "sample_clients": 2,
        "num_rounds": 1,
        "max_steps": 1,
        "batch_size": 4,
        "seq_length": 256,
        "threads": 1,
    }
    taken = []
    for number in range(4):
        moments = follow("sft", output_dir=folder / f"run{number}", **keys)
        taken.append(next(moment.cpu for moment in moments if moment.event == "round"))
        whole = moments[-1].cpu
    print(f"CPU seconds to the first round: {', '.join(f'{value:.2f}' for value in taken)}; to the report: {whole:.2f}")
    return taken[1:]


def main() -> None:
    """Print the medians."""

    def call() -> None:
        subprocess.run([sys.executable, "-m", "weft.cli", "--help"], check=True, stdout=subprocess.DEVNULL)

    print(f"# {machine()}")
    report("weft --help", median(seconds(call)), 0.5, most=True, unit="s")
    with tempfile.TemporaryDirectory() as temporary:
        found = first_round(Path(temporary))
    report("CPU seconds from the command to the first round of a tiny run", median(found), 6, most=True, unit="s")


if __name__ == "__main__":
    main()
