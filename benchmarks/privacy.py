"""Quality against epsilon, by unit and by size of the model; needs the shared data (WEFT_DATA).

    python benchmarks/privacy.py run --out DIR [--only WORD ...]    run the cells that DIR lacks, and keep each there
    python benchmarks/privacy.py table --out DIR                    print the tables of what DIR has

`--only row seed1` runs the cells whose names have all of these words, so that several processes share the work; a
process that is stopped loses the cell at hand alone. `--large` runs four times the rounds, in cells of their own.

Tweets and their sentiment (TFNS), stories260K with a LoRA of rank 8 on every linear layer, A frozen (`ffa`). `row` and
`user` (two tweets each): two clients, the noise in each step. `client`: 100 or 1,000 clients, Poisson cohorts, the
noise at the server. Runs without privacy have as many rows, steps and clients in a round. Learning rate and bound were
chosen among two on seed 0; that choice is not part of epsilon. All are measured on 300 tweets of another set (100 for
SmolLM2-135M), which count as public.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common import machine

DATA = Path(os.environ.get("WEFT_DATA", "../shared/data"))
TINY = DATA.parent / "models" / "stories260K"
SMOL = Path(os.environ.get("WEFT_SMOL", Path.home() / ".cache" / "weft-models" / "SmolLM2-135M-Instruct"))
LABELS = ("negative", "positive", "neutral")
SEEDS, ROWS_OF_USER = (1, 2, 3), 2
HELD_OUT, HELD_OUT_REAL, CHARACTERS = 300, 100, 60
UNITS = ("row", "user", "client100", "client1000")
EPSILONS = (1.0, 3.0, 8.0, None)
DEPTHS = (1, 3, 5)
"""Layers that are kept of the five of stories260K."""

COMMON: dict[str, Any] = {
    "template": "chat",
    "dtype": "float32",
    "lr_scheduler_type": "constant",
    "truncation_side": "left",
    "seq_length": 96,
    "held_out_overlap": "leave_out",
    "eval_every": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
    "eval_batch_size": 64,
    "use_peft": True,
    "peft_lora_r": 8,
    "peft_lora_alpha": 16,
    "peft_lora_dropout": 0.0,
    "peft_lora_target_modules": ["all-linear"],
    "lora_aggregation": "ffa",
    "client_weight": "uniform",
    "threads": 1,
}
OF_UNIT: dict[str, dict[str, Any]] = {
    "row": {"num_clients": 2, "sample_clients": 2, "num_rounds": 5, "max_steps": 3, "batch_size": 64},
    "user": {"num_clients": 2, "sample_clients": 2, "num_rounds": 5, "max_steps": 3, "batch_size": 32},
    "client100": {"num_clients": 100, "sample_clients": 20, "num_rounds": 10, "max_steps": 1, "batch_size": 8},
    "client1000": {"num_clients": 1000, "sample_clients": 100, "num_rounds": 10, "max_steps": 1, "batch_size": 4},
}
"""The shape of the runs; a step of `user` has as many rows as one of `row`."""
RATE, RATE_OF_CLIENTS = 1e-2, 3e-2
"""Learning rates; the second of `client` with noise, whose bound scales steps of any size down."""
REAL: dict[str, Any] = {
    "dtype": "auto",
    "num_rounds": 1,
    "max_steps": 4,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "peft_lora_target_modules": ["q_proj", "v_proj"],
    "threads": 2,
}
"""What differs for SmolLM2-135M."""
REAL_CELLS: tuple[tuple[str, float | None], ...] = (("row", None), ("row", 8.0), ("user", 8.0))
"""Its units and budgets; without privacy the unit makes no difference."""


class Cell(NamedTuple):
    """A run."""

    table: str
    """"units", "sizes" (of the model), or "real" (SmolLM2-135M)."""
    unit: str
    epsilon: float | None
    seed: int
    layers: int = 5
    large: bool = False

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        budget = "none" if self.epsilon is None else f"eps{self.epsilon:g}"
        words = [self.table, self.unit, budget, f"seed{self.seed}", f"layers{self.layers}"]
        return "-".join(words + ["large"] * self.large)


def cells(large: bool) -> Iterator[Cell]:
    """Yield all runs, those of a seed together."""
    for seed in SEEDS:
        for unit in UNITS:
            for epsilon in EPSILONS:
                yield Cell("units", unit, epsilon, seed, large=large)
        for layers in DEPTHS:
            for budget in (8.0, None):
                if layers != max(DEPTHS):  # the whole model is in the first table
                    yield Cell("sizes", "row", budget, seed, layers, large)
    for unit, budget in REAL_CELLS:
        yield Cell("real", unit, budget, 1, 30, large)


def data(folder: Path, held_out: int, most: int | None) -> tuple[Path, Path]:
    """Write the tweets of the clients and so many public ones, shuffled; return both files.

    Tweets are shortened to `most` characters here, and not by `seq_length`: a row that is cut on the left to so many
    tokens in all tells by the place of its answer how long the answer is, and so which one.
    """
    train, public = folder / "train.jsonl", folder / "public.jsonl"

    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        random.Random(0).shuffle(rows)
        return rows

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    # A user's rows are at one client, which the column "site" names; public rows are split like the others.
    rows = [
        {"instruction": row["input"][:most], "output": row["output"], "user": f"u{number // ROWS_OF_USER}"}
        for number, row in enumerate(read("instruct/tfns_train"))
    ]
    write(train, [row | {"site": f"s{number // ROWS_OF_USER % 2}"} for number, row in enumerate(rows)])
    rows = [
        {"instruction": row["text"][:most], "output": LABELS[row["label"]], "site": f"s{number % 2}"}
        for number, row in enumerate(read("eval/tfns_valid")[:held_out])
    ]
    write(public, rows)
    return train, public


def shallow(layers: int, folder: Path) -> Path:
    """Return stories260K with its first layers only, and a template of few tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = folder / f"layers{layers}"
    model = AutoModelForCausalLM.from_pretrained(TINY)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}:{% endif %}{{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    tokenizer.save_pretrained(path)
    return path


def keys(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the keys of a run; write its data into a folder."""
    real = cell.table == "real"
    train, public = data(folder, *((HELD_OUT_REAL, None) if real else (HELD_OUT, CHARACTERS)))
    given = COMMON | OF_UNIT[cell.unit]
    given |= {"dataset_name": str(train), "eval_dataset_name": str(public), "seed": cell.seed}
    hidden = cell.unit.startswith("client") and cell.epsilon is not None
    given["learning_rate"] = RATE_OF_CLIENTS if hidden else RATE
    given["model_name_or_path"] = str(SMOL if real else shallow(cell.layers, folder))
    if real:
        given |= REAL | {"batch_size": REAL["batch_size"] // (ROWS_OF_USER if cell.unit == "user" else 1)}
    if cell.large:
        given["num_rounds"] *= 4
    if cell.unit == "user":
        if cell.epsilon is None:  # the same rows a step
            given["batch_size"] *= ROWS_OF_USER
        given |= {"split_strategy": "by", "split_column": "site"}
    if cell.epsilon is not None:
        unit = "client" if hidden else cell.unit
        delta = 1e-3 if cell.unit == "client100" else 1e-4
        given |= {"privacy_unit": unit, "target_epsilon": cell.epsilon, "target_delta": delta}
        given |= {"client_sampling": "poisson", "clip_norm": 0.3} if unit == "client" else {"clip_norm": 1.0}
    return given


def measure(cell: Cell, **changes: Any) -> dict[str, Any]:
    """Run a cell; return its numbers."""
    import weft

    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = keys(cell, folder) | changes
        run = weft.train(given | {"output_dir": str(folder / "run")}, quiet=True)
        summary = run.summary
    privacy = summary.get("privacy") or {}
    return {
        "cell": cell._asdict(),
        "changes": changes,
        **{name: summary["eval"].get(name) for name in ("loss", "accuracy", "macro_f1")},
        **{name: privacy.get(name) for name in ("epsilon", "delta", "noise_multiplier")},
        "learning_rate": given["learning_rate"],
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def untrained(cell: Cell) -> dict[str, Any]:
    """Return the numbers of the model before training, which every gain is measured from."""
    return measure(cell._replace(epsilon=None), num_rounds=1, max_steps=1, learning_rate=1e-12)


def run(out: Path, only: list[str], large: bool) -> None:
    """Run the cells that the folder lacks, and one for the start of each model."""
    import torch

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    print(f"# {machine()}")
    for cell in cells(large):
        names = cell.name.split("-")
        if not set(only) <= set(names):
            continue
        start = f"start-{'real' if cell.table == 'real' else 'tiny'}-layers{cell.layers}"
        jobs = [(start, untrained, cell._replace(unit="row", seed=1, large=False)), (cell.name, measure, cell)]
        for name, action, of in jobs:
            file = out / f"{name}.json"
            if not file.exists():
                found = action(of)
                draft = file.with_suffix(f".{os.getpid()}.tmp")
                draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                draft.rename(file)
                print(f"{name}: loss {found['loss']:.4f} accuracy {found['accuracy']} "
                      f"in {found['cpu_seconds']:.0f} CPU s", flush=True)  # fmt: skip


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Return all results, by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def line(words: list[str], found: dict[str, dict[str, Any]], like: list[Cell]) -> str:
    """Return a row of a table: cells that differ in their seeds, beside those without privacy."""
    start = found[f"start-{'real' if like[0].table == 'real' else 'tiny'}-layers{like[0].layers}"]["loss"]
    mine = [found[cell.name] for cell in like]
    others = [cell._replace(epsilon=None, unit="row" if cell.table == "real" else cell.unit) for cell in like]
    plain = [found[cell.name]["loss"] for cell in others if cell.name in found]
    kept = "-"
    if like[0].epsilon is not None and len(plain) == len(mine):
        kept = spread([(start - one["loss"]) / (start - other) for one, other in zip(mine, plain, strict=True)], 2)
    noise = mine[0]["noise_multiplier"]
    numbers = [spread([one[name] for one in mine]) for name in ("loss", "accuracy", "macro_f1")]
    return f"| {' | '.join([*words, '-' if noise is None else f'{noise:.2f}', *numbers, kept, str(len(mine))])} |"


def table(out: Path, large: bool) -> None:
    """Print the tables."""
    found = read(out)
    for name, result in found.items():
        if name.startswith("start"):
            print(f"{name}: loss {result['loss']:.3f}, accuracy {result['accuracy']:.3f}")
    whole = max(DEPTHS)
    rows = [[Cell("units", u, e, s, large=large) for s in SEEDS] for u in UNITS for e in EPSILONS]
    depth = [
        [Cell("units" if n == whole else "sizes", "row", e, s, n, large) for s in SEEDS]
        for n in DEPTHS
        for e in (8.0, None)
    ]
    real = [[Cell("real", unit, epsilon, 1, 30, large)] for unit, epsilon in REAL_CELLS]
    for head, groups in (("unit", rows), ("layers", depth), ("SmolLM2-135M", real)):
        print(f"\n| {head} | epsilon | z | loss | accuracy | macro-F1 | share of the gain kept | seeds |")
        print("|--" * 8 + "|")
        for group in groups:
            there = [cell for cell in group if cell.name in found]
            if there:
                first = str(there[0].layers) if head == "layers" else there[0].unit
                budget = "none" if there[0].epsilon is None else f"{there[0].epsilon:g}"
                print(line([first, budget], found, there))


def main(words: list[str]) -> None:
    """Run or print what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args(words)
    if given.verb == "run":
        run(given.out, given.only, given.large)
    else:
        table(given.out, given.large)


if __name__ == "__main__":
    main(sys.argv[1:])
