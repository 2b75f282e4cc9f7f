"""What the benchmarks share: a 7 M parameter Llama with its own tokenizer, rows, and a clock."""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    from weft.data.templates import ALPACA, VICUNA

    rng = random.Random(1)
    corpus = [" ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(50)) for _ in range(2000)]
    # A tokenizer of the real world knows English, so a template's own words do not take a token a letter.
    corpus += [text for template in (ALPACA, VICUNA) for text in (template.preamble, template.question)] * 50
    size = {"hidden_size": hidden, "intermediate_size": hidden * 43 // 16, "num_hidden_layers": layers}
    return save_llama(folder, corpus, vocabulary=vocabulary, positions=512, heads=hidden // 32, size=size)


def save_llama(
    folder: Path,
    corpus: Sequence[str],
    *,
    vocabulary: int,
    positions: int,
    heads: int,
    size: Mapping[str, int],
    marks: Sequence[str] = (),
    chat_template: str | None = None,
) -> Path:
    """Save a random Llama, always the same, and a byte-level BPE tokenizer trained on a corpus.

    Args:
        folder: where.
        corpus: texts.
        vocabulary: tokens, of which 3 are begin, end and padding.
        positions: tokens of the longest row.
        heads: attention heads, each with keys and values of its own.
        size: hidden_size, intermediate_size and num_hidden_layers.
        marks: further texts that are one token each.
        chat_template: of the tokenizer.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<pad>", *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=positions
    )
    fast.chat_template = chat_template
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            **size,
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
    """Return the middle value, or the mean of the two in the middle."""
    return statistics.median(values)


def capability() -> str:
    """Say which instructions torch uses on this CPU, and whether bfloat16 products are the hardware's own."""
    import torch

    from weft.models.precision import cpu_has_bfloat16

    known = torch.backends.cpu.get_cpu_capability()
    return f"{known}, bfloat16 {'in hardware' if cpu_has_bfloat16() else 'emulated: float32 is used'}"


def machine() -> str:
    """Say what the numbers were measured on."""
    import torch

    name = next(
        (line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if "model name" in line), platform.machine()
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {capability()}, {versions}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


class Result(NamedTuple):
    """A figure that the project claims, with its bound."""

    name: str
    value: float | None
    """None: not measured, since this machine cannot."""
    bound: float
    most: bool
    """Whether the value has to be at most the bound, or at least."""
    unit: str = "x"
    needs: str = ""
    """What has to be there to measure it, where it is not measured."""

    def line(self) -> str:
        """Return the line of a table: name, value, bound, held or not."""
        wanted = f"{'at most' if self.most else 'at least'} {self.bound:g}{self.unit}"
        if self.value is None:
            return f"{self.name:<78} {'':>9}   {wanted:<14} not here: {self.needs}"
        held = self.value <= self.bound if self.most else self.value >= self.bound
        return f"{self.name:<78} {self.value:8.3f}{self.unit:<2}  {wanted:<14} {'held' if held else 'NOT HELD'}"


RESULTS = "WEFT_BENCH_RESULTS"
"""The environment variable that names the file to which results are appended, for the table of `run.py`."""


def report(name: str, value: float | None, bound: float, *, most: bool, unit: str = "x", needs: str = "") -> None:
    """Print a result, and add it to the table of all; `value` None and `needs`: it cannot be measured here."""
    result = Result(name, value, bound, most, unit, needs)
    print(result.line(), flush=True)
    if file := os.environ.get(RESULTS):
        with open(file, "a", encoding="utf-8") as table:
            table.write(json.dumps(result._asdict()) + "\n")


class Moment(NamedTuple):
    """A line of a command's progress, and what its process had used by then."""

    event: str
    cpu: float
    """Seconds of user and system time."""
    peak: int
    """Most bytes of memory."""
    record: dict[str, Any]


class Command:
    """A verb of `weft` in a process of its own, which can be stopped between rounds while another one runs."""

    def __init__(self, verb: str, **keys: object) -> None:
        """Begin it; `keys` are its flags."""
        flags = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        words = [sys.executable, "-m", "weft.cli", verb, "--json", *flags]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def moments(self) -> Iterator[Moment]:
        """Yield its rounds, evaluations and its end, as they come; SystemExit if it fails."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                record = json.loads(line)
                yield Moment(record.pop("event"), *_used(self.process.pid), record)
        if self.process.wait():
            raise SystemExit(f"the command ended with exit code {self.process.returncode}")

    def pause(self) -> None:
        """Stop the process until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the process go on."""
        self.process.send_signal(signal.SIGCONT)


def follow(verb: str, **keys: object) -> list[Moment]:
    """Run a verb of `weft` in a process of its own; return its rounds and evaluations, and its end."""
    return list(Command(verb, **keys).moments())


def _used(pid: int) -> tuple[float, int]:
    """Return the CPU seconds and the peak memory of a process that runs."""
    import psutil

    process = psutil.Process(pid)
    times = process.cpu_times()
    peak = next((int(line.split()[1]) * 1024 for line in _status(pid) if line.startswith("VmHWM")), 0)
    return times.user + times.system, peak or process.memory_info().rss


def _status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def verdict(name: str, value: float, bound: float, *, most: bool, unit: str = "x") -> str:
    """Return the line of a result, for benchmarks that are not part of the table of all."""
    return Result(name, value, bound, most, unit).line()
