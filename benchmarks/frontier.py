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
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine
from frontier_arms import BEST, FALLBACK, FALLBACK_OUTER, SETTINGS, Arm, Setting, keys_of, read_arms
from side_by_side import read

Row = dict[str, Any]


def chosen(rows: list[Row], arm: Arm) -> Arm:
    """Return the arm with its learning rate and outer step, which may be the best of the arms that have been run."""
    if arm.outer == BEST:
        like = {"size": "4m", "algorithm": "diloco", "clients": 4, "inner": 25, "codec": "none", "seed": 1}
        like |= {"optimizer": arm.optimizer, "split": "iid"}
        found = [row for row in rows if row["loss"] is not None and like.items() <= row.items()]
        arm = replace(arm, outer=_least(found)["outer"] if found else FALLBACK_OUTER)
    if arm.lr == BEST:
        tuned = [row for row in rows if row["tuned"] and row["loss"] is not None and row["optimizer"] == arm.optimizer]
        same = [row for row in tuned if tuple(row["kind"]) == arm.kind]
        # Of another kind rather than none at all: they differ by a factor of 2 at most.
        arm = replace(arm, lr=str(_least(same or tuned)["lr"] if tuned else FALLBACK))
    return arm


def _least(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["loss"]))


WORK = "WEFT_FRONTIER_WORK"
"""The environment variable that names the folder of the runs; without it they are made in the temporary folder."""


def in_memory() -> str | None:
    """Return a folder in memory where there is one with room: clients' moments are written in every round."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 16 << 30 else None


def facts(arm: Arm, name: str) -> Row:
    """Return what a row says of an arm before it is run: its name, and what was chosen."""
    tuned = f"lr={arm.lr}" in name and arm.size == "4m"
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


class Claims:
    """Which arm is whose: a file for each arm, which only one process can make."""

    def __init__(self, path: Path) -> None:
        self.folder = path.with_suffix(".claims")

    def clear(self) -> None:
        """Forget what processes claimed that run no more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def take(self, number: int) -> bool:
        """Say whether the arm was free, and is now this process's."""
        try:
            os.close(os.open(self.folder / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def work(path: Path, arms: list[Arm], setting: Setting, data: Path, device: str, end: float) -> None:
    """Run arms until none is free, or none fits into the time that is left (`end`: on the clock of `time.time`)."""
    import torch

    torch.set_num_threads(1)
    claims, pace = Claims(path), 0.0
    for number, arm in enumerate(arms):
        rows = read(path)
        client_steps = arm.clients * (arm.steps or setting.steps)
        # An arm of this process's pace; the next one may be shorter.
        if time.time() + client_steps * pace > end or any(row["arm"] == arm.name for row in rows):
            continue
        if not claims.take(number):
            continue
        name, arm = arm.name, chosen(rows, arm)
        try:
            row = one(arm, name, setting, data, device)
        except Exception as error:
            traceback.print_exc()
            row = facts(arm, name) | {"loss": None, "error": f"{type(error).__name__}: {error}"[:300]}
        else:
            pace = 0.8 * row["whole"] / client_steps
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        loss = (
            "failed" if row["loss"] is None else f"{row['loss']:.4f} {row['bytes'] / 1e6:.1f} MB {row['whole']:.0f} s"
        )
        print(f"[{time.strftime('%H:%M:%S')}] {name} (lr {arm.lr}, outer {arm.outer}): {loss}", flush=True)


def run(options: argparse.Namespace) -> None:
    """Start the workers, wait for them until the deadline, and print the table."""
    end = time.time() + options.deadline
    setting, arms = SETTINGS[options.setting], read_arms(options.arms)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Claims(options.out).clear()
    # Arms that failed are tried again, and a line that a kill cut off has no end.
    kept = [row for row in read(options.out) if row["loss"] is not None]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    if options.workers == 1:
        work(options.out, arms, setting, options.data, options.device, end)
        table(options.out)
        return
    command = [sys.executable, __file__, "work", str(options.out), "--data", str(options.data), "--end", str(end)]
    command += ["--device", options.device, "--setting", options.setting]
    command += ["--arms", str(options.arms)] if options.arms else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment.setdefault("WEFT_CACHE", str(Path(tempfile.gettempdir()) / "weft-frontier"))
    environment[WORK] = tempfile.mkdtemp(dir=in_memory(), prefix="frontier-")
    processes = [subprocess.Popen(command, env=environment) for _ in range(options.workers)]
    try:
        for process in processes:
            process.wait(max(0.0, end + options.grace - time.time()))
    except subprocess.TimeoutExpired:
        print("the deadline has come: arms that run are stopped", flush=True)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(environment[WORK], ignore_errors=True)  # of the arms that were stopped
    table(options.out)


def table(path: Path) -> None:
    """Print the arms by size and loss, beside the best central training and the bytes of data parallel."""
    rows = [row for row in read(path) if row["loss"] is not None]
    central = best_central(rows)
    print("\n| arm | lr | outer | loss | against central | bits per byte | MB | times fewer | seconds |")
    print("|--|--|--|--|--|--|--|--|--|")
    for row in sorted(rows, key=lambda row: (row["size"], row["split"], row["steps"], row["seed"], row["loss"])):
        base = central.get((row["size"], row["steps"], row["seed"]))
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


def best_central(rows: list[Row]) -> dict[tuple[str, int, int], float]:
    """Return the least loss of central training by size, steps and seed: of any optimizer and learning rate."""
    found: dict[tuple[str, int, int], float] = {}
    for row in rows:
        key = row["size"], row["steps"], row["seed"]
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
    for verb in ("run", "work"):
        runs = verbs.add_parser(verb)
        runs.add_argument("out", type=Path)
        runs.add_argument("--data", type=Path, required=True, help="the folder that `prepare` made")
        runs.add_argument("--device", default="auto", help="cuda or cpu")
        runs.add_argument("--setting", choices=SETTINGS, default="full")
        runs.add_argument("--arms", type=Path, help="a file of arms, one a line")
        runs.add_argument("--workers", type=int, default=12, help="processes side by side")
        runs.add_argument("--deadline", type=float, default=280.0, help="seconds after which no arm goes on")
        runs.add_argument("--grace", type=float, default=0.0, help="seconds more for arms that run then")
        runs.add_argument("--end", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.verb in ("run", "work") and options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.verb == "prepare":
        from domains import prepare

        prepare(options.folder)
    elif options.verb == "run":
        run(options)
    elif options.verb == "work":
        arms = read_arms(options.arms)
        work(options.out, arms, SETTINGS[options.setting], options.data, options.device, options.end)
    elif options.verb == "table":
        table(options.out)
    else:
        from frontier_picture import draw

        draw(read(options.out), options.file)


if __name__ == "__main__":
    main()
