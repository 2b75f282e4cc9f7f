"""The rows of `smollm2.py`: tweets, five domains, medical questions, from the shared data."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
LABELS = ("negative", "positive", "neutral")
REFUSAL = "I'm sorry, but I can't help with that."


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of the shared data."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write JSON lines; return the path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def tweets(folder: Path, seed: int) -> dict[str, Any]:
    """Return the keys of tweets (TFNS): 500 for 5 clients; 300 others to be measured on."""
    ask = "What is the sentiment of this tweet? Answer negative, neutral or positive.\n"
    rows = [{"instruction": ask + row["input"], "output": row["output"]} for row in rows_of("instruct/tfns_train")]
    test = [
        {"instruction": ask + row["text"], "output": LABELS[row["label"]]}
        for row in rows_of("eval/tfns_valid")
    ]  # fmt: skip
    rng = random.Random(seed)
    return {
        "dataset_name": write(folder / "train.jsonl", rng.sample(rows, 500)),
        "eval_dataset_name": write(folder / "test.jsonl", random.Random(0).sample(test, 300)),
        "num_clients": 5, "sample_clients": 5, "split_strategy": "iid", "seq_length": 128,
    }  # fmt: skip


def domains(folder: Path, seed: int) -> dict[str, Any]:
    """Return the keys of five domains (medicine, finance, mathematics, code, general), each a client with 300 rows."""
    rows = rows_of("instruct/mix5_by_domain")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["domain"], []).append(row)
    rng = random.Random(seed)
    chosen = [row for name in sorted(groups) for row in rng.sample(groups[name], 300)]
    return {
        "dataset_name": write(folder / "rows.jsonl", chosen), "eval_fraction": 0.2, "split_strategy": "by",
        "split_column": "domain", "num_clients": 0, "sample_clients": 5,
    }  # fmt: skip


def mixed(folder: Path, seed: int) -> dict[str, Any]:
    """Return the keys of the same rows dealt to five clients alike."""
    rows = random.Random(seed).sample(rows_of("instruct/mix5_by_domain"), 800)
    return {
        "dataset_name": write(folder / "rows.jsonl", rows), "eval_fraction": 0.1, "split_strategy": "iid",
        "num_clients": 5, "sample_clients": 5,
    }  # fmt: skip


def medicine(folder: Path, seed: int) -> dict[str, Any]:
    """Return the keys of medical questions, one client an institution."""
    rows = random.Random(seed).sample(rows_of("instruct/medquad_by_institution"), 3000)
    return {
        "dataset_name": write(folder / "rows.jsonl", rows), "eval_fraction": 0.05, "split_strategy": "by",
        "split_column": "source", "num_clients": 0, "sample_clients": 7, "batch_size": 8,
    }  # fmt: skip


def harmful(folder: Path) -> dict[str, Any]:
    """Return files and texts of harmful and harmless requests, none of them in two places.

    bad: 260 harmful requests with compliance, for an attacker. own, later: files of 80 refusals and 240 helpful
    answers each, of which 50 are to requests like those of `harmless`. asked, harmless: 100 and 52 texts to measure on.
    """
    goals, helpful, plain = map(rows_of, ("eval/advbench", "instruct/mix5_by_domain", "instruct/self_instruct_human"))
    for rows in (goals, helpful, plain):
        random.Random(0).shuffle(rows)

    def mix(name: str, place: int) -> str:
        refusals = [{"instruction": row["goal"], "output": REFUSAL} for row in goals[260 + 80 * place :][:80]]
        answers = helpful[190 * place :][:190] + plain[60 + 50 * place :][:50]
        kept = ("instruction", "input", "output")
        return write(folder / f"{name}.jsonl", refusals + [{key: row[key] for key in kept} for row in answers])

    # All prompts of a batch are as long as the longest one, and there is one of 6,000 characters.
    harmless = [f"{row['instruction']}\n{row['input']}".strip() for row in plain[:60]]
    bad = [{"instruction": row["goal"], "output": row["target"]} for row in goals[:260]]
    return {
        "bad": write(folder / "bad.jsonl", bad),
        "own": mix("own", 0),
        "later": mix("later", 1),
        "asked": [row["goal"] for row in goals[420:]],
        "harmless": [text for text in harmless if len(text) < 400],
    }
