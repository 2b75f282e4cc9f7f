"""The text and the tokenizer of `frontier.py`, in one folder of less than 20 MB that is carried to another machine."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path

from pretraining import DATA, cut, passages

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
        # Without the words by which Weft knows parts of a data set, such as `valid`.
        name = f"{path.name.partition('.')[0].partition('_valid')[0]}.jsonl.gz"
        write(made / "train" / name, kept)
        write(made / "held" / name, held_texts)
        sample += kept[::7]
        everything += held_texts
    write(made / "held.jsonl.gz", everything)
    train_tokenizer(iter(sample), vocabulary).save_pretrained(made / "tokenizer")
    for part in ("train", "held", "held.jsonl.gz", "tokenizer"):
        (made / part).rename(folder / part)
    made.rmdir()


def write(path: Path, texts: list[str]) -> None:
    """Write documents as JSON lines, compressed; the same texts give the same bytes."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))
