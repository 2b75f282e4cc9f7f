"""Commands to try after the demo, on the files that it wrote."""

from __future__ import annotations

import shlex
from pathlib import Path

from weft.demo.hospitals import make_hospitals
from weft.demo.picture import FEDERATION, POOLED


def next_steps(folder: Path, seed: int) -> list[tuple[str, str]]:
    """Return pairs of a purpose and a command line, for a demo in `folder` with this seed."""
    federation, pooled = (folder / name.replace(" ", "_") for name in (FEDERATION, POOLED))
    question = make_hospitals(seed)[0].exam[0]["instruction"]
    chat = ["weft", "chat", str(federation / "finetuned"), "--prompt", question]
    compare = ["weft", "compare", str(federation / "finetuned"), str(pooled / "finetuned")]
    train = ["weft", "sft", "--model_name_or_path", str(federation / "pretrained")]
    train += ["--dataset_name", str(folder / "data" / "questions" / "a.jsonl"), "--template", "chat", "--use_peft"]
    train += ["--num_clients", "4", "--num_rounds", "5", "--seq_length", "128", "--learning_rate", "5e-3"]
    train += ["--output_dir", str(folder / "own")]
    return [
        ("ask the federation's model", shlex.join(chat)),
        ("see the federation beside the pooled data", shlex.join(compare)),
        ("train on rows of your own: put your file of {instruction, output} lines for a.jsonl", shlex.join(train)),
    ]
