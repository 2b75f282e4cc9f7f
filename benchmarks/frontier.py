"""Federated pre-training beside training on pooled text: loss against bytes, at equal tokens. No network is needed.

    python benchmarks/frontier.py prepare FOLDER                make text and tokenizer (6 MB; needs the shared data)
    python benchmarks/frontier.py run OUT.jsonl --data FOLDER   run the arms that OUT lacks; a table at the end
    python benchmarks/frontier.py table OUT.jsonl
    python benchmarks/frontier.py picture OUT.jsonl OUT.png

Arms run side by side in `--workers` processes on one device, the most telling ones first, until `--deadline` seconds
are over. One JSON line is added for each arm that is finished, so that a run that was killed goes on. `--arms FILE`
names other arms, one a line (`frontier_arms.py`).

Equal are the text, the tokenizer, the starting weights, the steps (1,500), the rows of a global batch (64 of at most
128 tokens, of which K clients have 64 // K each), the schedule, and the held-out text. So data-parallel training with K
clients is central training, but for which rows meet in a batch and for its bytes: 2 x 4 for each parameter, client and
step. Central training and DiLoCo are tuned over the same learning rates; the other arms take the best of their kind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine
from frontier_arms import BEST, FALLBACK, FALLBACK_OUTER, SETTINGS, Arm, Setting, keys_of, parse, read_arms
from side_by_side import read, side_by_side

Row = dict[str, Any]


def chosen(rows: list[Row], arm: Arm) -> Arm:
    """Return the arm with its learning rate and outer step, which may be the best of the arms that have been run."""
    if arm.outer == BEST:
        like = {"size": "4m", "algorithm": "diloco", "clients": 4, "inner": 25, "codec": "none", "seed": 1}
        like |= {"optimizer": arm.optimizer, "split": "iid", "rows": 0, "half_life": 1}
        known = [{"rows": 0, "half_life": 1} | row for row in rows if row["loss"] is not None]
        found = [row for row in known if like.items() <= row.items()]
        arm = replace(arm, outer=_least(found)["outer"] if found else FALLBACK_OUTER)
    if arm.lr == BEST:
        tuned = [row for row in rows if row["tuned"] and row["loss"] is not None and row["optimizer"] == arm.optimizer]
        same = [row for row in tuned if tuple(row["kind"]) == arm.kind]
        # Of another kind rather than none at all: they differ by a factor of 2 at most.
        arm = replace(arm, lr=str(_least(same or tuned)["lr"] if tuned else FALLBACK))
    return arm


def _least(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["loss"]))


WORK, COMMON = "WEFT_FRONTIER_WORK", "WEFT_FRONTIER"
"""Environment variables for the processes: the folder of the runs, and as JSON what all arms have in common."""


def in_memory() -> str | None:
    """Return a folder in memory where there is one with room: clients' moments are written in every round."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 16 << 30 else None


def facts(arm: Arm, name: str) -> Row:
    """Return what a row says of an arm before it is run: its name, and what was chosen."""
    usual = (arm.size, arm.split, arm.rows, arm.half_life) == ("4m", "iid", 0, 1)
    tuned = f"lr={arm.lr}" in name and usual
    return {"arm": name, "kind": arm.kind, "tuned": tuned, **vars(arm), "lr": float(arm.lr)}


def one(arm: Arm, name: str, setting: Setting, data: Path, device: str) -> Row:
    """Run an arm, whose settings are chosen, with `weft.train`; return what is kept of it."""
    import weft

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get(WORK)) as out:
        keys = keys_of(arm, setting, data, device)
        summary = weft.train(keys | {"output_dir": f"{out}/run"}, quiet=True).summary
    return facts(arm, name) | {
        "loss": summary["eval"]["loss"],
        "bits_per_byte": summary["eval"]["bits_per_byte"],
        "clients_bits": {name: found["bits_per_byte"] for name, found in summary["clients"].items()},
        "models": summary["models"],
        "bytes": summary["bytes_up"] + summary["bytes_down"],
        "data_parallel_bytes": summary["data_parallel_bytes"],
        "tokens": summary["tokens"],
        "seconds": summary["seconds"],
        "whole": time.perf_counter() - began,
        "device": device,
        "machine": machine(),
    }


_pace = 0.0
"""Seconds that a step of a client took this process in its newest arm; the next one may be shorter."""


def measure(name: str) -> Row | None:
    """Run an arm, unless it would not end in time; what all arms have in common is in the environment."""
    global _pace
    import torch

    torch.set_num_threads(1)
    common = json.loads(os.environ[COMMON])
    arm, setting = parse(name), SETTINGS[common["setting"]]
    client_steps = arm.clients * (arm.steps or setting.steps)
    if time.time() + client_steps * _pace > common["end"]:
        return None
    arm = chosen(read(Path(common["out"])), arm)
    try:
        row = one(arm, name, setting, Path(common["data"]), common["device"])
    except Exception as error:
        traceback.print_exc()
        return facts(arm, name) | {"loss": None, "error": f"{type(error).__name__}: {error}"[:300]}
    _pace = 0.8 * row["whole"] / client_steps
    return row


def run(options: argparse.Namespace) -> None:
    """Run the arms that the file lacks until the deadline, and print the table."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Arms that failed are tried again, and a line that a kill cut off has no end.
    kept = [row | {"case": [row["arm"]]} for row in read(options.out) if row["loss"] is not None]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    common = {name: str(getattr(options, name)) for name in ("out", "setting", "data", "device")}
    os.environ[COMMON] = json.dumps(common | {"end": time.time() + options.deadline})
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("WEFT_CACHE", str(Path(tempfile.gettempdir()) / "weft-frontier"))
    os.environ[WORK] = tempfile.mkdtemp(dir=in_memory(), prefix="frontier-")
    times = {
        "processes": options.workers if options.workers > 1 else 0,
        "deadline": options.deadline,
        "grace": options.grace,
    }
    try:
        side_by_side(measure, [(arm.name,) for arm in read_arms(options.arms)], options.out, **times)
    finally:
        shutil.rmtree(os.environ.pop(WORK), ignore_errors=True)  # of the arms that were stopped
    table(options.out)


def table(path: Path) -> None:
    """Print the arms by size and loss, beside the best central training and the bytes of data parallel."""
    rows = [row for row in read(path) if row["loss"] is not None]
    central = best_central(rows)
    print("\n| arm | lr | outer | loss | against central | bits per byte | MB | times fewer | seconds |")
    print("|--|--|--|--|--|--|--|--|--|")
    for row in sorted(rows, key=lambda row: (row["size"], row["split"], row["steps"], row["seed"], row["loss"])):
        base = central.get((row["size"], row["steps"], row.get("rows", 0), row["seed"]))
        more = f"{row['loss'] / base - 1:+.2%}" if base and row["split"] == "iid" else ""
        fewer = (
            f"{row['data_parallel_bytes'] / row['bytes']:.0f}" if row["bytes"] and row["data_parallel_bytes"] else ""
        )
        print(
            f"| {row['arm']} | {row['lr']:g} | {row['outer']} | {row['loss']:.4f} | {more} | "
            f"{row['bits_per_byte']:.4f} | {row['bytes'] / 1e6:.1f} | {fewer} | {row['whole']:.0f} |"
        )
    for row in read(path):
        if row["loss"] is None:
            print(f"failed: {row['arm']}: {row['error']}")


def best_central(rows: list[Row]) -> dict[tuple[str, int, int, int], float]:
    """Return the least loss of central training by size, steps, rows and seed: of any optimizer and learning rate."""
    found: dict[tuple[str, int, int, int], float] = {}
    for row in rows:
        key = row["size"], row["steps"], row.get("rows", 0), row["seed"]
        if row["algorithm"] == "central" and row["loss"] < found.get(key, float("inf")):
            found[key] = row["loss"]
    return found


def main(words: list[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("prepare").add_argument("folder", type=Path)
    verbs.add_parser("table").add_argument("out", type=Path)
    picture = verbs.add_parser("picture")
    picture.add_argument("out", type=Path)
    picture.add_argument("file", type=Path)
    runs = verbs.add_parser("run")
    runs.add_argument("out", type=Path)
    runs.add_argument("--data", type=Path, required=True, help="the folder that `prepare` made")
    runs.add_argument("--device", default="auto", help="cuda or cpu")
    runs.add_argument("--setting", choices=SETTINGS, default="full")
    runs.add_argument("--arms", type=Path, help="a file of arms, one a line")
    runs.add_argument("--workers", type=int, default=12, help="processes side by side")
    runs.add_argument("--deadline", type=float, default=280.0, help="seconds after which no arm goes on")
    runs.add_argument("--grace", type=float, default=0.0, help="seconds more for arms that run then")
    options = parser.parse_args(words)
    if options.verb == "run" and options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.verb == "prepare":
        from domains import prepare

        prepare(options.folder)
    elif options.verb == "run":
        run(options)
    elif options.verb == "table":
        table(options.out)
    else:
        from frontier_picture import draw

        draw(read(options.out), options.file)


if __name__ == "__main__":
    main()
