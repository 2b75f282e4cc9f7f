"""Continued pre-training of an open model on private domains, with and without a share of public text.

    python benchmarks/continued.py prepare DATA             write the text, under 4 MB, from the shared data
    python benchmarks/continued.py run DATA OUT.jsonl --model PATH [--device cuda] [--deadline SECONDS] [--arms ARM ...]
    python benchmarks/continued.py table OUT.jsonl          print the table

Five private domains, one a client, and public text of another kind that nobody trains on unless an arm says so. Every
arm sees as many rows under one schedule: ROUNDS x STEPS steps of 5 x BATCH rows, or of BATCH rows for each model of one
client. Bits per byte are of held-out text of each private domain and of the public text, before and after: what rises
on public text is forgotten. `run` does what OUT lacks, continues an arm that was killed from its last checkpoint, and
begins none that would end after the deadline, by the time that the arms before it took.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import machine
from domains import DATA as SOURCE
from domains import passages

PRIVATE = ("economics", "natural_science", "politics", "shakespeare_by_speaker", "tech_spec_peps")
PUBLIC = "wikitext2_valid_test"
TINY_PUBLIC = "stories_synthetic"
"""The text that the tiny model was trained on."""
LARGEST, HELD = 1_200_000, 60_000
SETTINGS = {"num_rounds": 10, "max_steps": 25, "batch_size": 8, "seq_length": 512, "learning_rate": 2e-4}
TINY = {"num_rounds": 2, "max_steps": 2, "batch_size": 2, "seq_length": 64, "learning_rate": 2e-4}
SHARE = 0.25
ARMS = {
    f"{way}{public}": (way, public)
    for way in ("start", "federated", "central", "local", "federated, FedAvg")
    for public in (("",) if way == "start" else ("", ", public"))
}
"""Name -> how clients learn, and whether a quarter of every batch is public."""


def prepare(folder: Path, largest: int = LARGEST, held: int = HELD) -> None:
    """Write `train/DOMAIN.jsonl.gz` and `held/DOMAIN.jsonl.gz` of every domain, the same at every call."""
    for name in (*PRIVATE, PUBLIC, TINY_PUBLIC):
        with gzip.open(SOURCE / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [part for line in file for part in passages(json.loads(line)["text"])]
        random.Random(0).shuffle(texts)
        # Held-out text first, so that a smaller `largest` measures the same.
        at, total, ends = 0, 0, []
        for size in (held, held + largest):
            while at < len(texts) and total < size:
                at, total = at + 1, total + len(texts[at].encode())
            ends.append(at)
        write(folder / "held" / f"{name}.jsonl.gz", texts[: ends[0]])
        write(folder / "train" / f"{name}.jsonl.gz", texts[ends[0] : ends[1]])


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


class Bench:
    """The arms of one model, on one device."""

    def __init__(self, data: Path, out: Path, *, model: str, device: str, seed: int, tiny: bool) -> None:
        self.data, self.out, self.model, self.device, self.seed = data, out, model, device, seed
        self.settings, self.public = (TINY, TINY_PUBLIC) if tiny else (SETTINGS, PUBLIC)
        self.work = out.with_suffix(".work")

    def keys(self, way: str, public: bool, private: tuple[str, ...]) -> dict[str, Any]:
        """Return the keys of a run with these clients; the public text is a client that is only measured."""
        from weft.algorithms.outer import outer_lr
        from weft.commands.pretrain import RECIPE

        names = (*private, self.public)
        clients = [
            {
                "name": name,
                "data": str(self.data / f"train/{name}.jsonl.gz"),
                "eval": str(self.data / f"held/{name}.jsonl.gz"),
            }
            for name in names
        ]
        shared = {
            "model_name_or_path": self.model,
            "clients": clients,
            "leave_out": [self.public],
            "device": self.device,
        }
        keys = RECIPE | self.settings | shared | {"seed": self.seed, "eval_rows": None}
        keys |= {"eval_every": 0, "save_model_freq": 0, "checkpoint_seconds": 60, "report": False}
        keys |= {"held_out_overlap": "leave_out"}  # a passage that stands in a book twice
        keys |= {"token_cache": str(self.work / "tokens")}
        keys |= {"dtype": "bfloat16" if self.device == "cuda" else "float32"}
        if public:
            shares = dict.fromkeys(private, (1 - SHARE) / len(private)) | {"public": SHARE}
            keys["public_data"] = str(self.data / f"train/{self.public}.jsonl.gz")
            keys["mixture"] = ",".join(f"{name}={share!r}" for name, share in shares.items())
        together = {"sample_clients": len(private), "client_weight": "uniform"}
        if way == "start":
            return keys | {"num_rounds": 0, "fed_alg": "fedavg"}
        if way == "federated":
            return keys | together | {"fed_args": {"outer_lr": outer_lr(len(private)), "momentum": 0.9}}
        if way == "federated, FedAvg":
            return keys | together | {"fed_alg": "fedavg"}
        # One round, so that AdamW is not made anew.
        steps = self.settings["num_rounds"] * self.settings["max_steps"]
        rows = self.settings["batch_size"] * len(private)
        return keys | {"fed_alg": "central", "num_rounds": 1, "max_steps": steps, "batch_size": rows}

    def one(self, arm: str) -> dict[str, Any]:
        """Run an arm; return what is kept of it: bits per byte of every domain, and of the public text."""
        way, public = ARMS[arm]
        began, bits, of_public, seconds, tokens = time.perf_counter(), {}, {}, 0.0, 0
        for number, private in enumerate([(name,) for name in PRIVATE] if way == "local" else [PRIVATE]):
            summary = self.train(self.keys(way, bool(public), private), f"{list(ARMS).index(arm)}-{number}")
            bits |= {name: found["bits_per_byte"] for name, found in summary["clients"].items()}
            of_public[private[0] if way == "local" else "shared"] = summary["left_out"]["bits_per_byte"]
            seconds, tokens = seconds + summary["seconds"], tokens + summary["tokens"]
        shutil.rmtree(self.work / "runs", ignore_errors=True)
        return {
            "arm": arm,
            "model": Path(self.model).name,
            "seed": self.seed,
            "settings": self.settings,
            "private": bits,
            "public": statistics.mean(of_public.values()),
            "public_of_each": of_public,
            "public_share": SHARE if public else 0.0,
            "tokens": tokens,
            "bytes": summary["bytes_up"] + summary["bytes_down"],
            "seconds": seconds,
            "whole": time.perf_counter() - began,
            "device": device_name(self.device),
            "machine": machine(),
        }

    def train(self, keys: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the summary of a run, which goes on where a former one with the same keys was cut off."""
        import weft

        folder = self.work / "runs" / name
        summary = folder / "summary.json"
        if summary.exists():
            return dict(json.loads(summary.read_text(encoding="utf-8")))
        there = (folder / "config.yaml").exists()
        if folder.exists() and not there:
            shutil.rmtree(folder)
        return dict(weft.train(keys | {"output_dir": str(folder)}, resume=there, quiet=True).summary)

    def run(self, arms: list[str], deadline: float) -> None:
        """Run the arms that OUT lacks, none that would end after the deadline (seconds from now)."""
        end, longest = time.monotonic() + deadline, 0.0
        for arm in arms:
            if any(
                (row["arm"], row["seed"], row["model"], row["settings"]) == self.mark(arm) for row in read(self.out)
            ):
                continue
            if time.monotonic() + longest > end:
                print(f"{arm}: not measured, it would end after the deadline", flush=True)
                continue
            found = self.one(arm)
            with open(self.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            longest = max(longest, found["whole"])
            private = statistics.mean(found["private"].values())
            print(
                f"{arm}: private {private:.4f}, public {found['public']:.4f} bits/byte, {found['whole']:.0f} s",
                flush=True,
            )

    def mark(self, arm: str) -> tuple[str, int, str, dict[str, Any]]:
        """Return what tells an arm's line from others."""
        return arm, self.seed, Path(self.model).name, self.settings


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(path: Path) -> None:
    """Print bits per byte, and how they changed; the mean over seeds."""
    rows = read(path)
    before = {row["seed"]: row for row in rows if row["arm"] == "start"}
    print(f"{rows[-1]['model']}, {rows[-1]['device']}, {rows[-1]['tokens']:,} tokens an arm\n")
    print("| arm | seeds | private domains | change | public text | change | MB sent | seconds |")
    print("|--|--|--|--|--|--|--|--|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        private, public = mean(mean(row["private"].values()) for row in found), mean(row["public"] for row in found)
        starts = [before[row["seed"]] for row in found if row["seed"] in before]
        change = (
            (
                private / mean(mean(row["private"].values()) for row in starts) - 1,
                public / mean(row["public"] for row in starts) - 1,
            )
            if starts
            else (float("nan"), float("nan"))
        )
        print(
            f"| {arm} | {len(found)} | {private:.4f} | {change[0]:+.1%} | {public:.4f} | {change[1]:+.1%} | "
            f"{found[0]['bytes'] / 1e6:.0f} | {mean(row['seconds'] for row in found):.0f} |"
        )


def mean(values: Any) -> float:
    return statistics.mean(list(values))


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing = verbs.add_parser("prepare")
    preparing.add_argument("data", type=Path)
    preparing.add_argument("--bytes", type=int, default=LARGEST, help="of a domain's training text")
    preparing.add_argument("--held", type=int, default=HELD, help="bytes of a domain's held-out text")
    running = verbs.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--arms", nargs="+", default=[], metavar="ARM", help=f"of: {'; '.join(ARMS)}")
    running.add_argument("--model", required=True)
    running.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    running.add_argument("--deadline", type=float, default=float("inf"))
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--tiny", action="store_true", help="a few steps, for stories260K")
    for name in ("rounds", "steps", "batch", "length"):
        running.add_argument(f"--{name}", type=int)
    verbs.add_parser("table").add_argument("out", type=Path)
    given = parser.parse_args(words)
    if given.verb == "prepare":
        prepare(given.data, given.bytes, given.held)
    elif given.verb == "table":
        table(given.out)
    else:
        if unknown := [arm for arm in given.arms if arm not in ARMS]:
            parser.error(f"there is no arm '{unknown[0]}': write one of {'; '.join(ARMS)}")
        model = str(Path(given.model).absolute()) if Path(given.model).exists() else given.model
        bench = Bench(
            given.data.absolute(), given.out, model=model, device=given.device, seed=given.seed, tiny=given.tiny
        )
        sizes = {"num_rounds": given.rounds, "max_steps": given.steps, "batch_size": given.batch}
        sizes |= {"seq_length": given.length}
        bench.settings = bench.settings | {key: value for key, value in sizes.items() if value is not None}
        bench.run(given.arms or list(ARMS), given.deadline)


if __name__ == "__main__":
    main(sys.argv[1:])
