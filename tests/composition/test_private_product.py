"""The product of parts under a budget: every pair runs in one run or another, or is refused in words.

What is allowed is written down here by names, apart from the traits by which the plan decides.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_pairs import PROMPTS, TASKS
from test_product import ALGORITHMS, KINDS, SEEDS, allowed

import weft
from support.covering_array import Row, covering, pairs_in
from support.results import events
from support.rows import colour_rows, write_rows
from weft import registry
from weft.config import build
from weft.errors import ConfigError
from weft.launch import compose

pytest.importorskip("dp_accounting")
SUMS = {
    *("fedavg", "fedsgd", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "feddyn", "diloco"),
    *("ditto", "fedkseed"),
}
"""Algorithms that step from one sum of what clients send."""
ONE_MEAN = ("average", "ffa", "rolora", "merge", "fedsa", "fedsb", "dual")
"""LoRA aggregations that take the mean of factors."""
PRIVATE: dict[str, object] = {"privacy_unit": "client", "noise_multiplier": 1.0, "num_clients": 4, "sample_clients": 2}
AXES = {
    "algorithm": sorted(SUMS),
    "aggregation": list(ONE_MEAN),
    "kind": [*KINDS, *PROMPTS],
    "task": ["sft", "text", "dpo", "grpo"],
    "sampling": ["uniform", "poisson", "size"],
    "noise": ["server", "client"],
    "bound": ["adaptive", "0.3"],
    "down": ["none", "int8"],
}


def goes_together(row: Row) -> bool:
    fed_alg, lora, kind, task, sampling, noise, _, down = row
    if down != "none" and (fed_alg == "fedkseed" or lora == "merge"):
        return False
    if noise == "client" and sampling == "poisson":
        return False  # a cohort of chance seldom has the shares
    if kind in PROMPTS:
        return lora == "average" and task == "sft"
    return allowed(fed_alg, lora, kind)


CHOSEN = covering(AXES, goes_together)


def test_every_pair_is_there():
    every = [row for row in itertools.product(*AXES.values()) if goes_together(row)]
    assert pairs_in(CHOSEN) == pairs_in(every)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rows = Path(tmp_path_factory.mktemp("rows")), colour_rows(60)
    kinds = {
        "sft": rows,
        "text": [{"text": f"{row['instruction']} {row['output']}"} for row in rows],
        "dpo": [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no colour"} for row in rows],
    }
    return {name: str(write_rows(folder / f"{name}.jsonl", made)) for name, made in kinds.items()}


@pytest.mark.parametrize(tuple(AXES), CHOSEN)
def test_every_pair_of_parts_trains_two_private_rounds(
    keys,
    sources,
    algorithm: str,
    aggregation: str,
    kind: str,
    task: str,
    sampling: str,
    noise: str,
    bound: str,
    down: str,
):
    changes = PRIVATE | {"fed_alg": algorithm, "lora_aggregation": aggregation, "num_rounds": 2, "max_steps": 1}
    changes |= (KINDS | PROMPTS)[kind] | TASKS[task] | {"client_sampling": sampling, "noise_at": noise}
    changes |= {"clip_norm": bound, "codec_down": down, "min_clients": 2 if noise == "client" else 0}
    changes["dataset_name"] = sources.get(task, sources["sft"])
    if algorithm == "fedkseed":
        changes["fed_args"] = {"seeds": 64}  # with noise on its sum, every direction is drawn in every rebuild
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["rounds"] == 2
    assert run.summary["failures"] == {}
    first, second = (line["epsilon"] for line in events(run))
    assert 0 < first < second
    assert run.summary["privacy"]["releases"] == 2


REFUSED = [
    (fed_alg, lora)
    for fed_alg, lora in itertools.product([*ALGORITHMS, "fedbpt", "fedtext"], registry.LORA_AGGREGATIONS)
    if fed_alg not in SUMS or (lora not in ONE_MEAN)
]


def test_every_other_algorithm_and_aggregation_is_refused_with_what_can(keys):
    assert len(REFUSED) > 100
    for fed_alg, lora in REFUSED:
        changes = PRIVATE | {"fed_alg": fed_alg, "lora_aggregation": lora, "model_name_or_path": "there/is/none"}
        with pytest.raises(ConfigError) as refused:
            compose.plan(build(keys | changes))
        said = str(refused.value)
        assert any(remedy in said for remedy in ("write", "add", "leave out", "choose")), said
        assert "\n" not in said


ROWS: dict[str, object] = {"noise_multiplier": 1.0, "num_clients": 4, "sample_clients": 2, "target_delta": 1e-3}
ROW_AXES = {
    "algorithm": ["fedavg", "scaffold", "fedadamw", "fednova", "fedbuff", "ditto", "diloco", "local", "central"],
    "aggregation": ["average", "ffa", "stack", "residual", "fedsa", "dual"],
    "kind": [*KINDS, *PROMPTS],
    "task": ["sft", "text", "dpo", "kto"],
    "unit": ["row", "person"],
    "codec": ["none", "int4"],
    "down": ["none", "int8"],
}
"""Of what is done with updates, those that differ most: all that follows from noisy gradients is free."""


def rows_go_together(row: Row) -> bool:
    fed_alg, lora, kind, task, unit, codec, down = row
    if unit == "person" and task == "text":
        return False
    if (codec, down) != ("none", "none") and (fed_alg not in ("fedavg", "ditto") or lora == "stack"):
        return False
    if kind in PROMPTS:
        return lora == "average" and task == "sft"
    return allowed(fed_alg, lora, kind)


CHOSEN_ROWS = covering(ROW_AXES, rows_go_together)


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same rows as sources of each task; each person has two of them."""
    folder, rows = Path(tmp_path_factory.mktemp("persons")), colour_rows(60)
    kinds = {
        "sft": [dict(row) for row in rows],
        "text": [{"text": f"{row['instruction']} {row['output']}"} for row in rows],
        "dpo": [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no colour"} for row in rows],
    }
    for made in kinds.values():
        for number, row in enumerate(made):
            row["person"] = f"p{number // 2}"
    return {name: str(write_rows(folder / f"{name}.jsonl", made)) for name, made in kinds.items()}


@pytest.mark.parametrize(tuple(ROW_AXES), CHOSEN_ROWS)
def test_every_pair_of_parts_trains_two_rounds_on_hidden_rows(
    keys, persons, algorithm: str, aggregation: str, kind: str, task: str, unit: str, codec: str, down: str
):
    changes = ROWS | {"fed_alg": algorithm, "lora_aggregation": aggregation, "num_rounds": 2, "max_steps": 1}
    changes |= (KINDS | PROMPTS)[kind] | TASKS[task] | {"privacy_unit": unit, "codec": codec, "codec_down": down}
    changes["dataset_name"] = persons[task if task in persons else "dpo"]
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["rounds"] == 2
    assert run.summary["failures"] == {}
    first, second = (line["epsilon"] for line in events(run))
    assert 0 < first < second
    assert run.summary["privacy"]["unit"] == unit
    assert all(line["train_loss"] is None for line in events(run))


def test_with_hidden_rows_that_alone_is_refused_which_is_refused_anyway_or_has_no_gradients(keys):
    """Every algorithm with every aggregation: an update of noisy gradients may be used for anything."""
    private, refused = ROWS | {"privacy_unit": "row", "model_name_or_path": "there/is/none"}, 0
    for fed_alg, lora in itertools.product(ALGORITHMS, registry.LORA_AGGREGATIONS):
        changes = {"fed_alg": fed_alg, "lora_aggregation": lora, "max_steps": 1}
        if allowed(fed_alg, lora, "lora") and fed_alg not in SEEDS:
            compose.plan(build(keys | private | changes))
            continue
        refused += 1
        with pytest.raises(ConfigError, match=r"write|leave out|add|choose") as caught:
            compose.plan(build(keys | private | changes))
        assert "\n" not in str(caught.value)
    assert refused > 20


OWN = Path(__file__).parents[1] / "support" / "mixing_parts.py"
NOT_WITH_ROWS: dict[str, tuple[dict[str, object], str, str]] = {
    "grpo": (TASKS["grpo"], "has no loss of single rows", "weft sft"),
    "a loss of one's own": ({"objective": f"{OWN}:Whole"}, "has no loss of single rows", "weft sft"),
    "perturbed embeddings": ({"adversarial_training": True}, "has no loss of single rows", "--adversarial_training"),
    "a term of one's own": ({"fed_alg": f"{OWN}:Bent"}, "adds a term to the loss", "--fed_alg"),
    "few-shot prompts": ({"few_shot": 2}, "before all its others", "leave out --few_shot"),
    "public rows in batches": ({"public_data": "x", "public_share": 0.5}, "need no hiding", "leave out --public_data"),
    "public rows in rounds": ({"public_data": "x"}, "need no hiding", "leave out --public_data"),
    "fsdp": ({"parallel": "fsdp", "use_peft": False}, "in one process", "leave out --parallel"),
    "tensor parallel": ({"parallel": "tensor", "use_peft": False}, "in one process", "leave out --parallel"),
    "layers on the CPU": ({"model_offload": "cpu"}, "in memory", "model_offload"),
    "layers on disk": ({"model_offload": "disk"}, "in memory", "model_offload"),
    "clusters": ({"cluster": 2}, "by the loss of its rows", "leave out --cluster"),
    "fedkseed": ({"fed_alg": "fedkseed"}, "learns without gradients", "--fed_alg fedavg"),
    "float16": ({"dtype": "float16"}, "not scaled", "--dtype bfloat16"),
    "recomputed activations": ({"gradient_checkpointing": True}, "recomputation calls them twice", "leave out"),
    "weights by gain": ({"client_weight": "gain"}, "by numbers of their rows", "--client_weight size"),
    "an adaptive bound": ({"clip_norm": "adaptive"}, "follows the norms", "--clip_norm 1"),
    "noise in shares": ({"noise_at": "client"}, "every client adds", "leave out --noise_at"),
}


@pytest.mark.parametrize("unit", ["row", "person"])
@pytest.mark.parametrize(("given", "why", "remedy"), NOT_WITH_ROWS.values(), ids=NOT_WITH_ROWS.keys())
def test_what_rows_cannot_be_hidden_with_is_refused_before_a_model_is_loaded(keys, persons, unit, given, why, remedy):
    changes = ROWS | {"privacy_unit": unit, "model_name_or_path": "there/is/none"} | given
    with pytest.raises(ConfigError) as refused:
        compose.plan(build(keys | changes))
    said = str(refused.value)
    assert why in said
    assert remedy in said
    assert "\n" not in said


def test_words_of_all_clients_are_counted_under_no_budget(keys):
    text = {"federated_tokenizer": True, "size": "5m", "model_name_or_path": None, "use_peft": False}
    for unit in ("client", "row"):
        with pytest.raises(ConfigError, match=r"no budget covers: write --tokenizer"):
            compose.plan(build(keys | ROWS | {"privacy_unit": unit} | TASKS["text"] | text))


def test_a_term_of_the_loss_that_is_not_stated_is_refused_at_the_first_step(keys):
    with pytest.raises(ConfigError, match=r"_Bends adds a term to the loss of several rows together.*batch_loss"):
        weft.train(keys | ROWS | {"privacy_unit": "row", "fed_alg": f"{OWN}:Silent"}, quiet=True)


def test_what_is_off_or_other_under_a_budget_of_rows_is_said_once(keys, persons, capsys):
    changes = ROWS | {"privacy_unit": "person", "num_rounds": 1, "max_steps": 1, "dataset_name": persons["dpo"]}
    weft.train(keys | changes | TASKS["kto"], quiet=False)
    said = "".join(capsys.readouterr())
    assert said.count("rows are not packed, and activations are not recomputed") == 1
    assert said.count("KTO's z, a mean over other rows' answers, is 0 here") == 1
