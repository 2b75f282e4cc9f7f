"""`weft evaluate` against lm-eval on one task of choices: the same model, prompts and log-probabilities.

    python benchmarks/evaluate.py [ROWS]

CPU seconds of scoring alone, in float32, with one thread, in turn: neither the start of Python nor the loading of the
model counts. The rows are tweets of TFNS where they are at hand, else of made-up words in its prompt; the model is
SmolLM2-135M-Instruct where it is at hand, else the 7 M Llama of the other benchmarks. Needs lm-eval.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, make_model, make_rows, report

NAME = "lm-eval / weft evaluate, TFNS by likelihood, float32"
LABELS = ("negative", "neutral", "positive")
PROMPT = (
    "Instruction: What is the sentiment of this tweet? Please choose an answer from {negative/neutral/positive}.\n"
    "Input: %s\nAnswer:"
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TWEETS = Path(os.environ.get("WEFT_DATA", SHARED)) / "eval" / "tfns_valid.jsonl.gz"
MODEL = Path.home() / ".cache" / "weft-models" / "SmolLM2-135M-Instruct"
TURNS = 3


def texts(folder: Path, count: int) -> list[str]:
    """Return the texts that are asked about."""
    if TWEETS.exists():
        lines = gzip.decompress(TWEETS.read_bytes()).decode().splitlines()[:count]
        return [json.loads(line)["text"] for line in lines]
    rows = make_rows(folder / "rows.jsonl", count, words=(8, 24)).read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["instruction"] for row in rows]


def ours(model: Any, prompts: list[str]) -> list[list[float]]:
    """Return the log-probabilities of the labels by Weft."""
    from weft.tasks.prompts import Prompt
    from weft.tasks.requests import Choices

    return [list(reply.logps) for reply in model.score_choices([Choices(Prompt(text), LABELS) for text in prompts])]


def theirs(model: Any, prompts: list[str]) -> list[list[float]]:
    """Return the same by lm-eval's own model class."""
    from lm_eval.api.instance import Instance

    pairs = [(text, f" {label}") for text in prompts for label in LABELS]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    values = [float(logp) for logp, _ in model.loglikelihood(asked, disable_tqdm=True)]
    return [values[at : at + len(LABELS)] for at in range(0, len(values), len(LABELS))]


def main() -> None:
    """Print the ratio, the median of some turns, and the largest difference of a log-probability."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        report(NAME, None, 2.5, most=False, needs="lm-eval: pip install 'weft[harness]'")
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from weft.launch.subject import of_model

    torch.set_num_threads(1)
    print(f"# {machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = MODEL if MODEL.exists() else make_model(Path(temporary) / "model")
        prompts = [PROMPT % text for text in texts(Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else 64)]
        weft_model = of_model(str(folder), {"device": "cpu", "dtype": "float32"}, chat=False, batch_size=16).model
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        other = HFLM(pretrained=plain, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=16)
        ratios, values = [], []
        for _ in range(TURNS):
            taken = []
            for score, model in ((ours, weft_model), (theirs, other)):
                began = time.process_time()
                values.append(score(model, prompts))
                taken.append(time.process_time() - began)
            ratios.append(taken[1] / taken[0])
            print(f"{len(prompts)} rows: Weft {taken[0]:.2f}, lm-eval {taken[1]:.2f} CPU seconds")
        gap = (torch.tensor(values[0]) - torch.tensor(values[1])).abs().max()
        print(f"largest difference of a log-probability: {gap:.1e}")
    report(NAME, sorted(ratios)[TURNS // 2], 2.5, most=False)


if __name__ == "__main__":
    main()
