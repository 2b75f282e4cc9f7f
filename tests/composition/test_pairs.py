"""Every pair of parts: algorithms, LoRA aggregations, kinds of training, objectives, ways to compute a step, codecs.

Some of each are in one run.

`make test` runs these; test_product.py runs every algorithm with every one of the others for itself (`make test-all`).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from test_product import ALGORITHMS, BASELINES, KINDS, ROBUST, SEEDS, WITH_RULES, allowed

import weft
from support.covering_array import Row, covering, pairs_in
from support.rows import colour_rows, write_rows
from weft import registry
from weft.models import varlen
from weft.objectives import chunks

PROMPTS: dict[str, dict[str, object]] = {"soft": {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4}}
"""One of the methods: to an algorithm they are all some vectors (test_prompt.py has the others)."""
TASKS: dict[str, dict[str, object]] = {
    "sft": {},
    "text": {"objective": "causal_lm", "template": None},
    "mixed tasks": {
        "objective": "causal_lm",
        "template": None,
        "pretraining_task": "prefix=0.8",
        "mixture": "temperature",
        "mixture_column": "kind",
    },
    "grpo": {"objective": "grpo", "reward": "length", "max_new_tokens": 4, "num_generations": 2, "batch_size": 2},
}
TASKS |= {
    loss: {"objective": "preference", "loss": loss} for loss in ("dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo")
}
PATHS: dict[str, dict[str, object]] = {
    "as chosen": {},  # gradient_checkpointing and kernels are auto
    "recomputed": {"gradient_checkpointing": True, "kernels": "none"},
    "float16": {"dtype": "float16"},
    "8 bits": {"load_in_8bit": True, "int8_threshold": 0.0},
    "muon": {"optimizer": "muon"},
    "chunks": {},
    "offsets": {},
}
"""How a step is computed; the last two are chosen by size and device, and are forced below."""
CODECS = tuple(name for name in registry.CODECS if name != "none")
MIDDLES = {"pretraining_task": "fim=0.4,prefix=0.4"}
"""What "mixed tasks" are where embeddings are trained: an adapter learns no new marks, and is refused."""
OUTER = {"bias_correction": True, "outer_warmup": 0.5, "outer_decay": 0.5}
NEW_BASIS = ("stack", "svd", "merge")
"""Aggregations after which the factors of the next round are others."""
MEASURED = {"sft": "loss", "text": "bits_per_byte", "mixed tasks": "prefix_loss", "grpo": "reward"}
AXES = {
    "algorithm": ALGORITHMS,
    "aggregation": list(registry.LORA_AGGREGATIONS),
    "kind": [*KINDS, *PROMPTS],
    "task": list(TASKS),
    "path": list(PATHS),
    "codec": ["none", *CODECS],
}


def goes_together(row: Row) -> bool:
    fed_alg, lora, kind, task, path, codec = row
    if codec != "none" and (fed_alg in BASELINES | SEEDS or lora in NEW_BASIS):
        return False  # refused in words: nothing is sent, or what was not sent is of another basis
    if (path == "8 bits" and kind not in ("lora", "rslora")) or (path == "recomputed" and fed_alg in SEEDS):
        return False  # both are refused in words: nothing to train in 8 bits, and no gradients to recompute for
    if path == "muon" and (fed_alg in {"fedadamw", "fedsgd"} | SEEDS or kind in PROMPTS):
        return False  # refused in words: AdamW's moments, or no matrix inside the model
    if kind in PROMPTS:  # of the tasks, prompts are for questions
        return lora == "average" and task == "sft"
    return allowed(fed_alg, lora, kind)


CHOSEN = covering(AXES, goes_together)
DELAYED = [row for row in CHOSEN if row[0] == "diloco" and row[1] != "rolora"][::2]
"""Combinations in which updates travel while the next round is trained; RoLoRA is refused with it."""
KEPT = [row for row in CHOSEN if row[0] in BASELINES][::2]
"""Combinations in which a baseline's moments go on from round to round."""


def rules() -> list[str]:
    """Return the aggregator of every chosen combination: a robust rule in turn, where an algorithm goes with one."""
    place = {fed_alg: start for start, fed_alg in enumerate(WITH_RULES)}
    found = []
    for fed_alg, lora, *_ in CHOSEN:
        fits = fed_alg in WITH_RULES and lora not in ("stack", "svd", "residual")
        found.append(ROBUST[place[fed_alg] % len(ROBUST)] if fits else "mean")
        if fits:
            place[fed_alg] += 1
    return found


AGGREGATORS = rules()


def test_every_algorithm_and_every_robust_rule_are_there_and_most_of_their_pairs():
    """The others are in test_product.py."""
    met = {(row[0], rule) for row, rule in zip(CHOSEN, AGGREGATORS, strict=True) if rule != "mean"}
    every = set(itertools.product(WITH_RULES, ROBUST))
    assert {one for pair in met for one in pair} == {*WITH_RULES, *ROBUST}
    assert met <= every
    assert len(met) > 0.8 * len(every)


def test_every_pair_is_there_and_many_triples_are_not():
    every = [row for row in itertools.product(*AXES.values()) if goes_together(row)]
    assert pairs_in(CHOSEN) == pairs_in(every)
    assert len(CHOSEN) < len(every) / 5
    assert len({row[1] for row in DELAYED}) > 2
    assert {row[0] for row in KEPT} == BASELINES
    assert {row[4] for row in KEPT} >= {"as chosen", "muon"}
    assert set(CHOSEN) <= set(every)


def test_a_covering_array_is_nearly_as_small_as_the_known_smallest():
    """Four factors of three values: nine rows are enough (the orthogonal array L9), and greed needs few more."""
    rows = covering(dict.fromkeys("wxyz", "abc"), lambda row: True)
    assert pairs_in(rows) == pairs_in(list(itertools.product("abc", repeat=4)))
    assert 9 <= len(rows) <= 13


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small file of rows for each kind of task: one step of a few rows is taken of it, and four are held out."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [row | {"prompt": row["instruction"]} for row in colour_rows(40)]
    kinds = {
        "sft": rows,
        "text": [{"text": f"{row['instruction']} {row['output']}"} for row in rows],
        "mixed tasks": [
            {"text": f"{row['instruction']} {row['output']}", "kind": "ab"[place % 2]} for place, row in enumerate(rows)
        ],
        "pairs": [row | {"chosen": row["output"], "rejected": "no colour"} for row in rows],
        "kto": [row | {"completion": row["output"], "label": place % 2 == 0} for place, row in enumerate(rows)],
    }
    return {name: str(write_rows(Path(folder) / f"{name}.jsonl", found)) for name, found in kinds.items()}


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The keys of a way to compute a step, which is forced where no key names it."""
    if request.param == "8 bits":
        pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    if request.param == "chunks":  # of five targets, as if the vocabulary had millions of tokens
        monkeypatch.setattr(chunks, "MOST", 5 * 640)
    if request.param == "offsets":  # as on CUDA; on a CPU row by row
        monkeypatch.setattr(varlen, "use", lambda model, device, dtype: varlen.install(model))
    return PATHS[request.param]


@pytest.mark.parametrize(
    (*AXES, "rule"), [(*row, rule) for row, rule in zip(CHOSEN, AGGREGATORS, strict=True)], indirect=["path"]
)
def test_every_pair_of_parts_trains_two_rounds(
    keys: dict[str, object],
    sources: dict[str, str],
    algorithm: str,
    aggregation: str,
    kind: str,
    task: str,
    path: dict[str, object],
    codec: str,
    rule: str,
):
    changes = {"fed_alg": algorithm, "lora_aggregation": aggregation, "num_rounds": 2, "eval_every": 0, "max_steps": 1}
    changes |= (KINDS | PROMPTS)[kind] | TASKS[task] | path
    # Both ways, where neither is refused: test_codecs.py has the refusals.
    changes |= {"codec": codec} if algorithm not in ("scaffold", "feddyn") else {}
    changes |= {"codec_down": codec} if algorithm != "fedbuff" else {}
    if rule != "mean":
        none = {} if rule == "foolsgold" else {"attackers": 0}
        changes |= {"aggregator": rule, "aggregator_args": none, "sample_clients": 3}
    rows = {(algorithm, aggregation, kind, task, way, codec) for way, own in PATHS.items() if own == path}
    if not rows.isdisjoint(DELAYED):
        changes |= {"fed_args": {"delay": 1}, "sample_clients": 3}
    elif algorithm == "diloco":
        changes |= {"fed_args": OUTER}
    changes |= {"keep_moments": True} if not rows.isdisjoint(KEPT) else {}
    changes |= MIDDLES if task == "mixed tasks" and kind == "full" else {}
    changes["dataset_name"] = sources["sft" if task == "grpo" else task if task in sources else "pairs"]
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["rounds"] == 2
    assert run.summary["failures"] == {}
    assert math.isfinite(run.summary["eval"][MEASURED.get(task, "preference_accuracy")])
    assert ("fim_loss" in run.summary["eval"]) == ("fim" in str(changes.get("pretraining_task")))
    known = kind in ("lora", "rslora") and algorithm not in BASELINES | SEEDS and aggregation != "fedsa"
    known = known and rule == "mean"  # the error is that of a mean
    assert (run.summary["product_error"] is not None) == known
