"""What is left of a client that a run forgets: exactly, by its updates, by ascent; and what the record of rounds costs.

    python benchmarks/forgetting.py [--seeds 3] [--arms LoRA full]

Three clients, 48 rows each of made-up questions with made-up numbers for answers, so that a client's rows can only be
remembered; half of each is held out. A Llama of some 40 k parameters, 10 rounds of 24 steps: all weights from random
ones, or a LoRA on a base that has learnt 48 other rows. The client `c1` is forgotten. Each score is the mean over
seeds and its deviation.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

METHODS = ("before", "ascent", "update", "exact")
COMMON: dict[str, Any] = {
    "max_steps": 24, "batch_size": 6, "learning_rate": 2e-2, "template": "vicuna", "seq_length": 256, "eval_every": 0,
    "eval_fraction": 0.5, "dtype": "float32", "lr_scheduler_type": "constant",
}  # fmt: skip
LORA: dict[str, Any] = {
    "use_peft": True, "peft_lora_r": 16, "peft_lora_alpha": 32, "peft_lora_dropout": 0.0,
    "peft_lora_target_modules": "all-linear",
}  # fmt: skip


def write_rows(path: Path, client: int, count: int, seed: int) -> str:
    """Write rows that only this client has."""
    lots = random.Random(f"{seed} {client}")
    rows = [
        {"instruction": f"Number of ward {client} case {n}?", "output": str(lots.randrange(1000))} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def model(folder: Path) -> str:
    """Write a random Llama with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), max_position_embeddings=512, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def train_base(folder: Path, base: str, seed: int) -> str:
    """Train all weights on rows that no client has; return the model."""
    import weft

    keys = {"model_name_or_path": base, "dataset_name": write_rows(folder / "c9.jsonl", 9, 48, seed), "num_rounds": 10}
    keys |= {"fed_alg": "central", "use_peft": False, "seed": seed, "output_dir": str(folder / "learnt")}
    return str(weft.train(COMMON | keys).path / "model")


def forget(run: Path, *words: str) -> Path:
    """Run `weft forget`."""
    from weft.cli import main

    out = run.with_name(f"{run.name}-{len(list(run.parent.iterdir()))}")
    code = main(["forget", str(run), "--client", "c1", "--yes", "--quiet", "--output_dir", str(out), *words])
    assert code == 0
    return out


def one(folder: Path, base: str, seed: int, **more: Any) -> dict[str, dict[str, float]]:
    """Train, forget in three ways, and return the scores."""
    import weft

    clients = [{"name": f"c{n}", "data": write_rows(folder / f"c{n}.jsonl", n, 48, seed)} for n in range(3)]
    keys = {"model_name_or_path": base, "clients": clients, "sample_clients": 3, "num_rounds": 10, "keep_updates": True}
    run = weft.train(COMMON | keys | more | {"seed": seed, "output_dir": str(folder / "run")}).path
    exact = forget(run)
    found: dict[str, dict[str, float]] = {}
    for method in ("update", "ascent"):
        cheap = forget(run, "--method", method, "--exact", str(exact))
        found |= json.loads((cheap / "forgotten.json").read_text())["scores"]
    return found


def record() -> None:
    """Print what digests of an update, and of a state with a server optimizer's memory, cost for each 32 MB."""
    import torch

    from weft.core.types import ServerState, Update
    from weft.core.witness import reply_digest, state_digest

    params = {f"layer_{n}": torch.randn(1 << 18) for n in range(32)}
    update = Update("c", 0, 0, {"delta": params}, 1.0)
    state = ServerState(params, {"exp_avg": params, "exp_avg_sq": params})
    for name, work in (("reply", lambda: reply_digest(update)), ("state with moments", lambda: state_digest(state))):
        times = []
        for _ in range(5):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        print(f"digest of a {name}, 8 M parameters: {1000 * min(times):.0f} ms")


def spread(values: list[float]) -> str:
    """Return mean and deviation."""
    deviation = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=["LoRA", "full"], choices=["LoRA", "full"])
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    print(machine())
    record()
    for name in arguments.arms:
        more = LORA if name == "LoRA" else {"use_peft": False}
        all_scores = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                base = model(Path(folder) / "base")
                if name == "LoRA":
                    base = train_base(Path(folder), base, seed)
                all_scores.append(one(Path(folder), base, seed, **more))
        for method in METHODS:
            some = [scores[method] for scores in all_scores]
            loss, membership = (spread([score[key] for score in some]) for key in ("loss", "membership"))
            again = ", ".join(
                "more than 20" if score["relearning"] is None else str(score["relearning"]) for score in some
            )
            print(f"{name:5} {method:8} loss {loss}  membership {membership}  relearning {again}")


if __name__ == "__main__":
    main()
