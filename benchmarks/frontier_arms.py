"""The arms of `frontier.py`: what each trains, and in which order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

BEST = "best"
"""In place of a learning rate: the best of the grid, of the arms that have been run for the same kind of training. In
place of an outer step: the best of those that have been run with four clients and 25 steps."""
GRID = (4e-3, 2e-3, 8e-3, 1e-3)
"""Learning rates that every kind of training is tuned over, at 4 M parameters; the likely ones first."""
FALLBACK, FALLBACK_OUTER = 4e-3, "mean"
"""Where no such arm has been run."""
OUTER: dict[str, dict[str, Any]] = {
    "law": {},  # the defaults of `weft.algorithms.outer`
    "nesterov": {"momentum": 0.9},
    "decay": {"momentum": 0.9, "outer_decay": 0.5},
    "corrected": {"momentum": 0.9, "bias_correction": True, "outer_warmup": 0.1, "outer_decay": 0.5},
    "light": {"outer_lr": 0.9, "momentum": 0.5, "outer_decay": 0.25},
    "mean": {"outer_lr": 1.0, "momentum": 0.0},
    "averaged": {"outer_lr": 1.0, "momentum": 0.0, "inner_state": "average"},  # AdamW's moments travel too
    "lookahead": {"outer_lr": 0.5, "momentum": 0.0},
    "delay": {"delay": 1},  # of `law`: what sending while training costs
    "delay_fragments": {"delay": 1, "fragments": 4},
}
"""Outer steps of DiLoCo by name, as `fed_args`."""


@dataclass(frozen=True)
class Setting:
    """What all arms of a table have in common."""

    shapes: dict[str, dict[str, int]]
    steps: int
    """Optimizer steps of one global batch; each client makes as many, of its share of the batch."""
    rows: int
    """Rows of a global batch, which K clients share: rows // K each."""
    length: int
    """Tokens of a row, at most."""
    vocabulary: int = 4096


FULL = Setting(
    {
        "4m": {"hidden_size": 256, "num_layers": 4, "num_heads": 4},
        "15m": {"hidden_size": 512, "num_layers": 4, "num_heads": 8},
    },
    steps=1500,
    rows=64,
    length=128,
)
"""Few and wide layers: a small model on a GPU is bound by the number of kernels."""
SMALL = Setting(
    {size: {"hidden_size": 96, "num_layers": 2, "num_heads": 3} for size in FULL.shapes}, steps=300, rows=16, length=64
)
"""For a CPU, in minutes."""
TINY = Setting(
    {size: {"hidden_size": 16, "num_layers": 1, "num_heads": 2} for size in FULL.shapes}, steps=10, rows=8, length=16
)
SETTINGS = {"full": FULL, "small": SMALL, "tiny": TINY}


@dataclass(frozen=True)
class Arm:
    """One training."""

    size: str = "4m"
    algorithm: str = "diloco"
    """central, data_parallel, fedavg, diloco or local."""
    clients: int = 4
    inner: int = 25
    """Steps between exchanges."""
    codec: str = "none"
    """none, int4 (both ways) or sparse_loco (up, int4 down)."""
    optimizer: str = "adamw"
    lr: str = BEST
    outer: str = BEST
    """A key of OUTER, or BEST."""
    split: str = "iid"
    """iid, or domain: a client for each of the nine domains."""
    steps: int = 0
    """0: those of the setting."""
    rows: int = 0
    """Of a global batch; 0: those of the setting."""
    half_life: int = 1
    """Times that of the recipe, of AdamW's second moment and Muon's momentum, in steps: of K clients with a K-th of
    the batch each, K is the recipe's in tokens, as small batches ask for (Marek et al. 2025, arXiv 2507.07101)."""
    seed: int = 1

    @property
    def name(self) -> str:
        """The words by which `parse` makes the arm."""
        given = asdict(self)
        return " ".join(f"{key}={value}" for key, value in given.items() if value != getattr(Arm(), key)) or "size=4m"

    @property
    def kind(self) -> tuple[str, str]:
        """What shares a learning rate: training of one batch, or that of several clients; and the optimizer."""
        pooled = self.algorithm in ("central", "data_parallel") or self.clients == 1
        return "pooled" if pooled else "clients", self.optimizer


def parse(line: str) -> Arm:
    """Return the arm of a line such as `clients=4 inner=10 codec=int4 optimizer=muon lr=0.002`; SystemExit."""
    types = {field.name: field.type for field in fields(Arm)}
    values: dict[str, Any] = {}
    for word in line.split():
        key, separator, value = word.partition("=")
        if key not in types or not separator:
            raise SystemExit(f"'{word}' is no setting of an arm: write {', '.join(types)}, each as name=value.")
        values[key] = int(value) if types[key] == "int" else value
    return Arm(**values)


def read_arms(path: Path | None) -> list[Arm]:
    """Return the arms of a file, one a line; without one, `default_arms`."""
    if path is None:
        return default_arms()
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse(line) for line in lines if line.strip() and not line.startswith("#")]


def default_arms() -> list[Arm]:
    """Return all arms, the most telling ones first."""
    central, four = Arm(algorithm="central", clients=1, inner=0, outer="law"), Arm()
    both = ("muon", "adamw")
    tuned = [(lr, optimizer) for lr in GRID for optimizer in both]
    arms = [
        replace(arm, optimizer=o, lr=str(lr)) for lr, o in tuned[:4] for arm in (central, replace(four, outer="mean"))
    ]
    arms += [replace(central, optimizer=o, lr=str(lr)) for lr, o in tuned[4:]]
    arms += [replace(four, optimizer=o, outer="mean", lr=str(lr)) for lr, o in tuned[4:]]
    arms += [Arm(clients=1, outer="law", optimizer=o) for o in both]
    arms += [replace(four, optimizer=o, outer=outer) for outer in ("light", "law", "decay") for o in both]
    for changes in (
        {"codec": "int4"},  # some 190 times fewer bytes than data parallel
        {"clients": 8},
        {"inner": 10},
        {"inner": 50},
        {"codec": "int4", "inner": 10},
        {"codec": "sparse_loco", "outer": "mean"},
        {"clients": 2},
        {"clients": 1, "outer": "nesterov"},
        {"codec": "int4", "inner": 50},
        {"algorithm": "fedavg", "outer": "law"},
        {"outer": "corrected"},
        {"clients": 1, "outer": "lookahead"},
        {"codec": "sparse_loco", "inner": 10, "outer": "mean"},
    ):
        arms += [replace(four, optimizer=o, **changes) for o in both]
    for o in both:
        arms += [replace(arm, size="15m", optimizer=o) for arm in (central, four, replace(four, codec="int4"))]
    again = [Arm(clients=1, outer="law"), four, replace(four, codec="int4"), replace(four, clients=8)]
    arms += [replace(arm, optimizer=o, seed=seed) for seed in (2, 3) for o in both for arm in (central, *again)]
    nine = replace(four, split="domain", clients=9)
    arms += [replace(arm, optimizer=o) for o in both for arm in (nine, replace(nine, algorithm="local", outer="law"))]
    arms += [replace(four, optimizer=o, inner=5, codec=codec) for codec in ("none", "int4") for o in both]
    arms += [Arm(algorithm="data_parallel", inner=1, steps=150, outer="law"), replace(central, steps=150)]
    return list(dict.fromkeys(arms))


def keys_of(arm: Arm, setting: Setting, data: Path, device: str) -> dict[str, Any]:
    """Return the keys of an arm's run; its learning rate and its outer step are chosen.

    Equal are the text, the tokenizer, the starting weights (of the seed), the number of steps, the rows of a global
    batch (K clients have rows // K each in every step), the schedule over all steps, and the held-out text.
    """
    from weft.commands.pretrain import RECIPE

    steps, pooled = arm.steps or setting.steps, arm.algorithm in ("central", "data_parallel")
    inner = arm.inner or steps
    keys: dict[str, Any] = RECIPE | setting.shapes[arm.size]
    keys |= {
        "tokenizer": str(data / "tokenizer"),
        "seq_length": setting.length,
        "device": device,
        "dtype": "bfloat16" if device.startswith("cuda") else "float32",
        "compile": "off",  # auto compiles long runs only, and arms should compute alike
        "optimizer": arm.optimizer,
        "learning_rate": float(arm.lr),
        "adam_beta2": RECIPE["adam_beta2"] ** (1 / arm.half_life),
        "seed": arm.seed,
        "num_clients": arm.clients,
        "sample_clients": arm.clients,
        "client_weight": "uniform",
        "batch_size": max(1, (arm.rows or setting.rows) // arm.clients),
        "num_rounds": max(1, steps // inner),
        "max_steps": inner,
        "eval_rows": None,
        "eval_every": 0,
        "eval_batch_size": 128,
        "save_model_freq": 0,
        "checkpoint_seconds": 1e6,
        "report": False,
        "threads": 1,
    }
    if arm.optimizer == "muon":
        keys |= {"muon_momentum": 0.95 ** (1 / arm.half_life)}
    keys |= _data(arm, data)
    keys |= {"fed_alg": {"data_parallel": "fedsgd"}.get(arm.algorithm, arm.algorithm)}
    if arm.algorithm in ("central", "local"):
        keys |= {"keep_moments": True}
    if arm.algorithm == "diloco":
        keys |= {"fed_args": OUTER[arm.outer]}
    if arm.codec != "none" and not pooled:
        keys |= {"codec": arm.codec, "codec_down": "int4"}
    if arm.algorithm in ("central", "local"):
        del keys["sample_clients"], keys["client_weight"]
    return keys


def _data(arm: Arm, data: Path) -> dict[str, Any]:
    if arm.split == "iid":
        names = {"dataset_name": str(data / "train"), "eval_dataset_name": str(data / "held.jsonl.gz")}
        return names | {"split_strategy": "iid"}
    files = sorted((data / "train").iterdir())
    clients = [
        {"name": file.name.partition(".")[0], "data": str(file), "eval": str(data / "held" / file.name)}
        for file in files
    ]
    personal = {"personal_steps": 50} if arm.algorithm == "diloco" else {}
    return {"clients": clients, "num_clients": None, "eval_everybody": True, **personal}
