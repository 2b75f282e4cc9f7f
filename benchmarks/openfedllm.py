"""OpenFedLLM's own main_sft.py beside Weft's same job, round by round in turn.

    python benchmarks/openfedllm.py CHECKOUT PYTHON [--model FOLDER] [--rounds N] [--dtypes float32 bfloat16]

CHECKOUT is a clone of https://github.com/rui-ye/OpenFedLLM, PYTHON an interpreter that runs it. Its versions of
libraries no longer read what the present ones write, so the model's folder is written for both. main_sft.py runs as it
is: with and without its gradient checkpointing, in a process of its own, which waits before every round until it is its
turn. The job is that of its README: LoRA of rank 32 on the query and value projections, 2 of 20 clients a round, 10
steps of 16 rows of at most 512 tokens, template alpaca, FedAvg, a trainer anew for every client and round. OpenFedLLM
has no option for bfloat16 without a quantised base: its arithmetic is float32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from common import machine, make_model, make_rows, median, verdict

DATA = "yahma/alpaca-cleaned"  # a name by which main_sft.py knows the columns; the rows are local
CLIENTS, SAMPLED, STEPS, BATCH, RANK, ALPHA = 20, 2, 10, 16, 32, 64
RATE = 5e-5
JOB = {
    "peft_lora_r": RANK,
    "peft_lora_alpha": ALPHA,
    "num_clients": CLIENTS,
    "sample_clients": SAMPLED,
    "num_rounds": 50,
    "max_steps": STEPS,
    "batch_size": BATCH,
    "seq_length": 512,
    "learning_rate": RATE,
    "template": "alpaca",
}
"""What both sides train, by names that both know."""
AIMS = {"float32": 2.5, "bfloat16": 4.0}
THEIRS = {"OpenFedLLM": "True", "OpenFedLLM, without checkpointing": "False"}


class Turns:
    """The near end of a pipe to the benchmark: waits for its turn, and reports what a round took."""

    def __init__(self) -> None:
        # Whatever else is printed goes to stderr, so that stdout carries reports alone.
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began: tuple[float, float] | None = None
        self.counts = {"rows": 0, "tokens": 0, "targets": 0}

    def say(self, **values: Any) -> None:
        """Send a report."""
        self.out.write(json.dumps(values) + "\n")
        self.out.flush()

    def next_round(self) -> None:
        """Report the round that ended, if any, and wait until the next may begin."""
        if self.began is not None:
            wall, cpu = self.began
            self.say(seconds=time.perf_counter() - wall, cpu=time.process_time() - cpu, **self.counts)
        if not sys.stdin.readline():
            os._exit(0)  # the benchmark has what it wants
        self.counts = dict.fromkeys(self.counts, 0)
        self.began = time.perf_counter(), time.process_time()


def run_theirs(checkout: str, flags: list[str]) -> None:
    """Run main_sft.py as it is. A round begins where it chooses its clients: there it waits for its turn."""
    turns = Turns()
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv = ["main_sft.py", *flags]
    import accelerate
    import federated_learning
    import peft
    import torch
    import transformers
    import trl

    choose, collate = federated_learning.get_clients_this_round, trl.DataCollatorForCompletionOnlyLM.torch_call

    def choose_in_turn(*args: Any, **kwargs: Any) -> Any:
        turns.next_round()
        return choose(*args, **kwargs)

    def count(self: Any, examples: Any) -> Any:
        batch = collate(self, examples)
        turns.counts["rows"] += len(batch["input_ids"])
        turns.counts["tokens"] += int(batch["attention_mask"].sum())
        turns.counts["targets"] += int((batch["labels"] != -100).sum())
        return batch

    federated_learning.get_clients_this_round = choose_in_turn
    trl.DataCollatorForCompletionOnlyLM.torch_call = count
    libraries = (transformers, trl, peft, accelerate, torch)
    turns.say(
        versions=", ".join(f"{library.__name__} {library.__version__}" for library in libraries),
        capability=torch.backends.cpu.get_cpu_capability(),
    )
    runpy.run_path("main_sft.py", run_name="__main__")


def run_ours(values: dict[str, Any]) -> None:
    """Run Weft's rounds, each in its turn."""
    turns = Turns()
    import torch
    import transformers
    from usual import weft_rounds

    from weft import config as configuration

    rounds = weft_rounds(configuration.build(values))
    turns.say(
        versions=f"Weft, transformers {transformers.__version__}, torch {torch.__version__}",
        capability=torch.backends.cpu.get_cpu_capability(),
    )
    while True:
        turns.next_round()
        sums = next(rounds).record.sums
        turns.counts = {"rows": sums["rows"], "tokens": sums["tokens"], "targets": sums["loss_tokens"]}


class Side:
    """A process that makes a round when told to."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.log = log.name
        self.about = self._report()
        self.rounds: list[dict[str, Any]] = []

    def _report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            text = Path(self.log).read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"It ended early:\n{text[-3000:]}")
        report: dict[str, Any] = json.loads(line)
        return report

    def round(self) -> dict[str, Any]:
        """Let it make a round, and return what that took."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._report())
        return self.rounds[-1]

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)


def write_rows(folder: Path) -> Path:
    """Write rows in alpaca's columns, where main_sft.py looks for them; return the file."""
    (folder / DATA).mkdir(parents=True)
    plain = make_rows(folder / "plain.jsonl", 8000, words=(4, 60))
    rows = [json.loads(line) | {"input": ""} for line in plain.read_text(encoding="utf-8").splitlines()]
    path = folder / DATA / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rewrite_tokenizer(folder: Path) -> None:
    """Write a tokenizer as earlier libraries read it: its class by its earlier name, merges as texts."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def their_flags(model: str, folder: Path, checkpointing: str) -> list[str]:
    """Return the flags of main_sft.py."""
    output = folder / f"theirs-{checkpointing}"
    output.mkdir()
    values = {
        "model_name_or_path": model,
        "dataset_name": DATA,
        "local_data_dir": f"{folder}/",
        "use_peft": "True",
        "fed_alg": "fedavg",
        **JOB,
        "gradient_checkpointing": checkpointing,
        "output_dir": output,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def our_keys(model: str, rows: Path, dtype: str) -> dict[str, Any]:
    """Return the keys of Weft's run."""
    return {
        "model_name_or_path": model,
        "dataset_name": str(rows),
        "use_peft": True,
        **JOB,
        "eval_fraction": 0,
        "dtype": dtype,
    }


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Begin all sides, let each make a round in turn, and print what rounds take."""
    rows = write_rows(folder)
    model = options.model or str(make_model(folder / "model"))
    if not options.model:
        rewrite_tokenizer(folder / "model")
    os.environ |= {"HF_HOME": str(folder / "hub"), "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    me = str(Path(__file__).resolve())
    commands = {
        name: [options.python, me, "--theirs", options.checkout, *their_flags(model, folder, checkpointing)]
        for name, checkpointing in THEIRS.items()
    }
    for dtype in options.dtypes:
        commands[f"Weft, {dtype}"] = [sys.executable, me, "--ours", json.dumps(our_keys(model, rows, dtype))]
    sides: dict[str, Side] = {}
    try:
        for number, (name, command) in enumerate(commands.items()):
            with open(folder / f"{number}.log", "wb") as log:
                sides[name] = Side(command, log)
            print(f"# {name}: {sides[name].about['versions']}", flush=True)
        for number in range(options.rounds + 1):  # the first warms up
            for name, side in sides.items():
                took = side.round()
                print(f"# round {number}, {name}: {took['seconds']:.1f} s, {took['cpu']:.1f} CPU s", flush=True)
    finally:
        for side in sides.values():
            side.end()
    capabilities = sorted({side.about["capability"] for side in sides.values()})
    print(f"# {machine()}; torch computes with {' and '.join(capabilities)}")
    report(sides, options.dtypes)


def report(sides: dict[str, Side], dtypes: list[str]) -> None:
    """Print the medians, and each of their sides as a multiple of each of ours."""
    print(f"{'':<34} {'s a round':>10} {'CPU s':>8} {'rows':>6} {'tokens':>8} {'targets':>8}")
    for name, side in sides.items():
        timed = side.rounds[1:]
        seconds, cpu = (median([one[key] for one in timed]) for key in ("seconds", "cpu"))
        counts = [round(sum(one[key] for one in timed) / len(timed)) for key in ("rows", "tokens", "targets")]
        print(f"{name:<34} {seconds:10.2f} {cpu:8.2f} {counts[0]:6d} {counts[1]:8,d} {counts[2]:8,d}")
    for dtype in dtypes:
        for theirs in THEIRS:
            pairs = list(zip(sides[theirs].rounds[1:], sides[f"Weft, {dtype}"].rounds[1:], strict=True))
            by_clock = median([one["seconds"] / other["seconds"] for one, other in pairs])
            by_cpu = median([one["cpu"] / other["cpu"] for one, other in pairs])
            name = f"{theirs} / Weft in {dtype} (CPU seconds: {by_cpu:.2f})"
            if theirs == "OpenFedLLM" and dtype in AIMS:
                print(verdict(name, by_clock, AIMS[dtype], most=False))
            else:
                print(f"{name:<66} {by_clock:8.3f}x")


def main() -> None:
    """Compare, or be one of the sides."""
    if sys.argv[1:2] == ["--theirs"]:
        run_theirs(sys.argv[2], sys.argv[3:])
        return
    if sys.argv[1:2] == ["--ours"]:
        run_ours(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("python", type=lambda path: str(Path(path).absolute()))
    parser.add_argument("--model", help="a folder that both read; default: a Llama of 7.4 M parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    with tempfile.TemporaryDirectory() as temporary:
        compare(parser.parse_args(), Path(temporary))


if __name__ == "__main__":
    main()
