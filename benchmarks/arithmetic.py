"""Arithmetic learnt from rewards alone, federated beside every client alone; needs nothing but this repository.

    python benchmarks/arithmetic.py OUT.jsonl         run what OUT lacks: three seeds
    python benchmarks/arithmetic.py table OUT.jsonl   print the table

a + b for a and b of 0 to 4, asked in six ways: 150 problems, one client for every value of a, a fifth of each client's
held out (sums that it may have seen asked otherwise). A Llama of 0.1 M parameters is fine-tuned to answer any digit of
0 to 8, drawn at random; then it learns from the reward `exact` only. Everybody's held-out problems are asked: of the
shared model, and of each client's own (the mean and the best of five).
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

SEEDS = (1, 2, 3)
FORMS = ("{a}+{b}", "add {a} to {b}", "{a} and {b}", "{b} more than {a}", "sum {a} {b}", "{a} up by {b}")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'user' %}{{ '=' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
GRPO: dict[str, Any] = {
    "objective": "grpo",
    "reward": "exact",
    "num_clients": 0,
    "split_strategy": "by",
    "split_column": "owner",
    "sample_clients": 5,
    "num_rounds": 50,
    "max_steps": 10,
    "batch_size": 15,
    "num_generations": 16,
    "max_new_tokens": 3,
    "grpo_loss": "dr_grpo",
    "grpo_kl": 0.02,
    "seq_length": 32,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "eval_fraction": 0.2,
    "eval_every": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
}
ARMS: dict[str, dict[str, Any]] = {
    "local": {"fed_alg": "local", "eval_everybody": True},
    "fedavg": {},
    "central": {"fed_alg": "central", "batch_size": 75},
}


def make_base(folder: Path, seed: int, hidden: int = 64) -> Path:
    """Save a random Llama of two layers, and a tokenizer that has a token for every character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = sorted(set("0123456789=" + "".join(form.format(a="", b="") for form in FORMS)))
    names = ["<s>", "</s>", "<pad>", *characters]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.add_special_tokens(names[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(names),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems() -> list[dict[str, str]]:
    """All questions, each with its answer and its owner."""
    return [
        {"prompt": form.format(a=a, b=b), "answer": str(a + b), "owner": f"client_{a}"}
        for form in FORMS
        for a in range(5)
        for b in range(5)
    ]


def prepare(folder: Path, seed: int) -> tuple[str, str]:
    """Return a model that answers every question by some digit, and the file of the problems."""
    import weft

    rng = random.Random(seed)
    anything = [row | {"answer": str(rng.randrange(9))} for row in problems() for _ in range(20)]
    run = weft.train(
        {
            "model_name_or_path": str(make_base(folder / "base", seed)),
            "dataset_name": write(folder / "anything.jsonl", anything),
            "num_clients": 1,
            "sample_clients": 1,
            "num_rounds": 1,
            "max_steps": 60,
            "batch_size": 64,
            "seq_length": 32,
            "learning_rate": 3e-3,
            "eval_every": 0,
            "seed": seed,
            "output_dir": str(folder / "start"),
        },
        quiet=True,
    )
    return str(run.path / "model"), write(folder / "problems.jsonl", problems())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(path: Path) -> None:
    """Run what the file lacks."""
    import weft

    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base, data = prepare(folder, seed)
            for arm, changes in ARMS.items():
                if any((row["arm"], row["seed"]) == (arm, seed) for row in read(path)):
                    continue
                keys = GRPO | {"model_name_or_path": base, "dataset_name": data} | changes
                began = time.perf_counter()
                out = weft.train(keys | {"seed": seed, "output_dir": str(folder / arm)}, quiet=True)
                row = {"arm": arm, "seed": seed, "seconds": time.perf_counter() - began, "machine": machine()}
                if arm == "local":
                    owns = [one["own_on_everybody"]["reward"] for one in out.summary["models"]["clients"].values()]
                    row |= {"reward": statistics.mean(owns), "best": max(owns)}
                    row["at_home"] = out.summary["models"]["own"]["reward"]
                else:
                    row["reward"] = out.summary["eval"]["reward"]
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: value for key, value in row.items() if key != "machine"}, flush=True)


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds."""
    rows = read(path)
    print(rows[0]["machine"])
    print("| | right answers | seeds |\n|--|--|--|")
    shown = [(arm, "reward", arm) for arm in ARMS] + [
        ("local", "best", "local, the best client"),
        ("local", "at_home", "local, at home"),
    ]
    for arm, column, name in shown:
        values = [row[column] for row in rows if row["arm"] == arm]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"| {name} | {statistics.mean(values):.3f} ± {spread:.3f} | {len(values)} |")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table(Path(rest[0]))
    else:
        run(Path(verb))
