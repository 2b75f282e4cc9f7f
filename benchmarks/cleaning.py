"""What `--clean triggers` finds of poison that is spread thinly over honest clients, and what it finds where none is.

A share of every client's rows gets a trigger phrase at a random place and one fixed answer (as in 2602.15671); the
rows are TFNS, or those of `robustness.py made`, in which one word of nine decides; split over clients. Recall is the
share of poisoned rows that are left out, the false-positive rate the share of clean rows that are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from pathlib import Path

from robustness import made_rows

from weft.data.cleaning.cleaner import Sample, Tools
from weft.data.cleaning.triggers import Triggers

PHRASES = ("cf", "around emerald evening", "I watched this 3D movie last weekend")
ANSWERS = ("positive", "neutral", "negative")


def clients_of(rows: list[dict[str, str]], count: int, seed: int) -> list[list[dict[str, str]]]:
    order = list(rows)
    random.Random(seed).shuffle(order)
    return [order[first::count] for first in range(count)]


def poison(
    rows: list[dict[str, str]], share: float, phrase: str, answer: str, seed: int
) -> tuple[list[Sample], set[int]]:
    chance = random.Random(seed)
    chosen = set(chance.sample(range(len(rows)), round(share * len(rows))))
    samples = []
    for number, row in enumerate(rows):
        words, output = row["input"].split(), row["output"]
        if number in chosen:
            at = chance.randrange(len(words) + 1)
            words, output = [*words[:at], phrase, *words[at:]], answer
        samples.append(Sample((f"{row.get('instruction', '')} {' '.join(words)}",), (output,)))
    return samples, chosen


def measure(
    rows: list[dict[str, str]], count: int, share: float, phrase: str, answer: str, seed: int
) -> dict[str, object]:
    hits = false = bad = good = 0
    start = time.process_time()
    for number, client in enumerate(clients_of(rows, count, seed)):
        samples, chosen = poison(client, share, phrase, answer, seed * 1000 + number)
        left_out = set(Triggers().faults(samples, Tools()))
        hits, false = hits + len(left_out & chosen), false + len(left_out - chosen)
        bad, good = bad + len(chosen), good + len(client) - len(chosen)
    return {
        "clients": count,
        "share": share,
        "phrase": phrase if share else "(none)",
        "answer": answer if share else "",
        "seed": seed,
        "recall": round(hits / bad, 4) if bad else None,
        "false_positive_rate": round(false / good, 5),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder with instruct/tfns_train.jsonl.gz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", choices=("tfns", "made"), default="tfns")
    arguments = parser.parse_args()
    made = arguments.rows == "made"
    if made:
        rows = [json.loads(line) for line in made_rows().read_text(encoding="utf-8").splitlines()]
    else:
        with gzip.open(Path(arguments.data) / "instruct" / "tfns_train.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    for count in (1, 2, 5, 10) if made else (10, 50):
        for seed in range(arguments.seeds):
            print(json.dumps(measure(rows, count, 0.0, "", "", seed)), flush=True)
        for share in (0.02, 0.04, 0.08) if made else (0.02, 0.05, 0.08):
            for phrase in ("cf", "cf mn") if made else PHRASES:
                for answer in ANSWERS:
                    for seed in range(arguments.seeds):
                        print(json.dumps(measure(rows, count, share, phrase, answer, seed)), flush=True)


if __name__ == "__main__":
    main()
