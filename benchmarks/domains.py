"""The text and the tokenizer of benchmarks of pre-training, in one folder of less than 20 MB that can be carried."""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from pathlib import Path

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data")) / "pretrain"
LARGEST, HELD = 2_600_000, 40_000
"""Bytes of each domain that are trained on, at most, and that are held out."""


def prepare(
    folder: Path, *, source: Path = DATA, largest: int = LARGEST, held: int = HELD, vocabulary: int = 4096
) -> None:
    """Make the folder: `train/` and `held/` with a file for each domain, `held.jsonl` with all, and `tokenizer/`.

    Raises:
        SystemExit: the source holds no text.
    """
    from weft.data.vocabulary import train_tokenizer

    if (folder / "tokenizer" / "tokenizer.json").exists():
        return
    files = sorted(source.glob("*.jsonl.gz"))
    if not files:
        raise SystemExit(f"There is no *.jsonl.gz in '{source}': set WEFT_DATA to the folder that holds pretrain/.")
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder))
    sample: list[str] = []
    everything: list[str] = []
    for part in ("train", "held"):
        (made / part).mkdir()
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            # A document may be a whole book: passages, so that what is held out is a sample.
            texts = [part for line in file for part in passages(json.loads(line)["text"])]
        random.Random(0).shuffle(texts)
        held_texts, texts = cut(list(dict.fromkeys(texts)), held)
        kept, _ = cut(texts, largest)
        name = f"{domain_of(path)}.jsonl.gz"
        write(made / "train" / name, kept)
        write(made / "held" / name, held_texts)
        sample += kept[::7]
        everything += held_texts
    write(made / "held.jsonl.gz", everything)
    train_tokenizer(iter(sample), vocabulary).save_pretrained(made / "tokenizer")
    for part in ("train", "held", "held.jsonl.gz", "tokenizer"):
        (made / part).rename(folder / part)
    made.rmdir()


def passages(text: str, size: int = 4000) -> list[str]:
    """Return a text in parts of about `size` characters that end with a line."""
    parts, left = [], text
    while len(left) > size:
        at = left.find("\n", size) + 1 or len(left)
        parts.append(left[:at])
        left = left[at:]
    return [part for part in [*parts, left] if part.strip()]


def cut(texts: list[str], most: int) -> tuple[list[str], list[str]]:
    """Return texts of `most` bytes, and the rest."""
    size = 0
    for number, text in enumerate(texts):
        size += len(text.encode())
        if size > most:
            return texts[:number], texts[number:]
    return texts, []


def domain_of(path: Path) -> str:
    """Return the name of a file's domain, without the words by which Weft knows parts of data, such as `valid`."""
    return path.name.partition(".")[0].partition("_valid")[0]


def write(path: Path, texts: list[str]) -> None:
    """Write documents as JSON lines, compressed; the same texts give the same bytes."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))
