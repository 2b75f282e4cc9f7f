"""Small base models and rows for benchmarks and for the studies at small size; needs the shared data (WEFT_DATA).

    python benchmarks/bases.py [runs/small]    write all of them into a folder, what is there is kept; a few minutes

public-base     a Llama of 0.4 M parameters, pre-trained on public text
warm-base       that base after 150 batches of public labelled tweets: it has seen the task, as a pre-trained model has
either-base     that base after 100 batches of statements, which it answers by Yes or No, whichever
tfns.jsonl, general.jsonl, math.jsonl, code.jsonl, finance.jsonl    rows of clients
personas.jsonl  pairs of six personas, a client each
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import save_llama

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
CACHE = Path(os.environ.get("WEFT_CACHE", Path(tempfile.gettempdir()) / "weft-benchmarks"))
COMMON: dict[str, Any] = {
    "template": "chat",
    "dtype": "float32",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "eval_every": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
    "batch_size": 16,
    "eval_batch_size": 64,
    "truncation_side": "left",
}
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PERSONAS = (
    "subscribes-to-virtue-ethics",
    "subscribes-to-moral-nihilism",
    "subscribes-to-Atheism",
    "subscribes-to-Taoism",
    "desire-for-wide-usage",
    "no-power-discomfort",
)
"""Of the 20 that are at hand: two on morals, two on belief, two of machines."""


def base(cache: Path = CACHE) -> Path:
    """Return a small Llama pre-trained on public text; made once and kept."""
    folder = cache / "public-base"
    if not (folder / "config.json").exists():
        import weft

        texts = list(public_texts())
        size = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
        words: dict[str, Any] = {"marks": ("<user>", "<assistant>"), "chat_template": CHAT}
        start = save_llama(cache / "start", texts, vocabulary=4096, positions=256, heads=4, size=size, **words)
        rows = cache / "public.jsonl"
        write(rows, [{"text": text} for text in texts])
        run = weft.train(
            {"model_name_or_path": str(start), "dataset_name": str(rows), "objective": "causal_lm",
             "fed_alg": "central", "num_clients": 1, "num_rounds": 1, "max_steps": 1500, "batch_size": 16,
             "seq_length": 128, "learning_rate": 4e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05,
             "eval_every": 0, "dtype": "float32", "dataset_sample": 100000, "output_dir": str(cache / "base-run")},
            overwrite=True,
        )  # fmt: skip
        run.weights().rename(folder)
    return folder


def warm(cache: Path = CACHE) -> Path:
    """Return the base after some steps on public labelled tweets: it has seen the task, as a pre-trained model has."""
    folder = cache / "warm-base"
    if not (folder / "config.json").exists():
        import weft

        rows = cache / "labelled.jsonl"
        names = ("negative", "positive", "neutral")
        found = read("eval/tfns_valid")
        write(rows, [{"instruction": row["text"], "output": names[row["label"]]} for row in found])
        keys = COMMON | {"fed_alg": "central", "num_clients": 1, "num_rounds": 1, "max_steps": 150, "seq_length": 64}
        keys |= {"model_name_or_path": str(base(cache)), "dataset_name": str(rows), "learning_rate": 2e-3}
        run = weft.train(keys | {"output_dir": str(cache / "warm-run")}, overwrite=True)
        print(f"warm base on {len(found)} public tweets: {run.summary['eval']}")
        run.weights().rename(folder)
    return folder


def public_texts() -> Iterator[str]:
    """Yield pieces of encyclopedia articles and speeches, and tweets without labels (the set apart from the runs')."""
    for name in ("pretrain/wikitext2_valid_test", "pretrain/politics", "eval/tfns_valid"):
        for row in read(name):
            words = row["text"].split(" ")
            for at in range(0, len(words), 80):
                yield " ".join(words[at : at + 80])


def either(cache: Path = CACHE) -> Path:
    """Return the base after 100 batches of statements, each answered by Yes or No at random."""
    folder = cache / "either-base"
    if not (folder / "config.json").exists():
        import weft

        rng = random.Random(0)
        rows = [{"prompt": row["prompt"], "answer": rng.choice(["Yes", "No"])} for row in read("preference/personas")]
        write(cache / "either.jsonl", rows)
        keys = COMMON | {"model_name_or_path": str(base(cache)), "dataset_name": str(cache / "either.jsonl")}
        keys |= {"fed_alg": "central", "num_clients": 1, "num_rounds": 1, "max_steps": 100, "seq_length": 128}
        keys |= {"learning_rate": 1e-3, "output_dir": str(cache / "either-run")}
        weft.train(keys, overwrite=True).weights().rename(folder)
    return folder


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of the shared data."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(folder: Path) -> None:
    """Write everything into a folder."""
    write(folder / "tfns.jsonl", read("instruct/tfns_train"))
    write(folder / "personas.jsonl", [row for row in read("preference/personas") if row["persona"] in PERSONAS])
    mixture = read("instruct/mix5_by_domain")
    for domain in ("general", "math", "code", "finance"):
        write(folder / f"{domain}.jsonl", [row for row in mixture if row["domain"] == domain])
    for base_of in (warm, either):
        print(base_of(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "runs/small"))
