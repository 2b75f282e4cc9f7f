"""What the benchmarks share: a 7 M parameter Llama with its own tokenizer, rows, and a clock."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "ri",
    "so",
    "tu",
    "va",
    "we",
    "xi",
    "yo",
    "zu",
]


def make_rows(path: Path, count: int, *, words: tuple[int, int], seed: int = 0) -> Path:
    """Write `count` question-answer rows of made-up words; `words` bounds the length of question and answer."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(2000)]

    def text() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(*words)))

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"instruction": text(), "output": text()}) + "\n")
    return path


def make_model(folder: Path, *, hidden: int = 256, layers: int = 8, vocabulary: int = 4096) -> Path:
    """Save a random Llama (7.4 M parameters by default) and a byte-level BPE tokenizer trained on made-up words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from weft.data.templates import ALPACA, VICUNA

    rng = random.Random(1)
    corpus = [" ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(50)) for _ in range(2000)]
    # A tokenizer of the real world knows English, so a template's own words do not take a token a letter.
    corpus += [text for template in (ALPACA, VICUNA) for text in (template.preamble, template.question)] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 43 // 16,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def seconds(action: Callable[[], Any], *, times: int = 5) -> list[float]:
    """Run an action once to warm up and then `times` times; return the seconds of each."""
    action()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return taken


def bare_steps(model: Any, objective: Any, windows: list[list[Any]]) -> None:
    """A plain loop: forward, backward, clip, step; Weft's model, precision, batches and optimizer, and nothing else."""
    import torch

    model.model.train()
    optimizer = torch.optim.AdamW(list(model.masters.values()), lr=1e-4, weight_decay=0.0, fused=True)
    for window in windows:
        loss = objective.loss(model, window[0].to(model.device))
        (loss.total / loss.targets).backward()
        model.collect_grads()
        torch.nn.utils.clip_grad_norm_(list(model.masters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.sync()


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def machine() -> str:
    """Say what the numbers were measured on."""
    import torch

    bf16 = ", AVX512-BF16" if "avx512_bf16" in (cpuinfo := _cpuinfo()) else ""
    name = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line), platform.machine()
    )
    return f"{name}, {os.cpu_count()} cores{bf16}, torch {torch.__version__}, Python {platform.python_version()}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def verdict(name: str, value: float, bound: float, *, most: bool, unit: str = "x") -> str:
    """Return a line of the table: the value, its bound, and whether it is met."""
    met = value <= bound if most else value >= bound
    wanted = f"{'at most' if most else 'at least'} {bound}{unit}"
    return f"{name:<66} {value:8.3f}{unit:<2} ({wanted}) {'met' if met else 'MISSED'}"
