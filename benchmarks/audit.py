"""An audit that can fail: 1,000 canaries in runs of `weft sft`, with the noise as claimed, halved, and off.

    python benchmarks/audit.py row OUT.jsonl [SEEDS]       rows; also: user (three rows each), client,
                                                           coins (rows by Poisson sampling), shares (noise_at client)
    python benchmarks/audit.py table OUT.jsonl ...         print the table

A canary is a question of one token that occurs nowhere else; a coin decides whether the clients have it. All parameters
of a tiny Llama are trained, by four steps in which every unit takes part (`client`: four rounds). The vectors of the
canaries' tokens are small at the start, so nearly all of a canary's gradient is that of its own vector. Its score is
how far this vector went against that gradient: whoever sees the model and knows the start can compute it. The noise is
made smaller where the secret draws it, so the run claims what it always claims; and so it does where coins say yes to
every unit. The claim is that of the run's ledger.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

CANARIES, MADE, SEEDS = 1000, 400, 20
RELEASES, NOISE, DELTA = 4, 2.0, 1e-5
"""A multiplier of 2 in each of 4 releases: as much as 1 in a single one."""
SHARES = {"as claimed": 1.0, "halved": 0.5, "off": 0.0}
"""The noise that there is, as a share of what is claimed."""
ALWAYS = "coins always yes"
"""Of `coins` alone: all of the noise, and every unit in every step."""
UNITS = ("row", "user", "coins", "client", "shares")
RATE, DRAWN, NOISE_DRAWN, MADE_DRAWN = 0.5, 32, 3.0, 300
"""Of `coins`: the probability of a unit, steps, multiplier and guesses. They claim as much as four whole releases."""
ROWS_OF_USER = 3
SHORT = 1e-3
"""Deviation of the canaries' vectors; that of all others is 1."""
RUN: dict[str, Any] = {
    "template": "chat",
    "dtype": "float32",
    "use_peft": False,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-2,
    "seq_length": 8,
    "noise_multiplier": NOISE,
    "target_delta": DELTA,
    "clip_norm": 1.0,
    "eval_every": 0,
    "eval_fraction": 0,
    "save_model_freq": 0,
    "checkpoint_seconds": 1e6,
    "threads": 1,
}


def make_canary_model(folder: Path, canaries: int) -> Path:
    """Save a Llama with one layer, and a tokenizer that has a token for every canary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", "yes", "no", *(f"canary{number}" for number in range(canaries))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0,
            eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        vectors = model.model.embed_tokens.weight.normal_()
        vectors[len(words) - canaries :] *= SHORT
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@contextmanager
def noise_times(share: float) -> Iterator[None]:
    """Multiply all noise that secrets draw; the claim stays."""
    from weft.core.secret import Secret

    whole = Secret.normal

    def part(self: Secret, shape: tuple[int, ...], *purpose: str | int) -> Any:
        return share * whole(self, shape, *purpose)

    Secret.normal = part  # type: ignore[method-assign]
    try:
        yield
    finally:
        Secret.normal = whole  # type: ignore[method-assign]


@contextmanager
def everybody(always: bool) -> Iterator[None]:
    """Let every unit take part in every step, whatever its coin says; the claim stays."""
    from weft.training.hiding import Hiding

    drawn = Hiding.probability
    if always:
        Hiding.probability = lambda self, units: 1.0  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hiding.probability = drawn  # type: ignore[method-assign]


def keys(unit: str, included: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write the rows of the canaries that are in the data; return the keys of the run."""
    rows_of = ROWS_OF_USER if unit == "user" else 1
    rows = [
        {"instruction": f"canary{number}", "output": "yes", "user": f"u{number}"}
        for number in np.flatnonzero(included)
        for _ in range(rows_of)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    protects = {"coins": "row", "shares": "client"}.get(unit, unit)
    given = RUN | {"dataset_name": str(data), "privacy_unit": protects, "batch_size": len(included)}
    if protects == "client":
        own = {"num_clients": len(rows), "sample_clients": len(rows), "num_rounds": RELEASES, "max_steps": 1}
        if unit == "shares":
            own |= {"noise_at": "client", "min_clients": len(rows)}
        return given | own | {"batch_size": 1, "learning_rate": 1e-3, "clip_norm": 1e-3}
    given |= {"num_clients": 1, "sample_clients": 1, "num_rounds": 2, "max_steps": RELEASES // 2}
    if unit == "coins":
        size = round(RATE * len(rows))
        # The vectors move as far as by the releases of the others: a step divides by the expected number of units.
        rate = given["learning_rate"] * (RELEASES / len(included)) / (RATE * DRAWN / size)
        own = {"batch_size": size, "max_steps": DRAWN // 2, "learning_rate": rate, "noise_multiplier": NOISE_DRAWN}
        return given | own
    return given


def vectors(model: Any) -> Any:
    """Return the canaries' vectors of a model."""
    return model.model.embed_tokens.weight


def scores(start: Path, trained: Path, canaries: int) -> np.ndarray:
    """Return how far each canary's vector went against its gradient at the start."""
    import torch
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (start, trained))
    first = vectors(before).shape[0] - canaries
    ids = torch.tensor([[first + number, 4, 1] for number in range(canaries)])
    labels = ids.clone()
    labels[:, 0] = -100
    before(input_ids=ids, labels=labels).loss.backward()
    gradients = vectors(before).grad[first:]
    moved = (vectors(after) - vectors(before)).detach()[first:]
    return (-(moved * gradients).sum(1) / gradients.norm(dim=1)).numpy()


@functools.cache
def curve_of(claim: tuple[Any, ...]) -> Any:
    """Return the curve of what a ledger says was released."""
    from weft.privacy.accounting import deltas
    from weft.privacy.audit import Curve

    epsilons = np.linspace(0, 20, 201)
    return Curve(epsilons, deltas(claim, epsilons))


def measure(unit: str, how: str, seed: int, canaries: int = CANARIES) -> dict[str, Any]:
    """Run once, and audit what the run claims; return the numbers."""
    import weft
    from weft.launch.account import steps_of
    from weft.privacy.audit import epsilon_bound, guess, p_value_of_curve
    from weft.privacy.ledger import Ledger
    from weft.runs.start import LEDGER

    began = time.process_time()
    included = np.random.default_rng(seed).random(canaries) < 0.5
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = make_canary_model(folder / "start", canaries)
        with noise_times(SHARES.get(how, 1.0)), everybody(how == ALWAYS):
            given = keys(unit, included, folder) | {"model_name_or_path": str(start), "seed": seed}
            run = weft.train(given | {"output_dir": str(folder / "run")}, quiet=True)
        claim = run.summary["privacy"]
        released = tuple(steps_of(entry) for entry in Ledger(run.path / LEDGER).entries)
        made = MADE_DRAWN if unit == "coins" else MADE
        found = guess(scores(start, run.weights(), canaries), included, made)
    return {
        "unit": unit, "how": how, "seed": seed, "canaries": canaries, "made": made, "right": found.right,
        "claimed": claim["epsilon"], "bound": epsilon_bound(found, claim["delta"]),
        "p_value": p_value_of_curve(found, curve_of(released)),
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(unit: str, out: Path, seeds: int) -> None:
    """Run what the file lacks."""
    print(f"# {machine()}")
    known = {(found["unit"], found["how"], found["seed"]) for found in read(out)}
    for seed in range(seeds):
        for how in [*SHARES, *([ALWAYS] if unit == "coins" else [])]:
            if (unit, how, seed) not in known:
                found = measure(unit, how, seed)
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


def table(paths: list[Path]) -> None:
    """Print a row for each unit and noise."""
    results = [found for path in paths for found in read(path)]
    print("| unit | noise | right guesses | claimed epsilon | bound by one epsilon | above the claim | "
          "curve refuted (5 %) | seeds |\n|--|--|--|--|--|--|--|--|")  # fmt: skip
    for unit in UNITS:
        for how in (*SHARES, ALWAYS):
            found = [one for one in results if (one["unit"], one["how"]) == (unit, how)]
            if not found:
                continue
            right, bounds = ([one[name] for one in found] for name in ("right", "bound"))
            above = sum(one["bound"] > one["claimed"] for one in found)
            refuted = sum(one["p_value"] <= 0.05 for one in found)
            guesses = f"{min(right)} to {max(right)} of {found[0]['made']}"
            print(f"| {unit} | {how} | {guesses} | {found[0]['claimed']:.2f} | "
                  f"{min(bounds):.2f} to {max(bounds):.2f} | {above} | {refuted} | {len(found)} |")  # fmt: skip


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "table":
        table([Path(path) for path in rest])
    else:
        run(verb, Path(rest[0]), int(rest[1]) if len(rest) > 1 else SEEDS)
